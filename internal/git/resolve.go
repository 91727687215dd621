package git

import (
	"context"
	"fmt"
)

// resolver names the deltas of a pack. A delta has no name until what it is against has one, which may come later in the
// pack and be a delta itself. The deltas are taken as the trees they form, from the top down: then what the next one is
// against was just made, whatever the shape of the trees, so that the time is linear in what the pack unfolds to and the
// memory does not depend on it.
type resolver struct {
	p *pack
	// The deltas against object i are first[i], then next of that and so on; -1 ends the list.
	first, next []int32
	// waiting are the deltas whose base is known by its name alone, which no object had so far.
	waiting map[rawID][]int32
	left    int
}

// deltaBase says what a delta is against, as the pack says it.
type deltaBase struct {
	delta int32
	at    int64 // offset of its base, 0 when it is named
	id    rawID
}

func (p *pack) resolve(ctx context.Context, deltas []deltaBase) error {
	r := &resolver{
		p: p, left: len(deltas), waiting: map[rawID][]int32{},
		first: make([]int32, len(p.objs)), next: make([]int32, len(p.objs)),
	}
	for i := range r.first {
		r.first[i] = -1
	}
	for _, d := range deltas {
		if d.at == 0 {
			r.waiting[d.id] = append(r.waiting[d.id], d.delta)
			continue
		}
		base, ok := p.atOffset(d.at)
		if !ok {
			return fmt.Errorf("%w: the base of a delta is not in it", errPack)
		}
		r.add(base, d.delta)
	}
	p.recent = &[2]unfolded{}
	defer func() { p.recent = nil }()
	for i := range p.objs {
		if e := &p.objs[i]; e.base < 0 && !e.kind.isDelta() { // what was a delta has its turn with what it is against
			if err := r.tree(ctx, int32(i)); err != nil {
				return err
			}
		}
	}
	if r.left != 0 {
		return fmt.Errorf("%w: the base of a delta is not in it", errPack)
	}
	return nil
}

// add makes delta one of those against base.
func (r *resolver) add(base, delta int32) {
	r.p.objs[delta].base = base
	r.next[delta], r.first[base] = r.first[base], delta
}

// todo is a delta whose base has a name, and how many deltas that is made of.
type todo struct{ delta, depth int32 }

// push puts the deltas against an object that has its name now onto a stack.
func (r *resolver) push(stack []todo, base, depth int32) []todo {
	id := r.p.objs[base].id
	for _, delta := range r.waiting[id] {
		r.add(base, delta)
	}
	delete(r.waiting, id)
	for d := r.first[base]; d >= 0; d = r.next[d] {
		stack = append(stack, todo{d, depth})
	}
	return stack
}

// tree names all deltas that stand on an object.
func (r *resolver) tree(ctx context.Context, root int32) error {
	stack := r.push(nil, root, 1)
	for len(stack) > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		t := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if t.depth > maxDeltaDepth {
			return fmt.Errorf("%w: an object is made of more than %d deltas", errPack, maxDeltaDepth)
		}
		data, err := r.p.bytes(t.delta)
		if err != nil {
			return err
		}
		e := &r.p.objs[t.delta]
		e.kind, e.size = r.p.objs[e.base].kind, int64(len(data))
		h := objectHash(r.p.hexLen, e.kind, e.size)
		_, _ = h.Write(data) // a hash never fails
		raw, err := sum(h)
		if err != nil {
			return err
		}
		copy(e.id[:], raw)
		r.left--
		stack = r.push(stack, t.delta, t.depth+1)
	}
	return nil
}
