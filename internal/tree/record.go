package tree

import (
	"encoding/binary"
	"math"
	"time"
)

// A record is one entry in a block:
//
//	uvarint  bytes of the path shared with the record before (0 in the first of a block)
//	uvarint  length of the rest of the path
//	uvarint  length of the body
//	         rest of the path, body
//
// The lengths come first so that a scan can pass over bodies it does not want.

// Bits of a body's first byte beside the type.
const (
	typeMask     = 0x0f
	flagImplied  = 0x10
	flagOpaque   = 0x20
	flagXattrs   = 0x40
	flagHardlink = 0x80
)

// appendBody appends everything of e but its path.
func appendBody(b []byte, e *Entry) []byte {
	first := byte(e.Type)
	if e.Implied {
		first |= flagImplied
	}
	if e.Opaque {
		first |= flagOpaque
	}
	if len(e.Xattrs) > 0 {
		first |= flagXattrs
	}
	if e.Hardlink != "" {
		first |= flagHardlink
	}
	b = append(b, first)
	b = binary.AppendUvarint(b, uint64(e.Mode&07777))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = binary.AppendVarint(b, e.ModTime.Unix())
	b = binary.AppendUvarint(b, uint64(e.ModTime.Nanosecond()))
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = binary.AppendVarint(b, e.Offset)
		b = append(b, e.Digest[:]...)
	case Symlink:
		b = appendString(b, e.Link)
	case Char, Block:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	if e.Hardlink != "" {
		b = appendString(b, e.Hardlink)
	}
	if len(e.Xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendString(b, x.Name)
			b = appendString(b, x.Value)
		}
	}
	return b
}

// decoder takes values off the front of b; the first thing that does not fit makes bad stick.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 {
		d.bad = true
		return 0
	}
	return uint32(v)
}

// size reads a number that an int64 must hold.
func (d *decoder) size() int64 {
	v := d.uvarint()
	if v > math.MaxInt64 {
		d.bad = true
		return 0
	}
	return int64(v)
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes(d.uvarint())) }

// parseBody fills e, but for its path, from a record's body; false when the body is not one.
func parseBody(body []byte, e *Entry) bool {
	d := decoder{b: body}
	head := d.bytes(1)
	if d.bad {
		return false
	}
	first := head[0]
	e.Type = Type(first & typeMask)
	if e.Type > lastType {
		return false
	}
	e.Implied, e.Opaque = first&flagImplied != 0, first&flagOpaque != 0
	e.Mode, e.UID, e.GID = d.uint32(), d.uint32(), d.uint32()
	sec, nsec := d.varint(), d.uint32()
	e.ModTime = time.Unix(sec, int64(nsec)).UTC()
	e.Offset = -1
	switch e.Type {
	case File:
		e.Size, e.Offset = d.size(), d.varint()
		copy(e.Digest[:], d.bytes(uint64(len(e.Digest))))
	case Symlink:
		e.Link = d.string()
	case Char, Block:
		e.Major, e.Minor = d.uint32(), d.uint32()
	}
	if first&flagHardlink != 0 {
		e.Hardlink = d.string()
	}
	if first&flagXattrs != 0 {
		n := d.uvarint()
		if n > uint64(len(d.b)) {
			return false
		}
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i] = Xattr{Name: d.string(), Value: d.string()}
		}
	}
	return !d.bad && len(d.b) == 0
}
