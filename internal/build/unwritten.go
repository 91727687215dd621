package build

import (
	"context"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/internal/store"
)

// A COPY at the end of a build whose result nobody asked for would write a layer that nothing reads. It is checked instead: all that
// writing it could find wrong is found wrong, and what is remembered is that nothing was. That record is kept under a key of its own,
// derived from the step's, and names the layers below the step and none of the step's. So it answers only those who ask for it: whoever
// wants the layer meets a miss and writes it. It never takes the place of a record with a layer, which answers first. Beside it lies a
// list of the files, by which a later run says what changed.
//
// Only a COPY of files of a context is left unwritten: what it takes is known without the layer, and stays known for the next time.
// What a command left, or what was fetched or unpacked, has to be kept somewhere. So has what the next step looks at.

// wantsNothing reports whether no output reads what the products hold, and nothing has to be read to look for secrets in it.
func (s *session) wantsNothing(products []*product) bool {
	if s.opts.Push || len(s.opts.Outputs) == 0 {
		return false
	}
	for i := range s.opts.Outputs {
		if s.opts.Outputs[i].Type != OutputNone {
			return false
		}
	}
	if s.opts.SecretLeak == LeakOff {
		return true
	}
	for _, p := range products {
		if mountsSecret(p.graph) {
			return false
		}
	}
	return true
}

func mountsSecret(g *dag.Graph) bool {
	for i := range g.Steps {
		if run, ok := g.Steps[i].Op.(dag.Run); ok {
			for _, m := range run.Mounts {
				if m.Type == dag.MountSecret {
					return true
				}
			}
		}
	}
	return false
}

// unread reports whether nothing in this build reads the layer of a step, which need not be written then. What --no-cache makes run
// again is written in place of what there was.
func (e *evaluator) unread(step *dag.Step) bool {
	if !e.wantNothing || step.ID != e.graph.Target || step.NoCache {
		return false
	}
	op, ok := step.Op.(dag.Copy)
	return ok && e.readsContext(step) && !hasRemote(op)
}

// lookup asks the cache. Where nothing reads the step's layer, it is enough that the step was checked.
func (e *evaluator) lookup(step *dag.Step, k cache.Key) *outcome {
	o := e.lookupRecord(step, k)
	if o == nil && e.unread(step) {
		if o = e.lookupRecord(step, checkedKey(k)); o != nil {
			o.unwritten = true
		}
	}
	return o
}

// checkCopy does everything for a COPY but writing its layer. checked is false when that can only be done by writing it, because an
// archive may have to be unpacked.
func (e *evaluator) checkCopy(ctx context.Context, op dag.Copy, on *outcome, sel *selection, content cache.Key) (checked bool, err error) {
	base, err := e.copyBase(ctx, op, on, sel)
	if err != nil {
		return false, err
	}
	sel.entries, checked, err = e.layers.CheckCopy(ctx, sel.files, base, listName(checkedKey(content).String()))
	return checked, err
}

// listName is the name of the list of what a COPY would have put into its layer, given the key of the record that lies there instead.
func listName(record string) digest.Digest { return digest.NewDigestFromEncoded(digest.SHA256, record) }

// listReference is what the record of a COPY stands on that wrote no layer.
func listReference(kind store.Kind, key string, data []byte) []store.Ref {
	if kind != store.KindRecord {
		return nil
	}
	if step, own := cache.StepOf(data); step == "" || len(own) > 0 {
		return nil
	}
	return []store.Ref{{Kind: store.KindIndex, Key: listName(key).String(), Weak: true}}
}

// checkedKey is where the record of a step lies whose layer was not written, given the key of the step.
func checkedKey(k cache.Key) cache.Key {
	h := cache.NewHash("checked")
	h.Key("step", k)
	return h.Sum()
}

// under is the key for the record of an outcome, given the step's.
func (o *outcome) under(k cache.Key) cache.Key {
	if o.unwritten {
		return checkedKey(k)
	}
	return k
}

// forgetChecked removes what the layer that was written now makes superfluous. If it fails, what is left is still true.
func (e *evaluator) forgetChecked(keys ...cache.Key) {
	for _, k := range keys {
		k = checkedKey(k)
		_ = e.cache.Remove(k)
		_ = e.store.Remove(store.KindIndex, listName(k.String()).String())
	}
}

// runOf is the record under a key, or else that of a run which wrote no layer; nil if there is neither.
func (e *evaluator) runOf(k cache.Key) *cache.Record {
	for _, k := range []cache.Key{k, checkedKey(k)} {
		if rec, err := e.cache.Get(k); err == nil {
			return rec
		}
	}
	return nil
}

// wroteNothing reports whether a record is of a run that wrote no layer.
func wroteNothing(rec *cache.Record) bool { return rec.Own == 0 }

// files names the index of what an earlier run put into its layer, or would have, "" if there is none.
func (was *earlier) files() digest.Digest {
	rec := was.record
	switch {
	case wroteNothing(rec):
		return listName(checkedKey(was.key).String())
	case len(rec.Layers) > 0:
		return rec.Layers[len(rec.Layers)-1]
	}
	return ""
}
