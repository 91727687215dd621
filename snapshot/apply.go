package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// opaqueXattr marks a directory of an overlay mounted with userxattr that hides what is below it.
const opaqueXattr = "user.overlay.opaque"

// ApplyReport says what the disk could not hold. The layer's index has all of it.
type ApplyReport struct {
	Placeholders int   // device nodes that could not be made: an empty file is in their place
	Xattrs       int   // extended attributes the file system or the namespace refused
	Bytes        int64 // content written
	Disk         int64 // what it takes on the disk, holes left out, as far as was seen
	Entries      int
}

// Apply unpacks a layer's plain tar into the directory dir, which should be empty, in the form overlay file systems want a
// lower layer to have: deletions are character devices 0:0 and opaque directories carry user.overlay.opaque. The tar may
// come from anybody: nothing outside dir is read or changed, whatever it holds.
func (l *Layers) Apply(ctx context.Context, dir *os.File, r io.Reader) (ApplyReport, error) {
	in := newReadAhead(ctx, r)
	defer in.Close()
	return scanLayer(ctx, in, newApplier(dir, l.owners), nil)
}

// scanLayer reads a plain tar to its end and gives every entry to the applier and to the indexer; either may be nil.
func scanLayer(ctx context.Context, r io.Reader, a *applier, x *indexer) (ApplyReport, error) {
	s := newScanner(r)
	s.ctx = ctx
	sum := sha256.New()
	for {
		e, opaque, err := s.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = scanEntry(s, e, opaque, a, x, sum)
		}
		if err != nil {
			a.close()
			return a.reported(), layerFailure(ctx, err)
		}
	}
	if err := s.drain(); err != nil {
		a.close()
		return a.reported(), layerFailure(ctx, err)
	}
	return a.reported(), a.finish()
}

func scanEntry(s *scanner, e *tree.Entry, opaque bool, a *applier, x *indexer, sum hash.Hash) error {
	r, content := io.Reader(s), e.Type == tree.File && e.Hardlink == ""
	if content {
		sum.Reset()
		if x != nil {
			r = x.watch(e, s)
		}
	}
	var err error
	switch {
	case a != nil:
		err = a.add(e, opaque, r, sum)
	case content:
		_, err = io.CopyBuffer(sum, r, s.buf)
	}
	if err == nil && x != nil {
		if content {
			sum.Sum(e.Digest[:0])
		}
		err = x.add(e, opaque)
	}
	if err != nil {
		return &entryError{e.Path, err}
	}
	return nil
}

// applier makes directories out of entries. Names have been resolved by the scanner, so every directory on the way to an
// entry must be a real one: the applier opens them with RESOLVE_NO_SYMLINKS and creates everything exclusively.
type applier struct {
	root   int
	owners *owners
	nodes  []byte // the table of owners of what cannot carry them
	merged bool   // what is there is all layers below, not an empty directory: see PrivateTree
	path   string // the directory dirfd stands for
	dirfd  int    // -1: none
	times  map[string]time.Time
	buf    []byte
	report ApplyReport
}

func newApplier(root *os.File, o *owners) *applier {
	return &applier{root: int(root.Fd()), owners: o, dirfd: -1, times: map[string]time.Time{}, buf: make([]byte, 128<<10)}
}

func (a *applier) reported() ApplyReport {
	if a == nil {
		return ApplyReport{}
	}
	return a.report
}

func (a *applier) close() {
	if a != nil && a.dirfd >= 0 {
		unix.Close(a.dirfd)
		a.dirfd = -1
	}
}

// finish sets the times of directories, which changed while they were filled.
func (a *applier) finish() error {
	if a == nil {
		return nil
	}
	a.close()
	for path, t := range a.times {
		fd, err := openBeneath(a.root, path)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue // replaced later in the tar
			}
			return &entryError{path, err}
		}
		err = setTimes(fd, ".", t)
		unix.Close(fd)
		if err != nil {
			return &entryError{path, err}
		}
	}
	return nil
}

