package store

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// deepest is how many levels of directories are open at a time while a tree is removed. What lies deeper is moved up first,
// so that neither descriptors nor the length of paths bound what can be removed.
const deepest = 128

// RemoveTree removes a file or a directory with all that is in it, in the process that owns it: directories that may not be
// read or written are opened up first, and trees of any depth go. It follows no link. What is gone already is no error; what
// cannot be removed does not keep the rest.
func RemoveTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	r := &remover{top: parent, prefix: filepath.Base(path) + ".deep", todo: []string{filepath.Base(path)}}
	for len(r.todo) > 0 { // depth first, so that few names of ours are beside the tree
		name := r.todo[len(r.todo)-1]
		r.todo = r.todo[:len(r.todo)-1]
		r.remove(parent, name, 0)
	}
	if r.err != nil {
		return fmt.Errorf("remove %s: %w", path, r.err)
	}
	return nil
}

// remover removes one tree. Subtrees that lie too deep are renamed to be siblings of the whole, and follow.
type remover struct {
	top    int
	prefix string
	serial int
	todo   []string
	err    error // the first
}

// fail notes the first error and reports whether there was one.
func (r *remover) fail(what string, err error) bool {
	if err == nil || errors.Is(err, unix.ENOENT) {
		return false
	}
	if r.err == nil {
		r.err = &fs.PathError{Op: "remove", Path: what, Err: err}
	}
	return true
}

func (r *remover) remove(dir int, name string, depth int) {
	err := unix.Unlinkat(dir, name, 0)
	if err != unix.EISDIR && err != unix.EPERM { // POSIX says EPERM for directories
		r.fail(name, err)
		return
	}
	if depth == deepest {
		r.serial++
		up := r.prefix + strconv.Itoa(r.serial)
		if !r.fail(name, r.moveUp(dir, name, up)) {
			r.todo = append(r.todo, up)
		}
		return
	}
	fd, err := openUp(dir, name)
	if err == unix.ENOTDIR { // so it was a file that may not be removed
		err = unix.EPERM
	}
	if r.fail(name, err) || err != nil {
		return
	}
	names, err := namesOf(fd)
	r.fail(name, err)
	for _, n := range names {
		r.remove(fd, n, depth+1)
	}
	unix.Close(fd)
	r.fail(name, unix.Unlinkat(dir, name, unix.AT_REMOVEDIR))
}

// moveUp renames a directory to the top. That changes its entry for its parent, which takes the right to write to it.
func (r *remover) moveUp(dir int, name, up string) error {
	err := unix.Renameat2(dir, name, r.top, up, unix.RENAME_NOREPLACE)
	if err == unix.EACCES && unix.Fchmodat(dir, name, 0o700, 0) == nil {
		err = unix.Renameat2(dir, name, r.top, up, unix.RENAME_NOREPLACE)
	}
	return err
}

// openUp opens a directory for reading, and gives its owner all rights to it.
func openUp(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if err == unix.EACCES {
		var st unix.Stat_t // fchmodat follows links
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return -1, unix.EACCES
		}
		if err := unix.Fchmodat(dir, name, 0o700, 0); err != nil {
			return -1, err
		}
		return unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&0o700 != 0o700 {
		_ = unix.Fchmod(fd, 0o700) // who has the capability needs it not
	}
	return fd, nil
}

// namesOf lists an open directory, which stays open.
func namesOf(fd int) ([]string, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// inode is a file that has several names.
type inode struct{ dev, ino uint64 }

// MeasureTree returns what a tree takes on the disk, as du(1) counts it: allocated blocks, a file with several names once. It is
// to be called in the process that owns the tree. What cannot be read is left out and told.
func MeasureTree(path string) (int64, error) { return measureTree(path, math.MaxInt) }

// errTooMany says that a tree has more in it than somebody wanted to look at.
var errTooMany = errors.New("too many files")

func measureTree(path string, most int) (int64, error) {
	m := &measurer{links: make(map[inode]bool), most: most}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, nil
		}
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	m.count(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return m.bytes, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		m.walk(fd)
	}
	if m.err != nil {
		return m.bytes, fmt.Errorf("measure %s: %w", path, m.err)
	}
	return m.bytes, nil
}

type measurer struct {
	bytes int64
	most  int // files to look at
	links map[inode]bool
	err   error // the first
}

func (m *measurer) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{st.Dev, st.Ino}
		if m.links[id] {
			return
		}
		m.links[id] = true
	}
	m.bytes += st.Blocks * 512
}

// walk counts what is in a directory and closes it. Directories within wait as names of descriptors only as deep as one line of
// descent, so a tree needs as many descriptors as it is deep; one that is deeper than there are is told.
func (m *measurer) walk(fd int) {
	defer unix.Close(fd)
	names, err := namesOf(fd)
	if m.most -= len(names); m.most < 0 {
		m.err = errTooMany
		return
	}
	if err != nil && m.err == nil {
		m.err = err
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if !errors.Is(err, unix.ENOENT) && m.err == nil {
				m.err = err
			}
			continue
		}
		m.count(&st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			if !errors.Is(err, unix.ENOENT) && m.err == nil {
				m.err = err
			}
			continue
		}
		m.walk(sub)
	}
}
