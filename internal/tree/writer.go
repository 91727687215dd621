package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"time"
)

// An index file is
//
//	magic (8 bytes: name and version)
//	blocks of records, each about blockSize, each starting with a whole path
//	kept files, one piece
//	table: summary, place of the kept files, and for each block its first path, length, number of entries and checksum
//	footer (fixed size): place, length and checksum of the table, checksum of itself, magic again
//
// All checksums are CRC-32C. They find damage, not malice: an index is only ever read out of the caller's own store.
const (
	magic      = "tree\x00ix\x01"
	blockSize  = 16 << 10
	footerSize = 8 + 8 + 4 + 4 + len(magic)
	// maxKept bounds one kept file: /etc/passwd of a real image has a few kilobytes.
	maxKept = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Summary is what is known of an index without reading its entries.
type Summary struct {
	// Entries is how many entries the index has, whiteouts and implied directories included.
	Entries int
	// Implied is how many of them are implied directories.
	Implied int
	// Content is the digest of everything in the layer but times.
	Content [32]byte
	// Newest is the latest modification time of the layer's own entries; zero when it has none.
	Newest time.Time
}

// blockInfo is one line of the block table.
type blockInfo struct {
	first  string
	offset int64
	length int
	count  int
	crc    uint32
}

// Writer writes an index from entries that come in path order. It holds one block and the block table in memory.
type Writer struct {
	w       io.Writer
	err     error // the first failure; everything after it fails alike
	offset  int64
	block   []byte
	cur     blockInfo
	last    string
	dirs    []string // the directories the next entry can be in, innermost last
	table   []blockInfo
	kept    []keptFile
	content hash.Hash
	body    []byte
	sum     Summary
	started bool
}

type keptFile struct {
	path string
	data []byte
}

// NewWriter returns a Writer to w, which sees writes of whole blocks.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w, content: sha256.New()}
}

// Add appends e. Entries come in the order of Compare, each with its parent directory before it (only the root may be
// left out); anything else is an error, which sticks.
func (w *Writer) Add(e *Entry) error {
	if w.err == nil {
		w.err = w.add(e)
	}
	return w.err
}

func (w *Writer) add(e *Entry) error {
	if err := w.check(e); err != nil {
		return fmt.Errorf("indexing a layer: %w", err)
	}
	if !w.started {
		w.started = true
		if err := w.write([]byte(magic)); err != nil {
			return err
		}
	}
	w.body = appendBody(w.body[:0], e)
	if len(w.block) > 0 && len(w.block)+len(w.body)+len(e.Path) > blockSize {
		if err := w.flush(); err != nil {
			return err
		}
	}
	shared := 0
	if len(w.block) == 0 {
		w.cur = blockInfo{first: e.Path, offset: w.offset}
	} else {
		shared = sharedPrefix(w.last, e.Path)
	}
	w.block = binary.AppendUvarint(w.block, uint64(shared))
	w.block = binary.AppendUvarint(w.block, uint64(len(e.Path)-shared))
	w.block = binary.AppendUvarint(w.block, uint64(len(w.body)))
	w.block = append(w.block, e.Path[shared:]...)
	w.block = append(w.block, w.body...)
	w.cur.count++
	w.last = e.Path
	if e.Type == Dir && e.Path != "" {
		w.dirs = append(w.dirs, e.Path)
	}
	w.summarise(e)
	return nil
}

// check refuses entries that readers could not rely on.
func (w *Writer) check(e *Entry) error {
	if err := CheckPath(e.Path); err != nil {
		return err
	}
	if w.sum.Entries > 0 && Compare(w.last, e.Path) >= 0 {
		return fmt.Errorf("%q comes after %q", e.Path, w.last)
	}
	for len(w.dirs) > 0 && !Below(e.Path, w.dirs[len(w.dirs)-1]) {
		w.dirs = w.dirs[:len(w.dirs)-1]
	}
	parent := Parent(e.Path)
	if parent != "" && (len(w.dirs) == 0 || w.dirs[len(w.dirs)-1] != parent) {
		return fmt.Errorf("%q is not in a directory of the layer", e.Path)
	}
	switch {
	case e.Type > lastType:
		return fmt.Errorf("%q has the unknown %v", e.Path, e.Type)
	case e.Path == "" && e.Type != Dir:
		return fmt.Errorf("the root is a %v", e.Type)
	case e.Size < 0:
		return fmt.Errorf("%q has the size %d", e.Path, e.Size)
	case e.Type != Dir && (e.Implied || e.Opaque):
		return fmt.Errorf("%q is a %v marked as implied or opaque", e.Path, e.Type)
	case e.Hardlink != "" && (e.Type == Dir || e.Type == Whiteout):
		return fmt.Errorf("%q is a hard link to a %v", e.Path, e.Type)
	case e.Hardlink != "" && Compare(e.Hardlink, e.Path) >= 0:
		return fmt.Errorf("%q is a hard link to %q, which comes later", e.Path, e.Hardlink)
	}
	return nil
}

