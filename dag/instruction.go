package dag

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// state is what a stage has become so far: its files, and everything later instructions and the image see.
type state struct {
	out      ID     // the tree of files
	dir      bool   // out is a Context step, not yet a layer
	context  string // its name, if dir
	img      dockerspec.DockerOCIImage
	history  []History
	env      *env // of RUN and of variables: config env and ARG in the order they were set
	args     []buildArg
	workdir  string
	user     string
	platform ocispec.Platform
	cmdSet   bool // by this stage, not inherited
	dirSet   bool // by WORKDIR of this stage or one below it

	baseConfig *dockerspec.DockerOCIImage
	baseName   string
	baseDigest digest.Digest
}

// buildArg is one ARG of a stage or of the stages below it.
type buildArg struct {
	key, value string
}

// child is the state a stage FROM this one begins with.
func (s state) child() state {
	s.img = cloneImage(s.img)
	s.img.Config.OnBuild = nil
	s.history = slices.Clone(s.history)
	s.env = s.env.clone()
	s.args = slices.Clone(s.args)
	s.cmdSet = false
	return s
}

// lowerStage runs through the instructions of a stage.
func (l *lowering) lowerStage(d *stage) error {
	if d.base != nil {
		d.state = d.base.state.child()
	}
	if d.state.dir {
		l.layContext(d)
	}
	l.begin(d)
	for _, cmd := range d.cmds {
		if err := l.instruction(d, cmd); err != nil {
			if cmd.onbuild {
				err = onbuildError(fmt.Sprint(cmd.Command), err)
			}
			return l.at(l.file.Position(cmd.Location()), err)
		}
	}
	d.done = true
	return nil
}

// begin takes over what the config below says about the environment of commands.
func (l *lowering) begin(d *stage) {
	st := &d.state
	if st.platform.OS == "" {
		st.platform = l.settings.target
	}
	hasPath := slices.ContainsFunc(st.img.Config.Env, func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == "PATH"
	})
	if !hasPath && st.platform.OS != "windows" {
		st.img.Config.Env = append(st.img.Config.Env, "PATH="+defaultPath)
	}
	for _, kv := range st.img.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		st.env.set(k, v)
	}
	if st.img.Config.WorkingDir != "" {
		st.changeDir(st.img.Config.WorkingDir)
	}
	if st.img.Config.User != "" {
		st.user = st.img.Config.User
	}
}

// layContext makes a layer of a directory that a stage stands on.
func (l *lowering) layContext(d *stage) {
	st := &d.state
	name := "[context " + st.context + "] load from client"
	st.out = l.add(d, Step{
		Op:       Copy{Sources: []CopySource{{Path: "/"}}, Dest: "/"},
		Inputs:   []ID{l.scratch(), st.out},
		Name:     name,
		Pos:      d.pos,
		Platform: st.platform,
	})
	st.dir = false
	st.history = append(st.history, History{
		History: ocispec.History{CreatedBy: name, Comment: exporterComment, Created: l.epoch},
		Step:    st.out,
	})
}

// instruction applies one instruction to the state of its stage.
func (l *lowering) instruction(d *stage, cmd command) error {
	l.here = l.lint.WithMergedConfigFromComments(cmd.Comments())
	if err := l.expand(d, cmd.Command); err != nil {
		return err
	}
	l.lintInstruction(d, cmd.Command)
	switch c := cmd.Command.(type) {
	case *instructions.RunCommand:
		return l.run(d, cmd, c)
	case *instructions.CopyCommand:
		return l.copy(d, cmd, copyFlagsOf(c))
	case *instructions.AddCommand:
		return l.copy(d, cmd, addFlagsOf(c))
	case *instructions.WorkdirCommand:
		l.workdir(d, cmd, c)
		return nil
	case *instructions.ArgCommand:
		return l.arg(d, c)
	case *instructions.ExposeCommand:
		return l.expose(d, c)
	default:
		return l.configure(&d.state, cmd.Command)
	}
}

// expand replaces variables in an instruction, in place. ARG expands its own values, later and only if they are used.
func (l *lowering) expand(d *stage, c instructions.Command) error {
	if _, isArg := c.(*instructions.ArgCommand); isArg {
		return nil
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		err := x.Expand(func(word string) (string, error) {
			m, err := l.lex.ProcessWordWithMatches(word, d.state.env)
			l.lintVars(d, c, m.Unmatched)
			l.warnModifier(l.file.Position(c.Location()), word, m)
			return m.Result, err
		})
		if err != nil {
			return err
		}
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansionRaw); ok {
		return x.ExpandRaw(func(word string) (string, error) {
			lex := shell.NewLex('\\') // the text of a here-document has this escape character whatever the file says
			lex.SkipProcessQuotes = true
			m, err := lex.ProcessWordWithMatches(word, d.state.env)
			l.lintVars(d, c, m.Unmatched)
			l.warnModifier(l.file.Position(c.Location()), word, m)
			return m.Result, err
		})
	}
	return nil
}

