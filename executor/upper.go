package executor

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// upperDir is the writable directory of an overlay that was empty before the step.
type upperDir struct{ fd int }

// openUpper returns an upperDir that does nothing when the root has none, or when it already holds changes: then directories in
// it may be there for a reason other than our mount points.
func openUpper(r Root) upperDir {
	o, ok := r.(Overlay)
	if !ok {
		return upperDir{-1}
	}
	fd, err := unix.Open(o.Upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return upperDir{-1} // mounting will say why
	}
	if !isEmpty(fd) {
		unix.Close(fd)
		return upperDir{-1}
	}
	return upperDir{fd}
}

func (u upperDir) close() {
	if u.fd >= 0 {
		unix.Close(u.fd)
	}
}

// prune removes directories that overlayfs copied up only because a mount point was made below them: they are empty and what
// they were. A layer with them would not be wrong, but it would depend on what was mounted.
func (u upperDir) prune(dirs []touched) {
	if u.fd < 0 {
		return
	}
	slices.SortFunc(dirs, func(a, b touched) int { return strings.Count(b.Path, "/") - strings.Count(a.Path, "/") })
	for _, d := range dirs {
		u.pruneOne(d)
	}
}

func (u upperDir) pruneOne(d touched) {
	parent, err := u.open(path.Dir(d.Path))
	if err != nil {
		return
	}
	defer unix.Close(parent)
	dir, err := u.open(d.Path)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	var st, before unix.Stat_t
	if unix.Fstat(dir, &st) != nil || unix.Fstat(parent, &before) != nil {
		return
	}
	same := st.Mode == d.Mode && st.Uid == d.UID && st.Gid == d.GID && st.Mtim.Sec == d.Sec && st.Mtim.Nsec == d.Nsec
	if !same || !onlyOverlayXattrs(dir) {
		return
	}
	if unix.Unlinkat(parent, path.Base(d.Path), unix.AT_REMOVEDIR) == nil {
		restoreTime(parent, &before)
	}
}

// open opens a directory of the upper without following anything.
func (u upperDir) open(p string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat2(u.fd, p, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
	})
}

// onlyOverlayXattrs reports whether a directory has no attributes but overlayfs's own, and is not opaque: an opaque directory
// says something even when it is empty.
func onlyOverlayXattrs(fd int) bool {
	buf := make([]byte, 4096)
	n, err := unix.Flistxattr(fd, buf)
	if err != nil {
		return false
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		if !strings.HasPrefix(name, "user.overlay.") || name == "user.overlay.opaque" {
			return false
		}
	}
	return true
}

func isEmpty(dir int) bool {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return false
	}
	_, count, _ := unix.ParseDirent(buf[:n], -1, nil) // leaves out . and ..
	return count == 0
}