// add puts one entry on disk; a file's content comes from r and goes to sum as well.
func (a *applier) add(e *tree.Entry, opaque bool, r io.Reader, sum hash.Hash) error {
	a.report.Entries++
	if e.Type == tree.Dir {
		a.report.Disk += dirCost
	}
	if e.Path == "" {
		return a.rootEntry(e, opaque)
	}
	dir, base := splitPath(e.Path)
	parent, err := a.parent(dir)
	if err != nil {
		return err
	}
	switch {
	case a.merged && (opaque || e.Type == tree.Whiteout):
		return nil // see makeRoom
	case opaque:
		return a.opaque(parent, e.Path, base)
	case e.Type == tree.Whiteout:
		return a.whiteout(parent, e.Path, base)
	case e.Type == tree.Dir:
		return a.directory(parent, base, e)
	case e.Hardlink != "":
		return a.link(parent, base, e)
	case e.Type == tree.File:
		return a.file(parent, base, e, r, sum)
	default:
		return a.special(parent, base, e)
	}
}

// rootEntry gives the root directory its metadata.
func (a *applier) rootEntry(e *tree.Entry, opaque bool) error {
	if opaque {
		if a.merged {
			return nil
		}
		return setOpaque(a.root)
	}
	a.times[""] = e.ModTime
	return a.metadata(a.root, e)
}

// parent returns a descriptor of a directory of the layer, made if no entry has made it yet. It stays open until the next
// call; the root's is never closed.
func (a *applier) parent(dir string) (int, error) {
	if dir == "" {
		return a.root, nil
	}
	if a.dirfd >= 0 && a.path == dir {
		return a.dirfd, nil
	}
	a.close()
	fd, err := openBeneath(a.root, dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		fd, err = a.implied(dir)
	}
	if err != nil {
		return -1, err
	}
	a.path, a.dirfd = dir, fd
	return fd, nil
}

// implied makes the missing directories of a path that has no entries of its own for them.
func (a *applier) implied(dir string) (int, error) {
	fd, err := openBeneath(a.root, "")
	if err != nil {
		return -1, err
	}
	for at := 0; at <= len(dir); {
		end := at + componentEnd(dir[at:])
		name := dir[at:end]
		next, err := openDirAt(fd, name)
		if err != nil {
			next, err = a.impliedOne(fd, name, dir[:end])
		}
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd, at = next, end+1
	}
	return fd, nil
}

func componentEnd(s string) int {
	for i := range len(s) {
		if s[i] == '/' {
			return i
		}
	}
	return len(s)
}

// impliedOne makes one implied directory. A deletion in its place becomes an opaque directory; anything else is in the way.
func (a *applier) impliedOne(parent int, name, path string) (int, error) {
	err := unix.Mkdirat(parent, name, 0o755)
	gone := false
	if err == unix.EEXIST {
		if gone, err = isWhiteout(parent, name); err == nil && !gone {
			return -1, fmt.Errorf("%q: %w", path, unix.ENOTDIR)
		}
		if err == nil {
			if err = unix.Unlinkat(parent, name, 0); err == nil {
				err = unix.Mkdirat(parent, name, 0o755)
			}
		}
	}
	if err != nil {
		return -1, err
	}
	a.times[path] = time.Unix(0, 0)
	fd, err := openDirAt(parent, name)
	if err != nil {
		return -1, err
	}
	if err = unix.Fchmod(fd, 0o755); err == nil && gone { // whatever the umask and a setgid parent did
		err = setOpaque(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// make calls create until nothing is in its way: what an earlier entry left there goes. It reports whether that was a
// deletion.
func (a *applier) make(parent int, base string, create func() error) (gone bool, err error) {
	if err = create(); err != unix.EEXIST {
		return false, err
	}
	if gone, err = isWhiteout(parent, base); err != nil {
		return false, err
	}
	if err = unix.Unlinkat(parent, base, 0); err == unix.EISDIR || err == unix.EPERM {
		err = removeAll(parent, base)
	}
	if err != nil {
		return false, err
	}
	return gone, create()
}

// directory makes a directory, or gives an existing one new metadata and keeps what is in it.
func (a *applier) directory(parent int, base string, e *tree.Entry) error {
	create := func() error { return unix.Mkdirat(parent, base, 0o700) }
	gone := false
	err := create()
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			gone, err = a.make(parent, base, create)
		}
	}
	if err != nil {
		return err
	}
	fd, err := openDirAt(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if gone {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	a.times[e.Path] = e.ModTime
	return a.metadata(fd, e)
}

// file writes a regular file.
func (a *applier) file(parent int, base string, e *tree.Entry, r io.Reader, sum hash.Hash) error {
	fd := -1
	create := func() (err error) {
		fd, err = openAt(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		return err
	}
	if _, err := a.make(parent, base, create); err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := a.content(fd, r, sum)
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("%d bytes of content instead of %d", n, e.Size)
	}
	a.report.Bytes += n
	a.report.Disk += diskSize(fd)
	if err := a.metadata(fd, e); err != nil {
		return err
	}
	return setTimes(parent, base, e.ModTime)
}

// dirCost is what a directory takes, mostly.
const dirCost = 4 << 10

// diskSize is what an open file takes on the disk.
func diskSize(fd int) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

var zeros [128 << 10]byte

// content copies r into fd; blocks of zeros become holes.
func (a *applier) content(fd int, r io.Reader, sum hash.Hash) (int64, error) {
	var size, end int64 // end is how far the file reaches on disk
	for {
		n, err := fill(r, a.buf)
		b := a.buf[:n]
		_, _ = sum.Write(b) // a hash never fails
		if n == len(a.buf) && bytes.Equal(b, zeros[:n]) {
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return size, err
			}
		} else if n > 0 {
			if err := writeAll(fd, b); err != nil {
				return size, err
			}
			end = size + int64(n)
		}
		size += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return size, err
		}
	}
	if end < size {
		return size, unix.Ftruncate(fd, size)
	}
	return size, nil
}

// link makes a hard link to an earlier entry of the layer.
func (a *applier) link(parent int, base string, e *tree.Entry) error {
	dir, name := splitPath(e.Hardlink)
	from, err := openBeneath(a.root, dir)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", e.Hardlink, err)
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %q: %w", e.Hardlink, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || whiteoutStat(&st) {
		return fmt.Errorf("hard link to %q, which is not a file", e.Hardlink)
	}
	if a.merged {
		return a.secondFile(from, name, parent, base)
	}
	_, err = a.make(parent, base, func() error { return unix.Linkat(from, name, parent, base, 0) })
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", e.Hardlink, err)
	}
	return nil
}

