package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"build/dag"
	"build/executor"
	"build/internal/emulator"
	"build/internal/progress"
)

// Emulators says where emulators of other machines are looked for.
type Emulators = emulator.Config

// standIn is how programs for another machine are executed in steps. What stands in for it is in no key: it changes results no
// more than another make of the same machine does.
type standIn struct {
	by       string             // who does it, for people; "" when the kernel does it without help
	emulator *executor.Emulator // to be registered for each step; nil: the kernel or this machine's own registration does it
	err      error              // nobody does, and why
	broken   bool               // err is about something else: nothing could be tried
	private  bool               // err is about registering an emulator for a step alone
}

// standIns remembers what was found out, once for each architecture.
type standIns struct {
	mu sync.Mutex
	of map[string]func() standIn
}

// foreign tells for which other machine the programs of a step are, as far as anybody says. Without a base image that is guessed
// from the platform that is built for; then it is not sure, and the step may as well bring programs for this machine.
func (s *session) foreign(step *dag.Step, op dag.Run) (arch string, sure bool) {
	m, sure := op.Machine, true
	if m.Architecture == "" {
		m, sure = step.Platform, false
	}
	if m.OS != "linux" || m.Architecture == runtime.GOARCH || runsHere(m) && !s.opts.Emulators.Given(m.Architecture) {
		return "", sure
	}
	return m.Architecture, sure
}

// standInFor finds out, once, by trying it in a sandbox like those of steps.
func (s *session) standInFor(ctx context.Context, arch string) standIn {
	s.standIns.mu.Lock()
	find, ok := s.standIns.of[arch]
	if !ok {
		if s.standIns.of == nil {
			s.standIns.of = map[string]func() standIn{}
		}
		find = sync.OnceValue(func() standIn { return s.findStandIn(ctx, arch) })
		s.standIns.of[arch] = find
	}
	s.standIns.mu.Unlock()
	return find()
}

// findStandIn prefers what the user named, then what this machine does already, then an emulator that lies about.
func (s *session) findStandIn(ctx context.Context, arch string) standIn {
	registered := !s.opts.Emulators.Given(arch) && emulator.Executes(arch)
	path, missing := s.opts.Emulators.Find(arch)
	if registered || missing == nil {
		if _, _, err := s.holder.get(ctx, s); err != nil {
			return standIn{err: err, broken: true}
		}
	}
	var why []string
	if registered {
		err := s.tryProgram(ctx, arch, nil)
		if err == nil {
			return standIn{by: registeredFor(arch)}
		}
		why = append(why, whyNotRegistered(arch, err))
	}
	if missing != nil {
		return standIn{err: errors.New(strings.Join(append(why, missing.Error()), "; "))}
	}
	e := &executor.Emulator{Path: path, Name: "qemu-" + arch, KeepArgv0: true}
	e.Magic, e.Mask = emulator.Magic(arch)
	err := s.tryProgram(ctx, arch, e)
	if errors.Is(err, errArguments) {
		e.KeepArgv0 = false
		err = s.tryProgram(ctx, arch, e)
	}
	if err == nil {
		return standIn{by: path, emulator: e}
	}
	var setup *executor.SetupError
	why = append(why, fmt.Sprintf("%s does not execute them: %v", path, err))
	return standIn{err: errors.New(strings.Join(why, "; ")), private: errors.As(err, &setup)}
}

// registeredFor names what this machine has registered; "" when it needs nothing.
func registeredFor(arch string) string {
	if r, ok := emulator.Registered(arch); ok {
		return r.Interpreter + ", which this machine has registered"
	}
	if arch == "386" && runtime.GOARCH == "amd64" || arch == "arm" && runtime.GOARCH == "arm64" {
		return ""
	}
	return "an emulator that this machine has registered"
}

func whyNotRegistered(arch string, err error) string {
	r, ok := emulator.Registered(arch)
	switch {
	case !ok:
		return fmt.Sprintf("this machine executes them, but not in a sandbox: %v", err)
	case !r.Fixed:
		return r.Interpreter + ", which this machine has registered, was registered without the flag F and would have to be in the image"
	}
	return fmt.Sprintf("%s, which this machine has registered, does not work in a sandbox: %v", r.Interpreter, err)
}

// The smallest program says how many arguments it was given, argument zero included.
var tryArgs = []string{"/program", "an argument"}

// errArguments says that an emulator and the kernel do not agree on how arguments are passed.
var errArguments = errors.New("it passes a wrong number of arguments")

// tryProgram executes the smallest program of an architecture in a sandbox.
func (s *session) tryProgram(ctx context.Context, arch string, e *executor.Emulator) error {
	h, ground, err := s.holder.get(ctx, s)
	if err != nil {
		return err
	}
	req := tryRequest{Spec: executor.Spec{Means: ground.means(), Root: executor.Tree{}, Args: tryArgs, Mounts: []executor.Mount{
		{Target: tryArgs[0], Source: executor.File{Data: emulator.Program(arch), Mode: 0o555}},
	}}}
	if e != nil {
		req.Spec.Emulators = []executor.Emulator{*e}
	}
	err = fromHolder(h.Call(ctx, "try", req, nil))
	var exit *executor.ExitError
	switch {
	case !errors.As(err, &exit):
		if err == nil {
			err = errors.New("it does not pass on how a program ended")
		}
		return err
	case exit.Code == len(tryArgs) && exit.Msg == "":
		return nil
	case exit.Code == len(tryArgs)+1 && exit.Msg == "":
		return errArguments
	}
	return err
}

