package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"sort"
	"sync/atomic"
	"time"
)

// ErrCorrupt is wrapped by every error about an index that is damaged, cut short or of another version. Such an index
// is worth nothing and is made again from the layer.
var ErrCorrupt error = corruptIndex{}

type corruptIndex struct{}

func (corruptIndex) Error() string { return "corrupt layer index" }

// KindCorrupt is the kind under which ErrCorrupt crosses a process boundary.
const KindCorrupt = "tree.corrupt"

// Remote lets the error cross a process boundary.
func (corruptIndex) Remote() (string, any) { return KindCorrupt, nil }

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// cachedBlocks is how many blocks an Index keeps for point lookups. Small layers fit whole; two hundred large ones
// together stay at a few megabytes.
const cachedBlocks = 4

// Index reads an index file. Blocks are read and verified when they are needed. It may be used concurrently.
type Index struct {
	r      io.ReaderAt
	closer io.Closer
	sum    Summary
	blocks []blockInfo
	keptAt int64
	keptN  int64
	keptCS uint32
	cache  [cachedBlocks]atomic.Pointer[cachedBlock]
}

type cachedBlock struct {
	n    int
	data []byte
}

// OpenFile opens the index at path.
func OpenFile(path string) (*Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a layer index: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("opening a layer index: %w", err)
	}
	x, err := Open(f, info.Size())
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	x.closer = f
	return x, nil
}

// Open reads the summary and the block table of the index in r, which is size bytes long.
func Open(r io.ReaderAt, size int64) (*Index, error) {
	if size < int64(len(magic)+footerSize) {
		return nil, corrupt("%d bytes are too few", size)
	}
	foot, err := readAt(r, size-int64(footerSize), int64(footerSize), "footer")
	if err != nil {
		return nil, err
	}
	if string(foot[24:]) != magic {
		return nil, corrupt("it does not end in the mark of this version")
	}
	if crc32.Checksum(foot[:20], castagnoli) != binary.LittleEndian.Uint32(foot[20:]) {
		return nil, corrupt("the checksum of its footer is wrong")
	}
	at, n := binary.LittleEndian.Uint64(foot), binary.LittleEndian.Uint64(foot[8:])
	end := uint64(size - int64(footerSize))
	if at < uint64(len(magic)) || at > end || n != end-at {
		return nil, corrupt("its table is out of place")
	}
	table, err := readAt(r, int64(at), int64(n), "table")
	if err != nil {
		return nil, err
	}
	if crc32.Checksum(table, castagnoli) != binary.LittleEndian.Uint32(foot[16:]) {
		return nil, corrupt("the checksum of its table is wrong")
	}
	x := &Index{r: r}
	if err := x.parseTable(table, int64(at)); err != nil {
		return nil, err
	}
	return x, nil
}

func (x *Index) parseTable(table []byte, end int64) error {
	d := decoder{b: table}
	entries, implied := d.size(), d.size()
	x.sum.Entries, x.sum.Implied = int(entries), int(implied)
	copy(x.sum.Content[:], d.bytes(uint64(len(x.sum.Content))))
	sec, nsec := d.varint(), d.uint32()
	x.sum.Newest = time.Unix(sec, int64(nsec)).UTC()
	x.keptAt, x.keptN = d.size(), d.size()
	x.keptCS = d.fixed32()
	if d.bad || x.keptAt > end || x.keptN != end-x.keptAt {
		return corrupt("its table cannot be read")
	}
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		return corrupt("its table claims %d blocks", n)
	}
	x.blocks = make([]blockInfo, n)
	next, total := int64(len(magic)), int64(0)
	for i := range x.blocks {
		b := &x.blocks[i]
		b.first, b.offset = d.string(), d.size()
		length, count := d.size(), d.size()
		b.crc = d.fixed32()
		if d.bad || b.offset != next || length <= 0 || length > x.keptAt-next || count <= 0 || count > length {
			return corrupt("its table cannot be read")
		}
		if i > 0 && Compare(x.blocks[i-1].first, b.first) >= 0 {
			return corrupt("its table is not in order")
		}
		b.length, b.count = int(length), int(count)
		next, total = next+length, total+count
	}
	if next != x.keptAt || total != entries || len(d.b) != 0 {
		return corrupt("its table does not add up")
	}
	return nil
}

func (d *decoder) fixed32() uint32 {
	b := d.bytes(4)
	if d.bad {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

// readAt reads a whole piece; a file that ends too early is a corrupt one.
func readAt(r io.ReaderAt, at, n int64, what string) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, at)
	switch {
	case int64(got) == n:
		return b, nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, corrupt("its %s is cut short", what)
	}
	return nil, fmt.Errorf("reading the %s of a layer index: %w", what, err)
}

// Close closes the file OpenFile opened.
func (x *Index) Close() error {
	if x.closer == nil {
		return nil
	}
	if err := x.closer.Close(); err != nil {
		return fmt.Errorf("closing a layer index: %w", err)
	}
	return nil
}

// Summary returns what is known of the layer as a whole.
func (x *Index) Summary() Summary { return x.sum }

// Kept returns the content of a file the index keeps. A damaged copy counts as none: it can be read from the layer.
func (x *Index) Kept(path string) ([]byte, bool) {
	b, err := readAt(x.r, x.keptAt, x.keptN, "kept files")
	if err != nil || crc32.Checksum(b, castagnoli) != x.keptCS {
		return nil, false
	}
	d := decoder{b: b}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		name, data := d.string(), d.bytes(d.uvarint())
		if !d.bad && name == path {
			return data, true
		}
	}
	return nil, false
}

// block returns the verified bytes of block n, from the cache if they are there; keep puts them there.
func (x *Index) block(n int, keep bool) ([]byte, error) {
	slot := &x.cache[n%cachedBlocks]
	if c := slot.Load(); c != nil && c.n == n {
		return c.data, nil
	}
	info := &x.blocks[n]
	data, err := readAt(x.r, info.offset, int64(info.length), "block")
	if err != nil {
		return nil, err
	}
	if crc32.Checksum(data, castagnoli) != info.crc {
		return nil, corrupt("the checksum of block %d is wrong", n)
	}
	if keep {
		slot.Store(&cachedBlock{n, data})
	}
	return data, nil
}

// blockOf returns the block that holds path if any does; -1 when path comes before all of them.
func (x *Index) blockOf(path string) int {
	return sort.Search(len(x.blocks), func(i int) bool { return Compare(x.blocks[i].first, path) > 0 }) - 1
}

// Lookup returns the layer's own entry at path.
func (x *Index) Lookup(path string) (Entry, bool, error) {
	n := x.blockOf(path)
	if n < 0 {
		return Entry{}, false, nil
	}
	c := cursor{x: x, keep: true}
	if err := c.load(n); err != nil {
		return Entry{}, false, err
	}
	for c.ok {
		switch order := comparePaths(c.path, path); {
		case order == 0:
			e, err := c.entry()
			return e, err == nil, err
		case order > 0:
			return Entry{}, false, nil
		}
		if c.left == 0 {
			break
		}
		if err := c.next(); err != nil {
			return Entry{}, false, err
		}
	}
	return Entry{}, false, nil
}

// Subtree yields the layer's own entries at path and below it, in order.
func (x *Index) Subtree(path string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		c, err := x.seek(path)
		for ; err == nil && c.within(path); err = c.next() {
			e, err := c.entry()
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err != nil {
			yield(Entry{}, err)
		}
	}
}
