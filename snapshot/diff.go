package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// diff writes what an overlay's upper directory changes to the differ's writer. Only the upper is walked, so the cost is that of
// the change; base, the chain below, is asked about single paths, so that marks which hide nothing (the kernel makes every new
// directory opaque), and files and directories that were copied up and left as they were, do not make two equal results different.
func (d *differ) diff(upper *os.File, was *treeState) error {
	fd := int(upper.Fd())
	if err := d.root(fd); err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	if err := d.dir(fd, "", true, was); err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// firstName is the first name, in path order, of a file with several.
type firstName struct {
	path   string
	digest [32]byte
}

type differ struct {
	ctx    context.Context
	base   *tree.Chain
	w      *Writer
	owners *owners
	nodes  []byte // the table of owners of what cannot carry them
	first  map[inode]firstName
	lower  []*os.File // the directories below an upper one, top first
	// private says that a whole tree is looked at, not an upper directory.
	private bool
	links   []string // second names that were written as hard links
	disk    int64    // what all that was looked at takes on the disk
	// parents are directories on the way to where we are, outermost first, that nothing was written about yet: they are written
	// when something in them is, because every layer has all parents of what it changes.
	parents []*tree.Entry
}

// add writes an entry, and before it the directories that lead to it.
func (d *differ) add(e *tree.Entry, r io.Reader) error {
	for _, p := range d.parents {
		if err := d.w.Add(p, nil); err != nil {
			return err
		}
	}
	d.parents = d.parents[:0]
	return d.w.Add(e, r)
}

// root writes an entry for the root directory if more than its time differs from what the chain has: a change of time comes
// with every file made in it.
func (d *differ) root(fd int) error {
	e, marks, err := d.open("", fd)
	if err != nil {
		return err
	}
	if err := marks.check(); err != nil {
		return err
	}
	below, _, err := d.base.Lstat("")
	if err != nil {
		return err
	}
	if sameMetadata(e, &below.Entry) {
		return nil
	}
	return d.add(e, nil)
}

// dir writes what an open directory holds. Lower says whether anything of the chain can be seen in it; was is what a private tree
// had there before the command ran, and nil for an upper directory.
func (d *differ) dir(fd int, path string, lower bool, was *treeState) error {
	if err := d.ctx.Err(); err != nil {
		return context.Cause(d.ctx)
	}
	names, err := readNames(fd)
	if err != nil {
		return &os.PathError{Op: "readdir", Path: path, Err: err}
	}
	slices.Sort(names)
	for _, name := range was.merge(names) {
		if err := d.name(fd, name, joinPath(path, name), lower, was); err != nil {
			return err
		}
	}
	return nil
}

// name writes one name of a directory.
func (d *differ) name(fd int, name, p string, lower bool, was *treeState) error {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT && was.kid(name) != nil {
		if !lower {
			return nil
		}
		return d.add(&tree.Entry{Path: p, Type: tree.Whiteout, Offset: -1}, nil)
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: p, Err: err}
	}
	if bytes := st.Blocks * 512; st.Mode&unix.S_IFMT == unix.S_IFDIR {
		d.disk += bytes
	} else {
		d.disk += bytes / max(1, int64(st.Nlink)) // a share of each name
	}
	before := was.kid(name)
	if before.same(&st) && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	below, visible := tree.Located{}, false
	if lower {
		if below, visible, err = d.base.Lstat(p); err != nil {
			return err
		}
	}
	under := &below.Entry
	if !visible {
		under = nil
	}
	return d.entry(fd, name, p, &st, under, before)
}

