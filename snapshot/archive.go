package snapshot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ulikunitz/xz"

	"build/internal/store"
	"build/internal/tree"
)

// The archives that ADD unpacks. What is one is decided by content alone. Entries come in any order and a layer is written
// in path order, so the plain tar is kept in an unnamed temporary file; the archive's own paths never reach the disk.

var (
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// archives holds what the archives of one COPY need until the layer is written.
type archives struct {
	dir     string
	release func()
	files   []*os.File
}

func (a *archives) close() {
	for _, f := range a.files {
		_ = f.Close() // only read from, and its name is gone
	}
	if a.release != nil {
		a.release()
	}
}

// temp makes a file without a name.
func (a *archives) temp(st *store.Store) (*os.File, error) {
	if a.release == nil {
		dir, release, err := st.TempDir()
		if err != nil {
			return nil, err
		}
		a.dir, a.release = dir, release
	}
	path := filepath.Join(a.dir, "archive")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	a.files = append(a.files, f)
	return f, os.Remove(path)
}

// archive is one archive as a plain tar.
type archive struct {
	f *os.File
	// spare holds the contents of sparse files, which are not in the tar as they are.
	spare func() (*os.File, error)
	zstd  bool // how it was compressed
}

// openIf returns the archive that a file is, or nil when it is something else.
func (a *archives) openIf(ctx context.Context, src Source, e *tree.Entry, w *Writer) (*archive, error) {
	if e.Size == 0 {
		return nil, nil
	}
	is, zstd, err := isArchive(ctx, src, e)
	if err != nil || !is {
		return nil, err
	}
	f, err := a.temp(w.l.st)
	if err != nil {
		return nil, fmt.Errorf("unpack /%s: %w", e.Path, err)
	}
	if err := spool(ctx, f, src, e); err != nil {
		var changed *ChangedError
		if errors.As(err, &changed) {
			return nil, err
		}
		return nil, archiveFailure(ctx, e.Path, err)
	}
	var spare *os.File
	return &archive{f: f, zstd: zstd, spare: func() (_ *os.File, err error) {
		if spare == nil {
			spare, err = a.temp(w.l.st)
		}
		return spare, err
	}}, nil
}

// isArchive reports whether a file begins as a tar, compressed or not, and whether that is by zstd. Whether it also ends as
// one shows later.
func isArchive(ctx context.Context, src Source, e *tree.Entry) (is, zstd bool, err error) {
	r, err := src.Open(ctx, e)
	if err != nil {
		return false, false, err
	}
	defer r.Close()
	br := bufio.NewReaderSize(r, 64<<10) // which decompressAny uses, too, and meets the same error
	head, _ := br.Peek(len(zstdMagic))
	z, err := decompressAny(br)
	if err != nil {
		return false, false, nil // it only looked compressed
	}
	defer z.Close()
	_, err = tar.NewReader(z).Next()
	return err == nil, bytes.HasPrefix(head, zstdMagic), nil
}

// decompressAny is decompress for two more formats that only archives have.
func decompressAny(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(64)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, bzip2Magic):
		return io.NopCloser(bzip2.NewReader(br)), nil
	case bytes.HasPrefix(head, xzMagic):
		if err := checkXZ(head); err != nil {
			return nil, err
		}
		z, err := xz.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return io.NopCloser(z), nil
	}
	return decompress(br)
}

// checkXZ refuses a dictionary that would not fit into memory: the decoder allocates what the header asks for, up to 4 GiB.
func checkXZ(head []byte) error {
	const blockHeader, filterID, lzma2 = 12, 14, 0x21
	if len(head) < filterID+3 || head[blockHeader+1]&0xc3 != 0 {
		return nil // sizes or several filters come first; the decoder knows one filter only and says so
	}
	if head[filterID] != lzma2 {
		return nil
	}
	if bits := head[filterID+2]; bits > 30 { // 2<<(30/2+11) = 128 MiB
		return errors.New("xz: the dictionary is larger than 128 MiB")
	}
	return nil
}

