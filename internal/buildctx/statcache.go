package buildctx

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// StatKey identifies one state of one file.
type StatKey struct {
	Dev, Ino         uint64
	Size             int64
	MtimeNs, CtimeNs int64
}

// Stat is what is known about a file in a state.
type Stat struct {
	Digest [32]byte // SHA-256 of its content
	Xattrs bool     // it has extended attributes that matter
}

// StatCache remembers what was read from files. It is safe for concurrent use.
type StatCache interface {
	Get(StatKey) (Stat, bool)
	// Put is called only for files whose times lie clearly before the moment at which reading them began.
	Put(StatKey, Stat)
}

// FileCache is a StatCache in a file. It is read when it is first asked, and only what is asked for is decoded. A file
// that is damaged, or of another version, counts as empty: the cache can always be made anew.
//
// The file: an 8-byte magic, a 4-byte version, a 4-byte count, count records of 80 bytes sorted by device and inode
// (device, inode, size, mtime, ctime, 32 bytes of digest, 4 bytes of flags, 4 bytes of age), then a CRC-32C of all that;
// every number little-endian. The age counts how often the file was written without the record having been of use.
type FileCache struct {
	path string
	load sync.Once

	base []byte      // the records as they are in the file
	was  fs.FileInfo // of that file; nil: there was none of use
	used []uint32    // one bit for each of them

	mu  sync.Mutex
	own [][]cached // what was learned, in blocks of ownBlock; of two with one inode the later counts
	// places are where in own inodes were learned last, as far as indexed says. Seldom does anybody ask for what was just learned, so
	// this is made when somebody does.
	places  map[inode]uint32
	indexed uint32
}

type inode struct{ dev, ino uint64 }

// compare orders inodes as the file has them.
func (a inode) compare(b inode) int {
	return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino))
}

type cached struct {
	key  StatKey
	stat Stat
}

func (c *cached) inode() inode { return inode{c.key.Dev, c.key.Ino} }

const (
	cacheMagic   = "bldstat\n"
	cacheVersion = 1
	cacheHeader  = 16
	recordSize   = 80
	flagXattrs   = 1
	maxAge       = 30
	maxCacheFile = 512 << 20
	ownBlock     = 1024
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenStatCache returns the cache in a file, which need not exist.
func OpenStatCache(path string) *FileCache {
	return &FileCache{path: path}
}

// Get implements StatCache.
func (c *FileCache) Get(k StatKey) (Stat, bool) {
	c.load.Do(c.read)
	if i, ok := findRecord(c.base, k.Dev, k.Ino); ok {
		if have := decodeRecord(c.base[i*recordSize:]); have.key == k {
			atomic.OrUint32(&c.used[i/32], 1<<(i%32))
			return have.stat, true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.own) == 0 {
		return Stat{}, false
	}
	if at, ok := c.index()[inode{k.Dev, k.Ino}]; ok && c.learned(at).key == k {
		return c.learned(at).stat, true
	}
	return Stat{}, false
}

// learned returns one of own.
func (c *FileCache) learned(at uint32) *cached { return &c.own[at/ownBlock][at%ownBlock] }

// count is how many own holds.
func (c *FileCache) count() uint32 {
	if len(c.own) == 0 {
		return 0
	}
	return uint32((len(c.own)-1)*ownBlock + len(c.own[len(c.own)-1]))
}

// index brings places up to date.
func (c *FileCache) index() map[inode]uint32 {
	if c.places == nil {
		c.places = map[inode]uint32{}
	}
	for n := c.count(); c.indexed < n; c.indexed++ {
		c.places[c.learned(c.indexed).inode()] = c.indexed
	}
	return c.places
}

// inOrder returns where in own what counts is, sorted by inode.
func (c *FileCache) inOrder() []uint32 {
	all := make([]uint32, c.count())
	for i := range all {
		all[i] = uint32(i)
	}
	slices.SortFunc(all, func(a, b uint32) int {
		return cmp.Or(c.learned(a).inode().compare(c.learned(b).inode()), cmp.Compare(b, a)) // the later one first
	})
	return slices.CompactFunc(all, func(a, b uint32) bool { return c.learned(a).inode() == c.learned(b).inode() })
}

func (c *FileCache) read() {
	c.base, c.was = readCache(c.path)
	c.used = make([]uint32, (len(c.base)/recordSize+31)/32)
}

// Put implements StatCache.
func (c *FileCache) Put(k StatKey, s Stat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.own) - 1
	if last < 0 || len(c.own[last]) == ownBlock {
		c.own = append(c.own, make([]cached, 0, ownBlock))
		last++
	}
	c.own[last] = append(c.own[last], cached{k, s})
}

// readCache returns the records of a cache file and what the file was, nothing when there is anything wrong with it.
func readCache(path string) ([]byte, fs.FileInfo) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxCacheFile || fi.Size() < cacheHeader+4 {
		return nil, nil
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil || string(b[:8]) != cacheMagic {
		return nil, nil
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	count := int64(binary.LittleEndian.Uint32(body[12:]))
	if binary.LittleEndian.Uint32(body[8:]) != cacheVersion || int64(len(body)) != cacheHeader+count*recordSize ||
		crc32.Checksum(body, castagnoli) != sum {
		return nil, nil
	}
	return body[cacheHeader:], fi
}

// onDisk returns the records that are in the file now. Most often these are the ones that were read: files of this kind are replaced, never
// changed.
func (c *FileCache) onDisk() []byte {
	if fi, err := os.Stat(c.path); err == nil && c.was != nil && os.SameFile(fi, c.was) &&
		fi.Size() == c.was.Size() && fi.ModTime().Equal(c.was.ModTime()) {
		return c.base
	}
	now, _ := readCache(c.path)
	return now
}

// findRecord returns the position of the record of an inode.
func findRecord(base []byte, dev, ino uint64) (int, bool) {
	n := len(base) / recordSize
	i := sort.Search(n, func(i int) bool {
		r := base[i*recordSize:]
		if d := binary.LittleEndian.Uint64(r); d != dev {
			return d > dev
		}
		return binary.LittleEndian.Uint64(r[8:]) >= ino
	})
	if i == n {
		return 0, false
	}
	r := base[i*recordSize:]
	return i, binary.LittleEndian.Uint64(r) == dev && binary.LittleEndian.Uint64(r[8:]) == ino
}

func decodeRecord(r []byte) cached {
	le := binary.LittleEndian
	c := cached{key: StatKey{
		Dev: le.Uint64(r), Ino: le.Uint64(r[8:]), Size: int64(le.Uint64(r[16:])),
		MtimeNs: int64(le.Uint64(r[24:])), CtimeNs: int64(le.Uint64(r[32:])),
	}}
	copy(c.stat.Digest[:], r[40:72])
	c.stat.Xattrs = le.Uint32(r[72:])&flagXattrs != 0
	return c
}

func appendRecord(b []byte, c cached) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, c.key.Dev)
	b = le.AppendUint64(b, c.key.Ino)
	b = le.AppendUint64(b, uint64(c.key.Size))
	b = le.AppendUint64(b, uint64(c.key.MtimeNs))
	b = le.AppendUint64(b, uint64(c.key.CtimeNs))
	b = append(b, c.stat.Digest[:]...)
	flags := uint32(0)
	if c.stat.Xattrs {
		flags |= flagXattrs
	}
	b = le.AppendUint32(b, flags)
	return le.AppendUint32(b, 0)
}

