package build

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"build/dag"
	"build/executor"
	"build/internal/progress"
	"build/internal/userns"
)

// Isolation says what RUN steps have to be isolated with. Empty fields take the best there is; what is asked for and cannot be had
// is an error, never replaced by less.
type Isolation struct {
	Sandbox Sandbox
	Root    RootKind
	IDs     userns.IDs
	Proc    ProcKind
}

// Sandbox is what keeps a step apart from the machine.
type Sandbox string

const (
	SandboxNamespaces Sandbox = "namespaces"
	SandboxChroot     Sandbox = "chroot"
	SandboxNone       Sandbox = "none" // no RUN at all
)

// RootKind is how a step's root is made of layers.
type RootKind string

const (
	RootOverlay RootKind = "overlay"
	RootTree    RootKind = "tree" // a private copy of all layers
)

// ProcKind is the /proc of a step.
type ProcKind string

const (
	ProcFresh ProcKind = "fresh"
	ProcBound ProcKind = "bound" // the caller's, and its processes' numbers
)

func (i Isolation) accepts(p userns.Plan) bool {
	switch {
	case i.Sandbox == SandboxNone,
		i.Sandbox == SandboxNamespaces && p.Plain, i.Sandbox == SandboxChroot && !p.Plain,
		i.Root == RootOverlay && p.Plain,
		i.IDs != "" && i.IDs != p.IDs,
		i.Proc == ProcFresh && (p.SharePID || p.Plain), i.Proc == ProcBound && p.Plain:
		return false
	}
	return true
}

// ground is what the steps of a build stand on: a rung of the ladder, found by trying.
type ground struct {
	Plan  userns.Plan
	Root  RootKind
	Tried []userns.Tried // ways that were tried before
	// NoOverlay says why the root is a tree although an overlay would be better.
	NoOverlay string
}

func (g *ground) means() executor.Means {
	return executor.Means{Chroot: g.Plan.Plain, BoundProc: g.Plan.SharePID, Recorded: g.Plan.IDs == userns.IDsSingle}
}

// Rung is the number of the ladder's step: 0 has everything, 1 records owners, 2 is chroot, 3 runs nothing.
func (g *ground) rung() int {
	switch {
	case g == nil:
		return 3
	case g.Plan.Plain:
		return 2
	case g.Plan.IDs == userns.IDsSingle:
		return 1
	}
	return 0
}

// String is the one line that says where steps run.
func (g *ground) String() string {
	root := "overlay"
	if g.Root == RootTree {
		root = "a private tree for each stage"
	}
	return fmt.Sprintf("rung %d: %s, %s", g.rung(), g.Plan, root)
}

// losses tells what this rung costs, for the warning about why the ones above were not taken.
func (g *ground) losses() string {
	switch {
	case g.Plan.Plain:
		return "RUN steps see this machine's processes and network, and mounts are copies"
	case g.Plan.IDs == userns.IDsSingle:
		return "owners other than root are recorded, not enforced, and steps that look at many files are slower"
	case g.Plan.SharePID:
		return "RUN steps see the processes of this user"
	}
	return ""
}

// holder is the process that owns the namespaces, started when the first step needs it. A build that finds everything in
// the cache never starts one.
type holder struct {
	mu     sync.Mutex
	h      *userns.Holder
	ground *ground
	err    error // why there is none: it is not tried again
}

func (h *holder) get(ctx context.Context, s *session) (*userns.Holder, *ground, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.h == nil && h.err == nil {
		h.h, h.ground, h.err = openHolder(ctx, s)
		if h.err != nil && ctx.Err() != nil {
			err := h.err
			h.err = nil
			return nil, nil, err
		}
		if h.err == nil {
			s.tellGround(h.ground)
		}
	}
	return h.h, h.ground, h.err
}

