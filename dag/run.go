package dag

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"build/parser"
)

// run adds the step of a RUN.
func (l *lowering) run(d *stage, cmd command, c *instructions.RunCommand) error {
	if len(instructions.GetDevices(c)) > 0 {
		err := errors.New("RUN --device: build steps are given no devices of this machine")
		return parser.About("--device", parser.WithHint("leave the flag out and use the device when the image runs, or build this stage with the labs channel of BuildKit", err))
	}
	st := &d.state
	if st.platform.OS == "windows" {
		return errNoWindows
	}
	line, files, summary, err := commandLine(st, c)
	if err != nil {
		return err
	}
	op := Run{
		Args:     st.withShell(line),
		ProxyEnv: l.proxy,
		Dir:      st.workdir,
		User:     st.user,
		Shell:    line.PrependShell,
		Network:  l.Network,
		Security: instructions.GetSecurity(c),
		Hostname: l.Hostname,
		Files:    files,
	}
	if st.baseConfig != nil {
		op.Machine = normalized(st.baseConfig.Platform)
	}
	if len(op.Args) == 0 {
		return errors.New("RUN requires at least one argument")
	}
	if n := instructions.GetNetwork(c); n != instructions.NetworkDefault {
		op.Network = n
	}
	inputs := []ID{st.out}
	if op.Mounts, err = l.mounts(d, cmd, c, &inputs); err != nil {
		return err
	}
	op.Env = commandEnv(st, op.Mounts)
	created := "RUN " + ranWith(op.Args, st.args, st.env) + ranSuffix
	st.out = l.add(d, Step{
		Op:       op,
		Inputs:   inputs,
		Name:     l.runName(d, cmd, c, summary),
		Pos:      l.file.Position(cmd.Location()),
		NoCache:  d.noCache,
		Platform: st.platform,
	})
	l.record(st, created, st.out)
	return nil
}

// commandLine settles what here-documents make of a RUN. One alone is a script for the shell, or with #! a program of its own; if
// the shell has to do something with them they are put back where they were.
func commandLine(st *state, c *instructions.RunCommand) (line instructions.ShellDependantCmdLine, files []File, summary string, err error) {
	line = c.ShellDependantCmdLine
	if len(line.Files) == 0 {
		return line, nil, "", nil
	}
	if len(line.CmdLine) != 1 || !line.PrependShell {
		return line, nil, "", fmt.Errorf("parsing produced an invalid run command: %v", line.CmdLine)
	}
	if !parser.IsHeredoc(line.CmdLine[0]) {
		var b strings.Builder
		b.WriteString(line.CmdLine[0])
		for _, f := range line.Files {
			b.WriteString("\n" + f.Data + f.Name)
		}
		line.CmdLine = []string{b.String()}
		return line, nil, "", nil
	}
	doc := line.Files[0]
	text := doc.Data
	if doc.Chomp {
		text = parser.StripTabs(text)
	}
	summary = " (" + firstLine(doc.Data) + ")"
	if st.img.OS == "windows" || !strings.HasPrefix(text, "#!") {
		line.CmdLine = []string{text}
		return line, nil, summary, nil
	}
	if err := checkInlineName(doc.Name); err != nil {
		return line, nil, "", err
	}
	line.CmdLine = []string{path.Join(PipesDir, doc.Name)}
	return line, []File{{Name: doc.Name, Data: []byte(text), Mode: 0o755}}, summary, nil
}

// checkInlineName refuses delimiters of here-documents that cannot be the name of a file.
func checkInlineName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("invalid here-document name %q: it becomes a file name", name)
	}
	return nil
}

// firstLine sums up a here-document for the name of its step.
func firstLine(doc string) string {
	first, _, more := strings.Cut(strings.ReplaceAll(strings.TrimSpace(doc), "\r\n", "\n"), "\n")
	if more {
		first += "..."
	}
	return first
}

// commandEnv is the environment of a command. An ssh mount adds where its first socket is.
func commandEnv(st *state, mounts []Mount) []string {
	list := st.env.list()
	if _, set := st.env.Get("SSH_AUTH_SOCK"); set {
		return list
	}
	if i := slices.IndexFunc(mounts, func(m Mount) bool { return m.Type == MountSSH }); i >= 0 {
		list = append(list, "SSH_AUTH_SOCK="+mounts[i].Target)
	}
	return list
}

// runName names a RUN. Variables are expanded if they are set, quotes stay, and values that come from secrets are stars.
func (l *lowering) runName(d *stage, cmd command, c *instructions.RunCommand, summary string) string {
	st := &d.state
	lex := shell.NewLex(l.file.Escape)
	lex.RawQuotes = true
	lex.SkipUnsetEnv = true
	over := map[string]string{}
	for _, m := range instructions.GetMounts(c) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			over[*m.Env] = "****"
		}
	}
	title := l.title(c.String()+summary, lex, masked{EnvGetter: st.env, over: over})
	return l.stepName(d, title, st.platform, st.env, cmd.onbuild)
}
