package snapshot

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"build/internal/tree"
)

// write adds everything planned to w, in path order, each file being read once.
func (p *plan) write(ctx context.Context, w *Writer) error { return p.writeIn(ctx, w, p.root) }

// writeIn adds what is planned in a directory.
func (p *plan) writeIn(ctx context.Context, w *Writer, n *planned) error {
	for _, name := range n.needed() {
		kid := n.dir.kids[name]
		if err := p.writeOne(ctx, w, kid, tree.Join(n.entry.Path, name)); err != nil {
			return err
		}
		if err := p.writeIn(ctx, w, kid); err != nil {
			return err
		}
	}
	return nil
}

// needed returns the names in a directory that go into the layer, sorted.
func (n *planned) needed() []string {
	kids := n.kids()
	if len(kids) == 0 {
		return nil
	}
	names := make([]string, 0, len(kids))
	for name, kid := range kids {
		if kid.touched() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// touched reports whether a path or anything below it is changed.
func (n *planned) touched() bool {
	if n.changed {
		return true
	}
	for _, kid := range n.kids() {
		if kid.touched() {
			n.changed = true // found once is enough
			return true
		}
	}
	return false
}

func (p *plan) writeOne(ctx context.Context, w *Writer, n *planned, path string) error {
	e := p.final(n, path)
	if e.Type != tree.File {
		return w.Add(&e, nil)
	}
	if n.links != nil {
		if n.links.first != "" {
			e.Hardlink = n.links.first
			return w.Add(&e, nil)
		}
		n.links.first = e.Path
	}
	r, err := n.content.open(ctx, n.entry)
	if err != nil {
		return fmt.Errorf("copy to /%s: %w", e.Path, err)
	}
	err = w.Add(&e, r)
	if _, ok := n.content.(sourceFiles); ok && err == nil {
		learn(n.entry, r, e.Digest)
	}
	if cerr := r.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("copy to /%s: %w", e.Path, cerr)
	}
	return err
}

// unpacks reports whether an archive is unpacked: one that was fetched only when that was asked for.
func (s *Selection) unpacks(it *item) bool {
	if s.spec.Sources[it.source].From != nil && s.spec.Unpack == nil {
		return false
	}
	return s.spec.unpacks()
}

// Preview lists the entries of the layer that Write would make, in path order, without reading a file: contents have the
// digests that Digest found. owner, unless nil, is what owns them. ok is false when archives may be unpacked, of which nothing is known without reading them.
// The entries are made while they are asked for, by one at a time.
func (s *Selection) Preview(base *tree.Chain, owner *Owner) (entries iter.Seq2[tree.Entry, error], ok bool, err error) {
	spec := *s.spec
	spec.Owner = owner
	p, err := newPlan(base, &spec)
	if err != nil {
		return nil, false, err
	}
	for i := range s.items {
		it := &s.items[i]
		if it.inline == nil && s.unpacks(it) && it.top().Type == tree.File {
			return nil, false, nil
		}
		if err := p.add(it.src, it); err != nil {
			return nil, false, err
		}
	}
	return func(yield func(tree.Entry, error) bool) {
		p.walk(p.root, func(e tree.Entry) bool { return yield(e, nil) })
	}, true, nil
}

// walk gives what is planned below n, as write writes it, until yield has enough.
func (p *plan) walk(n *planned, yield func(tree.Entry) bool) bool {
	for _, name := range n.needed() {
		kid := n.dir.kids[name]
		e := p.final(kid, tree.Join(n.entry.Path, name))
		if kid.links != nil && e.Type == tree.File {
			if kid.links.first == "" {
				kid.links.first = e.Path
			}
			if kid.links.first != e.Path {
				e.Hardlink = kid.links.first
			}
		}
		if !yield(e) || !p.walk(kid, yield) {
			return false
		}
	}
	return true
}

// Write writes the layer that copying the selection onto base makes: everything that changes and all directories above
// it, with their merged metadata. Nothing is read from base but its indexes.
func (s *Selection) Write(ctx context.Context, base *tree.Chain, w *Writer) error {
	p, err := newPlan(base, s.spec)
	if err != nil {
		return err
	}
	var archives archives
	defer archives.close()
	for i := range s.items {
		it := &s.items[i]
		if it.inline == nil && s.unpacks(it) && it.top().Type == tree.File {
			a, err := archives.openIf(ctx, it.src, &it.top().Entry, w)
			if err != nil {
				return err
			}
			if a != nil {
				if err := p.unpack(ctx, a); err != nil {
					return archiveFailure(ctx, it.path, err)
				}
				if a.zstd && s.spec.Unpack == nil {
					s.Zstd = append(s.Zstd, it.path)
				}
				continue
			}
		}
		if err := p.add(it.src, it); err != nil {
			return err
		}
	}
	return p.write(ctx, w)
}
