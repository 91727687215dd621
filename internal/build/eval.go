package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"build/cache"
	"build/dag"
	"build/internal/explain"
	"build/internal/progress"
)

// outcome is what a step stands for once it has been evaluated: a chain of layers, bottom first.
type outcome struct {
	chain []digest.Digest
	times []time.Time // when each layer was made; zero for the layers of a base image
	base  int         // how many of the first layers come from an image: they are known by diffID, the others by content
	made  time.Time   // when the step was carried out
	hit   bool        // nothing had to be done for it
	ran   bool        // a command or a copy was carried out by this process

	unwritten bool // the step's own layer is not in chain, because nothing reads it: see unwritten.go
}

// evaluator turns steps into layers on demand: it starts at the wanted step, and what a record answers is never looked
// at further up. A step is evaluated at most once in a build, whoever asks first.
type evaluator struct {
	*session
	graph    *dag.Graph
	platform string // "" in a build for one

	mu    sync.Mutex
	evals map[dag.ID]*future[*outcome]
	keys  map[dag.ID]*future[*stepKey]
	sels  map[dag.ID]*future[*selection]
	shown map[dag.ID]bool // as running or cached
	above map[dag.ID]bool // of which cachedAbove has shown everything

	mountSels map[mountID]*future[*selection]
	searched  map[dag.ID]bool // cached steps of which it is known what leaked

	evaluates bool                   // steps are carried out, not only asked about: see writesAhead
	readAgain map[dag.ID]bool        // steps whose layers others read as tars
	drafts    map[dag.ID]*draft      // layers written before their step's key was known
	urgencies func() []time.Duration // by step: see urgency

	told progressOf // what became of the steps, and why

	stale map[dag.ID]bool // below a step of --no-cache-filter
	final map[dag.ID]bool // the steps whose layers end up in the image: these are compressed beside the build
	bg    *errgroup.Group // that work
	work  sync.WaitGroup  // every goroutine that computes a future
	bgCtx context.Context
}

// future is a value that several goroutines may need and one computes.
type future[T any] struct {
	done chan struct{}
	val  T
	err  error
}

// once returns the future of id in m, computing it in a goroutine of its own when nobody has asked before.
func once[K comparable, T any](e *evaluator, m map[K]*future[T], id K, compute func() (T, error)) *future[T] {
	e.mu.Lock()
	defer e.mu.Unlock()
	f, ok := m[id]
	if !ok {
		f = &future[T]{done: make(chan struct{})}
		m[id] = f
		e.work.Go(func() {
			defer close(f.done)
			f.val, f.err = compute()
		})
	}
	return f
}

