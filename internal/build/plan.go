package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"build/dag"
	"build/internal/buildctx"
	"build/internal/explain"
	"build/internal/progress"
)

// This file says what a build would do, without doing it: `build plan` and `build explain`. The evaluator's keys and lookups
// are the build's own, asked of a dry session. That fetches no layer, makes no index and writes nothing into the store.
// What only a layer that is not here, or a step that has not run, could tell stays open.

// Status is what would become of a step.
type Status string

// What would become of a step.
const (
	WouldCached Status = "cached"
	WouldRun    Status = "runs"
	// WouldDepend is a step whose key depends on what other steps give, or on layers that are not here.
	WouldDepend Status = "depends"
)

// PlanVersion is the version of the JSON form. It is raised when a field is removed or means something else.
const PlanVersion = 1

// Plan is what a build would do. Its JSON form is part of the interface: docs/cache.md.
type Plan struct {
	Version    int         `json:"version"`
	Context    string      `json:"context"`
	Dockerfile string      `json:"dockerfile"`
	WouldRun   bool        `json:"wouldRun"` // some step runs or may have to
	Steps      []PlanStep  `json:"steps"`
	Fetch      []PlanFetch `json:"fetch"`
}

// PlanStep is one step that makes a layer.
type PlanStep struct {
	StepID
	Status Status `json:"status"`
	// DependsOn are the steps that have to run before it is known whether this one would.
	DependsOn []int `json:"dependsOn,omitempty"`
	// Open is what else has to be known first, "" if nothing.
	Open string `json:"open,omitempty"`
	// Changes say why it runs, the reason first; none if nothing like it ran before.
	Changes []explain.Change `json:"changes,omitempty"`
	// Made is when the result that would be used was made.
	Made *time.Time `json:"made,omitempty"`
}

// PlanFetch is what would be fetched of an image.
type PlanFetch struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	Layers int    `json:"layers"` // to be fetched
	Of     int    `json:"of"`     // layers of the image
	Bytes  int64  `json:"bytes"`  // as they are transferred
}

// undecidedError says that something is not known as long as nothing is done for it.
type undecidedError struct{ what string }

func (e *undecidedError) Error() string { return "it depends on " + e.what }

// unsaved is a stat cache that is asked and not written.
type unsaved struct{ buildctx.StatCache }

// Explained says what a build with these options would do. The error is one the build would end with before its first step.
func Explained(ctx context.Context, o Options) (*Plan, error) {
	o.fill()
	if err := o.check(); err != nil {
		return nil, err
	}
	if !storeExists(o.Store.Root) {
		// There is no store, and asking makes none.
		tmp, err := os.MkdirTemp("", "build-plan-")
		if err != nil {
			return nil, &EnvironmentError{Err: err}
		}
		defer os.RemoveAll(tmp)
		o.Store.Root = filepath.Join(tmp, "store")
	}
	s, ctx, err := openSession(ctx, &o, true)
	if err != nil {
		return nil, err
	}
	defer s.close()
	plan, err := s.plan(ctx)
	if err != nil {
		return nil, s.firstCause(ctx, err)
	}
	return plan, nil
}

// storeExists reports whether a directory is not to be made a store first.
func storeExists(root string) bool {
	_, err := os.Stat(filepath.Join(root, "version"))
	return !errors.Is(err, os.ErrNotExist)
}

func (s *session) plan(ctx context.Context) (*Plan, error) {
	_, products, err := s.products(ctx)
	if err != nil {
		return nil, err
	}
	out := &Plan{Version: PlanVersion, Context: journalContext(s.opts), Dockerfile: s.dockerfileID(), Steps: []PlanStep{}, Fetch: []PlanFetch{}}
	need := newNeeds(s)
	for _, p := range products {
		p.ev = newEvaluator(ctx, s, p.graph, p.platform)
		defer p.ev.drain()
		pl := &planner{evaluator: p.ev, done: map[dag.ID]*planned{}, first: len(out.Steps)}
		if p.graph.Target >= 0 {
			if _, err := pl.step(ctx, p.graph.Target); err != nil {
				return nil, err
			}
		}
		out.Steps = append(out.Steps, pl.list()...)
		need.ofProduct(pl)
	}
	for i := range out.Steps {
		out.WouldRun = out.WouldRun || out.Steps[i].Status != WouldCached
	}
	out.Fetch = append(out.Fetch, need.list()...)
	return out, nil
}

// planner walks the graph as the evaluator does, and does nothing.
type planner struct {
	*evaluator
	done  map[dag.ID]*planned
	first int // how many steps other platforms have
}

// planned is what is known of a step.
type planned struct {
	status  Status
	outcome *outcome // nil when its layers are not known
	content *stepKey // nil when it is not known
	on      []dag.ID // what it depends on
	open    string
	changes []explain.Change
	made    time.Time
}

// step says what would become of a step.
func (p *planner) step(ctx context.Context, id dag.ID) (*planned, error) {
	if have := p.done[id]; have != nil {
		return have, nil
	}
	out, err := p.decide(ctx, id)
	var undecided *undecidedError
	switch {
	case errors.As(err, &undecided):
		out = &planned{status: WouldDepend, open: undecided.what}
	case isNotHere(err):
		out = &planned{status: WouldDepend, open: "layers of an image that are not here"}
	case err != nil:
		return nil, err
	}
	p.done[id] = out
	return out, nil
}

