package snapshot

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// System calls on names relative to an open directory. A name here is one component, or a clean path given to openBeneath;
// no call follows a symbolic link.

// openAt is openat(2), repeated when a signal interrupts it.
func openAt(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func openDirAt(dirfd int, name string) (int, error) {
	return openAt(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// openBeneath opens a directory below root; "" is root itself.
func openBeneath(root int, path string) (int, error) {
	if path == "" {
		path = "."
	}
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(root, path, how)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.ENOSYS, unix.EPERM: // an old kernel, or a seccomp profile older than the call
			return walkBeneath(root, path)
		}
		return fd, err
	}
}

// walkBeneath is openBeneath one component at a time.
func walkBeneath(root int, path string) (int, error) {
	fd, err := openDirAt(root, ".")
	if err != nil || path == "." {
		return fd, err
	}
	for at := 0; at <= len(path); {
		end := at + componentEnd(path[at:])
		next, err := openDirAt(fd, path[at:end])
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd, at = next, end+1
	}
	return fd, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		b = b[n:]
	}
	return nil
}

func setTimes(dirfd int, name string, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func setOpaque(fd int) error { return unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0) }

func whiteoutStat(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// isWhiteout reports whether a name is a deletion mark; a name that does not exist is none.
func isWhiteout(dirfd int, name string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil && whiteoutStat(&st), err
}

func nodeType(t tree.Type) uint32 {
	switch t {
	case tree.Char:
		return unix.S_IFCHR
	case tree.Block:
		return unix.S_IFBLK
	}
	return unix.S_IFIFO
}

func nodeNumber(e *tree.Entry) int {
	if e.Type == tree.Fifo {
		return 0
	}
	return int(unix.Mkdev(e.Major, e.Minor))
}

// removeAll removes a name and everything below it, on one file system or not, without following links.
func removeAll(dirfd int, name string) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := openDirAt(dirfd, name)
	if err == unix.EACCES { // only an unprivileged owner sees this
		if err = unix.Fchmodat(dirfd, name, 0o700, 0); err == nil {
			fd, err = openDirAt(dirfd, name)
		}
	}
	if err != nil {
		return err
	}
	names, err := readNames(fd)
	if err == nil {
		for _, n := range names {
			if err = removeAll(fd, n); err != nil {
				break
			}
		}
	}
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

// readNames lists an open directory, in the kernel's order.
func readNames(fd int) ([]string, error) {
	dup, err := openDirAt(fd, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}