// configure applies the instructions that only change the config.
func (l *lowering) configure(st *state, cmd instructions.Command) error {
	config := &st.img.Config
	switch c := cmd.(type) {
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			st.env.set(kv.Key, kv.Value)
			config.Env = setEnv(config.Env, kv.Key, kv.Value)
		}
		l.record(st, "ENV"+pairs(c.Env), None)
	case *instructions.LabelCommand:
		if config.Labels == nil {
			config.Labels = make(map[string]string, len(c.Labels))
		}
		for _, kv := range c.Labels {
			config.Labels[kv.Key] = kv.Value
		}
		l.record(st, "LABEL"+pairs(c.Labels), None)
	case *instructions.MaintainerCommand:
		st.img.Author = c.Maintainer
		l.record(st, "MAINTAINER "+c.Maintainer, None)
	case *instructions.OnbuildCommand:
		config.OnBuild = append(config.OnBuild, c.Expression)
	case *instructions.CmdCommand:
		config.Cmd = st.withShell(c.ShellDependantCmdLine)
		config.ArgsEscaped = true //nolint:staticcheck // deprecated, but written by BuildKit
		st.cmdSet = true
		l.record(st, fmt.Sprintf("CMD %q", config.Cmd), None)
	case *instructions.EntrypointCommand:
		config.Entrypoint = st.withShell(c.ShellDependantCmdLine)
		if !st.cmdSet {
			config.Cmd = nil // made for the entrypoint of the base
		}
		l.record(st, fmt.Sprintf("ENTRYPOINT %q", config.Entrypoint), None)
	case *instructions.HealthCheckCommand:
		h := *c.Health
		config.Healthcheck = &h
		l.record(st, fmt.Sprintf("HEALTHCHECK %+v", h), None)
	case *instructions.UserCommand:
		st.user, config.User = c.User, c.User
		l.record(st, "USER "+c.User, None)
	case *instructions.VolumeCommand:
		return l.volume(st, c)
	case *instructions.StopSignalCommand:
		if err := checkSignal(c.Signal); err != nil {
			return parser.About(c.Signal, err)
		}
		config.StopSignal = c.Signal
		l.record(st, "STOPSIGNAL "+c.Signal, None)
	case *instructions.ShellCommand:
		config.Shell = c.Shell
		l.record(st, fmt.Sprintf("SHELL %v", c.Shell), None)
	default:
		return fmt.Errorf("internal error: %s is not lowered", strings.ToUpper(cmd.Name()))
	}
	return nil
}

func pairs(kvs instructions.KeyValuePairs) string {
	var b strings.Builder
	for _, kv := range kvs {
		b.WriteString(" " + kv.Key + "=" + kv.Value)
	}
	return b.String()
}

func (l *lowering) volume(st *state, c *instructions.VolumeCommand) error {
	volumes := maps.Clone(st.img.Config.Volumes)
	if volumes == nil {
		volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		volumes[v] = struct{}{}
	}
	st.img.Config.Volumes = volumes
	l.record(st, fmt.Sprintf("VOLUME %v", c.Volumes), None)
	return nil
}

// arg declares build arguments. What was given for the build wins over the default, the default over the global value.
func (l *lowering) arg(d *stage, c *instructions.ArgCommand) error {
	st := &d.state
	text := "ARG"
	for _, a := range c.Args {
		value, inherited := a.Value, false
		if given, ok := l.args[a.Key]; ok {
			value = &given
		} else if value != nil {
			m, err := l.lex.ProcessWordWithMatches(*value, st.env)
			l.lintVars(d, c, m.Unmatched)
			l.warnModifier(l.file.Position(c.Location()), *value, m)
			if err != nil {
				return err
			}
			value = &m.Result
		} else if v, ok := l.global.Get(a.Key); ok {
			value, inherited = &v, true
		}
		l.declare(d, c, a, value, inherited)
		text += " " + a.Key
		declared := buildArg{key: a.Key}
		if value != nil {
			if a.Key != argScanContext && a.Key != argScanStage {
				l.warnOverEnv(d, c, a.Key, *value)
				st.env.set(a.Key, *value)
			}
			declared.value = *value
			text += "=" + *value
		}
		st.args = append(st.args, declared)
	}
	l.record(st, text, None)
	return nil
}

// workdir changes the directory and makes it, except the root, which is always there.
func (l *lowering) workdir(d *stage, cmd command, c *instructions.WorkdirCommand) {
	st := &d.state
	st.changeDir(c.Path)
	dir := st.img.Config.WorkingDir
	if dir == "/" {
		l.record(st, "WORKDIR "+dir, None)
		return
	}
	st.out = l.add(d, Step{
		Op:       Mkdir{Path: path.Clean(dir), User: st.img.Config.User},
		Inputs:   []ID{st.out},
		Name:     l.stepName(d, l.title(c.String(), l.lex, st.env), st.platform, st.env, cmd.onbuild),
		Pos:      l.file.Position(cmd.Location()),
		Platform: st.platform,
	})
	l.record(st, "WORKDIR "+dir, st.out)
}

// changeDir sets the working directory, a relative one below the current. Like BuildKit it leaves an absolute one as it is written.
func (st *state) changeDir(dir string) {
	wd := absolute(st.img.Config.WorkingDir, dir, false)
	st.img.Config.WorkingDir = wd
	st.workdir = wd
}

// absolute puts a relative path below parent. An absolute one stays as written; with keepSlash also the final / or /. of a relative
// one, which says that a directory is meant.
func absolute(parent, p string, keepSlash bool) string {
	if !path.IsAbs(parent) {
		parent = path.Join("/", parent)
	}
	out := p
	if p == "" {
		out = parent
	} else if !path.IsAbs(p) {
		out = path.Join(parent, p)
	}
	switch {
	case !keepSlash:
	case strings.HasSuffix(p, "/") && !strings.HasSuffix(out, "/"):
		out += "/"
	case strings.HasSuffix(p, "/.") && !strings.HasSuffix(out, "/."):
		if out != "/" {
			out += "/"
		}
		out += "."
	}
	return out
}

// withShell gives the argument list of a command line: shell form becomes one argument of the stage's shell.
func (st *state) withShell(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	sh := st.img.Config.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
		if st.img.OS == "windows" {
			sh = []string{"cmd", "/S", "/C"}
		}
	}
	return append(slices.Clone(sh), strings.Join(line.CmdLine, " "))
}