func (p *planner) decide(ctx context.Context, id dag.ID) (*planned, error) {
	step := &p.graph.Steps[id]
	switch op := step.Op.(type) {
	case dag.Scratch:
		return &planned{status: WouldCached, outcome: &outcome{hit: true}}, nil
	case dag.Image:
		o := &outcome{chain: op.DiffIDs, times: make([]time.Time, len(op.DiffIDs)), base: len(op.DiffIDs), hit: true}
		return &planned{status: WouldCached, outcome: o}, nil
	}
	def, err := p.definition(ctx, id)
	if err != nil {
		return nil, err
	}
	if o := p.lookupDefinition(step, def.key); o != nil {
		return &planned{status: WouldCached, outcome: o, made: o.made}, nil
	}
	in := make([]*outcome, len(step.Inputs))
	var on []dag.ID
	for i, input := range step.Inputs {
		if _, ok := p.graph.Steps[input].Op.(dag.Context); ok {
			continue
		}
		got, err := p.step(ctx, input)
		if err != nil {
			return nil, err
		}
		if in[i] = got.outcome; got.outcome == nil && !p.indifferent(step, i) {
			on = append(on, input)
		}
	}
	if len(on) > 0 {
		return p.depending(step, on), nil
	}
	content, err := p.contentKey(ctx, step, def, in)
	if err != nil {
		return nil, err
	}
	return p.byContent(ctx, step, content, in), nil
}

// indifferent reports whether what an input holds does not matter to the key: a linked copy without names of owners looks at
// nothing below it.
func (p *planner) indifferent(step *dag.Step, input int) bool {
	op, ok := step.Op.(dag.Copy)
	return ok && input == 0 && op.Link && op.Chown == ""
}

// depending is a step above which something would run. One that was told to run runs in any case.
func (p *planner) depending(step *dag.Step, on []dag.ID) *planned {
	out := &planned{status: WouldDepend, on: on}
	if step.NoCache {
		out.status, out.on = WouldRun, nil
		if journal := p.known(); journal.Same(p.place(step), p.told.now) != nil {
			out.changes = p.forced(step, &earlier{}).changes
		}
	}
	return out
}

func (p *planner) byContent(ctx context.Context, step *dag.Step, content *stepKey, in []*outcome) *planned {
	if o := p.lookup(step, content.key); o != nil {
		out := &planned{status: WouldCached, content: content, made: o.made}
		if !linked(step) || in[0] != nil {
			out.outcome = onBase(step, in, o)
		}
		return out
	}
	changes := p.why(ctx, step, content, in, p.earlier(step, content), "")
	p.note(step, explain.Ran, content.key, changes)
	return &planned{status: WouldRun, content: content, changes: changes}
}

// list gives the steps in the order of the graph. What was not looked at is above something cached.
func (p *planner) list() []PlanStep {
	p.findPlaces()
	number := map[dag.ID]int{}
	for i, id := range p.told.order {
		number[id] = p.first + i + 1
	}
	var out []PlanStep
	for _, id := range p.told.order {
		place := p.told.places[id]
		s := PlanStep{
			StepID: StepID{number[id], place.Platform, place.Stage, place.Title, place.Line}, Status: WouldCached,
		}
		if d := p.done[id]; d != nil {
			s.Status, s.Open, s.Changes = d.status, d.open, d.changes
			for _, on := range d.on {
				if n := number[on]; n > 0 && !slices.Contains(s.DependsOn, n) {
					s.DependsOn = append(s.DependsOn, n)
				}
			}
			if !d.made.IsZero() && d.status == WouldCached {
				made := d.made
				s.Made = &made
			}
		}
		out = append(out, s)
	}
	return out
}

// secretKey is the store's own key; for a dry session that finds none, one that compares unequal with everything.
func (s *session) secretKey() ([]byte, error) {
	if s.dry {
		if _, err := os.Stat(filepath.Join(s.store.Dir(), "secret-key")); errors.Is(err, os.ErrNotExist) {
			key := make([]byte, 32)
			_, _ = rand.Read(key) // never fails
			return key, nil
		}
	}
	return s.store.SecretKey()
}

// scratchDownloads is a directory with what was fetched before, for downloads that leave the store as it is. It is gone when the
// session ends.
func (s *session) scratchDownloads(from string) (string, error) {
	tmp, release, err := s.store.TempDir()
	if err != nil {
		return "", err
	}
	s.contexts.onClose(release)
	have, err := os.ReadDir(from)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, f := range have {
		if err := os.Link(filepath.Join(from, f.Name()), filepath.Join(tmp, f.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("look at what was fetched before: %w", err)
		}
	}
	return tmp, nil
}

// WarningsOnly passes warnings on and nothing else: whoever asks what a build would do wants no report of the asking.
func WarningsOnly(to progress.Sink) progress.Sink { return warningsOnly{to} }

type warningsOnly struct{ to progress.Sink }

func (w warningsOnly) Emit(e progress.Event) {
	if x, ok := e.(progress.Warning); ok {
		x.ID = 0
		w.to.Emit(x)
	}
}
