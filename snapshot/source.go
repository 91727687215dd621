package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// Source is a tree that files are copied from: a context, or the merged layers of a stage. Paths are clean and relative,
// and no symlink in them is followed.
type Source interface {
	Lstat(path string) (tree.Entry, bool, error)
	// ReadDir lists a directory, sorted by name; nothing when there is none.
	ReadDir(path string) ([]tree.Entry, error)
	// Walk yields path and everything below it in path order. The Hardlink of an entry is an earlier path of the walk.
	Walk(path string) iter.Seq2[tree.Entry, error]
	// Digest returns the SHA-256 of a regular file's content.
	Digest(ctx context.Context, e *tree.Entry) ([32]byte, error)
	// Open opens a regular file.
	Open(ctx context.Context, e *tree.Entry) (io.ReadCloser, error)
}

// LayerSource is the Source that a chain of layers makes. Everything but Open is answered from their indexes.
type LayerSource struct {
	l       *Layers
	chain   *tree.Chain
	diffIDs []digest.Digest

	mu   sync.Mutex
	open map[int]ReaderAtCloser
}

// Source returns the merged tree of a chain as a source of COPY --from; diffIDs name the chain's layers, bottom first.
// Layers are only decompressed when a file in them is opened. Closing the source ends what it has opened.
func (l *Layers) Source(chain *tree.Chain, diffIDs []digest.Digest) *LayerSource {
	return &LayerSource{l: l, chain: chain, diffIDs: diffIDs, open: map[int]ReaderAtCloser{}}
}

// Close closes the layers that were read. Readers that Open returned must not be used any more.
func (s *LayerSource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for n, r := range s.open {
		errs = append(errs, r.Close())
		delete(s.open, n)
	}
	return errors.Join(errs...)
}

// Lstat returns the entry at path.
func (s *LayerSource) Lstat(path string) (tree.Entry, bool, error) {
	e, ok, err := s.chain.Lstat(path)
	e.Hardlink = ""
	return e.Entry, ok, err
}

// ReadDir lists the directory at path.
func (s *LayerSource) ReadDir(path string) ([]tree.Entry, error) {
	list, err := s.chain.ReadDir(path)
	if err != nil {
		return nil, err
	}
	out := make([]tree.Entry, len(list))
	for i := range list {
		out[i] = list[i].Entry
		out[i].Hardlink = ""
	}
	return out, nil
}

// Walk yields path and everything below it. Names are hard links of each other when they are in the same layer.
func (s *LayerSource) Walk(path string) iter.Seq2[tree.Entry, error] {
	type inode struct {
		layer int
		first string
	}
	return func(yield func(tree.Entry, error) bool) {
		// The first name of a file may be outside of the walk, or hidden by another layer: what counts is the first that
		// the walk meets.
		first := map[inode]string{}
		for l, err := range s.chain.Walk(path) {
			if err == nil && l.Hardlink != "" {
				id := inode{l.Layer, l.Hardlink}
				seen, ok := first[id]
				if !ok {
					seen, ok = s.firstName(path, &l, l.Hardlink)
					if !ok {
						seen = l.Path
					}
					first[id] = seen
				}
				l.Hardlink = ""
				if seen != l.Path {
					l.Hardlink = seen
				}
			}
			if !yield(l.Entry, err) || err != nil {
				return
			}
		}
	}
}

// firstName reports whether the first name of a hard link was met by the walk: it is below root and visible. First names
// are not remembered while they pass, because hardly any file has a second one.
func (s *LayerSource) firstName(root string, l *tree.Located, name string) (string, bool) {
	if name != root && !tree.Below(name, root) {
		return "", false
	}
	e, ok, err := s.chain.Lstat(name)
	return name, err == nil && ok && e.Layer == l.Layer
}

// Digest returns what the index says: it holds the digest of every file.
func (s *LayerSource) Digest(_ context.Context, e *tree.Entry) ([32]byte, error) {
	return e.Digest, nil
}

// Open opens a regular file of the tree.
func (s *LayerSource) Open(ctx context.Context, e *tree.Entry) (io.ReadCloser, error) {
	at, ok, err := s.chain.Lstat(e.Path)
	if err != nil {
		return nil, err
	}
	if !ok || at.Type != tree.File {
		return nil, fmt.Errorf("/%s is not a file of this tree", e.Path)
	}
	if at.Size == 0 {
		return io.NopCloser(emptyReader{}), nil
	}
	if at.Offset < 0 { // stored as a sparse file: there is no one piece to read
		r, err := s.openSparse(ctx, &at)
		if err != nil {
			return nil, fmt.Errorf("read /%s: %w", e.Path, err)
		}
		return r, nil
	}
	r, err := s.layer(ctx, at.Layer)
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", e.Path, err)
	}
	return io.NopCloser(io.NewSectionReader(r, at.Offset, at.Size)), nil
}

// layer returns the plain tar of a layer, opened once.
func (s *LayerSource) layer(ctx context.Context, n int) (ReaderAtCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.open[n]; r != nil {
		return r, nil
	}
	if n >= len(s.diffIDs) {
		return nil, errors.New("the chain has more layers than were named")
	}
	r, err := s.l.ReaderAt(ctx, s.diffIDs[n])
	if err != nil {
		return nil, err
	}
	s.open[n] = r
	return r, nil
}

// openSparse finds a file whose bytes are not in the tar as they are: only a reader of tars can expand it.
func (s *LayerSource) openSparse(ctx context.Context, at *tree.Located) (io.ReadCloser, error) {
	if at.Layer >= len(s.diffIDs) {
		return nil, errors.New("the chain has more layers than were named")
	}
	r, err := s.l.OpenTar(ctx, s.diffIDs[at.Layer])
	if err != nil {
		return nil, err
	}
	index := s.chain.Layers()[at.Layer]
	sc := newScanner(r)
	for {
		got, _, err := sc.next()
		if err != nil {
			r.Close()
			if err == io.EOF {
				err = errors.New("the layer's tar does not hold what its index says")
			}
			return nil, err
		}
		if got.Type != tree.File || got.Hardlink != "" || got.Offset >= 0 || got.Size != at.Size {
			continue
		}
		// The name in the tar may be another name of the same file.
		if e, ok, err := index.Lookup(got.Path); err == nil && ok && e.Digest == at.Digest {
			return struct {
				io.Reader
				io.Closer
			}{sc, r}, nil
		}
	}
}

type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, io.EOF }
