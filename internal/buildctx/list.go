package buildctx

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// stat is what tells one state of a file from another.
type stat struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// node is one entry of a directory. A context may have a million: what few entries have is apart.
type node struct {
	path   string
	kind   tree.Type
	shared bool // a file with more names than this one
	mode   uint32
	stat   stat
	rare   *rare         // nil: nothing of it
	state  atomic.Uint32 // of sum: digestUnknown and so on
	sum    [32]byte      // SHA-256 of a file's content, once known
}

// rare is what few nodes have.
type rare struct {
	rdev    uint64
	link    string
	xattrs  []tree.Xattr
	verdict verdict // of directories
}

// The states of a node's digest. It is written once.
const (
	digestUnknown = iota
	digestWritten // just now, by somebody
	digestKnown
)

func (n *node) digest() ([32]byte, bool) {
	if n.state.Load() != digestKnown {
		return [32]byte{}, false
	}
	return n.sum, true
}

func (n *node) setDigest(sum [32]byte) {
	if n.state.CompareAndSwap(digestUnknown, digestWritten) {
		n.sum = sum
		n.state.Store(digestKnown)
	}
}

// more is where what few nodes have is put.
func (n *node) more() *rare {
	if n.rare == nil {
		n.rare = &rare{}
	}
	return n.rare
}

func (n *node) verdict() verdict {
	if n.rare == nil {
		return verdict{}
	}
	return n.rare.verdict
}

func (n *node) setXattrs(list []tree.Xattr) {
	if list != nil || n.rare != nil {
		n.more().xattrs = list
	}
}

func (n *node) key() StatKey {
	return StatKey{
		Dev: n.stat.dev, Ino: n.stat.ino, Size: n.stat.size,
		MtimeNs: n.stat.mtime.Nano(), CtimeNs: n.stat.ctime.Nano(),
	}
}