func (f *future[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.val, f.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

func newEvaluator(ctx context.Context, s *session, g *dag.Graph, platform string) *evaluator {
	bg, bgCtx := errgroup.WithContext(ctx)
	e := &evaluator{
		session: s, graph: g, platform: platform,
		evals: map[dag.ID]*future[*outcome]{},
		keys:  map[dag.ID]*future[*stepKey]{},
		sels:  map[dag.ID]*future[*selection]{},
		shown: map[dag.ID]bool{},
		above: map[dag.ID]bool{},

		mountSels: map[mountID]*future[*selection]{},
		searched:  map[dag.ID]bool{},
		readAgain: layersReadAgain(g),
		drafts:    map[dag.ID]*draft{},
		stale:     staleSteps(g),
		final:     map[dag.ID]bool{},
		bg:        bg, bgCtx: bgCtx,
	}
	e.urgencies = sync.OnceValue(e.estimate)
	for i := range g.Steps {
		if isRun(&g.Steps[i]) {
			s.runsLeft.Add(1)
		}
	}
	for id := g.Target; id >= 0; {
		e.final[id] = true
		in := g.Steps[id].Inputs
		if len(in) == 0 {
			break
		}
		id = in[0]
	}
	return e
}

// drainTime is how long the end of a build waits for steps that were told to stop, to let them clean up behind themselves.
// What takes longer is ended with the holder and collected later.
const drainTime = 800 * time.Millisecond

// drain stops what is still going on and waits for it, within bounds.
func (e *evaluator) drain() {
	e.cancel(errCanceled)
	done := make(chan struct{})
	go func() {
		e.work.Wait()
		_ = e.bg.Wait()
		e.dropDrafts()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

// eval evaluates one step.
func (e *evaluator) eval(ctx context.Context, id dag.ID) (*outcome, error) {
	return once(e, e.evals, id, func() (*outcome, error) {
		o, err := e.evalStep(ctx, id)
		if err != nil {
			e.fail(err) // the first failure ends the others
			return nil, err
		}
		return o, nil
	}).wait(ctx)
}

func (e *evaluator) evalStep(ctx context.Context, id dag.ID) (*outcome, error) {
	step := &e.graph.Steps[id]
	switch op := step.Op.(type) {
	case dag.Scratch:
		return &outcome{hit: true}, nil
	case dag.Image:
		e.emitFrom(step)
		return &outcome{chain: op.DiffIDs, times: make([]time.Time, len(op.DiffIDs)), base: len(op.DiffIDs), hit: true}, nil
	case dag.Context:
		return nil, fmt.Errorf("internal error: context %q evaluated as a chain of layers", op.Name)
	}

	def, err := e.definition(ctx, id)
	if err != nil {
		return nil, err
	}
	if o := e.lookupDefinition(step, def.key); o != nil {
		if err := e.leakedAbove(ctx, id, o.chain); err != nil {
			return nil, err
		}
		e.cachedAbove(id)
		return o, nil
	}
	in, err := e.evalInputs(ctx, step)
	if err != nil {
		return nil, err
	}
	content, err := e.contentKey(ctx, step, def, in)
	if err != nil {
		return nil, err
	}
	return e.make(ctx, step, def, content, in)
}

// make looks the step up by content and carries it out when no record answers, one process at a time.
func (e *evaluator) make(ctx context.Context, step *dag.Step, def, content *stepKey, in []*outcome) (*outcome, error) {
	vertex := e.vertex(step)
	leave, err := e.alone(ctx, content.key)
	if err != nil {
		return nil, err
	}
	defer leave()
	unlock, waited, err := e.lockStep(ctx, step, content.key, vertex)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if o := e.lookup(step, content.key); o != nil {
		o = onBase(step, in, o)
		if !o.unwritten {
			if err := e.leakedBefore(ctx, step, o.chain[len(o.chain)-1], true); err != nil {
				return nil, err
			}
		}
		_ = e.cache.Alias(o.under(def.key), o.record(step), aliasText(def, content)) // failing to is no error: the content key still answers
		e.note(step, explain.Cached, content.key, nil)
		e.emitCached(step)
		return o, nil
	}
	if waited {
		// Whoever had the lock left no record: the step failed there. Those who waited need not fail one after another.
		unlock()
	}
	e.show(step)

	done, err := e.places().Take(ctx, func() time.Duration { return e.urgency(step.ID) })
	if err != nil {
		return nil, err
	}
	defer done()
	began := e.beganAt(step)
	e.emit(progress.Started{ID: vertex, Name: step.Name, Time: began})
	made, changes, err := e.performExplained(ctx, step, content, in)
	if err != nil {
		err = e.located(step, err)
		e.emit(progress.Done{ID: vertex, Err: err.Error(), Canceled: ctx.Err() != nil, Time: time.Now()})
		return nil, err
	}
	o, err := e.publish(step, def, content, in, made, began)
	if err != nil {
		return nil, err
	}
	e.note(step, explain.Ran, content.key, changes)
	e.emit(progress.Done{ID: vertex, Time: time.Now()})
	return o, nil
}

// onBase completes what a record of a linked step says. Such a record is of one layer, whatever it was made on: on a new
// base the same layer is used again.
func onBase(step *dag.Step, in []*outcome, o *outcome) *outcome {
	if !linked(step) || in[0] == nil {
		return o
	}
	return &outcome{
		chain: slices.Concat(in[0].chain, o.chain), times: slices.Concat(in[0].times, o.times), base: in[0].base, made: o.made, hit: o.hit,
		unwritten: o.unwritten,
	}
}

// linked reports whether a step makes its layer without looking at what it stands on (COPY --link).
func linked(step *dag.Step) bool {
	op, ok := step.Op.(dag.Copy)
	return ok && op.Link
}

// record is what the cache keeps of an outcome.
func (o *outcome) record(step *dag.Step) *cache.Record {
	rec := &cache.Record{Layers: o.chain, Times: o.times, Base: o.base, Own: 1, Created: o.made, Step: step.Name}
	if o.unwritten {
		rec.Own = 0
	}
	return rec
}

// perform does the work of a step that no record answers and returns the layer it made, "" if nobody will read it.
func (e *evaluator) perform(ctx context.Context, step *dag.Step, content *stepKey, in []*outcome) (digest.Digest, error) {
	switch op := step.Op.(type) {
	case dag.Run:
		return e.run(ctx, step, op, in)
	case dag.Copy:
		return e.copy(ctx, step, op, content, in)
	case dag.Mkdir:
		return e.mkdir(ctx, step, op, in)
	}
	return "", fmt.Errorf("internal error: no work known for %T", step.Op)
}

// evalInputs evaluates what a step stands on and reads from, in parallel. Contexts are not chains and stay nil.
func (e *evaluator) evalInputs(ctx context.Context, step *dag.Step) ([]*outcome, error) {
	out := make([]*outcome, len(step.Inputs))
	g, gctx := errgroup.WithContext(ctx)
	for i, id := range step.Inputs {
		if _, ok := e.graph.Steps[id].Op.(dag.Context); ok {
			continue
		}
		g.Go(func() error {
			o, err := e.eval(gctx, id)
			out[i] = o
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// lookupDefinition is lookup for a key by definition. Below a step that was told to run again it says nothing: that step would
// not be looked at any more.
func (e *evaluator) lookupDefinition(step *dag.Step, k cache.Key) *outcome {
	if e.stale[step.ID] {
		return nil
	}
	return e.lookup(step, k)
}

// staleSteps finds the steps that stand on or read from one that runs whatever the cache has.
func staleSteps(g *dag.Graph) map[dag.ID]bool {
	stale := map[dag.ID]bool{}
	for i := range g.Steps { // inputs come first
		for _, in := range g.Steps[i].Inputs {
			if stale[in] || g.Steps[in].NoCache && isWork(&g.Steps[in]) {
				stale[g.Steps[i].ID] = true
			}
		}
	}
	return stale
}

// lookupRecord believes a record only when every layer of it can still be had in some form.
func (e *evaluator) lookupRecord(step *dag.Step, k cache.Key) *outcome {
	rec, err := e.cache.Get(k)
	if err != nil {
		return nil
	}
	if step.NoCache && rec.Created.Before(e.began) {
		return nil
	}
	for _, d := range rec.Layers { // lease first, then look
		if err := e.leaseLayer(d); err != nil || !e.obtainable(d) {
			return nil
		}
	}
	return &outcome{chain: rec.Layers, times: rec.Times, base: rec.Base, made: rec.Created, hit: true}
}

// publish writes the record of a step that was just carried out, under its content key and then its definition key. made is its
// layer, "" if none was written.
func (e *evaluator) publish(step *dag.Step, def, content *stepKey, in []*outcome, made digest.Digest, began time.Time) (*outcome, error) {
	now := time.Now()
	own := &outcome{made: now, ran: true, unwritten: made == ""}
	if made != "" {
		own.chain, own.times = []digest.Digest{made}, []time.Time{now.UTC().Truncate(time.Second)}
	}
	o := own
	if len(in) > 0 && in[0] != nil {
		o = &outcome{
			chain: slices.Concat(in[0].chain, own.chain), times: slices.Concat(in[0].times, own.times), base: in[0].base,
			made: now, ran: true, unwritten: own.unwritten,
		}
	}
	rec := o.record(step)
	rec.Took = time.Since(began)
	byContent := *rec
	if linked(step) {
		byContent = *own.record(step)
	}
	byContent.Text = content.hash.Text()
	if err := e.cache.Put(o.under(content.key), &byContent); err != nil {
		return nil, fmt.Errorf("record %s: %w", step.Name, err)
	}
	if err := e.cache.Alias(o.under(def.key), rec, aliasText(def, content)); err != nil {
		return nil, fmt.Errorf("record %s: %w", step.Name, err)
	}
	if e.count(step, false); o.unwritten { // what is remembered are runs whose layer others can be compared with
		return o, nil
	}
	e.forgetChecked(content.key, def.key)
	if err := e.cache.Remember(identity(e.place(step)), content.key); err != nil {
		return nil, fmt.Errorf("record %s: %w", step.Name, err)
	}
	e.compressLater(step, made)
	return o, nil
}

// compressLater makes the form of a layer that an export will want, beside the steps that follow.
func (e *evaluator) compressLater(step *dag.Step, d digest.Digest) {
	if !e.inImage(step) {
		return
	}
	c := e.view.compression
	c.DropPlain = c.DropPlain && !e.readAgain[step.ID]
	e.bg.Go(func() error { // which waits here, so that no step has to
		leave, err := e.cpu().Take(e.bgCtx, func() time.Duration { return 0 })
		if err != nil {
			return err
		}
		defer leave()
		_, err = e.layers.Compressed(e.bgCtx, d, c, e.view.epoch)
		if err != nil {
			err = fmt.Errorf("compress layer %s: %w", d, err)
			e.fail(err)
		}
		return err
	})
}

// cachedAbove shows a hit and everything it made unnecessary as cached.
func (e *evaluator) cachedAbove(id dag.ID) {
	e.mu.Lock()
	seen := e.above[id]
	e.above[id] = true
	e.mu.Unlock()
	if seen { // many steps can stand on one, and on those again many
		return
	}
	step := &e.graph.Steps[id]
	for _, in := range step.Inputs {
		e.cachedAbove(in)
	}
	e.emitCached(step)
	e.keepRecord(step)
}

func (e *evaluator) emitCached(step *dag.Step) {
	if _, from := step.Op.(dag.Image); !from && !isWork(step) {
		return
	}
	if !e.show(step) {
		return
	}
	id := e.vertex(step)
	now := time.Now()
	e.emit(progress.Started{ID: id, Name: step.Name, Time: now})
	e.emit(progress.Cached{ID: id, Time: now})
	if isWork(step) {
		e.count(step, true)
	}
}

// emitFrom shows a FROM whose image is known. What is fetched of it later starts it again.
func (e *evaluator) emitFrom(step *dag.Step) {
	id, now := e.vertex(step), time.Now()
	e.emit(progress.Started{ID: id, Name: step.Name, Time: now})
	e.emit(progress.Done{ID: id, Time: now})
}

// vertex is the display's id of a step.
func (e *evaluator) vertex(step *dag.Step) progress.ID {
	return e.vertexNamed(fmt.Sprintf("step %d %s", step.ID, e.platform))
}

// isWork reports whether a step makes a layer, and so is one that runs or is cached.
func isWork(step *dag.Step) bool {
	switch step.Op.(type) {
	case dag.Run, dag.Copy, dag.Mkdir:
		return true
	}
	return false
}

// show notes that a step is shown, as cached or as one that runs, and reports whether it was not before.
func (e *evaluator) show(step *dag.Step) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shown[step.ID] {
		return false
	}
	e.shown[step.ID] = true
	if isRun(step) {
		e.runsLeft.Add(-1)
	}
	return true
}

func isRun(step *dag.Step) bool {
	_, ok := step.Op.(dag.Run)
	return ok
}

// errCanceled is the cause when a build ends without one of its own.
var errCanceled = errors.New("canceled")
