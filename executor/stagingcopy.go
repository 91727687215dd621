package executor

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// errStopped ends a copy that nobody wants any more.
var errStopped = errors.New("stopped")

// copier copies trees with everything a step could see of them: types, modes, owners, times, hard links, attributes.
type copier struct {
	links   map[inode]string // where the first name of a file with several was copied to, below top
	top     int
	stopped func() bool
}

type inode struct{ dev, ino uint64 }

// copyInto copies what is open as from (O_PATH will do) to a free name. Blocks are shared where the file system can.
func (s *staging) copyInto(from int, sl slot) error {
	c := &copier{links: map[inode]string{}, top: sl.parent, stopped: s.stopped}
	restore := times(sl.parent)
	defer restore()
	return c.copy(from, sl.parent, sl.name, sl.name)
}

// copy copies one file, open as from, to a name in dir, which is at below top.
func (c *copier) copy(from, dir int, name, at string) error {
	if c.stopped() {
		return errStopped
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[inode{st.Dev, st.Ino}]; ok {
			return unix.Linkat(c.top, first, dir, name, 0)
		}
		c.links[inode{st.Dev, st.Ino}] = at
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(from, dir, name, at, &st)
	case unix.S_IFREG:
		return c.regular(from, dir, name, &st)
	case unix.S_IFLNK:
		err = copyLink(from, dir, name)
	case unix.S_IFSOCK:
		return nil // without its listener it is nothing
	default:
		err = unix.Mknodat(dir, name, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyLink(from, dir int, name string) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(from, "", buf)
	if err != nil {
		return err
	}
	return unix.Symlinkat(string(buf[:n]), dir, name)
}

// reopen gives a descriptor to read what is open with O_PATH. A file or directory that is no symbolic link is meant.
func reopen(fd, flags int) (int, error) {
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

func (c *copier) directory(from, dir int, name, at string, st *unix.Stat_t) error {
	src, err := reopen(from, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(src), at)
	defer f.Close()
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return err
	}
	dst, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		child, err := unix.Openat(src, n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			err = c.copy(child, dst, n, at+"/"+n)
			unix.Close(child)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // gone meanwhile
			return fmt.Errorf("%s: %w", at+"/"+n, err)
		}
	}
	return finish(src, dst, st)
}

func (c *copier) regular(from, dir int, name string, st *unix.Stat_t) error {
	src, err := reopen(from, unix.O_RDONLY)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(src), name)
	defer in.Close()
	dst, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(dst), name)
	defer out.Close()
	if unix.IoctlFileClone(dst, src) != nil {
		if _, err := out.ReadFrom(in); err != nil { // copy_file_range where it works
			return err
		}
	}
	return finish(src, dst, st)
}

// finish gives a copy the attributes of the original. Capabilities of files go with a change of owner, so that comes first.
func finish(src, dst int, st *unix.Stat_t) error {
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	copyXattrs(src, dst)
	// No descriptor has times of its own to set but through an empty path.
	return unix.UtimesNanoAt(dst, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// copyXattrs copies what can be copied: some attributes belong to the file system or to security modules.
func copyXattrs(src, dst int) {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(src, names)
	if err != nil || n == 0 {
		return
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if n, err := unix.Fgetxattr(src, name, value); err == nil {
			unix.Fsetxattr(dst, name, value[:n], 0)
		}
	}
}

// removeAt removes a name in a directory, whatever it is, and what is below it. Nothing is followed. What cannot be removed is
// left to the caller, who sees it.
func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	fd, oerr := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAt(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
