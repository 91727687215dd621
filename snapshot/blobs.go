package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/store"
	"build/internal/tree"
)

// readCost orders media types by what reading them costs.
func readCost(mediaType string) int {
	switch {
	case strings.HasSuffix(mediaType, "zstd"):
		return 1
	case strings.HasSuffix(mediaType, "gzip"):
		return 2
	}
	return 0
}

// Import stores a layer's blob from a stream and makes its index, in one pass: the compressed bytes are checked against
// desc, the plain bytes against diffID, and nothing is published unless both agree.
func (l *Layers) Import(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader) error {
	if err := l.importBlob(ctx, diffID, desc, r, true, nil); err != nil {
		return fmt.Errorf("import layer %s: %w", diffID, err)
	}
	return nil
}

// ImportBlob stores a layer's blob without looking inside: only desc is checked. The index is made, and diffID checked,
// when the layer is first unpacked or its index is first asked for. It is the cheaper choice when a directory will be
// needed anyway, because then one decompression serves both.
func (l *Layers) ImportBlob(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader) error {
	return l.ImportFollowed(ctx, diffID, desc, r, nil)
}

// Follow begins to read a blob that is still being written, in f, which it closes; what it returns is called with how many of its bytes are
// there, each time there are more, and with all of them once they turned out to be right.
type Follow func(f *os.File) (grown func(n int64), err error)

// ImportFollowed is ImportBlob for one that is read while it arrives. Nobody follows when follow is nil.
func (l *Layers) ImportFollowed(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader, follow Follow) error {
	if err := l.importBlob(ctx, diffID, desc, r, false, follow); err != nil {
		return fmt.Errorf("import layer %s: %w", diffID, err)
	}
	return nil
}

func (l *Layers) importBlob(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader, index bool, follow Follow) (err error) {
	for _, d := range []digest.Digest{diffID, desc.Digest} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("digest %q: %w", d, err)
		}
	}
	blob, err := l.newBlob(ctx, desc)
	if err != nil {
		return err
	}
	src := &source{r: r}
	defer func() {
		if err != nil && src.err == nil && ctx.Err() == nil {
			blob.Discard() // it is not that the rest did not come
		}
		blob.Abort()
	}()
	grown := func(int64) {}
	if follow != nil {
		f, err := blob.Follow()
		if err != nil {
			return err
		}
		if grown, err = follow(f); err != nil {
			return err
		}
	}
	var size int64
	store := func(b []byte) error {
		if size += int64(len(b)); size > desc.Size {
			return fmt.Errorf("the blob is longer than the %d bytes it was said to have", desc.Size)
		}
		_, err := blob.Write(b)
		grown(blob.Written())
		return err
	}
	in := newReadAhead(ctx, src, store)
	defer in.Close()
	var x *indexer
	if index {
		if x, err = indexStream(ctx, diffID, in); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // what a decompressor left unread belongs to the blob too
		return err
	}
	if size != desc.Size {
		return fmt.Errorf("the blob has %d bytes instead of %d: %w", size, desc.Size, io.ErrUnexpectedEOF)
	}
	if _, _, err := blob.Commit(desc.Digest); err != nil {
		return err
	}
	grown(size)
	if x != nil {
		if err := l.publishIndex(ctx, diffID, x); err != nil {
			return err
		}
	}
	plain := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return l.addBlob(ctx, diffID, Blob{Descriptor: plain, Made: MadePulled})
}

