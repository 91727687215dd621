package executor

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// This file resolves paths inside a root filesystem that may be hostile, by descriptor: nothing here hands a path with more
// than one unresolved component to the kernel without RESOLVE_IN_ROOT.

// maxLinks is how many symbolic links one resolution may follow.
const maxLinks = 255

// openInRoot opens path as if root were /. Links of /proc that lead anywhere are refused.
func openInRoot(root int, path string, flags int) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat2(root, path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
	})
}

// retry repeats an openat2 that lost a race with a rename somewhere (EAGAIN) or was interrupted.
func retry(f func() (int, error)) (int, error) {
	for i := 0; ; i++ {
		fd, err := f()
		if (err != unix.EAGAIN && err != unix.EINTR) || i == 100 {
			return fd, err
		}
	}
}

// stub is a mount point that was made because the root did not have it.
type stub struct {
	parent, fd int // O_PATH
	name       string
	dir        bool
}

// touched is a directory of the root in which a stub was made, as it was before: the stub copies it, and the directories above
// it, to the upper directory of an overlay, where they are not wanted afterwards.
type touched struct {
	Path     string
	Mode     uint32
	UID, GID uint32
	Sec      int64
	Nsec     int64
}

// maker finds paths in a root and makes what is missing. It keeps what it made in stubs.
type maker struct {
	root    int
	rootDev uint64
	rootIno uint64
	stubs   []stub
	touched []touched
}

func newMaker(root int) (*maker, error) {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	return &maker{root: root, rootDev: st.Dev, rootIno: st.Ino}, nil
}

// madeBy is the owner of what is made, when it is to stay.
type madeBy struct {
	uid, gid uint32
	recorded bool // in a user namespace that does not have the ids
}

// target returns an O_PATH descriptor of the path, which is made (as directory or empty file) if missing and then noted as a
// stub. Targets on the kernel's own file systems are refused: a mount there can hide what programs, and we, trust.
func (m *maker) target(path string, dir bool) (int, error) {
	fd, err := openInRoot(m.root, path, unix.O_PATH)
	if err == unix.ENOENT {
		fd, err = m.walk(path, dir, nil)
	}
	if err != nil {
		return -1, err
	}
	if err := m.check(fd, dir); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (m *maker) check(fd int, dir bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev == m.rootDev && st.Ino == m.rootIno {
		return errOnRoot
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case dir && !isDir:
		return unix.ENOTDIR
	case !dir && isDir:
		return unix.EISDIR
	}
	return refuseKernelFS(fd)
}

var (
	errOnRoot   = errors.New("mounts on / are not allowed")
	errKernelFS = errors.New("/proc and /sys are the kernel's: nothing can be mounted or made there")
)

func refuseKernelFS(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	switch uint32(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC:
		return errKernelFS
	}
	return nil
}

// directory returns an O_PATH descriptor of a directory that is made with the given owner, for good, if missing.
func (m *maker) directory(path string, o madeBy) (int, error) {
	fd, err := openInRoot(m.root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		return m.walk(path, true, &o)
	}
	return fd, err
}

// walk goes through path one component at a time and makes what is missing. It keeps descriptors of all directories from the
// root down, so that ".." needs no lookup.
func (m *maker) walk(path string, dir bool, keep *madeBy) (int, error) {
	root, err := unix.Openat(m.root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	w := &walker{fds: []int{root}, names: []string{""}}
	defer w.close()
	todo := strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			w.pop()
			continue
		}
		last := onlyDots(todo)
		fd, err := unix.Openat(w.top(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			fd, err = m.make(w, name, dir || !last, keep)
		}
		if err != nil {
			return -1, fmt.Errorf("%s: %w", strings.Join(append(w.names, name), "/"), err)
		}
		target, isLink, err := readLink(fd)
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		if isLink {
			unix.Close(fd)
			if links++; links > maxLinks {
				return -1, unix.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				w.reset()
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		w.push(fd, name)
	}
	return w.take(), nil
}

func onlyDots(names []string) bool {
	for _, n := range names {
		if n != "" && n != "." {
			return false
		}
	}
	return true
}

// readLink returns the target if fd is a symbolic link. Those of /proc are refused: they are not what they say.
func readLink(fd int) (target string, isLink bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	if err := refuseKernelFS(fd); err != nil {
		return "", false, err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", false, err
	}
	return string(buf[:n]), true, nil
}

// make creates one name in the directory at the top of w.
func (m *maker) make(w *walker, name string, dir bool, keep *madeBy) (int, error) {
	parent := w.top()
	if err := refuseKernelFS(parent); err != nil {
		return -1, err
	}
	if keep == nil {
		if err := m.note(w); err != nil {
			return -1, err
		}
	}
	var before unix.Stat_t
	if err := unix.Fstat(parent, &before); err != nil {
		return -1, err
	}
	var err error
	if dir {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		var fd int
		fd, err = unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(fd)
		}
	}
	// In a cache mount other steps may make the same name at the same time, and use it for as long as they live: removing it
	// here would take their mounts away. There it stays.
	shared := before.Dev != m.rootDev
	if err != nil && (err != unix.EEXIST || !shared) {
		return -1, err
	}
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if keep != nil {
		return fd, keep.give(fd)
	}
	if shared {
		return fd, nil
	}
	restoreTime(parent, &before)
	p, err := unix.FcntlInt(uintptr(parent), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	s, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(p)
		return fd, err
	}
	m.stubs = append(m.stubs, stub{parent: p, fd: s, name: name, dir: dir})
	return fd, nil
}

// restoreTime gives a directory back its modification time. A file system that refuses leaves a newer time and no harm.
func restoreTime(dir int, st *unix.Stat_t) {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	unix.UtimesNanoAt(dir, "", ts, unix.AT_EMPTY_PATH)
}

// note remembers the directories from the root down to the top of w, as far as they are on the root's own file system and were
// not made by us.
func (m *maker) note(w *walker) error {
	for i := 1; i < len(w.fds); i++ {
		var st unix.Stat_t
		if err := unix.Fstat(w.fds[i], &st); err != nil {
			return err
		}
		if st.Dev != m.rootDev {
			return nil
		}
		m.touched = append(m.touched, touched{
			Path: strings.Join(w.names[1:i+1], "/"), Mode: st.Mode, UID: st.Uid, GID: st.Gid,
			Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
		})
	}
	return nil
}

// walker is the stack of directories of one resolution.
type walker struct {
	fds   []int
	names []string
}

func (w *walker) top() int { return w.fds[len(w.fds)-1] }

func (w *walker) push(fd int, name string) {
	w.fds, w.names = append(w.fds, fd), append(w.names, name)
}

func (w *walker) pop() {
	if n := len(w.fds); n > 1 {
		unix.Close(w.fds[n-1])
		w.fds, w.names = w.fds[:n-1], w.names[:n-1]
	}
}

func (w *walker) reset() {
	for len(w.fds) > 1 {
		w.pop()
	}
}

// take gives away the topmost descriptor.
func (w *walker) take() int {
	n := len(w.fds)
	fd := w.fds[n-1]
	w.fds, w.names = w.fds[:n-1], w.names[:n-1]
	return fd
}

func (w *walker) close() {
	for _, fd := range w.fds {
		unix.Close(fd)
	}
}