// openHolder starts a holder on the best rung that is allowed and opens the store in it.
func openHolder(ctx context.Context, s *session) (*userns.Holder, *ground, error) {
	if err := s.limits.open(s); err != nil {
		return nil, nil, err
	}
	want := s.opts.Isolation
	hd, plan, tried, err := userns.Open(ctx, want.accepts)
	if err != nil {
		return nil, nil, s.noGround(err)
	}
	g := &ground{Plan: plan, Tried: tried[:len(tried)-1], Root: want.Root}
	var resp openResponse
	req := openRequest{Root: s.store.Dir(), Plan: plan, RootKind: want.Root, Inflate: s.opts.Inflate, Further: 1 + int(s.runsLeft.Load())}
	if err := hd.Call(ctx, "open", req, &resp); err != nil {
		hd.Close()
		return nil, nil, fmt.Errorf("open the store inside the namespaces: %w", fromHolder(err))
	}
	g.Root, g.NoOverlay = resp.RootKind, resp.NoOverlay
	return hd, g, nil
}

// noGround is the error of a build whose RUN steps cannot run.
func (s *session) noGround(err error) error {
	var l *userns.LadderError
	if !errors.As(err, &l) {
		return err
	}
	if s.opts.Isolation.Sandbox == SandboxNone {
		return &EnvironmentError{Err: errors.New("RUN is not allowed with --isolation=none")}
	}
	if len(l.Tried) == 0 {
		return &UsageError{Msg: "no way of running a step is left by --isolation", Hint: "`build doctor` lists what is possible here"}
	}
	var b strings.Builder
	b.WriteString("RUN cannot be isolated here:")
	var d Diagnosis
	d.ways(l.Tried)
	for _, w := range d.Ways {
		fmt.Fprintf(&b, "\n  %s: %s", w.Name, w.Error)
	}
	printAdvice(&b, d.Advice)
	return &EnvironmentError{Err: errors.New(strings.TrimRight(b.String(), "\n")), Hint: "build doctor shows it in full"}
}

// tellGround says where the steps run, and why not somewhere better.
func (s *session) tellGround(g *ground) {
	id, now := s.newVertex(), time.Now()
	s.emit(progress.Started{ID: id, Name: "[internal] isolation: " + g.String(), Time: now})
	s.emit(progress.Done{ID: id, Time: now})
	if asked := s.opts.Isolation; asked.Sandbox != "" || asked.IDs != "" {
		return
	}
	if loss := g.losses(); loss != "" {
		for _, t := range g.Tried {
			s.warn("not isolated by %s: %v", t.Plan, t.Err)
		}
		s.warn("therefore %s", loss)
	}
	if g.NoOverlay != "" && s.opts.Isolation.Root == "" && !g.Plan.Plain {
		s.warn("no overlay (%s): every stage with RUN gets a copy of its base, which takes time and room", g.NoOverlay)
	}
}

// runnable refuses a build with steps to run where nothing can run, before anything is fetched. It asks only where the best way is
// known to be closed: otherwise the first step that needs it finds out, and a build answered by the cache never does.
func (s *session) runnable(ctx context.Context, products []*product) error {
	if err := s.limitable(ctx, products); err != nil {
		return err
	}
	if s.runsLeft.Load() == 0 {
		return nil
	}
	for c := range userns.Candidates() {
		if s.opts.Isolation.accepts(c.Plan) {
			if c.Err == nil {
				return nil
			}
			break
		}
	}
	for _, p := range products {
		step, err := p.ev.firstRunToDo(ctx)
		if err != nil || step == nil {
			return err
		}
		if _, _, err := s.holder.get(ctx, s); err != nil {
			return s.located(step, err)
		}
	}
	return nil
}

// firstRunToDo returns the first RUN that no record answers by its definition.
func (e *evaluator) firstRunToDo(ctx context.Context) (*dag.Step, error) {
	for i := range e.graph.Steps {
		step := &e.graph.Steps[i]
		if !isRun(step) {
			continue
		}
		def, err := e.definition(ctx, step.ID)
		if err != nil {
			return nil, err
		}
		if e.lookup(step, def.key) == nil {
			return step, nil
		}
	}
	return nil, nil
}