// spool writes the plain tar to f and checks that the file is the one whose digest is known.
func spool(ctx context.Context, f *os.File, src Source, e *tree.Entry) error {
	r, err := src.Open(ctx, e)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	raw := io.TeeReader(r, sum)
	z, err := decompressAny(raw)
	if err != nil {
		return err
	}
	defer z.Close()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := z.Read(buf)
		if _, werr := f.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	if e.Digest != [32]byte{} && e.Digest != [32]byte(sum.Sum(nil)) {
		return &ChangedError{Path: e.Path}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// archived is the content of a file in an archive.
type archived struct {
	f            *os.File
	offset, size int64
}

func (c archived) open(context.Context, *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(c.f, c.offset, c.size)), nil
}

// unpacking is an archive on its way into a plan. Its paths are resolved with the destination as their root, as for a
// process that has it for one.
type unpacking struct {
	p    *plan
	a    *archive
	dest string
	tr   *tar.Reader
}

// unpack plans everything in an archive, which goes below the destination; that becomes a directory if it is none.
func (p *plan) unpack(ctx context.Context, a *archive) error {
	dest, err := p.resolve(p.spec.Dest)
	if err != nil {
		return err
	}
	_, _, err = p.dirAt(dest, func(at string) tree.Entry {
		e := p.parent(at)
		e.Mode = 0o755
		return e
	})
	if err != nil {
		return err
	}
	u := &unpacking{p: p, a: a, dest: dest, tr: tar.NewReader(a.f)}
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := u.tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := u.add(h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// add plans one entry of the archive.
func (u *unpacking) add(h *tar.Header) error {
	name := tree.Clean(h.Name)
	if name == "" {
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeReg && h.Size == 0 {
			// The destination keeps its metadata. Some archives begin with an empty file without a name, which says nothing.
			return nil
		}
		return errors.New("an entry without a name")
	}
	if err := tree.CheckPath(name); err != nil {
		return err
	}
	dir, err := u.dir(tree.Parent(name))
	if err != nil {
		return err
	}
	base := tree.Base(name)
	if h.Typeflag == tar.TypeLink {
		return u.link(dir, base, h.Linkname)
	}
	e, err := archiveEntry(h)
	if err != nil {
		return err
	}
	if o := u.p.spec.Owner; o != nil {
		e.UID, e.GID = o.UID, o.GID
	}
	if e.Type == tree.Dir {
		return u.mkdir(dir, base, e)
	}
	kid := u.p.put(dir, base, e)
	if e.Type == tree.File {
		c, err := u.content(h)
		if err != nil {
			return err
		}
		kid.content = c
	}
	return nil
}

// dir returns the directory an entry is in. Symlinks are followed inside the destination, what is missing is made.
func (u *unpacking) dir(name string) (*planned, error) {
	real, err := u.resolve(name, true)
	if err != nil {
		return nil, err
	}
	n, _, err := u.p.dirAt(real, func(at string) tree.Entry {
		return tree.Entry{Path: at, Type: tree.Dir, Mode: 0o755, ModTime: u.p.spec.Now, Offset: -1}
	})
	return n, err
}

// resolve returns the path in the whole tree of a path in the archive.
func (u *unpacking) resolve(name string, followLast bool) (string, error) {
	real, err := tree.Resolve(name, followLast, func(at string) (tree.Entry, bool, error) {
		return u.p.lstat(tree.Join(u.dest, at))
	})
	return tree.Join(u.dest, real), err
}

// mkdir plans a directory entry. One that is there keeps what is in it; anything else is replaced.
func (u *unpacking) mkdir(dir *planned, base string, e tree.Entry) error {
	kid, old, err := u.p.child(dir, base)
	if err != nil {
		return err
	}
	if old != nil && old.Type == tree.Dir {
		if kid == nil {
			kid = u.p.put(dir, base, asParent(*old))
		}
		e.Path, e.Opaque, e.Xattrs = kid.entry.Path, kid.entry.Opaque, mergeXattrs(kid.entry.Xattrs, e.Xattrs)
		*kid.entry, kid.changed = e, true
		return nil
	}
	next := u.p.put(dir, base, e)
	next.in().fresh = true
	if kid != nil && !dir.dir.fresh {
		// What was planned here has replaced what the base has, which must not show through the new directory.
		l, ok, err := u.p.base.Lstat(next.entry.Path)
		if err != nil {
			return err
		}
		next.entry.Opaque = ok && l.Type == tree.Dir
	}
	return nil
}

// link plans a hard link, another name of something that the archive brought before.
func (u *unpacking) link(dir *planned, base, to string) error {
	target := tree.Clean(to)
	real, err := u.resolve(target, false)
	if err != nil {
		return err
	}
	n := u.p.root
	for rest := real; rest != "" && n != nil; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		n = n.kids()[name]
	}
	switch {
	case n == nil || n == u.p.root:
		return fmt.Errorf("hard link to %q: the archive has no such file", to)
	case n.entry.Type == tree.Dir:
		return fmt.Errorf("hard link to %q: that is a directory", to)
	case n == dir.kids()[base]:
		return fmt.Errorf("hard link to %q: that is itself", to)
	case n.entry.Type == tree.File && n.links == nil:
		n.links = &linkGroup{}
	}
	dir.add(base, &planned{entry: n.entry, found: n.found, content: n.content, links: n.links, changed: true})
	return nil
}

// content notes where a file's bytes are; those of sparse files are written out first.
func (u *unpacking) content(h *tar.Header) (content, error) {
	if !sparse(h) {
		at, err := u.a.f.Seek(0, io.SeekCurrent)
		return archived{u.a.f, at, h.Size}, err
	}
	f, err := u.a.spare()
	if err != nil {
		return nil, err
	}
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(f, u.tr)
	return archived{f, at, n}, err
}

// archiveEntry turns a header into an entry, but for its path.
func archiveEntry(h *tar.Header) (tree.Entry, error) {
	e := tree.Entry{Mode: uint32(h.Mode) & 0o7777, ModTime: h.ModTime, Offset: -1}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d is not an id", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	if e.ModTime.IsZero() {
		e.ModTime = time.Unix(0, 0)
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // '\x00' is what old archives have
		e.Type, e.Size = tree.File, h.Size
	case tar.TypeDir:
		e.Type = tree.Dir
	case tar.TypeSymlink:
		e.Type, e.Link, e.Mode = tree.Symlink, h.Linkname, 0o777
		if h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0 {
			return e, errors.New("a symbolic link without a target")
		}
	case tar.TypeChar, tar.TypeBlock:
		err := device(&e, h)
		if err == nil && e.Type == tree.Whiteout {
			err = errors.New("a character device 0:0 marks deletions")
		}
		return e, err
	case tar.TypeFifo:
		e.Type = tree.Fifo
	default:
		return e, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	e.Xattrs = tarXattrs(h, e.Type)
	return e, nil
}