func statOf(st *unix.Stat_t) stat {
	return stat{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// entry is a node as others see it.
func (d *Dir) entry(path string, n *node) tree.Entry {
	e := tree.Entry{
		Path: path, Type: n.kind, Mode: n.mode, ModTime: time.Unix(n.stat.mtime.Unix()),
		Offset: -1,
	}
	if n.kind == tree.File {
		e.Size = n.stat.size
		e.Digest, _ = n.digest()
	}
	if r := n.rare; r != nil {
		e.Link, e.Xattrs = r.link, r.xattrs
		if n.kind == tree.Char || n.kind == tree.Block {
			e.Major, e.Minor = unix.Major(r.rdev), unix.Minor(r.rdev)
		}
	}
	if f := d.facts[path]; f != nil {
		e.Type, e.Mode, e.UID, e.GID = f.Type, f.Mode, f.UID, f.GID
		e.ModTime, e.Xattrs, e.Major, e.Minor = f.ModTime, f.Xattrs, f.Major, f.Minor
	}
	return e
}

// fill asks the kernel about a name in the directory at fd, which is dir, but for the extended attributes of a directory. It
// returns false for what no image can hold (a socket) and for what is not there.
func (d *Dir) fill(n *node, fd int, name, dir string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	for err == unix.EINTR {
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, d.root.error("lstat", n.path, err)
	}
	n.mode, n.stat = st.Mode&07777, statOf(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.kind, n.shared = tree.File, st.Nlink > 1
		return true, d.fillFile(n, fd, name, dir)
	case unix.S_IFDIR:
		n.kind = tree.Dir
		return true, nil
	case unix.S_IFLNK:
		n.kind = tree.Symlink
		if n.more().link, err = readlink(fd, name, st.Size); err != nil {
			if err == unix.EINVAL || absent(err) { // it was replaced since
				return false, &ChangedError{Path: d.root.full(n.path)}
			}
			return false, d.root.error("readlink", n.path, err)
		}
		return true, nil
	case unix.S_IFCHR:
		n.kind, n.more().rdev = tree.Char, uint64(st.Rdev)
	case unix.S_IFBLK:
		n.kind, n.more().rdev = tree.Block, uint64(st.Rdev)
	case unix.S_IFIFO:
		n.kind = tree.Fifo
	default:
		return false, nil
	}
	return true, nil
}

// fillFile adds what the stat cache knows about a file. Xattrs change the ctime, so a hit also says whether there are any.
func (d *Dir) fillFile(n *node, fd int, name, dir string) error {
	if d.cache != nil {
		if known, ok := d.cache.Get(n.key()); ok {
			n.setDigest(known.Digest)
			if !known.Xattrs {
				return nil
			}
		}
	}
	list, err := d.xattrs(fd, name, dir)
	n.setXattrs(list)
	return err
}

func readlink(fd int, name string, size int64) (string, error) {
	for n := max(int(size)+1, 64); ; n *= 2 {
		buf := make([]byte, n)
		got, err := retry(func() (int, error) { return unix.Readlinkat(fd, name, buf) })
		if err != nil {
			return "", err
		}
		if got < n {
			return string(buf[:got]), nil
		}
	}
}

// xattrs reads the extended attributes that belong into an image.
func (d *Dir) xattrs(fd int, name, dir string) ([]tree.Xattr, error) {
	if d.facts != nil {
		return nil, nil // the archive says what they are
	}
	path := func() string {
		if name == "." {
			return dir
		}
		return tree.Join(dir, name)
	}
	if !d.root.noListAt.Load() { // most files have none, and then this is all
		n, err := listxattrat(fd, name)
		switch {
		case err == nil && n == 0, noXattrs(err) && err != unix.EPERM:
			return nil, nil
		case err == unix.ENOSYS, err == unix.EPERM:
			d.root.noListAt.Store(true)
		}
	}
	if d.root.procs == "" {
		return d.xattrsByOpening(path())
	}
	var buf [256]byte
	file := append(append(append(strconv.AppendInt(append(buf[:0], d.root.procs...), int64(fd), 10), '/'), name...), 0)
	full := string(file[:len(file)-1])
	return d.collect(path,
		func(dst []byte) (int, error) { return unix.Llistxattr(full, dst) },
		func(attr string, dst []byte) (int, error) { return unix.Lgetxattr(full, attr, dst) })
}

// listxattrat returns how long the list of the extended attributes of a name in the directory at fd is (Linux 6.13). Unlike
// llistxattr it needs no path through /proc. A seccomp filter that does not know it answers with ENOSYS or EPERM.
func listxattrat(fd int, name string) (int, error) {
	const sysListxattrat = 465 // on every architecture
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, errno := unix.Syscall6(sysListxattrat, uintptr(fd), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// xattrsByOpening is xattrs where there is no /proc.
func (d *Dir) xattrsByOpening(path string) ([]tree.Xattr, error) {
	fd, err := d.root.open(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		if err == unix.EACCES || absent(err) { // reading the content will say so, if it is wanted
			return nil, nil
		}
		return nil, d.root.error("open", path, err)
	}
	defer unix.Close(fd)
	return d.xattrsOf(fd, path)
}

// xattrsOf is xattrs of what is open, and not for its path alone.
func (d *Dir) xattrsOf(fd int, path string) ([]tree.Xattr, error) {
	if d.facts != nil {
		return nil, nil
	}
	return d.collect(func() string { return path },
		func(dst []byte) (int, error) { return unix.Flistxattr(fd, dst) },
		func(attr string, dst []byte) (int, error) { return unix.Fgetxattr(fd, attr, dst) })
}

// collect lists attributes and gets those that matter.
func (d *Dir) collect(path func() string, list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]tree.Xattr, error) {
	var small [256]byte
	names, err := sized(small[:], list)
	if err != nil {
		if noXattrs(err) {
			return nil, nil
		}
		return nil, d.root.error("listxattr", path(), err)
	}
	var out []tree.Xattr
	for raw := range bytes.SplitSeq(names, []byte{0}) {
		attr := string(raw)
		if !wanted(attr) {
			continue
		}
		value, err := sized(nil, func(dst []byte) (int, error) { return get(attr, dst) })
		if err == unix.ENODATA || noXattrs(err) {
			continue
		}
		if err != nil {
			return nil, d.root.error("getxattr "+attr, path(), err)
		}
		out = append(out, tree.Xattr{Name: attr, Value: string(value)})
	}
	slices.SortFunc(out, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func noXattrs(err error) bool {
	return err == unix.ENOTSUP || err == unix.EPERM || err == unix.EACCES || absent(err)
}

// wanted reports whether an attribute belongs into an image.
func wanted(name string) bool {
	if name == "security.capability" {
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && !strings.HasPrefix(name, "user.build.")
}

// sized calls a function that fills a buffer, with a buffer that is large enough.
func sized(buf []byte, call func([]byte) (int, error)) ([]byte, error) {
	for {
		if len(buf) > 0 {
			n, err := call(buf)
			if err == nil {
				return buf[:n], nil
			}
			if err != unix.ERANGE && err != unix.EINTR {
				return nil, err
			}
		}
		n, err := call(nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil, err
		}
		buf = make([]byte, n)
	}
}

// readDir reads a directory into l, given the verdict on it.
func (d *Dir) readDir(l *listing, path string, v verdict) error {
	fd, err := d.root.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if absent(err) {
		return &ChangedError{Path: d.root.full(path)} // it was a directory a moment ago
	}
	if err != nil {
		return d.root.error("open", path, err)
	}
	defer unix.Close(fd)
	if l.xattrs, err = d.xattrsOf(fd, path); err != nil {
		return err
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if err := s.read(fd, path); err != nil {
		return d.root.error("readdir", path, err)
	}
	nodes := make([]node, len(s.names))
	used := 0
	for _, ent := range s.names {
		var mine verdict
		if d.ignore != nil {
			if mine, err = d.ignore.judge(ent.path, v); err != nil {
				return err
			}
			if mine.out && ent.kind != unix.DT_UNKNOWN && (ent.kind != unix.DT_DIR || !d.ignore.mayInclude(ent.path)) {
				continue
			}
		}
		n := &nodes[used]
		n.path = ent.path
		ok, err := d.fill(n, fd, ent.name, path)
		if err != nil {
			return err
		}
		if ok && (!mine.out || n.kind == tree.Dir) {
			if n.kind == tree.Dir && d.ignore != nil {
				n.more().verdict = mine
			}
			used++
			continue
		}
		l.clear(n)
	}
	l.nodes = nodes[:used:used]
	return nil
}

// clear makes room for another entry where one turned out to be none.
func (l *listing) clear(n *node) {
	n.path, n.kind, n.shared, n.mode, n.stat, n.rare, n.sum = "", 0, false, 0, stat{}, nil, [32]byte{}
	n.state.Store(digestUnknown)
}
