package dag

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"build/parser"
)

var update = flag.Bool("update", false, "write the results into the golden files")

// baseConfig is the config of images a golden file does not define.
const baseConfig = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},
"rootfs":{"type":"layers","diff_ids":["sha256:1111111111111111111111111111111111111111111111111111111111111111"]},
"history":[{"created_by":"base"}]}`

// TestGolden lowers testdata/dockerfiles/*.txtar. The comment of an archive holds options, one a line; its files are the
// Dockerfile, configs of images ("image NAME"), times of sources ("time NAME"), and what is expected: needs (a line for each round), graph, outline, warnings, errors.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("../testdata/dockerfiles/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := evaluate(t, ar)
			var kept []txtar.File
			for _, f := range ar.Files {
				if _, result := got[f.Name]; !result {
					kept = append(kept, f)
				}
			}
			for _, k := range []string{"needs", "graph", "outline", "warnings", "errors"} {
				if got[k] != "" {
					kept = append(kept, txtar.File{Name: k, Data: []byte(got[k])})
				}
			}
			want := string(txtar.Format(ar))
			ar.Files = kept
			have := string(txtar.Format(ar))
			if have == want {
				return
			}
			if *update {
				if err := os.WriteFile(name, []byte(have), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s differs (run with -update to accept):\n%s", name, firstDifference(want, have))
		})
	}
}

func evaluate(t *testing.T, ar *txtar.Archive) map[string]string {
	t.Helper()
	o := goldenOptions(t, string(ar.Comment))
	images := map[string]string{}
	var src []byte
	for _, f := range ar.Files {
		if f.Name == "Dockerfile" {
			src = f.Data
		}
		if name, ok := strings.CutPrefix(f.Name, "image "); ok {
			images[name] = string(f.Data)
		}
		if strings.HasPrefix(f.Name, "time ") {
			images[f.Name] = string(f.Data)
		}
	}
	out := map[string]string{"needs": "", "graph": "", "outline": "", "warnings": "", "errors": ""}
	warn := func(w parser.Warning) { out["warnings"] += w.String() + "\n" }
	f, err := parser.Parse("Dockerfile", src, parser.Options{Args: o.BuildArgs, Warn: warn})
	if err == nil {
		var g *Graph
		var rounds []string
		if g, rounds, err = lowerAll(f, o, images); err == nil {
			out["graph"] = Dump(g)
			out["outline"] = dumpOutline(g.Outline)
			checkGraph(t, g, src)
		} else if g != nil {
			for _, w := range g.Warnings {
				warn(w)
			}
		}
		for _, r := range rounds {
			out["needs"] += r + "\n"
		}
	}
	if err != nil {
		out["errors"] = describe(err)
	}
	return out
}

func dumpOutline(o *Outline) string {
	if o == nil {
		return ""
	}
	text := fmt.Sprintf("target %q %q\n", o.Name, o.Description)
	for _, a := range o.Args {
		text += fmt.Sprintf("line %d arg %s=%q %q\n", a.Pos.Start.Line, a.Name, a.Value, a.Description)
	}
	for i, list := range [][]OutlineMount{o.Secrets, o.SSH, o.Caches} {
		for _, m := range list {
			kind := []string{"secret", "ssh", "cache"}[i]
			text += fmt.Sprintf("line %d %s %s required=%v\n", m.Pos.Start.Line, kind, m.ID, m.Required)
		}
	}
	return text
}

func describe(err error) string {
	var one *parser.Error
	var many parser.Errors
	switch {
	case errors.As(err, &many):
		return many.Error() + "\n" + many.Render(nil)
	case errors.As(err, &one):
		text := one.Error() + "\n" + one.Render(nil)
		if one.Hint != "" {
			text += "hint: " + one.Hint + "\n"
		}
		return text
	}
	return "WITHOUT A PLACE: " + err.Error() + "\n"
}

// lowerAll answers needs until there is a graph. Images that are not given have baseConfig.
func lowerAll(f *parser.File, o Options, images map[string]string) (*Graph, []string, error) {
	have := map[NeedKey]Resolved{}
	var rounds []string
	for range 10 {
		g, needs, err := Lower(f, o, have)
		if g != nil || err != nil {
			return g, rounds, err
		}
		var names []string
		for _, n := range needs {
			name := n.Name
			if n.Time {
				names = append(names, "time of "+name)
				var r Resolved
				if sec, err := strconv.ParseInt(strings.TrimSpace(images["time "+name]), 10, 64); err == nil {
					t := time.Unix(sec, 0)
					r.Time = &t
				}
				have[n.Key()] = r
				continue
			}
			if n.Context {
				name = strings.TrimPrefix(n.Value, "docker-image://")
				names = append(names, fmt.Sprintf("context %s=%s %s", n.Name, n.Value, n.Platform))
			} else {
				names = append(names, n.Name+" "+n.Platform)
			}
			if n.Context && !strings.HasPrefix(n.Value, "docker-image://") {
				have[n.Key()] = Resolved{Dir: true}
				continue
			}
			config, ok := images[name]
			if !ok {
				config = baseConfig
			}
			have[n.Key()] = Resolved{Image: &ImageInfo{Ref: name, Digest: digest.FromString(name), Config: []byte(config)}}
		}
		rounds = append(rounds, strings.Join(names, ", "))
	}
	return nil, rounds, errors.New("lowering asks for ever more")
}

// checkGraph tests what must hold for every graph.
func checkGraph(t *testing.T, g *Graph, src []byte) {
	t.Helper()
	lines := strings.Count(string(src), "\n") + 1
	used := map[ID]bool{g.Target: true}
	for i, s := range g.Steps {
		if s.ID != ID(i) {
			t.Errorf("step %d has ID %d", i, s.ID)
		}
		for _, in := range s.Inputs {
			if in < 0 || in >= s.ID {
				t.Errorf("step %d has input %d", i, in)
			}
			used[in] = true
		}
		if s.Pos.Start.Line > lines || s.Pos.End.Line > lines || s.Pos.End.Line < s.Pos.Start.Line {
			t.Errorf("step %d is outside the source: %+v", i, s.Pos)
		}
		if run, ok := s.Op.(Run); ok {
			for _, m := range run.Mounts {
				if m.Input >= len(s.Inputs) {
					t.Errorf("step %d mounts input %d of %d", i, m.Input, len(s.Inputs))
				}
			}
		}
	}
	for i := range g.Steps {
		if !used[ID(i)] {
			t.Errorf("nobody uses step %d", i)
		}
	}
	for _, h := range g.History {
		if h.EmptyLayer != (h.Step == None) || h.Step >= ID(len(g.Steps)) {
			t.Errorf("history %q: empty=%v step=%d", h.CreatedBy, h.EmptyLayer, h.Step)
		}
	}
}

func goldenOptions(t *testing.T, text string) Options {
	t.Helper()
	o := Options{
		BuildArgs: map[string]string{}, Contexts: map[string]string{},
		BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
	}
	for _, line := range strings.Split(text, "\n") {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		k, v, _ := strings.Cut(value, "=")
		switch key {
		case "", "#":
		case "target":
			o.Target = value
		case "build-arg":
			o.BuildArgs[k] = v
		case "context":
			o.Contexts[k] = v
		case "label":
			o.Labels = append(o.Labels, Label{Key: k, Value: v})
		case "platform":
			o.Platform = platforms.MustParse(value)
		case "network":
			o.Network = value
		case "no-cache":
			o.NoCache = true
		case "no-cache-filter":
			o.NoCacheStages = strings.Split(value, ",")
		case "multi-platform":
			o.MultiPlatform = true
		case "all-stages":
			o.AllStages = true
		case "outline":
			o.Outline = true
		case "ignored":
			o.Ignored = func(path string) bool { return slices.Contains(strings.Fields(value), path) }
		case "epoch":
			sec, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			tm := time.Unix(sec, 0).UTC()
			o.Epoch = &tm
		default:
			t.Fatalf("unknown option in golden file: %s", line)
		}
	}
	return o
}

func firstDifference(want, have string) string {
	w, h := strings.Split(want, "\n"), strings.Split(have, "\n")
	for i := range min(len(w), len(h)) {
		if w[i] != h[i] {
			return fmt.Sprintf("line %d\nwant %s\nhave %s", i+1, w[i], h[i])
		}
	}
	return fmt.Sprintf("%d lines wanted, %d lines there", len(w), len(h))
}