// Save writes what was learned, together with what other processes have written meanwhile. It does nothing when nothing
// was learned.
func (c *FileCache) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.own) == 0 {
		return nil
	}
	c.load.Do(c.read)
	learned := c.inOrder()
	onDisk := c.onDisk()
	var count uint32
	c.merge(onDisk, learned, func([]byte) { count++ })
	err := replaceFile(c.path, func(out io.Writer) error {
		sum := crc32.New(castagnoli)
		w := bufio.NewWriterSize(io.MultiWriter(out, sum), 64<<10)
		header := binary.LittleEndian.AppendUint32([]byte(cacheMagic), cacheVersion)
		_, _ = w.Write(binary.LittleEndian.AppendUint32(header, count))          // Flush says what went wrong
		c.merge(onDisk, learned, func(record []byte) { _, _ = w.Write(record) }) // here, too
		if err := w.Flush(); err != nil {
			return err
		}
		_, err := out.Write(binary.LittleEndian.AppendUint32(nil, sum.Sum32()))
		return err
	})
	if err != nil {
		return fmt.Errorf("write stat cache: %w", err)
	}
	c.own, c.places, c.indexed = nil, nil, 0
	return nil
}

// merge yields the records to write, sorted: those of the file but for the ones that nobody needed for long, and ours.
// What was last seen wins. A record is valid until the next one.
func (c *FileCache) merge(onDisk []byte, learned []uint32, yield func(record []byte)) {
	const at = recordSize - 4 // of the age
	var buf [recordSize]byte
	ours := func() {
		yield(appendRecord(buf[:0], *c.learned(learned[0])))
		learned = learned[1:]
	}
	for ; len(onDisk) >= recordSize; onDisk = onDisk[recordSize:] {
		k := inode{binary.LittleEndian.Uint64(onDisk), binary.LittleEndian.Uint64(onDisk[8:])}
		for len(learned) > 0 && c.learned(learned[0]).inode().compare(k) < 0 {
			ours()
		}
		if len(learned) > 0 && c.learned(learned[0]).inode() == k {
			continue // ours comes next
		}
		age := binary.LittleEndian.Uint32(onDisk[at:]) + 1
		if j, ok := findRecord(c.base, k.dev, k.ino); ok && atomic.LoadUint32(&c.used[j/32])&(1<<(j%32)) != 0 {
			age = 0
		}
		if age <= maxAge {
			copy(buf[:], onDisk[:at])
			binary.LittleEndian.PutUint32(buf[at:], age)
			yield(buf[:])
		}
	}
	for len(learned) > 0 {
		ours()
	}
}

// replaceFile writes a file beside the old one and puts it in its place. Nothing is synced: a torn file reads as empty.
func replaceFile(path string, write func(io.Writer) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	err = write(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		if rmErr := os.Remove(f.Name()); rmErr != nil && !os.IsNotExist(rmErr) {
			return fmt.Errorf("%w (and %s is left over)", err, f.Name())
		}
		return err
	}
	return nil
}
