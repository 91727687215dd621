package git

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"sync"

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

func (k kind) isDelta() bool { return k == ofsDelta || k == refDelta }

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

// rawID is the name of an object in bytes; one by SHA-1 does not need all of them.
type rawID [sha256.Size]byte

// sum returns the name of the object whose content went into h.
func sum(h hash.Hash) ([]byte, error) {
	if c, ok := h.(sha1cd.CollisionResistantHash); ok {
		b, collision := c.CollisionResistantSum(nil)
		if collision {
			return nil, errors.New("an object was made to collide with another: refused")
		}
		return b, nil
	}
	return h.Sum(nil), nil
}

const (
	// maxInMemory is the size of an object that may be in memory as a whole, because it is a delta or one is against it. Git
	// makes no deltas of what is larger (core.bigFileThreshold). At most four are in memory at a time.
	maxInMemory   = 512 << 20
	maxDeltaCache = 64 << 20
	maxDeltaDepth = 4096
)

var errPack = errors.New("the pack is damaged")

// pack is a pack file with the names of what is in it.
type pack struct {
	f      *os.File
	size   int64 // without the trailer
	hexLen int
	objs   []packed // by offset
	byName []int32  // indexes into objs, by name

	cache     map[int32][]byte
	cacheSize int
	// recent is what was last used as a base and what was made of it, however large; nil when such things are not kept.
	recent *[2]unfolded
}

// packed is one object of a pack.
type packed struct {
	id   rawID
	off  int64 // of its header
	data int64 // offset of its compressed bytes
	size int64 // of the object
	self int64 // of what is compressed: the object, or a delta
	base int32 // index of what a delta is against, -1 for none
	kind kind  // a delta only as long as it is not resolved
}

// unfolded is an object with its deltas applied.
type unfolded struct {
	obj  int32
	data []byte
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
	p := &pack{f: f, size: fi.Size() - int64(hexLen/2), hexLen: hexLen, cache: map[int32][]byte{}}
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
	if err := p.resolve(ctx, deltas); err != nil {
		return nil, err
	}
	p.byName = make([]int32, len(p.objs))
	for i := range p.byName {
		p.byName[i] = int32(i)
	}
	slices.SortFunc(p.byName, func(a, b int32) int { return bytes.Compare(p.objs[a].id[:], p.objs[b].id[:]) })
	return p, nil
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
	if got, err := sum(h); err != nil || !bytes.Equal(got, want) {
		return errPack
	}
	return nil
}

// find returns the object with a name.
func (p *pack) find(id string) (int32, bool) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != p.hexLen/2 {
		return 0, false
	}
	var n rawID
	copy(n[:], raw)
	i, ok := slices.BinarySearchFunc(p.byName, n, func(o int32, n rawID) int { return bytes.Compare(p.objs[o].id[:], n[:]) })
	if !ok {
		return 0, false
	}
	return p.byName[i], true
}

func (p *pack) atOffset(off int64) (int32, bool) {
	i, ok := slices.BinarySearchFunc(p.objs, off, func(e packed, off int64) int { return cmp.Compare(e.off, off) })
	return int32(i), ok
}

// scan reads the pack once, from front to back. It returns the deltas, whose names need more than that.
func (p *pack) scan(ctx context.Context) ([]deltaBase, error) {
	c := &counter{r: bufio.NewReaderSize(io.NewSectionReader(p.f, 0, p.size), 256<<10)}
	var head [12]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	if v := binary.BigEndian.Uint32(head[4:]); string(head[:4]) != "PACK" || v != 2 && v != 3 {
		return nil, errPack
	}
	count := binary.BigEndian.Uint32(head[8:])
	if count > math.MaxInt32 {
		return nil, errPack
	}
	var deltas []deltaBase
	in := &inflater{}
	for i := range int32(count) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		e := packed{off: c.n, base: -1}
		base, err := p.header(c, &e)
		if err != nil {
			return nil, err
		}
		e.data = c.n
		if err := p.nameOf(in, c, &e); err != nil {
			return nil, fmt.Errorf("object at %d: %w", e.off, err)
		}
		if base.delta = i; e.kind.isDelta() {
			deltas = append(deltas, base)
		}
		p.objs = append(p.objs, e)
	}
	if c.n != p.size {
		return nil, fmt.Errorf("%w: there is more in it than it says", errPack)
	}
	return deltas, nil
}

// nameOf reads the compressed bytes of an object to their end and names it, unless it is a delta.
func (p *pack) nameOf(in *inflater, c *counter, e *packed) error {
	if err := in.reset(c); err != nil {
		return errPack
	}
	h := io.Discard
	if !e.kind.isDelta() {
		h = objectHash(p.hexLen, e.kind, e.size)
	}
	n, err := io.Copy(h, io.LimitReader(in.z, e.self+1))
	if err != nil {
		return fmt.Errorf("%w: %v", errPack, err)
	}
	if n != e.self {
		return errPack
	}
	if oh, ok := h.(hash.Hash); ok {
		raw, err := sum(oh)
		copy(e.id[:], raw)
		return err
	}
	return nil
}

