package buildctx

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// stat is what tells one state of a file from another.
type stat struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// node is one entry of a directory.
type node struct {
	name    string
	kind    tree.Type
	mode    uint32
	nlink   uint64
	rdev    uint64
	stat    stat
	link    string
	xattrs  []tree.Xattr
	verdict verdict
	digest  atomic.Pointer[[32]byte] // of a file's content, once known
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
		Link: n.link, Xattrs: n.xattrs, Offset: -1,
	}
	switch n.kind {
	case tree.File:
		e.Size = n.stat.size
		if sum := n.digest.Load(); sum != nil {
			e.Digest = *sum
		}
	case tree.Char, tree.Block:
		e.Major, e.Minor = unix.Major(n.rdev), unix.Minor(n.rdev)
	}
	if f := d.facts[path]; f != nil {
		e.Type, e.Mode, e.UID, e.GID = f.Type, f.Mode, f.UID, f.GID
		e.ModTime, e.Xattrs, e.Major, e.Minor = f.ModTime, f.Xattrs, f.Major, f.Minor
	}
	return e
}

// fill asks the kernel about a name in the directory at fd, which is dir. It returns false for what no image can hold (a
// socket) and for what is not there.
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
		return false, d.root.error("lstat", tree.Join(dir, n.name), err)
	}
	n.mode, n.nlink, n.rdev, n.stat = st.Mode&07777, uint64(st.Nlink), uint64(st.Rdev), statOf(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.kind = tree.File
		return true, d.fillFile(n, fd, name, dir)
	case unix.S_IFDIR:
		n.kind = tree.Dir
		n.xattrs, err = d.xattrs(fd, name, dir)
		return true, err
	case unix.S_IFLNK:
		n.kind = tree.Symlink
		if n.link, err = readlink(fd, name, st.Size); err != nil {
			if err == unix.EINVAL || absent(err) { // it was replaced since
				return false, &ChangedError{Path: d.root.full(tree.Join(dir, n.name))}
			}
			return false, d.root.error("readlink", tree.Join(dir, n.name), err)
		}
		return true, nil
	case unix.S_IFCHR:
		n.kind = tree.Char
	case unix.S_IFBLK:
		n.kind = tree.Block
	case unix.S_IFIFO:
		n.kind = tree.Fifo
	default:
		return false, nil
	}
	return true, nil
}

// fillFile adds what the stat cache knows about a file. Xattrs change the ctime, so a hit also says whether there are any.
func (d *Dir) fillFile(n *node, fd int, name, dir string) (err error) {
	if d.cache != nil {
		if known, ok := d.cache.Get(n.key()); ok {
			n.digest.Store(&known.Digest)
			if !known.Xattrs {
				return nil
			}
		}
	}
	n.xattrs, err = d.xattrs(fd, name, dir)
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

// readDir reads a directory, given the verdict on it.
func (d *Dir) readDir(path string, v verdict) ([]node, error) {
	fd, err := d.root.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	if absent(err) {
		return nil, &ChangedError{Path: d.root.full(path)} // it was a directory a moment ago
	}
	if err != nil {
		return nil, d.root.error("open", path, err)
	}
	defer unix.Close(fd)
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if err := s.read(fd); err != nil {
		return nil, d.root.error("readdir", path, err)
	}
	nodes := make([]node, len(s.names))
	used := 0
	for _, ent := range s.names {
		n := &nodes[used]
		if d.ignore != nil {
			child := tree.Join(path, ent.name)
			if n.verdict, err = d.ignore.judge(child, v); err != nil {
				return nil, err
			}
			if n.verdict.out && ent.kind != unix.DT_UNKNOWN && (ent.kind != unix.DT_DIR || !d.ignore.mayInclude(child)) {
				n.verdict = verdict{}
				continue
			}
		}
		n.name = ent.name
		ok, err := d.fill(n, fd, ent.name, path)
		if err != nil {
			return nil, err
		}
		if ok && (!n.verdict.out || n.kind == tree.Dir) {
			if n.kind != tree.Dir {
				n.verdict = verdict{} // of use for directories only
			}
			used++
			continue
		}
		*n = node{}
	}
	return nodes[:used:used], nil
}