// special makes symbolic links, fifos and device nodes.
func (a *applier) special(parent int, base string, e *tree.Entry) error {
	create := func() error { return unix.Symlinkat(e.Link, parent, base) }
	if e.Type != tree.Symlink {
		create = func() error { return unix.Mknodat(parent, base, nodeType(e.Type)|0o600, nodeNumber(e)) }
	}
	_, err := a.make(parent, base, create)
	standsIn := err == unix.EPERM && (e.Type == tree.Char || e.Type == tree.Block)
	if standsIn {
		err = a.placeholder(parent, base)
	}
	if err == nil {
		err = a.chown(parent, base, e)
	}
	if err == nil && standsIn {
		err = a.owners.setDevice(parent, base, e)
	}
	if err != nil {
		return err
	}
	if e.Type != tree.Symlink {
		if err := unix.Fchmodat(parent, base, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return setTimes(parent, base, e.ModTime)
}

// placeholder stands for a device node that this namespace may not make.
func (a *applier) placeholder(parent int, base string) error {
	a.report.Placeholders++
	fd, err := openAt(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// whiteout removes a path of the layers below. What this layer has there itself stays: a directory becomes opaque, and
// anything else hides what is below it anyway.
func (a *applier) whiteout(parent int, path, base string) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return unix.Mknodat(parent, base, unix.S_IFCHR, 0)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return a.opaque(parent, path, base)
	}
	return nil
}

// opaque marks a directory, made if it has no entry yet.
func (a *applier) opaque(parent int, path, base string) error {
	fd, err := openDirAt(parent, base)
	if err != nil {
		fd, err = a.impliedOne(parent, base, path)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOpaque(fd)
}

// metadata sets owner, mode and extended attributes of an open file, in the order in which they do not undo each other.
func (a *applier) metadata(fd int, e *tree.Entry) error {
	if err := a.chown(fd, "", e); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return err
	}
	for _, x := range e.Xattrs {
		switch err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err {
		case nil:
		case unix.EPERM, unix.ENOTSUP, unix.EINVAL:
			a.report.Xattrs++
		default:
			return fmt.Errorf("set extended attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// chown gives a file its owner, or what stands for it on disk.
func (a *applier) chown(fd int, name string, e *tree.Entry) error {
	line, err := a.owners.set(fd, name, e)
	a.nodes = append(a.nodes, line...)
	return err
}