func (w *Writer) summarise(e *Entry) {
	w.sum.Entries++
	// What HashEntry leaves out because it only means something inside one layer.
	w.body = AppendHash(w.body[:0], e.Path, e)
	marks := byte(0)
	if e.Implied {
		marks |= 1
		w.sum.Implied++
	} else if w.sum.Newest.IsZero() || e.ModTime.After(w.sum.Newest) {
		w.sum.Newest = e.ModTime
	}
	if e.Opaque {
		marks |= 2
	}
	w.body = append(w.body, marks)
	w.body = appendString(w.body, e.Hardlink)
	_, _ = w.content.Write(w.body) // a hash never fails
}

// Keep stores the content of a file, so that it can be had without the layer itself. Files over a megabyte are left out.
func (w *Writer) Keep(path string, data []byte) {
	if len(data) > maxKept {
		return
	}
	w.kept = append(w.kept, keptFile{path, slices.Clone(data)})
}

// Close writes what is left. It does not close the underlying writer.
func (w *Writer) Close() (Summary, error) {
	if w.err != nil {
		return Summary{}, w.err
	}
	w.err = w.close()
	if w.err != nil {
		return Summary{}, w.err
	}
	w.err = fmt.Errorf("indexing a layer: the index is already closed")
	w.sum.Newest = w.sum.Newest.UTC()
	return w.sum, nil
}

func (w *Writer) close() error {
	if !w.started {
		if err := w.write([]byte(magic)); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.content.Sum(w.sum.Content[:0])
	kept := w.appendKept(nil)
	keptAt := w.offset
	if err := w.write(kept); err != nil {
		return err
	}
	table := w.appendTable(nil, keptAt, kept)
	tableAt := w.offset
	if err := w.write(table); err != nil {
		return err
	}
	foot := binary.LittleEndian.AppendUint64(nil, uint64(tableAt))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(table)))
	foot = binary.LittleEndian.AppendUint32(foot, crc32.Checksum(table, castagnoli))
	foot = binary.LittleEndian.AppendUint32(foot, crc32.Checksum(foot, castagnoli))
	return w.write(append(foot, magic...))
}

func (w *Writer) appendKept(b []byte) []byte {
	slices.SortFunc(w.kept, func(a, b keptFile) int { return strings.Compare(a.path, b.path) })
	b = binary.AppendUvarint(b, uint64(len(w.kept)))
	for _, k := range w.kept {
		b = appendString(b, k.path)
		b = appendString(b, string(k.data))
	}
	return b
}

func (w *Writer) appendTable(b []byte, keptAt int64, kept []byte) []byte {
	b = binary.AppendUvarint(b, uint64(w.sum.Entries))
	b = binary.AppendUvarint(b, uint64(w.sum.Implied))
	b = append(b, w.sum.Content[:]...)
	b = binary.AppendVarint(b, w.sum.Newest.Unix())
	b = binary.AppendUvarint(b, uint64(w.sum.Newest.Nanosecond()))
	b = binary.AppendUvarint(b, uint64(keptAt))
	b = binary.AppendUvarint(b, uint64(len(kept)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(kept, castagnoli))
	b = binary.AppendUvarint(b, uint64(len(w.table)))
	for i := range w.table {
		t := &w.table[i]
		b = appendString(b, t.first)
		b = binary.AppendUvarint(b, uint64(t.offset))
		b = binary.AppendUvarint(b, uint64(t.length))
		b = binary.AppendUvarint(b, uint64(t.count))
		b = binary.LittleEndian.AppendUint32(b, t.crc)
	}
	return b
}

// flush ends the current block.
func (w *Writer) flush() error {
	if len(w.block) == 0 {
		return nil
	}
	w.cur.length = len(w.block)
	w.cur.crc = crc32.Checksum(w.block, castagnoli)
	w.table = append(w.table, w.cur)
	err := w.write(w.block)
	w.block = w.block[:0]
	return err
}

func (w *Writer) write(b []byte) error {
	n, err := w.w.Write(b)
	w.offset += int64(n)
	if err != nil {
		return fmt.Errorf("writing a layer index: %w", err)
	}
	return nil
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := 0; i < n; i++ {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
