package snapshot

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// keptFiles are the files whose bytes an index holds, so that names of users are known without the layer. Larger ones than
// maxKept are read from the layer when they are needed.
var keptFiles = []string{"etc/group", "etc/passwd"}

const maxKept = 256 << 10

func isKept(path string) bool { return slices.Contains(keptFiles, path) }

// indexer makes an index out of the entries of a tar, in the order of the tar.
type indexer struct {
	b    tree.Builder
	root *tree.Entry // the root's own entry
	gone map[string]bool
	kept map[string]*bytes.Buffer
}

func newIndexer() *indexer {
	return &indexer{gone: map[string]bool{}, kept: map[string]*bytes.Buffer{}}
}

// watch returns a reader of a file's content that keeps a copy when the index is to hold it.
func (x *indexer) watch(e *tree.Entry, r io.Reader) io.Reader {
	if !isKept(e.Path) || e.Size > maxKept {
		return r
	}
	buf := new(bytes.Buffer)
	x.kept[e.Path] = buf
	return io.TeeReader(r, buf)
}

func (x *indexer) add(e *tree.Entry, opaque bool) error {
	if opaque {
		return x.opaque(e.Path)
	}
	if e.Path == "" {
		if x.root != nil {
			e.Opaque = x.root.Opaque
		}
		x.root = e
		return x.b.Add(e)
	}
	x.forget(e)
	if e.Type != tree.Whiteout {
		delete(x.gone, e.Path)
		return x.b.Add(e)
	}
	before := x.b.Len()
	err := x.b.Add(e)
	if x.b.Len() > before {
		x.gone[e.Path] = true
	}
	return err
}

// forget drops a kept file that e replaces.
func (x *indexer) forget(e *tree.Entry) {
	if len(x.kept) == 0 || e.Type == tree.Whiteout {
		return
	}
	for path := range x.kept {
		same := path == e.Path && (e.Type != tree.File || e.Hardlink != "" || e.Size > maxKept)
		if same || e.Type != tree.Dir && strings.HasPrefix(path, e.Path+"/") {
			delete(x.kept, path)
		}
	}
}

// opaque marks a directory. The builder takes a whiteout over a directory of the layer for exactly that; when there is no
// directory yet, one is implied.
func (x *indexer) opaque(dir string) error {
	implied := &tree.Entry{
		Path: dir, Type: tree.Dir, Mode: 0o755, ModTime: time.Unix(0, 0), Offset: -1, Implied: true, Opaque: true,
	}
	if dir == "" {
		if x.root == nil {
			x.root = implied
		}
		x.root.Opaque = true
		return x.b.Add(x.root)
	}
	before := x.b.Len()
	if err := x.b.Add(&tree.Entry{Path: dir, Type: tree.Whiteout, Offset: -1}); err != nil {
		return err
	}
	if x.b.Len() == before && !x.gone[dir] {
		return nil
	}
	delete(x.gone, dir)
	return x.b.Add(implied)
}

// write writes the index of a layer.
func (x *indexer) write(w io.Writer, diffID digest.Digest) (tree.Summary, error) {
	tw := tree.NewWriter(w)
	if err := x.b.WriteTo(tw); err != nil {
		return tree.Summary{}, err
	}
	for _, path := range keptFiles {
		if buf := x.kept[path]; buf != nil {
			tw.Keep(path, buf.Bytes())
		}
	}
	sign(tw, diffID)
	return tw.Close()
}
