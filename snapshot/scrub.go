package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
	"build/internal/tree"
)

// Scrub reads every blob and every index of these layers that is in the store and removes those that are not what they are
// called, so that they are made or fetched again. It returns what it removed, for people to read. It is for a build that failed in a way that a sound store would not explain: on other
// days a blob is believed by its size.
func (l *Layers) Scrub(ctx context.Context, diffIDs []digest.Digest) (removed []string, err error) {
	for _, diffID := range diffIDs {
		blobs, err := l.Blobs(diffID)
		if err != nil {
			return removed, err
		}
		for _, b := range blobs {
			if !b.Local {
				continue
			}
			if ctx.Err() != nil {
				return removed, context.Cause(ctx)
			}
			if l.sound(b.Digest) {
				continue
			}
			if err := l.st.RemoveBlob(b.Digest); err != nil {
				return removed, err
			}
			removed = append(removed, "blob "+b.Digest.String())
		}
		if l.soundIndex(diffID) {
			continue
		}
		if err := l.st.Remove(store.KindIndex, indexKey(diffID)); err != nil {
			return removed, err
		}
		removed = append(removed, "the index of layer "+diffID.String())
	}
	return removed, nil
}

// soundIndex reports whether an index can be read from one end to the other. One that is gone is sound.
func (l *Layers) soundIndex(diffID digest.Digest) bool {
	x, err := l.openIndex(diffID)
	if err != nil {
		return true // it is gone, or will be made again because of what is wrong with it
	}
	defer x.Close()
	return readThrough(x) == nil
}

// CheckIndex reports what is wrong with the file of an index, whose name is its key in the store.
func CheckIndex(path string) error {
	x, err := openSigned(path, digest.Digest(filepath.Base(path)))
	if err != nil {
		return err
	}
	defer x.Close()
	return readThrough(x)
}

func readThrough(x *tree.Index) error {
	for _, err := range x.Subtree("") {
		if err != nil {
			return err
		}
	}
	return nil
}

// signature is kept in an index like the content of a file, under a name that none has. It says of which layer the index is:
// its checksums hold wherever it lies, and what it says would be believed of another layer.
const signature = "\x00layer"

func sign(w *tree.Writer, diffID digest.Digest) { w.Keep(signature, []byte(diffID)) }

// openSigned opens the index of a layer at path.
func openSigned(path string, diffID digest.Digest) (*tree.Index, error) {
	x, err := tree.OpenFile(path)
	if err != nil {
		return nil, err
	}
	if of, _ := x.Kept(signature); string(of) != diffID.String() {
		_ = x.Close() // nothing was written
		return nil, fmt.Errorf("%s is the index of layer %.80q: %w", path, of, tree.ErrCorrupt)
	}
	return x, nil
}

// sound reports whether a blob is what it is called. One that is gone is.
func (l *Layers) sound(d digest.Digest) bool {
	f, err := l.st.OpenBlob(d, -1)
	if err != nil {
		return true
	}
	defer f.Close()
	v := d.Verifier()
	_, err = io.Copy(v, f)
	return err == nil && v.Verified()
}

// References tells a collection or a check of the store what the notes about a layer stand on: any of its forms may be gone, and
// is made or fetched again.
func References(kind store.Kind, key string, data []byte) []store.Ref {
	var m layerMeta
	if kind != store.KindLayer || json.Unmarshal(data, &m) != nil || m.Version != metaVersion {
		return nil
	}
	refs := []store.Ref{{Kind: store.KindIndex, Key: key, Weak: true}}
	for _, b := range m.Blobs {
		refs = append(refs, store.Ref{Kind: store.KindBlob, Key: b.Digest.String(), Weak: true})
	}
	return refs
}

// CheckNotes reports what is wrong with the notes about a layer, for a check of the store.
func CheckNotes(_ string, data []byte) error {
	var m layerMeta
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("notes about a layer: %w", err)
	}
	if m.Version != metaVersion {
		return fmt.Errorf("notes about a layer of version %d", m.Version)
	}
	return nil
}
