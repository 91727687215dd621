package snapshot

import (
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"iter"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// A layer that differs from an earlier one in a few files differs from it in a few blocks of the gzip writer, as long as sizes in
// the tar, which counts in 512 bytes, stay what they were. A block is a function of its input and of the 32 KiB before it, so where
// the two tars are the same, so are the compressed blocks, and the earlier ones are taken. Which parts are the same is known without
// reading the earlier tar: a tar of ours is a function of its entries, and indexes have them with digests and places.

// blockTable says where the blocks of a compressed blob end, and what they are: a blob on the disk is believed by its size, so what
// is taken out of it is checked.
type blockTable []blockSum

type blockSum struct {
	size uint32
	crc  uint32 // CRC-32C of the compressed bytes
}

var blockCRC = crc32.MakeTable(crc32.Castagnoli)

const minReuse = 4 // layers of fewer blocks are compressed sooner than compared

func (t blockTable) encode() json.RawMessage {
	b := make([]byte, 0, 8*len(t))
	for _, s := range t {
		b = binary.LittleEndian.AppendUint32(b, s.size)
		b = binary.LittleEndian.AppendUint32(b, s.crc)
	}
	text, err := json.Marshal(b) // base64; bytes never fail
	if err != nil {
		return nil
	}
	return text
}

func decodeBlocks(data json.RawMessage) blockTable {
	var b []byte
	if json.Unmarshal(data, &b) != nil || len(b)%8 != 0 {
		return nil
	}
	t := make(blockTable, len(b)/8)
	for i := range t {
		t[i] = blockSum{binary.LittleEndian.Uint32(b[8*i:]), binary.LittleEndian.Uint32(b[8*i+4:])}
	}
	return t
}

// blocksRemark is the name of the note with a blob's table.
func blocksRemark(c Compression) string { return "blocks " + c.id() }

// reuse compares a layer that is being written with an earlier one.
type reuse struct {
	next func() (tree.Entry, error, bool) // the entries of the earlier one, in order
	stop func()
	old  tree.Entry
	more bool // old is one

	aligned bool // all of the entry before was the same, at the same place

	mu   sync.Mutex
	same []span // parts of the tar that are the same, in order

	blob *os.File
	ends []int64 // of the blocks in blob; the first begins behind the header
	sums blockTable
}

// span is a part of a tar.
type span struct{ from, to int64 }

// Reuse lets a Writer that compresses take over what it can of an earlier layer, which may be gone or another altogether: then
// nothing is taken. It is called before the first Add.
func (w *Writer) Reuse(old digest.Digest) {
	z, ok := w.sink.z.(*gzipWriter)
	if !ok || w.reuse != nil || old.Validate() != nil {
		return
	}
	id := w.sink.c.id()
	blobs, err := w.l.Blobs(old)
	if err != nil {
		return
	}
	b, ok := madeBy(blobs, id)
	sums := decodeBlocks(w.l.Remark(old, blocksRemark(w.sink.c)))
	if !ok || len(sums) < minReuse {
		return
	}
	x, err := w.l.openIndex(old)
	if err != nil {
		return
	}
	blob, err := w.l.st.OpenBlob(b.Digest, b.Size)
	if err != nil {
		x.Close()
		return
	}
	r := &reuse{blob: blob, sums: sums}
	at := int64(len(gzipHeader))
	for _, s := range sums {
		at += int64(s.size)
		r.ends = append(r.ends, at)
	}
	next, stop := iter.Pull2(x.Subtree(""))
	r.next = next
	r.stop = func() {
		stop()
		x.Close()
		blob.Close()
	}
	r.aligned = true // both begin at the same place
	r.advance()
	w.reuse, z.known = r, r.block
}

func (r *reuse) advance() {
	e, err, ok := r.next()
	r.old, r.more = e, ok && err == nil
}

// entry compares the entry whose header begins at from with what the earlier layer has there, before anything of it is written. Its
// content begins at at and ends, padded, at to. What the content is must be known already.
func (r *reuse) entry(e *tree.Entry, from, at, to int64) {
	for r.more && tree.Compare(r.old.Path, e.Path) < 0 {
		r.aligned = false
		r.advance()
	}
	if !r.more || r.old.Path != e.Path {
		r.aligned = false
		return
	}
	old := r.old
	r.advance()
	file := e.Type == tree.File && e.Hardlink == ""
	if file && (old.Offset != at || e.Digest == [32]byte{}) || !file && !r.aligned || !sameHeader(&old, e) {
		r.aligned = false
		return
	}
	r.aligned = true
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.same); n > 0 && r.same[n-1].to == from {
		r.same[n-1].to = to
		return
	}
	r.same = append(r.same, span{from, to})
}

// sameHeader reports whether two entries are written alike, content included.
func sameHeader(a, b *tree.Entry) bool {
	if a.Type == tree.File && b.Type == tree.File && a.Hardlink == "" && b.Hardlink == "" && (a.Size != b.Size || a.Digest != b.Digest) {
		return false
	}
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.ModTime.Unix() == b.ModTime.Unix() &&
		a.Link == b.Link && a.Hardlink == b.Hardlink && a.Major == b.Major && a.Minor == b.Minor && a.Opaque == b.Opaque &&
		!a.Implied && slices.Equal(a.Xattrs, b.Xattrs)
}

// block returns the compressed form of the block of the tar with the given number, when it is known, in buf. It is called in order,
// by another goroutine than entry.
func (r *reuse) block(i int, buf []byte) ([]byte, bool) {
	if i >= len(r.sums)-1 { // the last one ends the stream
		return nil, false
	}
	from, to := int64(i)*gzipBlock, int64(i+1)*gzipBlock
	if !r.covers(max(0, from-gzipWindow), to) {
		return nil, false
	}
	s := r.sums[i]
	buf = slices.Grow(buf[:0], int(s.size))[:s.size]
	if _, err := r.blob.ReadAt(buf, r.ends[i]-int64(s.size)); err != nil {
		return nil, false
	}
	return buf, crc32.Checksum(buf, blockCRC) == s.crc
}

// covers reports whether a part of the tar is the same in both. Parts before it are not asked about again.
func (r *reuse) covers(from, to int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.same) > 1 && r.same[0].to <= from {
		r.same = r.same[1:]
	}
	return len(r.same) > 0 && r.same[0].from <= from && to <= r.same[0].to
}
