package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"iter"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"build/internal/tree"
)

// Owner is the numeric owner of a file.
type Owner struct{ UID, GID uint32 }

// CopySource is one source of a COPY or ADD.
type CopySource struct {
	// Path is the source as written, with variables expanded; for an inline document its name.
	Path string
	// Inline says that Data is the file, rather than something in the Source.
	Inline bool
	Data   []byte
	// From is where Path is, when that is not the Source of the whole copy: something that was fetched. Path is literal
	// then, and an archive is unpacked only when that was asked for.
	From Source
}

// CopySpec is what a COPY or ADD says.
type CopySpec struct {
	// Add allows archives to be unpacked, unless Unpack says otherwise.
	Add     bool
	Sources []CopySource
	// Dest is absolute; it ends in / or /. when a directory is meant.
	Dest string
	// Owner replaces the owner of everything that is copied or made.
	Owner *Owner
	// Chmod is an octal or symbolic mode, "" for none.
	Chmod string
	// Parents keeps the directories a source is in, from the pivot /./ on.
	Parents bool
	// Exclude are patterns, relative to a copied directory, of what is left out.
	Exclude []string
	// Unpack says whether archives are unpacked; nil leaves it to Add.
	Unpack *bool
	// Link makes the layer independent of the base: nothing of the destination is looked at.
	Link bool
	// Now is the time of what has no time of its own.
	Now time.Time
}

func (s *CopySpec) unpacks() bool {
	if s.Unpack != nil {
		return *s.Unpack
	}
	return s.Add
}

// NotFoundError says that a source does not exist.
type NotFoundError struct{ Path string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("%q: not found", "/"+e.Path) }

// CopyError says that what is at the destination, or what an option says, does not allow the copy.
type CopyError struct{ Msg string }

func (e *CopyError) Error() string { return e.Msg }

func copyErrorf(format string, args ...any) error {
	return &CopyError{Msg: fmt.Sprintf(format, args...)}
}

// Selection is what the sources of a COPY name, found but not yet read.
type Selection struct {
	src   Source
	spec  *CopySpec
	items []item

	// Zstd are the archives that Write unpacked because of what they are and without being told to, although the Dockerfile
	// reference does not have zstd among the formats that ADD knows. BuildKit unpacks them.
	Zstd []string
}

// item is one source, or one match of a source with wildcards.
type item struct {
	source int
	src    Source
	// name is the last component of the path as written: a symlink is followed, but copied under its own name.
	name   string
	path   string // where it is, symlinks followed
	inline []byte // the content of an inline document
	// entries are path itself and, for a directory, what of it is copied, in path order.
	entries chosenList
}

// chosen is an entry of a Source that is copied.
type chosen struct {
	tree.Entry
	// delayed marks a directory that is only there because something in it was chosen.
	delayed bool
}

// chosenList holds entries in the order in which they came. They are large and may be a million, so it never moves one to grow.
type chosenList struct {
	blocks [][]chosen // all full but the last
	n      int
}

// The first block has room for one entry, most often a file; the second for some, and each further one for twice as many, up to
// as many as take somewhat less than a MiB.
const (
	secondBlock = 16
	largeBlock  = 4096
)

func listOf(c chosen) chosenList { return chosenList{blocks: [][]chosen{{c}}, n: 1} }

func (l *chosenList) add(c chosen) {
	last := len(l.blocks) - 1
	if last < 0 || len(l.blocks[last]) == cap(l.blocks[last]) {
		room := 1
		if last >= 0 {
			room = min(max(secondBlock, 2*cap(l.blocks[last])), largeBlock)
		}
		l.blocks = append(l.blocks, make([]chosen, 0, room))
		last++
	}
	l.blocks[last] = append(l.blocks[last], c)
	l.n++
}

// all yields the entries; they may be changed.
func (l *chosenList) all() iter.Seq[*chosen] {
	return func(yield func(*chosen) bool) {
		for _, block := range l.blocks {
			for i := range block {
				if !yield(&block[i]) {
					return
				}
			}
		}
	}
}

func (it *item) top() *chosen { return &it.entries.blocks[0][0] }

