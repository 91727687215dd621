package build

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/progress"
	"build/snapshot"
)

// draft is the layer of a step that is written and not published yet.
type draft struct {
	w      *snapshot.Writer
	search *layerSearch
	began  time.Time
}

// writeStep writes and publishes the layer of a step: it may end up in the image.
func (e *evaluator) writeStep(ctx context.Context, step *dag.Step, fill func(*snapshot.Writer) error) (digest.Digest, error) {
	d, err := e.draft(ctx, step, fill)
	if err != nil {
		return "", err
	}
	return e.publishDraft(ctx, step, d)
}

// draft writes the layer of a step, compressed on the way when that is how an output will want it.
func (e *evaluator) draft(ctx context.Context, step *dag.Step, fill func(*snapshot.Writer) error) (*draft, error) {
	d := &draft{search: e.leaks.request().search(), began: time.Now()}
	var err error
	if d.w, err = e.layers.NewWriter(ctx); err != nil {
		return nil, err
	}
	if d.search != nil {
		d.w.Inspect(d.search)
	}
	if e.inImage(step) && e.view.epoch == nil { // with an epoch it may have to be rewritten, which its index decides
		err = d.w.Compress(e.view.compression, !e.view.compression.DropPlain || e.readAgain[step.ID])
	}
	if rec := e.latest(step); rec != nil && len(rec.Layers) > 0 {
		d.w.Reuse(rec.Layers[len(rec.Layers)-1])
	}
	if err == nil {
		err = fill(d.w)
	}
	if err != nil {
		d.w.Abort()
		return nil, err
	}
	return d, nil
}

func (e *evaluator) publishDraft(ctx context.Context, step *dag.Step, d *draft) (digest.Digest, error) {
	l, err := d.w.Commit()
	if err != nil {
		return "", err
	}
	if err := e.leaseLayer(l.DiffID); err != nil {
		return "", err
	}
	return l.DiffID, e.leaked(ctx, step, l.DiffID, d.search.findings())
}

// inImage reports whether a step's layer is one of an image that some output wants.
func (e *evaluator) inImage(step *dag.Step) bool { return e.final[step.ID] && e.wantBlobs }

// layersReadAgain finds the steps whose layers are read as tars by other steps: unpacked for a RUN, or copied from. These keep
// their plain tar until the build ends. What a RUN left is a directory, which the next one stands on.
func layersReadAgain(g *dag.Graph) map[dag.ID]bool {
	read := map[dag.ID]bool{}
	mark := func(id dag.ID, unpacked bool) {
		for id >= 0 {
			step := &g.Steps[id]
			if _, run := step.Op.(dag.Run); !run || !unpacked {
				read[id] = true
			}
			if len(step.Inputs) == 0 {
				return
			}
			id = step.Inputs[0]
		}
	}
	for i := range g.Steps {
		step := &g.Steps[i]
		_, run := step.Op.(dag.Run)
		for n, in := range step.Inputs {
			if n > 0 {
				mark(in, false)
			} else if run {
				mark(in, true)
			}
		}
	}
	return read
}

// A COPY whose files nobody has read yet is written before its key is known: the key needs the digests of the files, and so files
// are read once instead of twice. That is done only when it is as good as certain that the layer will be wanted: no record was
// ever made of the instruction. When one answers after all, the draft is dropped.

// writesAhead reports whether a step's layer is to be written before its key is known.
func (e *evaluator) writesAhead(step *dag.Step, op dag.Copy, s *selection) bool {
	if !e.evaluates || !e.readsContext(step) || hasRemote(op) || !s.files.Unread() || e.unread(step) {
		return false
	}
	if step.NoCache {
		return true
	}
	return e.latest(step) == nil
}

// writeAhead writes the layer of a COPY from a selection whose digests are not known, and so makes them known. What the step stands
// on is evaluated for it.
func (e *evaluator) writeAhead(ctx context.Context, step *dag.Step, op dag.Copy, s *selection) error {
	var base *outcome
	if len(step.Inputs) > 0 {
		var err error
		if base, err = e.eval(ctx, step.Inputs[0]); err != nil {
			return err
		}
	}
	e.emit(progress.Started{ID: e.vertex(step), Name: step.Name, Time: time.Now()})
	d, err := e.draftCopy(e.bgCtx, step, op, base, s) // the draft outlives whoever asked for the key
	if err != nil {
		err = e.located(step, err)
		e.emit(progress.Done{ID: e.vertex(step), Err: err.Error(), Canceled: ctx.Err() != nil, Time: time.Now()})
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drafts[step.ID] = d
	return nil
}

// takeDraft returns the layer that was written ahead for a step, nil when none was.
func (e *evaluator) takeDraft(id dag.ID) *draft {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.drafts[id]
	delete(e.drafts, id)
	return d
}

// beganAt is when the work on a step that is to be carried out now began: that may have been before its key was known.
func (e *evaluator) beganAt(step *dag.Step) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.drafts[step.ID]; d != nil {
		return d.began
	}
	return time.Now()
}

// dropDrafts gives up what was written ahead and not wanted, at the end of a build.
func (e *evaluator) dropDrafts() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, d := range e.drafts {
		d.w.Abort()
		delete(e.drafts, id)
		if !e.shown[id] { // the build failed before the step could be looked up
			e.emit(progress.Done{ID: e.vertex(&e.graph.Steps[id]), Canceled: true, Time: time.Now()})
		}
	}
}
