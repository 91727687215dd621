package dag

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
)

// Dump writes a graph as text, the same for equal graphs, for people and for tests.
func Dump(g *Graph) string {
	var b strings.Builder
	for i := range g.Steps {
		dumpStep(&b, &g.Steps[i])
	}
	fmt.Fprintf(&b, "target %d\n", g.Target)
	if g.Epoch != nil {
		fmt.Fprintf(&b, "epoch %d\n", g.Epoch.Unix())
	}
	if g.BaseName != "" {
		fmt.Fprintf(&b, "base %s %s\n", g.BaseName, g.BaseDigest)
	}
	fmt.Fprintf(&b, "config %s author=%q\n", platforms.FormatAll(g.Config.Platform), g.Config.Author)
	dumpConfig(&b, g.Config.Config)
	for _, h := range g.History {
		layer := "-"
		if h.Step != None {
			layer = fmt.Sprint(h.Step)
		}
		fmt.Fprintf(&b, "history %s %q", layer, h.CreatedBy)
		if h.Created != nil {
			fmt.Fprintf(&b, " at %d", h.Created.Unix())
		}
		b.WriteString("\n")
	}
	for _, w := range g.Warnings {
		b.WriteString("warning " + w.String() + "\n")
	}
	return b.String()
}

// dumpConfig writes the fields that are set, one a line, sorted.
func dumpConfig(b *strings.Builder, config any) {
	var fields map[string]json.RawMessage
	text, err := json.Marshal(config)
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		fmt.Fprintf(b, "    %v\n", err)
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(b, "    %s %s\n", k, fields[k])
	}
}

func dumpStep(b *strings.Builder, s *Step) {
	fmt.Fprintf(b, "%d %T", s.ID, s.Op)
	if len(s.Inputs) > 0 {
		fmt.Fprintf(b, " %v", s.Inputs)
	}
	fmt.Fprintf(b, " %q", s.Name)
	if s.Pos.Start.Line > 0 {
		fmt.Fprintf(b, " %s", s.Pos)
	}
	if s.StageIndex >= 0 && s.Stage != "" {
		fmt.Fprintf(b, " stage=%s", s.Stage)
	}
	if s.NoCache {
		b.WriteString(" no-cache")
	}
	if s.Platform.OS != "" {
		b.WriteString(" " + platforms.FormatAll(s.Platform))
	}
	b.WriteString("\n")
	line := func(format string, args ...any) { fmt.Fprintf(b, "    "+format+"\n", args...) }
	switch op := s.Op.(type) {
	case Image:
		line("ref %s", op.Ref)
		line("layers %d", len(op.DiffIDs))
	case Context:
		line("context %q", op.Name)
	case Mkdir:
		line("mkdir %q user=%q", op.Path, op.User)
	case Copy:
		dumpCopy(line, op)
	case Run:
		dumpRun(line, op)
	}
}

func placeOf(src CopySource) string {
	if src.Place == "" {
		return ""
	}
	return string(src.Place) + " "
}

func dumpCopy(line func(string, ...any), op Copy) {
	for _, src := range op.Sources {
		if src.Inline {
			line("inline %q %q", src.Path, src.Data)
		} else {
			line("from %s%q", placeOf(src), src.Path)
		}
	}
	line("to %q", op.Dest)
	if op.Add {
		line("add")
	}
	dumpField(line, "chown", op.Chown)
	dumpField(line, "chmod", op.Chmod)
	if op.Link {
		line("link")
	}
	if op.Parents {
		line("parents")
	}
	if len(op.Exclude) > 0 {
		line("exclude %q", op.Exclude)
	}
	if op.Unpack != nil {
		line("unpack %v", *op.Unpack)
	}
}

func dumpRun(line func(string, ...any), op Run) {
	line("args %q", op.Args)
	line("env %q", op.Env)
	if len(op.ProxyEnv) > 0 {
		line("proxy %q", op.ProxyEnv)
	}
	line("dir %q", op.Dir)
	dumpField(line, "user", op.User)
	if op.Network != "default" {
		line("network %s", op.Network)
	}
	if op.Security != "sandbox" {
		line("security %s", op.Security)
	}
	dumpField(line, "hostname", op.Hostname)
	for _, f := range op.Files {
		line("file %s %o %q", f.Name, f.Mode, f.Data)
	}
	for _, m := range op.Mounts {
		line("mount %s", dumpMount(m))
	}
}

func dumpField(line func(string, ...any), name, value string) {
	if value != "" {
		line("%s %q", name, value)
	}
}

func dumpMount(m Mount) string {
	words := []string{string(m.Type), m.Target}
	add := func(name string, set bool, value any) {
		if set {
			words = append(words, fmt.Sprintf("%s=%v", name, value))
		}
	}
	add("input", m.Input >= 0, m.Input)
	add("source", m.Input >= 0, m.Source)
	add("ro", m.ReadOnly, true)
	add("size", m.Size != 0, m.Size)
	add("id", m.ID != "", m.ID)
	add("namespace", m.Namespace != "", m.Namespace)
	add("sharing", m.Sharing != "", m.Sharing)
	add("required", m.Required, true)
	add("env", m.Env != "", m.Env)
	if m.Mode != nil {
		add("mode", true, fmt.Sprintf("%#o", *m.Mode))
	}
	if m.UID != nil {
		add("uid", true, *m.UID)
	}
	if m.GID != nil {
		add("gid", true, *m.GID)
	}
	return strings.Join(words, " ")
}