// below yields the entries but for the top.
func (it *item) below() iter.Seq[*chosen] {
	return func(yield func(*chosen) bool) {
		first := true
		for c := range it.entries.all() {
			if !first && !yield(c) {
				return
			}
			first = false
		}
	}
}

// rel returns where below the copied directory an entry is.
func (it *item) rel(c *chosen) string {
	if len(c.Path) == len(it.path) {
		return ""
	}
	if it.path == "" {
		return c.Path
	}
	return c.Path[len(it.path)+1:]
}

// Digest returns the digest of everything the copy can bring into a layer, except times. Contents that the source has
// no digest of are read now, several at once; Write checks that they are still the same.
func (s *Selection) Digest(ctx context.Context) ([32]byte, error) {
	if err := s.readDigests(ctx); err != nil {
		return [32]byte{}, err
	}
	h := sha256.New()
	for i := range s.items {
		s.items[i].hash(h)
	}
	var sum [32]byte
	h.Sum(sum[:0])
	return sum, nil
}

// Unread reports whether most bytes of the selection are in files that the source has no digest of, and writing the layer at once
// is better than reading them for Digest first: Write takes the digests on the way. Archives are not for that, because what is in
// them is known only when they are unpacked.
func (s *Selection) Unread() bool {
	var unread, all int64
	for i := range s.items {
		it := &s.items[i]
		if it.inline != nil {
			continue
		}
		if it.top().Type == tree.File && s.unpacks(it) {
			return false
		}
		for c := range it.entries.all() {
			if e := &c.Entry; e.Type == tree.File {
				all += e.Size
				if e.Digest == [32]byte{} {
					unread += e.Size
				}
			}
		}
	}
	return unread >= minUnread && unread > all/2
}

// minUnread is from where on it pays to read files only once.
const minUnread = 1 << 20

// hash adds the item to h. Of a copied directory only what is in it counts: the destination has its own metadata.
func (it *item) hash(h hash.Hash) {
	var b []byte
	b = binary.AppendUvarint(b, uint64(it.source))
	b = binary.AppendUvarint(b, uint64(len(it.name)))
	b = append(b, it.name...)
	b = binary.AppendUvarint(b, uint64(it.entries.n))
	if it.top().Type != tree.Dir {
		_, _ = h.Write(tree.AppendHash(b, it.name, &it.top().Entry)) // a hash never fails
		return
	}
	for c := range it.below() {
		if len(b) > hashBatch {
			_, _ = h.Write(b)
			b = b[:0]
		}
		b = tree.AppendHash(b, it.rel(c), &c.Entry)
		link := c.Hardlink
		if len(link) > len(it.path) && it.path != "" {
			link = link[len(it.path)+1:]
		}
		mark := byte(0)
		if c.delayed {
			mark = 1
		}
		b = append(b, mark)
		b = binary.AppendUvarint(b, uint64(len(link)))
		b = append(b, link...)
	}
	_, _ = h.Write(b)
}

// hashBatch is how many bytes are gathered before they are hashed.
const hashBatch = 16 << 10

// digestBatch is how many files a worker takes at a time: most digests come from a cache and cost next to nothing.
const digestBatch = 128

func (s *Selection) readDigests(ctx context.Context) error {
	type file struct {
		*tree.Entry
		src Source
	}
	var files []file
	for i := range s.items {
		it := &s.items[i]
		if it.inline != nil {
			continue
		}
		for c := range it.entries.all() {
			if e := &c.Entry; e.Type == tree.File && e.Digest == [32]byte{} {
				files = append(files, file{e, it.src})
			}
		}
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), 1+len(files)/digestBatch)
	if len(files) > 1 { // large files are worth a worker each
		workers = max(workers, min(runtime.GOMAXPROCS(0), len(files)))
	}
	batch := int64(digestBatch)
	if len(files) < digestBatch*workers {
		batch = 1
	}
	for range workers {
		g.Go(func() error {
			for {
				from := next.Add(batch) - batch
				if from >= int64(len(files)) {
					return nil
				}
				for _, e := range files[from:min(from+batch, int64(len(files)))] {
					if err := ctx.Err(); err != nil {
						return context.Cause(ctx)
					}
					sum, err := e.src.Digest(ctx, e.Entry)
					if err != nil {
						return err
					}
					e.Digest = sum
				}
			}
		})
	}
	return g.Wait()
}
