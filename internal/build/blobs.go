package build

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/store"
)

// maxDocument bounds manifests and configurations, as registries do.
const maxDocument = 8 << 20

// readBlob reads a small document out of the store and checks it against its digest.
func readBlob(st *store.Store, d digest.Digest, size int64) ([]byte, error) {
	if size > maxDocument {
		return nil, fmt.Errorf("%s: %d bytes are too many for a manifest or configuration", d, size)
	}
	f, err := st.OpenBlob(d, size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(b) != d {
		return nil, fmt.Errorf("%s: %w", d, errNoBlob)
	}
	return b, nil
}

// putBlob stores a small document unless it is there.
func putBlob(st *store.Store, b []byte) error {
	d := digest.FromBytes(b)
	if st.HasBlob(d, int64(len(b))) {
		if have, err := readBlob(st, d, int64(len(b))); err == nil && bytes.Equal(have, b) {
			return nil
		}
		if err := st.RemoveBlob(d); err != nil {
			return err
		}
	}
	w, err := st.NewBlob(context.Background())
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, bytes.NewReader(b)); err != nil {
		w.Abort()
		return err
	}
	_, _, err = w.Commit(d)
	return err
}

// openStored opens a blob that is in the store.
func openStored(st *store.Store, d ocispec.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return st.OpenBlob(d.Digest, d.Size) }
}