// executable refuses, before anything is fetched or run, what the programs of another machine are needed for and nobody executes.
// What a record stands for needs nobody. That is not asked where asking would reach out for a URL or a repository.
func (s *session) executable(ctx context.Context, products []*product) error {
	for _, p := range products {
		outside := reachingOut(p.graph)
		for i := range p.graph.Steps {
			step := &p.graph.Steps[i]
			op, ok := step.Op.(dag.Run)
			if !ok {
				continue
			}
			arch, _ := s.foreign(step, op)
			if arch == "" {
				continue
			}
			if !outside[step.ID] {
				if def, err := p.ev.definition(ctx, step.ID); err != nil {
					return err
				} else if p.ev.lookup(step, def.key) != nil {
					continue
				}
			}
			if err := s.judge(ctx, p.graph, step, op, s.standInFor(ctx, arch)); err != nil {
				return s.located(step, err)
			}
		}
	}
	return nil
}

// reachingOut tells which steps have keys that depend on something that is elsewhere.
func reachingOut(g *dag.Graph) map[dag.ID]bool {
	known := map[dag.ID]bool{}
	var reaches func(id dag.ID) bool
	reaches = func(id dag.ID) bool {
		out, ok := known[id]
		if !ok {
			if op, is := g.Steps[id].Op.(dag.Copy); is {
				out = slices.ContainsFunc(op.Sources, func(s dag.CopySource) bool { return s.Place != "" })
			}
			out = out || slices.ContainsFunc(g.Steps[id].Inputs, reaches)
			known[id] = out
		}
		return out
	}
	for i := range g.Steps {
		reaches(g.Steps[i].ID)
	}
	return known
}

// tryRequest asks the holder to run a command in an empty root.
type tryRequest struct{ Spec executor.Spec }

func (n *inside) try(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var req tryRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	dir, release, err := n.store.LocalTemp(n.kind)
	if err != nil {
		return nil, err
	}
	defer release()
	req.Spec.Root = executor.Tree{Dir: dir}
	return nil, executor.Run(ctx, &req.Spec, nil, nil, nil)
}

// emulate gives a step what executes its programs, says so, and reports whether somebody does. Nobody may: a step that passed judge
// then has programs for this machine, perhaps.
func (e *evaluator) emulate(ctx context.Context, step *dag.Step, op dag.Run, spec *executor.Spec) bool {
	arch, _ := e.foreign(step, op)
	if arch == "" {
		return false
	}
	in := e.standInFor(ctx, arch)
	if in.err != nil {
		return false
	}
	if in.emulator != nil {
		spec.Emulators = []executor.Emulator{*in.emulator}
	}
	if in.by != "" {
		e.emit(progress.Message{ID: e.vertex(step), Text: fmt.Sprintf("emulated: programs for linux/%s are executed by %s", arch, in.by)})
	}
	return true
}

// cannotEmulate is the error of a RUN whose programs nobody executes.
func (s *session) cannotEmulate(g *dag.Graph, step *dag.Step, op dag.Run, in standIn) error {
	arch := op.Machine.Architecture
	err := fmt.Errorf("RUN needs to execute programs for %s: this machine is %s, and there is no emulator for them: %w",
		platformString(op.Machine), platformString(hostPlatform()), in.err)
	if others := s.alsoForeign(g, step, arch); len(others) > 0 {
		err = fmt.Errorf("%w (the same holds for the RUN of line %s)", err, strings.Join(others, ", "))
	}
	hint := fmt.Sprintf("install a statically linked emulator (Debian, Ubuntu: apt-get install qemu-user-static) or name one with --emulator %s=PATH", arch)
	if emulator.Known(arch) == "" {
		hint = "programs of that machine cannot be executed here"
	} else if in.private {
		hint = "register an emulator on this machine, with the flag F (Debian, Ubuntu: apt-get install qemu-user-static binfmt-support)"
	}
	return &EnvironmentError{Err: err, Hint: hint + "; or use FROM --platform=$BUILDPLATFORM for the stages that run commands, or build on such a machine"}
}

// alsoForeign lists the lines of the other RUN steps for the same machine.
func (s *session) alsoForeign(g *dag.Graph, than *dag.Step, arch string) []string {
	var lines []string
	for i := range g.Steps {
		step := &g.Steps[i]
		if op, ok := step.Op.(dag.Run); ok && step != than && op.Machine.Architecture == arch {
			lines = append(lines, fmt.Sprint(step.Pos.Start.Line))
		}
	}
	return lines
}

// foundEmulators lists, for the doctor, what would execute the programs of each other machine. It tries no sandbox.
func foundEmulators(c Emulators) []Finding {
	var out []Finding
	for _, arch := range emulator.Architectures() {
		if arch == runtime.GOARCH {
			continue
		}
		f := Finding{Name: "linux/" + arch, OK: true}
		if !c.Given(arch) && emulator.Executes(arch) {
			if f.Detail = registeredFor(arch); f.Detail == "" {
				f.Detail = "this machine itself"
			}
		} else if path, err := c.Find(arch); err == nil {
			f.Detail = path
		} else {
			f.OK, f.Detail = false, err.Error()
		}
		out = append(out, f)
	}
	return out
}

// printEmulators names those there are, those that are of no use, and in one line the rest.
func printEmulators(b *strings.Builder, found []Finding) {
	b.WriteString("\nRUN in images for\n")
	var none []string
	for _, f := range found {
		switch {
		case f.OK:
			fmt.Fprintf(b, "  %-15s executed by %s\n", f.Name, f.Detail)
		case strings.HasPrefix(f.Detail, "none of "):
			none = append(none, strings.TrimPrefix(f.Name, "linux/"))
		default:
			fmt.Fprintf(b, "  %-15s %s\n", f.Name, f.Detail)
		}
	}
	if len(none) > 0 {
		fmt.Fprintf(b, "  no emulator for %s (Debian, Ubuntu: apt-get install qemu-user-static; or --emulator ARCH=PATH)\n", strings.Join(none, ", "))
	}
}
