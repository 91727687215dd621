package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/store"
)

// tarSink is where the tar of a layer that is being written goes: into a plain blob, into a compressed one, or into both. All of it
// is hashed either way, because the plain tar's digest is the layer's name.
type tarSink struct {
	plain *store.BlobWriter // nil: nobody will read it
	sum   hash.Hash         // of the tar, when plain does not hash it
	size  int64

	packed *store.BlobWriter // nil: not compressed here
	z      io.WriteCloser
	c      Compression
	blocks blockTable // of the compressed blob, if it is worth keeping
}

func (s *tarSink) Write(p []byte) (int, error) {
	if s.plain != nil {
		if n, err := s.plain.Write(p); err != nil {
			return n, err
		}
	} else {
		_, _ = s.sum.Write(p) // a hash never fails
		s.size += int64(len(p))
	}
	if s.z != nil {
		return s.z.Write(p)
	}
	return len(p), nil
}

// Compress makes the Writer compress the layer while it writes it, for an image that will want it so: nothing has to be read again.
// Unless keep is set, the plain tar is not stored at all. That is for layers which nothing reads before the build ends. Compress is
// called before the first Add; for compression of kind None, whose blob the plain tar is, it does nothing.
func (w *Writer) Compress(c Compression, keep bool) error {
	c, err := c.fill()
	if err != nil {
		return err
	}
	if w.off > 0 || w.sink.z != nil {
		return errors.New("compress a layer: it was begun before")
	}
	if c.Kind == None {
		return nil
	}
	packed, err := w.l.st.NewBlob(w.ctx)
	if err != nil {
		return err
	}
	z, err := c.writer(w.ctx, packed)
	if err != nil {
		packed.Abort()
		return err
	}
	w.sink.packed, w.sink.z, w.sink.c = packed, z, c
	if !keep {
		w.sink.plain.Abort()
		w.sink.plain, w.sink.sum = nil, sha256.New()
	}
	return nil
}

// commit publishes the blobs of a tar that is complete, and says which layer it is and what holds it.
func (s *tarSink) commit() (diffID digest.Digest, size int64, blobs []Blob, err error) {
	if s.plain != nil {
		if diffID, size, err = s.plain.Commit(""); err != nil {
			return "", 0, nil, err
		}
		blobs = append(blobs, plainBlob(diffID, size))
	} else {
		diffID, size = digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(s.sum.Sum(nil))), s.size
	}
	if s.z == nil {
		return diffID, size, blobs, nil
	}
	z := s.z
	s.z = nil
	if err := z.Close(); err != nil {
		return "", 0, nil, err
	}
	if gz, ok := z.(*gzipWriter); ok && len(gz.sums) >= minReuse {
		s.blocks = gz.sums
	}
	d, n, err := s.packed.Commit("")
	if err != nil {
		return "", 0, nil, err
	}
	desc := ocispec.Descriptor{MediaType: s.c.mediaType(), Digest: d, Size: n}
	return diffID, size, append(blobs, Blob{Descriptor: desc, Made: s.c.id()}), nil
}

// abort gives up what was not committed.
func (s *tarSink) abort() {
	if s.z != nil {
		_ = s.z.Close() // its goroutines end
		s.z = nil
	}
	if s.plain != nil {
		s.plain.Abort()
	}
	if s.packed != nil {
		s.packed.Abort()
	}
}
