package build

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"strconv"
	"strings"

	"build/cache"
	"build/dag"
	"build/internal/explain"
	"build/snapshot"
)

// This file is the list of what enters a key. A step has two: by definition (the keys of its inputs), which can be
// computed without evaluating anything above it, and by content (what its inputs turned out to be, without file times),
// which lets a step whose inputs were made again to the same content stay cached.
//
// Not in any key, as in BuildKit (S92, S95): proxy variables, the addresses of --add-host (the names are), cache mount
// ids and sharing, what secrets and ssh agents are, resource limits, and everything that only ends up in the image's configuration.

type stepKey struct {
	key  cache.Key
	hash *cache.Hash // gives the text, when a record is written
}

func sealKey(h *cache.Hash) *stepKey { return &stepKey{key: h.Sum(), hash: h} }

// definition returns the definition key of a step, computing those of its inputs as needed.
func (e *evaluator) definition(ctx context.Context, id dag.ID) (*stepKey, error) {
	return e.startDefinition(ctx, id).wait(ctx)
}

// startDefinition begins to compute a definition key. Only what computes a key or evaluates a step calls it, never a goroutine
// that nobody waits for: the end of a build waits for all work there is, so no more may come out of nowhere.
func (e *evaluator) startDefinition(ctx context.Context, id dag.ID) *future[*stepKey] {
	return once(e, e.keys, id, func() (*stepKey, error) {
		step := &e.graph.Steps[id]
		for _, in := range step.Inputs { // start all, then wait in order
			if _, ok := e.graph.Steps[in].Op.(dag.Context); !ok {
				e.startDefinition(ctx, in)
			}
		}
		h := cache.NewHash("definition")
		if err := e.opFields(ctx, h, step); err != nil {
			return nil, e.located(step, err)
		}
		for i, in := range step.Inputs {
			if _, ok := e.graph.Steps[in].Op.(dag.Context); ok {
				continue // its selected content is among the fields
			}
			k, err := e.definition(ctx, in)
			if err != nil {
				return nil, err
			}
			h.Key("input"+strconv.Itoa(i), k.key)
		}
		return sealKey(h), nil
	})
}

// contentKey returns the key of a step whose inputs are known.
func (e *evaluator) contentKey(ctx context.Context, step *dag.Step, def *stepKey, in []*outcome) (*stepKey, error) {
	h := cache.NewHash("content")
	if err := e.opFields(ctx, h, step); err != nil {
		return nil, e.located(step, err)
	}
	if err := e.inputContent(ctx, h, step, in); err != nil {
		return nil, e.located(step, err)
	}
	e.notes(h, step, in)
	return sealKey(h), nil
}

// inputContent adds what the inputs hold: all of what a step stands on, and of the others what it takes from them.
func (e *evaluator) inputContent(ctx context.Context, h *cache.Hash, step *dag.Step, in []*outcome) error {
	if len(in) > 0 && in[0] != nil && !linked(step) {
		if err := e.chainField(ctx, h, "input0", in[0]); err != nil {
			return err
		}
	}
	switch op := step.Op.(type) {
	case dag.Copy:
		if linked(step) && op.Chown != "" {
			// All that a linked copy takes from its base is what a name stands for.
			if err := e.ownerField(ctx, h, op, in[0]); err != nil {
				return err
			}
		}
		if len(in) > 1 && in[1] != nil {
			return e.selectedField(ctx, h, step, op, in[1])
		}
	case dag.Run:
		return e.mountContent(ctx, h, step, op, in)
	}
	return nil
}

func (e *evaluator) ownerField(ctx context.Context, h *cache.Hash, op dag.Copy, on *outcome) error {
	base, layers, err := e.baseChain(ctx, on)
	if err != nil {
		return err
	}
	o, err := e.layers.Owner(ctx, base, layers, op.Chown)
	if err != nil {
		return err
	}
	h.Field("owner", fmt.Sprintf("%d:%d", o.UID, o.GID))
	return nil
}

// chainField names a chain by what is in it: the layers of an image by diffID, those made here by a digest of their
// entries that leaves file times out.
func (e *evaluator) chainField(ctx context.Context, h *cache.Hash, name string, o *outcome) error {
	var b strings.Builder
	for i, d := range o.chain {
		if i < o.base {
			b.WriteString(d.String() + "\n")
			continue
		}
		x, err := e.index(ctx, d)
		if err != nil {
			return err
		}
		c := x.Summary().Content
		b.WriteString("content:" + hex.EncodeToString(c[:]) + "\n")
	}
	h.Field(name, b.String())
	return nil
}