// source remembers that reading failed.
type source struct {
	r   io.Reader
	err error // to be looked at when nobody reads any more
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// newBlob begins to store a blob. What has come of a large one is kept when the rest does not.
func (l *Layers) newBlob(ctx context.Context, desc ocispec.Descriptor) (*store.BlobWriter, error) {
	if desc.Size < worthKeeping {
		return l.st.NewBlob(ctx)
	}
	return l.st.NewDownload(ctx, desc.Digest)
}

// worthKeeping is the size from which on the beginning of a blob is worth a file.
const worthKeeping = 1 << 20

// indexStream makes an index out of a compressed stream and checks the plain bytes against diffID.
func indexStream(ctx context.Context, diffID digest.Digest, r io.Reader) (*indexer, error) {
	sum := digest.SHA256.Digester()
	s, err := plainStream(ctx, r, func(b []byte) error { _, err := sum.Hash().Write(b); return err })
	if err != nil {
		return nil, err
	}
	defer s.Close()
	x := newIndexer()
	if _, err := scanLayer(ctx, s, nil, x); err != nil {
		return nil, err
	}
	if got := sum.Digest(); got != diffID {
		return nil, &DigestError{What: "diffID", Want: diffID, Got: got}
	}
	return x, nil
}

// ReaderAtCloser is a plain tar that can be read at any place.
type ReaderAtCloser interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

type plainFile struct {
	*os.File
	size int64
}

func (f *plainFile) Size() int64 { return f.size }

// ReaderAt opens the plain tar of a layer for reading at the offsets its index names. When only a compressed blob is here,
// the plain one is made first and kept: its digest is the diffID, so it is a blob like any other.
func (l *Layers) ReaderAt(ctx context.Context, diffID digest.Digest) (ReaderAtCloser, error) {
	if f, err := l.openPlain(diffID); err == nil {
		return f, nil
	}
	unlock, err := l.st.Lock(ctx, "plain-"+diffID.Encoded(), nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if f, err := l.openPlain(diffID); err == nil {
		return f, nil
	}
	if err := l.makePlain(ctx, diffID); err != nil {
		return nil, fmt.Errorf("decompress layer %s: %w", diffID, err)
	}
	return l.openPlain(diffID)
}

func (l *Layers) openPlain(diffID digest.Digest) (*plainFile, error) {
	size := int64(-1)
	m, err := l.meta(diffID)
	if err != nil {
		return nil, err
	}
	for _, b := range m.Blobs {
		if b.Digest == diffID {
			size = b.Size
		}
	}
	f, err := l.st.OpenBlob(diffID, size)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &plainFile{f, fi.Size()}, nil
}

func (l *Layers) makePlain(ctx context.Context, diffID digest.Digest) error {
	r, err := l.openTar(ctx, diffID)
	if err != nil {
		return err
	}
	defer r.Close()
	blob, err := l.st.NewBlob(ctx)
	if err != nil {
		return err
	}
	defer blob.Abort()
	if _, err := io.Copy(blob, r); err != nil {
		return err
	}
	_, size, err := blob.Commit(diffID)
	if err != nil {
		return err
	}
	return l.addBlob(ctx, diffID, plainBlob(diffID, size))
}

// TooLargeError says that a file is larger than what its reader was willing to take.
type TooLargeError struct {
	Path      string
	Size, Max int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("/%s has %d bytes, more than the %d that are read of it", e.Path, e.Size, e.Max)
}

// ReadFile returns the content of a regular file as a process in the chain would see it: symbolic links are followed
// inside the root. It fails with fs.ErrNotExist when there is none, and with *TooLargeError when it has more than max bytes.
func (l *Layers) ReadFile(ctx context.Context, chain *tree.Chain, diffIDs []digest.Digest, path string, max int64) ([]byte, error) {
	real, err := chain.Resolve(tree.Clean(path), true)
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", path, err)
	}
	e, ok, err := chain.Lstat(real)
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", path, err)
	}
	if !ok {
		return nil, &os.PathError{Op: "read", Path: "/" + real, Err: os.ErrNotExist}
	}
	if e.Type != tree.File {
		return nil, &os.PathError{Op: "read", Path: "/" + real, Err: fmt.Errorf("it is a %v, not a regular file", e.Type)}
	}
	if e.Size > max {
		return nil, &TooLargeError{Path: real, Size: e.Size, Max: max}
	}
	if e.Layer >= len(diffIDs) {
		return nil, fmt.Errorf("read /%s: the chain has more layers than were named", real)
	}
	diffID := diffIDs[e.Layer]
	x, err := l.Index(ctx, diffID)
	if err != nil {
		return nil, err
	}
	if data, ok := x.Kept(e.Path); ok {
		return data, nil
	}
	data, err := l.readContent(ctx, diffID, &e.Entry)
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", real, err)
	}
	return data, nil
}

// readContent reads one file of a layer: at its offset when the plain tar is here, otherwise by reading up to it.
func (l *Layers) readContent(ctx context.Context, diffID digest.Digest, e *tree.Entry) ([]byte, error) {
	if e.Size == 0 {
		return nil, nil
	}
	data := make([]byte, e.Size)
	if e.Offset >= 0 {
		if f, err := l.openPlain(diffID); err == nil {
			defer f.Close()
			_, err := f.ReadAt(data, e.Offset)
			return data, err
		}
	}
	r, err := l.openTar(ctx, diffID)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if e.Offset >= 0 {
		if _, err := io.CopyN(io.Discard, r, e.Offset); err != nil {
			return nil, err
		}
		_, err := io.ReadFull(r, data)
		return data, err
	}
	return readSparse(ctx, r, e, data)
}

// readSparse finds a file whose bytes are not in the tar as they are; only the tar's reader can expand it.
func readSparse(ctx context.Context, r io.Reader, e *tree.Entry, data []byte) ([]byte, error) {
	want := e.Path
	if e.Hardlink != "" {
		want = e.Hardlink
	}
	s := newScanner(r)
	s.ctx = ctx
	found := false
	for {
		got, _, err := s.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if got.Path != want || got.Type != tree.File || got.Hardlink != "" || got.Size != e.Size {
			continue
		}
		if _, err := io.ReadFull(s, data); err != nil {
			return nil, err
		}
		found = true
	}
	if !found {
		return nil, errors.New("the layer's tar does not hold what its index says")
	}
	return data, nil
}
