package snapshot

import (
	"context"
	"fmt"
	"iter"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
	"build/internal/tree"
)

// CheckCopy does what Selection.Write and Commit do but for contents: it finds everything about a selection that would keep it from
// becoming a layer on base. Contents have the digests that Digest found, and are not read. What would be in the layer is kept as an
// index under a name of the caller's choice, which is no layer's diffID: KnownIndex has it, and nobody else finds it. entries is the
// same, as of Preview. ok is false when archives may be unpacked: only Write knows what comes out of them.
func (l *Layers) CheckCopy(ctx context.Context, s *Selection, base *tree.Chain, name digest.Digest) (entries iter.Seq2[tree.Entry, error], ok bool, err error) {
	entries, ok, err = s.Preview(base, s.spec.Owner)
	if err != nil || !ok {
		return nil, ok, err
	}
	f, err := l.st.Create(ctx, store.KindIndex)
	if err != nil {
		return nil, true, fmt.Errorf("list a copy: %w", err)
	}
	defer f.Abort()
	var enc encoder
	idx := tree.NewWriter(f)
	for e := range entries {
		if err := list(&e, &enc, idx); err != nil {
			return nil, true, unwritable(e.Path, err)
		}
	}
	sign(idx, name)
	if _, err = idx.Close(); err == nil {
		err = f.Commit(indexKey(name))
	}
	if err != nil {
		return nil, true, fmt.Errorf("list a copy: %w", err)
	}
	return entries, true, nil
}

// list adds an entry to an index if it fits into a tar, too.
func list(e *tree.Entry, enc *encoder, idx *tree.Writer) error {
	if err := normalise(e); err != nil {
		return err
	}
	h, err := tarHeader(e)
	if err == nil {
		_, err = enc.encode(h)
	}
	if err == nil {
		err = idx.Add(e)
	}
	return err
}
