package git

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"

	"github.com/klauspost/compress/zlib"
	"github.com/pjbgf/sha1cd"
)

// kind is the type of an object as packs encode it.
type kind byte

const (
	commitKind kind = 1
	treeKind   kind = 2
	blobKind   kind = 3
	tagKind    kind = 4
	ofsDelta   kind = 6
	refDelta   kind = 7
)

var kindNames = map[kind]string{commitKind: "commit", treeKind: "tree", blobKind: "blob", tagKind: "tag"}

func (k kind) String() string { return kindNames[k] }

// newHash returns the hash that names the objects of a repository whose names have a given length in hex digits. The SHA-1
// is one that finds out about the known ways of making collisions.
func newHash(hexLen int) hash.Hash {
	if hexLen == 64 {
		return sha256.New()
	}
	return sha1cd.New()
}

func objectHash(hexLen int, k kind, size int64) hash.Hash {
	h := newHash(hexLen)
	_, _ = io.WriteString(h, k.String()+" "+strconv.FormatInt(size, 10)+"\x00") // a hash never fails
	return h
}

// sum returns the name of the object whose content went into h.
func sum(h hash.Hash) (string, error) {
	if c, ok := h.(sha1cd.CollisionResistantHash); ok {
		b, collision := c.CollisionResistantSum(nil)
		if collision {
			return "", errors.New("an object was made to collide with another: refused")
		}
		return hex.EncodeToString(b), nil
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

const (
	maxInMemory   = 512 << 20 // of an object that has to be in memory as a whole
	maxDeltaCache = 64 << 20
	maxDeltaDepth = 4096
)

var errPack = errors.New("the pack is damaged")

// pack is a pack file with the names of what is in it.
type pack struct {
	f      *os.File
	size   int64 // without the trailer
	hexLen int
	at     map[int64]*packed
	byID   map[string]*packed

	cache     map[int64][]byte
	cacheSize int
}

// packed is one object of a pack.
type packed struct {
	kind kind  // never a delta once resolved
	size int64 // of the object; of the delta until resolved
	data int64 // offset of its compressed bytes
	base int64 // offset of what a delta is against, 0 for none
	ref  string
	self int64 // size of the delta itself
}

// counter counts what is read, byte by byte where that is how it is read.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// openPack checks a whole pack and finds out the names of its objects. The file belongs to the pack then.
func openPack(ctx context.Context, f *os.File, hexLen int) (*pack, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	p := &pack{
		f: f, size: fi.Size() - int64(hexLen/2), hexLen: hexLen,
		at: map[int64]*packed{}, byID: map[string]*packed{}, cache: map[int64][]byte{},
	}
	if p.size < 12 {
		return nil, errPack
	}
	if err := p.checkTrailer(ctx); err != nil {
		return nil, err
	}
	deltas, err := p.scan(ctx)
	if err != nil {
		return nil, err
	}
	return p, p.resolveAll(ctx, deltas)
}

func (p *pack) checkTrailer(ctx context.Context) error {
	h := newHash(p.hexLen)
	if _, err := io.Copy(h, &ctxReader{ctx, io.NewSectionReader(p.f, 0, p.size)}); err != nil {
		return err
	}
	want := make([]byte, p.hexLen/2)
	if _, err := p.f.ReadAt(want, p.size); err != nil {
		return err
	}
	if got, err := sum(h); err != nil || got != hex.EncodeToString(want) {
		return errPack
	}
	return nil
}

// scan reads the pack once, from front to back. It returns the offsets of the deltas, whose names need more than that.
func (p *pack) scan(ctx context.Context) ([]int64, error) {
	c := &counter{r: bufio.NewReaderSize(io.NewSectionReader(p.f, 0, p.size), 256<<10)}
	var head [12]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	if v := binary.BigEndian.Uint32(head[4:]); string(head[:4]) != "PACK" || v != 2 && v != 3 {
		return nil, errPack
	}
	var deltas []int64
	for range binary.BigEndian.Uint32(head[8:]) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		start := c.n
		e, err := p.header(c, start)
		if err != nil {
			return nil, err
		}
		e.data = c.n
		z, err := zlib.NewReader(c)
		if err != nil {
			return nil, errPack
		}
		h := hash.Hash(sha256.New()) // of a delta nobody wants to know
		if e.base == 0 && e.ref == "" {
			h = objectHash(p.hexLen, e.kind, e.size)
		}
		n, err := io.Copy(h, io.LimitReader(z, e.size+1))
		if err != nil || n != e.size {
			return nil, fmt.Errorf("%w: object at %d: %v", errPack, start, err)
		}
		p.at[start] = e
		if e.base != 0 || e.ref != "" {
			e.self = e.size
			deltas = append(deltas, start)
			continue
		}
		id, err := sum(h)
		if err != nil {
			return nil, err
		}
		p.byID[id] = e
	}
	return deltas, nil
}

// header reads what is before the compressed bytes of an object.
func (p *pack) header(c *counter, start int64) (*packed, error) {
	b, err := c.ReadByte()
	if err != nil {
		return nil, errPack
	}
	e := &packed{kind: kind(b >> 4 & 7), size: int64(b & 15)}
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = c.ReadByte(); err != nil || shift > 50 {
			return nil, errPack
		}
		e.size |= int64(b&0x7f) << shift
	}
	switch e.kind {
	case commitKind, treeKind, blobKind, tagKind:
	case ofsDelta:
		back := int64(-1)
		for {
			if b, err = c.ReadByte(); err != nil || back > 1<<50 {
				return nil, errPack
			}
			back = (back+1)<<7 | int64(b&0x7f)
			if b&0x80 == 0 {
				break
			}
		}
		if e.base = start - back; e.base <= 0 || back == 0 {
			return nil, errPack
		}
	case refDelta:
		id := make([]byte, p.hexLen/2)
		if _, err := io.ReadFull(c, id); err != nil {
			return nil, errPack
		}
		e.ref = hex.EncodeToString(id)
	default:
		return nil, errPack
	}
	return e, nil
}