// entry writes one name; under is what the chain has there.
func (d *differ) entry(parent int, name, path string, st *unix.Stat_t, under *tree.Entry, was *treeState) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return d.directory(parent, name, path, under, was)
	case unix.S_IFREG:
		return d.file(parent, name, path, under)
	case unix.S_IFSOCK:
		if under != nil && was != nil { // in an upper directory it hides what it replaced; nothing else does
			return d.add(&tree.Entry{Path: path, Type: tree.Whiteout, Offset: -1}, nil)
		}
		return nil // an address of a process that is gone
	}
	if whiteoutStat(st) {
		if under == nil {
			return nil
		}
		return d.add(&tree.Entry{Path: path, Type: tree.Whiteout, Offset: -1}, nil)
	}
	e := statEntry(path, st)
	line, err := d.owners.readNode(parent, name, e)
	if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d.nodes = append(d.nodes, line...)
	if e.Type == tree.Symlink {
		link, err := readLink(parent, name)
		if err != nil {
			return &os.PathError{Op: "readlink", Path: path, Err: err}
		}
		e.Link, e.Mode = link, 0o777
	}
	if e.Type != tree.Symlink && st.Nlink > 1 {
		return d.linkedNode(e, inode{uint64(st.Dev), st.Ino})
	}
	if under != nil && e.Type == under.Type && e.Link == under.Link && e.Major == under.Major && e.Minor == under.Minor &&
		sameMetadata(e, under) && sameTime(e, under) {
		return nil
	}
	return d.add(e, nil)
}

// linkedNode writes a fifo or device that has several names. A symbolic link with several names is written once for each:
// nobody can tell the difference.
func (d *differ) linkedNode(e *tree.Entry, id inode) error {
	if first, ok := d.first[id]; ok {
		e.Hardlink = first.path
		d.links = append(d.links, e.Path)
	} else {
		d.first[id] = firstName{path: e.Path}
	}
	return d.add(e, nil)
}

// directory writes a directory and what is in it. One about which nothing changed is written when something in it is.
func (d *differ) directory(parent int, name, path string, under *tree.Entry, was *treeState) error {
	fd, err := openDirAt(parent, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	e, marks, err := d.open(path, fd)
	if err != nil {
		return err
	}
	if err := marks.check(); err != nil {
		return err
	}
	lower := under != nil && under.Type == tree.Dir
	if d.private {
		// Another directory in the place of one that was there: what was in that is gone.
		marks.opaque = was == nil || was.kids == nil || !was.sameDir(fd)
		if marks.opaque {
			was = newState
		}
	}
	e.Opaque = lower && marks.opaque
	depth := len(d.parents)
	if lower && !e.Opaque && sameMetadata(e, under) && d.untouched(path, fd, was) {
		d.parents = append(d.parents, e)
	} else if err := d.add(e, nil); err != nil {
		return err
	}
	err = d.dir(fd, path, lower && !marks.opaque, was)
	d.parents = d.parents[:min(depth, len(d.parents))]
	return err
}

// untouched reports whether nothing was made in, moved to or removed from a directory, not even for a while: its time is to the
// nanosecond what it was. Layers keep seconds, so that is asked of the disk: of what the private tree was, or of the directory
// that was copied up.
func (d *differ) untouched(path string, fd int, was *treeState) bool {
	var now, before unix.Stat_t
	if unix.Fstat(fd, &now) != nil {
		return false
	}
	if d.private {
		return was.mtim == now.Mtim
	}
	for _, lower := range d.lower {
		dir, err := openBeneath(int(lower.Fd()), path)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return false
		}
		err = unix.Fstat(dir, &before)
		unix.Close(dir)
		return err == nil && before.Mtim == now.Mtim
	}
	return false
}

// file writes a regular file.
func (d *differ) file(parent int, name, path string, under *tree.Entry) error {
	fd, err := openAt(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &os.PathError{Op: "read", Path: path, Err: errors.New("it was replaced while it was read")}
	}
	id := inode{uint64(st.Dev), st.Ino}
	e, marks, err := d.open(path, fd)
	if err != nil {
		return err
	}
	if err := marks.check(); err != nil {
		return err
	}
	if first, ok := d.first[id]; ok && st.Nlink > 1 {
		e.Hardlink, e.Digest = first.path, first.digest
		d.links = append(d.links, path)
		return d.add(e, nil)
	}
	if under != nil && st.Nlink == 1 {
		if same, err := unchanged(f, e, under); err != nil || same {
			return err
		}
	}
	if e.Type != tree.File { // it stands for a device
		e.Size = 0
		if err := d.add(e, nil); err != nil {
			return err
		}
	} else if err := d.add(e, f); err != nil {
		return err
	}
	if st.Nlink > 1 {
		d.first[id] = firstName{path, e.Digest}
	}
	return nil
}

