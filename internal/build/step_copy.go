package build

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/tree"
	"build/parser"
	"build/snapshot"
)

// copySpec is what snapshot needs to know of a COPY or ADD. The owner is resolved later, from the base.
func copySpec(op dag.Copy, now time.Time) *snapshot.CopySpec {
	spec := &snapshot.CopySpec{
		Add: op.Add, Dest: op.Dest, Chmod: op.Chmod, Parents: op.Parents, Exclude: op.Exclude,
		Unpack: op.Unpack, Link: op.Link, Now: now,
	}
	for _, src := range op.Sources {
		if src.Place != "" {
			continue // fetched when the step runs: wholeSelection
		}
		spec.Sources = append(spec.Sources, snapshot.CopySource{Path: src.Path, Inline: src.Inline, Data: src.Data})
	}
	return spec
}

// copy writes the layer of a COPY or ADD straight from its source: no mount, no directory, no second copy. One that nobody will
// read is checked alone, and is "".
func (e *evaluator) copy(ctx context.Context, step *dag.Step, op dag.Copy, content *stepKey, in []*outcome) (digest.Digest, error) {
	sel, err := e.selection(ctx, step, op, func() (snapshot.Source, error) { return nil, errors.New("internal error: a copy without a key") })
	if err == nil && hasRemote(op) {
		sel, err = e.wholeSelection(ctx, step, op)
	}
	if err != nil {
		return "", err
	}
	d := e.takeDraft(step.ID)
	if d == nil && e.unread(step) {
		if checked, err := e.checkCopy(ctx, op, in[0], sel, content.key); checked || err != nil {
			return "", err
		}
	}
	if d == nil {
		if d, err = e.draftCopy(ctx, step, op, in[0], sel); err != nil {
			return "", err
		}
	}
	diffID, err := e.publishDraft(ctx, step, d)
	for _, archive := range sel.files.Zstd {
		e.warnOf(parser.Warning{Range: step.Pos, Msg: "ADD unpacks " + archive + ", which is compressed by zstd, a format that the Dockerfile reference " +
			"does not list; say --unpack=true or --unpack=false"})
	}
	return diffID, err
}

// draftCopy writes the layer of a COPY or ADD on what it stands on.
func (e *evaluator) draftCopy(ctx context.Context, step *dag.Step, op dag.Copy, on *outcome, sel *selection) (*draft, error) {
	base, err := e.copyBase(ctx, op, on, sel)
	if err != nil {
		return nil, err
	}
	return e.draft(ctx, step, func(w *snapshot.Writer) error { return sel.files.Write(ctx, base, w) })
}

// copyBase is what a COPY looks at of what it stands on. It settles the owner that the selection gets.
func (e *evaluator) copyBase(ctx context.Context, op dag.Copy, on *outcome, sel *selection) (*tree.Chain, error) {
	base, baseLayers := tree.NewChain(nil), []digest.Digest(nil)
	if !op.Link || strings.Trim(op.Chown, "0123456789:") != "" { // a name is looked up in the base
		var err error
		if base, baseLayers, err = e.baseChain(ctx, on); err != nil {
			return nil, err
		}
	}
	if op.Chown != "" {
		owner, err := e.layers.Owner(ctx, base, baseLayers, op.Chown)
		if err != nil {
			return nil, err
		}
		sel.spec.Owner = &owner
	}
	if op.Link {
		base = tree.NewChain(nil)
	}
	return base, nil
}

// selection is what a COPY selects from its source, with the digest that stands for it in keys. It is made once for a
// step, when its key is computed; writing the layer checks that the files still have the content that was hashed.
type selection struct {
	spec  *snapshot.CopySpec
	files *snapshot.Selection
	sum   [32]byte
	at    string // of a mount: where the layer that is made of the selection has what is mounted

	entries iter.Seq2[tree.Entry, error] // of the layer, when it was checked and not written
}

func (e *evaluator) selection(ctx context.Context, step *dag.Step, op dag.Copy, open func() (snapshot.Source, error)) (*selection, error) {
	return once(e, e.sels, step.ID, func() (*selection, error) {
		src, err := open()
		if err != nil {
			return nil, err
		}
		s := &selection{spec: copySpec(op, e.began)}
		if s.files, err = snapshot.Select(ctx, src, s.spec); err != nil {
			return nil, err
		}
		if e.writesAhead(step, op, s) {
			if err := e.writeAhead(ctx, step, op, s); err != nil {
				return nil, err
			}
		}
		s.sum, err = s.files.Digest(ctx)
		return s, err
	}).wait(ctx)
}

// readsContext reports whether what a COPY selects is known without evaluating anything: files of a context, or none but
// here-documents.
func (e *evaluator) readsContext(step *dag.Step) bool {
	if len(step.Inputs) < 2 {
		return true
	}
	_, ok := e.graph.Steps[step.Inputs[1]].Op.(dag.Context)
	return ok
}

// contextSource opens the context a COPY reads.
func (e *evaluator) contextSource(step *dag.Step) (snapshot.Source, error) {
	if len(step.Inputs) < 2 {
		return emptySource{}, nil
	}
	return e.contexts.get(e.graph.Steps[step.Inputs[1]].Op.(dag.Context).Name)
}

func (e *evaluator) chainSource(ctx context.Context, o *outcome) (snapshot.Source, error) {
	chain, err := e.chain(ctx, o.chain)
	if err != nil {
		return nil, err
	}
	src := e.layers.Source(chain, o.chain)
	e.contexts.onClose(func() { src.Close() })
	return src, nil
}

func (e *evaluator) baseChain(ctx context.Context, o *outcome) (*tree.Chain, []digest.Digest, error) {
	if o == nil {
		return tree.NewChain(nil), nil, nil
	}
	c, err := e.chain(ctx, o.chain)
	return c, o.chain, err
}

// writeLayer lets fill write a layer and publishes it.
func (e *evaluator) writeLayer(ctx context.Context, fill func(*snapshot.Writer) error) (digest.Digest, error) {
	w, err := e.layers.NewWriter(ctx)
	if err != nil {
		return "", err
	}
	if err := fill(w); err != nil {
		w.Abort()
		return "", err
	}
	l, err := w.Commit()
	if err != nil {
		return "", err
	}
	return l.DiffID, e.leaseLayer(l.DiffID)
}

// mkdir writes the layer of a WORKDIR.
func (e *evaluator) mkdir(ctx context.Context, step *dag.Step, op dag.Mkdir, in []*outcome) (digest.Digest, error) {
	base, layers, err := e.baseChain(ctx, in[0])
	if err != nil {
		return "", err
	}
	var owner snapshot.Owner
	if op.User != "" {
		if owner, err = e.layers.Owner(ctx, base, layers, op.User); err != nil {
			return "", fmt.Errorf("owner of %s: %w", op.Path, err)
		}
	}
	return e.writeStep(ctx, step, func(w *snapshot.Writer) error {
		return snapshot.Mkdir(ctx, base, strings.TrimPrefix(op.Path, "/"), owner, e.began, w)
	})
}