// resolveAll names the deltas. The base of one may come later in the pack, and be a delta itself.
func (p *pack) resolveAll(ctx context.Context, deltas []int64) error {
	for len(deltas) > 0 {
		var left []int64
		for _, off := range deltas {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			e := p.at[off]
			if e.base == 0 {
				base := p.byID[e.ref]
				if base == nil {
					left = append(left, off)
					continue
				}
				e.base = -base.data // known by where its bytes are
			}
			if b := p.baseOf(e); b == nil || b.kind == ofsDelta || b.kind == refDelta {
				left = append(left, off)
				continue
			}
			data, err := p.bytes(e)
			if err != nil {
				return err
			}
			e.kind, e.size = p.baseOf(e).kind, int64(len(data))
			h := objectHash(p.hexLen, e.kind, e.size)
			_, _ = h.Write(data)
			id, err := sum(h)
			if err != nil {
				return err
			}
			p.byID[id] = e
		}
		if len(left) == len(deltas) {
			return fmt.Errorf("%w: the base of a delta is not in it", errPack)
		}
		deltas = left
	}
	return nil
}

func (p *pack) baseOf(e *packed) *packed {
	if e.base > 0 {
		return p.at[e.base]
	}
	return p.byID[e.ref]
}

// inflate opens the compressed bytes of an object.
func (p *pack) inflate(e *packed) (io.ReadCloser, error) {
	return zlib.NewReader(bufio.NewReaderSize(io.NewSectionReader(p.f, e.data, p.size-e.data), 32<<10))
}

// plain reads the compressed bytes of an object: the object, or the delta.
func (p *pack) plain(e *packed, size int64) ([]byte, error) {
	if size > maxInMemory {
		return nil, fmt.Errorf("an object of %d bytes that is needed as a whole is too large", size)
	}
	z, err := p.inflate(e)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data := make([]byte, size)
	_, err = io.ReadFull(z, data)
	return data, err
}

// bytes returns the content of an object, its deltas applied. It is not to be changed.
func (p *pack) bytes(e *packed) ([]byte, error) {
	var chain []*packed
	var data []byte
	for at := e; ; at = p.baseOf(at) {
		if at == nil || len(chain) > maxDeltaDepth {
			return nil, errPack
		}
		if known, ok := p.cache[at.data]; ok {
			data = known
			break
		}
		if at.base == 0 {
			var err error
			if data, err = p.plain(at, at.size); err != nil {
				return nil, err
			}
			p.keep(at, data)
			break
		}
		chain = append(chain, at)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		delta, err := p.plain(chain[i], chain[i].self)
		if err != nil {
			return nil, err
		}
		if data, err = applyDelta(data, delta); err != nil {
			return nil, err
		}
		p.keep(chain[i], data)
	}
	return data, nil
}

func (p *pack) keep(e *packed, data []byte) {
	if len(data) > maxDeltaCache/4 {
		return
	}
	if p.cacheSize+len(data) > maxDeltaCache {
		clear(p.cache)
		p.cacheSize = 0
	}
	p.cache[e.data] = data
	p.cacheSize += len(data)
}

// applyDelta makes an object out of another.
func applyDelta(base, delta []byte) ([]byte, error) {
	from, n := binary.Uvarint(delta)
	if n <= 0 || from != uint64(len(base)) {
		return nil, errPack
	}
	delta = delta[n:]
	size, n := binary.Uvarint(delta)
	if n <= 0 || size > maxInMemory {
		return nil, errPack
	}
	delta = delta[n:]
	out := make([]byte, 0, size)
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		if op == 0 {
			return nil, errPack
		}
		piece := delta
		if op&0x80 == 0 {
			if int(op) > len(delta) {
				return nil, errPack
			}
			piece, delta = delta[:op], delta[op:]
		} else {
			var at, length uint64
			for i := range 7 {
				if op&(1<<i) == 0 {
					continue
				}
				if len(delta) == 0 {
					return nil, errPack
				}
				if i < 4 {
					at |= uint64(delta[0]) << (8 * i)
				} else {
					length |= uint64(delta[0]) << (8 * (i - 4))
				}
				delta = delta[1:]
			}
			if length == 0 {
				length = 0x10000
			}
			if at+length > uint64(len(base)) {
				return nil, errPack
			}
			piece = base[at : at+length]
		}
		if uint64(len(out)+len(piece)) > size {
			return nil, errPack
		}
		out = append(out, piece...)
	}
	if uint64(len(out)) != size {
		return nil, errPack
	}
	return out, nil
}

// open returns an object as a stream.
func (p *pack) open(e *packed) (kind, int64, io.ReadCloser, error) {
	if e.base == 0 {
		r, err := p.inflate(e)
		return e.kind, e.size, r, err
	}
	data, err := p.bytes(e)
	return e.kind, e.size, io.NopCloser(bytes.NewReader(data)), err
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