// open describes an open file or directory.
func (d *differ) open(path string, fd int) (*tree.Entry, overlayMarks, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, overlayMarks{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	e := statEntry(path, &st)
	xattrs, marks, err := readXattrs(fd, e.Type)
	if err != nil {
		return nil, marks, &os.PathError{Op: "read the extended attributes of", Path: path, Err: err}
	}
	e.Xattrs, marks.path = xattrs, path
	if err := d.owners.read(fd, e); err != nil {
		return nil, marks, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return e, marks, nil
}

// unchanged reports whether a file is exactly what the chain has: opening for writing is enough to copy a file up.
func unchanged(f *os.File, e, under *tree.Entry) (bool, error) {
	if e.Type != tree.File { // it stands for a device
		return under.Major == e.Major && under.Minor == e.Minor && sameMetadata(e, under) && sameTime(e, under), nil
	}
	if under.Type != tree.File || under.Size != e.Size || !sameMetadata(e, under) || !sameTime(e, under) {
		return false, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false, err
	}
	if [32]byte(h.Sum(nil)) == under.Digest {
		return true, nil
	}
	_, err := f.Seek(0, io.SeekStart)
	return false, err
}

func sameMetadata(a, b *tree.Entry) bool {
	return a.Type == b.Type && (a.Mode == b.Mode || a.Type == tree.Symlink) && a.UID == b.UID && a.GID == b.GID &&
		slices.Equal(a.Xattrs, b.Xattrs)
}

// sameTime compares times as layers store them.
func sameTime(a, b *tree.Entry) bool { return a.ModTime.Unix() == b.ModTime.Unix() }

// statEntry returns what stat says of a file.
func statEntry(path string, st *unix.Stat_t) *tree.Entry {
	e := &tree.Entry{
		Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Offset: -1,
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = tree.Dir
	case unix.S_IFLNK:
		e.Type = tree.Symlink
	case unix.S_IFCHR:
		e.Type = tree.Char
	case unix.S_IFBLK:
		e.Type = tree.Block
	case unix.S_IFIFO:
		e.Type = tree.Fifo
	default:
		e.Type, e.Size = tree.File, st.Size
	}
	if e.Type == tree.Char || e.Type == tree.Block {
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
	return e
}

func readLink(dirfd int, name string) (string, error) {
	buf := make([]byte, 4097) // no target is longer than PATH_MAX
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// overlayMarks is what the overlay file system noted on a file of an upper directory.
type overlayMarks struct {
	path   string
	opaque bool
	bad    string
}

// check refuses marks that make an upper directory unreadable without its overlay. Our mounts never make them.
func (m overlayMarks) check() error {
	if m.bad != "" {
		return &os.PathError{Op: "read", Path: m.path, Err: fmt.Errorf("the overlay left %s, so its content is elsewhere", m.bad)}
	}
	return nil
}

// readXattrs returns the portable extended attributes of an open file, sorted.
func readXattrs(fd int, t tree.Type) (out []tree.Xattr, marks overlayMarks, err error) {
	var fixed [1024]byte
	names := fixed[:]
	n, err := unix.Flistxattr(fd, names)
	if err == unix.ERANGE {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, names)
	}
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, marks, nil
	}
	if err != nil {
		return nil, marks, err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if kind, ok := strings.CutPrefix(name, overlayXattr); ok {
			if err := marks.note(fd, kind); err != nil {
				return nil, marks, err
			}
			continue
		}
		if !portableXattr(name) || name == capabilityXattr && t != tree.File {
			continue
		}
		v, err := getXattr(fd, name)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, marks, err
		}
		if name == capabilityXattr {
			v = normalCapability(v)
		}
		out = append(out, tree.Xattr{Name: name, Value: v})
	}
	sortXattrs(out)
	return out, marks, nil
}

func (m *overlayMarks) note(fd int, kind string) error {
	switch kind {
	case "opaque":
		v, err := getXattr(fd, opaqueXattr)
		m.opaque = v == "y"
		return err
	case "redirect", "metacopy":
		m.bad = overlayXattr + kind
	}
	return nil
}

func getXattr(fd int, name string) (string, error) {
	var fixed [256]byte
	buf := fixed[:]
	n, err := unix.Fgetxattr(fd, name, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, buf)
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func sortXattrs(x []tree.Xattr) {
	slices.SortFunc(x, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
}