// selectedField names what a COPY --from selects, by content, so that a stage that changed elsewhere changes nothing here.
func (e *evaluator) selectedField(ctx context.Context, h *cache.Hash, step *dag.Step, op dag.Copy, from *outcome) error {
	sel, err := e.selection(ctx, step, op, func() (snapshot.Source, error) { return e.chainSource(ctx, from) })
	if err != nil {
		return err
	}
	h.Field("from", hex.EncodeToString(sel.sum[:]))
	return nil
}

// opFields adds everything a step says itself.
func (e *evaluator) opFields(ctx context.Context, h *cache.Hash, step *dag.Step) error {
	switch op := step.Op.(type) {
	case dag.Scratch:
		h.Field("op", "scratch")
	case dag.Image:
		h.Field("op", "image")
		h.Field("platform", platformString(op.Platform))
		for i, d := range op.DiffIDs {
			h.Field("layer"+strconv.Itoa(i), d.String())
		}
	case dag.Run:
		return e.runFields(ctx, h, step, op)
	case dag.Copy:
		return e.copyFields(ctx, h, step, op)
	case dag.Mkdir:
		h.Field("op", "mkdir")
		h.Field("path", op.Path)
		h.Field("user", op.User)
	default:
		return fmt.Errorf("internal error: no key known for %T", step.Op)
	}
	return nil
}

func (e *evaluator) runFields(ctx context.Context, h *cache.Hash, step *dag.Step, op dag.Run) error {
	h.Field("op", "run")
	h.Field("platform", platformString(step.Platform))
	for i, a := range op.Args {
		h.Field("arg"+strconv.Itoa(i), a)
	}
	for _, kv := range op.Env {
		k, v, _ := strings.Cut(kv, "=")
		h.Field("env:"+k, v)
	}
	h.Field("dir", op.Dir)
	h.Field("user", op.User)
	h.Field("network", op.Network)
	h.Field("security", op.Security)
	h.Field("hostname", hostname(op))
	for _, f := range op.Files {
		h.Field("file:"+f.Name, string(f.Data))
	}
	if err := e.mountFields(ctx, h, step, op); err != nil {
		return err
	}
	if e.opts.ShmSize != 0 {
		h.Field("shm", strconv.FormatInt(e.opts.ShmSize, 10))
	}
	for _, l := range e.opts.Rlimits {
		h.Field("ulimit"+strconv.Itoa(l.Resource), fmt.Sprintf("%d:%d", l.Soft, l.Hard))
	}
	for _, a := range e.opts.AddHosts {
		h.Field("host:"+a.Name, "")
	}
	return nil
}

func (e *evaluator) copyFields(ctx context.Context, h *cache.Hash, step *dag.Step, op dag.Copy) error {
	h.Field("op", "copy")
	h.Field("add", strconv.FormatBool(op.Add))
	h.Field("dest", op.Dest)
	h.Field("chown", op.Chown)
	h.Field("chmod", op.Chmod)
	h.Field("link", strconv.FormatBool(op.Link))
	h.Field("parents", strconv.FormatBool(op.Parents))
	if op.Unpack != nil {
		h.Field("unpack", strconv.FormatBool(*op.Unpack))
	}
	for i, x := range op.Exclude {
		h.Field("exclude"+strconv.Itoa(i), x)
	}
	if err := e.remoteFields(ctx, h, op); err != nil {
		return err
	}
	for i, s := range op.Sources {
		if s.Place != "" {
			continue
		}
		// The directories above a source name nothing in the result: what is selected is a field of its own (S89).
		h.Field("source"+strconv.Itoa(i), path.Base(s.Path))
		if s.Inline {
			h.Field("inline"+strconv.Itoa(i), string(s.Data))
		}
	}
	if !e.readsContext(step) {
		return nil
	}
	sel, err := e.selection(ctx, step, op, func() (snapshot.Source, error) { return e.contextSource(step) })
	if err != nil {
		return err
	}
	h.Field("context", hex.EncodeToString(sel.sum[:]))
	return nil
}

// identity names an instruction wherever it stands, so that a run of it can be found that the journal does not know.
func identity(p explain.Place) string { return p.Text }

// aliasText is what a definition key was hashed from, with the content key that its record stands for.
func aliasText(def, content *stepKey) []byte {
	h := cache.NewHash("note")
	h.Field(explain.NoteContent, content.key.String())
	_, note, _ := bytes.Cut(h.Text(), []byte{'\n'})
	return append(def.hash.Text(), note...)
}
