package fakeroot

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// where is what a call names: a path, or an open file.
type where struct {
	dir    int32 // the directory a relative path starts at, or the open file
	path   pathArg
	open   bool // dir is the file; there is no path
	empty  bool // dir is the file if the path is empty
	follow bool // a link at the end of the path
}

// lookAt is where with the flags AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH.
func (c *call) lookAt(dir int32, path pathArg, flags uint32) where {
	return where{
		dir: dir, path: path, empty: flags&unix.AT_EMPTY_PATH != 0, follow: flags&unix.AT_SYMLINK_NOFOLLOW == 0,
	}
}

// resolve opens what a call names, as O_PATH, and lets the kernel find it as it would for the caller. This thread has the
// caller's root, so neither ".." nor links lead out of it, whatever other threads of the step rename meanwhile; links of /proc
// that lead anywhere, which could, are refused. flags are further O_ flags.
func (c *call) resolve(w where, flags int) (int, error) {
	path := ""
	if !w.open {
		if w.empty && w.path == 0 { // Linux 6.11 takes no path at all for an empty one
			w.open = true
		} else {
			var errno unix.Errno
			if path, errno = c.text(w.path); errno != 0 {
				return -1, errno
			}
		}
	}
	if path == "" {
		if !w.open && !w.empty {
			return -1, unix.ENOENT
		}
		return c.openFile(w.dir)
	}
	if !w.follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := c.openPath(w.dir, path, &unix.OpenHow{Flags: uint64(unix.O_PATH | flags)})
	if err == unix.ELOOP || err == unix.ENOENT {
		if n, ok := c.ownFile(path); ok && w.follow {
			return c.openFile(n)
		}
	}
	return fd, err
}

// openPath opens a path relative to a directory of the caller's, the way how says.
func (c *call) openPath(dir int32, path string, how *unix.OpenHow) (int, error) {
	how.Flags |= unix.O_CLOEXEC
	how.Resolve |= unix.RESOLVE_NO_MAGICLINKS
	base := unix.AT_FDCWD // of no meaning for an absolute path, unless a flag gives it one
	if path[0] != '/' || how.Resolve != unix.RESOLVE_NO_MAGICLINKS {
		var err error
		if base, err = c.openFile(dir); err != nil {
			return -1, err
		}
		defer unix.Close(base)
	}
	for i := 0; ; i++ {
		fd, err := unix.Openat2(base, path, how)
		if err != unix.EAGAIN && err != unix.EINTR || i == 100 {
			return fd, err
		}
	}
}

// openFile opens, as O_PATH, what the caller has open as fd, or its working directory.
func (c *call) openFile(fd int32) (int, error) {
	name := "cwd"
	if fd != unix.AT_FDCWD {
		if fd < 0 {
			return -1, unix.EBADF
		}
		name = "fd/" + strconv.Itoa(int(fd))
	}
	return unix.Openat(c.task.dir, name, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// ownFile recognizes the usual names of the caller's own descriptors. The links behind them mean the files of whoever follows
// them.
func (c *call) ownFile(path string) (fd int32, ok bool) {
	switch path {
	case "/dev/stdin":
		return 0, true
	case "/dev/stdout":
		return 1, true
	case "/dev/stderr":
		return 2, true
	}
	for _, dir := range []string{"/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"} {
		if s, found := strings.CutPrefix(path, dir); found {
			n, err := strconv.ParseUint(s, 10, 31)
			return int32(n), err == nil
		}
	}
	return 0, false
}

// name names one of our descriptors for calls that take paths only.
func (s *Supervisor) name(fd int) string { return "self/fd/" + strconv.Itoa(fd) }

func chroot(dir string) error { return syscall.Chroot(dir) }