// header reads what is before the compressed bytes of an object. It returns what a delta is against.
func (p *pack) header(c *counter, e *packed) (base deltaBase, err error) {
	b, err := c.ReadByte()
	if err != nil {
		return base, errPack
	}
	e.kind, e.self = kind(b>>4&7), int64(b&15)
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = c.ReadByte(); err != nil || shift > 50 {
			return base, errPack
		}
		e.self |= int64(b&0x7f) << shift
	}
	switch e.kind {
	case commitKind, treeKind, blobKind, tagKind:
		e.size = e.self
	case ofsDelta:
		back := int64(-1)
		for {
			if b, err = c.ReadByte(); err != nil || back > 1<<50 {
				return base, errPack
			}
			back = (back+1)<<7 | int64(b&0x7f)
			if b&0x80 == 0 {
				break
			}
		}
		if base.at = e.off - back; base.at <= 0 || back == 0 {
			return base, errPack
		}
	case refDelta:
		if _, err := io.ReadFull(c, base.id[:p.hexLen/2]); err != nil {
			return base, errPack
		}
	default:
		return base, errPack
	}
	return base, nil
}

// inflater decompresses one thing after the other.
type inflater struct {
	z  io.ReadCloser
	br *bufio.Reader
}

// inflaters are those that nobody uses now. To make one costs more than to decompress most objects.
var inflaters = sync.Pool{New: func() any { return &inflater{br: bufio.NewReaderSize(nil, 16<<10)} }}

func (in *inflater) reset(r io.Reader) (err error) {
	if in.z == nil {
		in.z, err = zlib.NewReader(r)
		return err
	}
	return in.z.(zlib.Resetter).Reset(r, nil)
}

// inflated is one thing that an inflater decompresses. Closing it is the end of its using that.
type inflated struct{ in *inflater }

func (i *inflated) Read(b []byte) (int, error) { return i.in.z.Read(b) }

func (i *inflated) Close() error {
	if i.in != nil {
		i.in.br.Reset(nil)
		inflaters.Put(i.in)
		i.in = nil
	}
	return nil
}

// inflate opens the compressed bytes of an object.
func (p *pack) inflate(e *packed) (io.ReadCloser, error) {
	in := inflaters.Get().(*inflater)
	in.br.Reset(io.NewSectionReader(p.f, e.data, p.size-e.data))
	if err := in.reset(in.br); err != nil {
		return nil, err
	}
	return &inflated{in}, nil
}

// plain reads the compressed bytes of an object: the object, or the delta.
func (p *pack) plain(e *packed) ([]byte, error) {
	if e.self > maxInMemory {
		return nil, fmt.Errorf("an object of %d bytes that is needed as a whole is too large", e.self)
	}
	z, err := p.inflate(e)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data := make([]byte, e.self)
	_, err = io.ReadFull(z, data)
	return data, err
}

// bytes returns the content of an object, its deltas applied. It is not to be changed.
func (p *pack) bytes(obj int32) ([]byte, error) {
	var chain []int32
	var data []byte
	at := obj
	for ; ; at = p.objs[at].base {
		if len(chain) > maxDeltaDepth {
			return nil, errPack
		}
		var known bool
		if data, known = p.known(at); known {
			break
		}
		if p.objs[at].base < 0 {
			var err error
			if data, err = p.plain(&p.objs[at]); err != nil {
				return nil, err
			}
			p.keep(at, data)
			break
		}
		chain = append(chain, at)
	}
	for _, next := range slices.Backward(chain) {
		delta, err := p.plain(&p.objs[next])
		if err != nil {
			return nil, err
		}
		made, err := applyDelta(data, delta)
		if err != nil {
			return nil, err
		}
		p.keep(next, made)
		if p.recent != nil {
			*p.recent = [2]unfolded{{at, data}, {next, made}}
		}
		at, data = next, made
	}
	return data, nil
}

// known returns the content of an object that was kept.
func (p *pack) known(obj int32) ([]byte, bool) {
	if p.recent != nil {
		for _, r := range p.recent {
			if r.obj == obj && r.data != nil {
				return r.data, true
			}
		}
	}
	data, ok := p.cache[obj]
	return data, ok
}

func (p *pack) keep(obj int32, data []byte) {
	if len(data) > maxDeltaCache/4 {
		return
	}
	if p.cacheSize+len(data) > maxDeltaCache {
		clear(p.cache)
		p.cacheSize = 0
	}
	p.cache[obj] = data
	p.cacheSize += len(data)
}

// open returns an object as a stream.
func (p *pack) open(obj int32) (kind, int64, io.ReadCloser, error) {
	e := &p.objs[obj]
	if e.base < 0 {
		r, err := p.inflate(e)
		return e.kind, e.size, r, err
	}
	data, err := p.bytes(obj)
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
