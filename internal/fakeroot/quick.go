package fakeroot

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// Most calls that come here need no help: the file has no record, the directory is not setgid. One look by name tells, and is all
// that such a call pays besides the way here and back. It only decides who answers: what is looked at may be anything that other
// threads put there meanwhile, and nothing that is found is used.

// fileName names what a call names, for this thread: below the directory of procfs that is its working directory, or absolute. It
// is empty when there is no such name, or none that is good to follow.
func (c *call) fileName(w where) (name, path string) {
	if !w.open {
		if w.path == 0 {
			return "", ""
		}
		var errno unix.Errno
		if path, errno = c.readText(w.path); errno != 0 {
			return "", ""
		}
	}
	base := strconv.FormatUint(uint64(c.task.tid), 10)
	switch {
	case path == "" && !w.open && !w.empty:
		return "", ""
	case path != "" && c.seesUs:
		return "", "" // its links in /proc could lead to what is ours
	case path != "" && path[0] == '/':
		return path, path
	case w.dir == unix.AT_FDCWD:
		base += "/cwd"
	case w.dir >= 0:
		base += "/fd/" + strconv.Itoa(int(w.dir))
	default:
		return "", ""
	}
	if path != "" {
		base += "/" + path
	}
	if len(base) >= unix.PathMax {
		return "", ""
	}
	return base, path
}

// unrecorded reports whether a look at the file shows that it has no record, or that there is no such file.
func (c *call) unrecorded(w where) bool {
	name, path := c.fileName(w)
	if name == "" {
		return false
	}
	var err error
	if path == "" || w.follow {
		_, err = unix.Getxattr(name, owner.Xattr, nil)
	} else {
		_, err = unix.Lgetxattr(name, owner.Xattr, nil)
	}
	switch err {
	case unix.ENODATA:
		return c.cfg.Records.noTables() || c.carriesRecords(name, path == "" || w.follow)
	case unix.ENOTSUP:
		return c.cfg.Records.noTables()
	case unix.ENOENT, unix.ENOTDIR:
		_, own := c.ownFile(path)
		return !own
	}
	return false
}

// carriesRecords reports whether a file can have its record in an attribute, so that it is in no table.
func (c *call) carriesRecords(name string, follow bool) bool {
	flags := unix.AT_STATX_DONT_SYNC
	if !follow {
		flags |= unix.AT_SYMLINK_NOFOLLOW
	}
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, name, flags, unix.STATX_TYPE|unix.STATX_MNT_ID, &st) != nil {
		return false
	}
	typ := st.Mode & unix.S_IFMT
	return c.cfg.Records.onRoot(&st) && (typ == unix.S_IFREG || typ == unix.S_IFDIR)
}

// rootsOwn reports whether what the caller makes under a path is root's without our help, or that there is no place for it.
func (c *call) rootsOwn(dir int32, p pathArg) bool {
	cred := c.cred()
	if c.cfg.Records.owners.Needs(cred.user.fs, cred.group.fs) {
		return false
	}
	name, path := c.fileName(where{dir: dir, path: p})
	if name == "" || strings.HasSuffix(path, "/") {
		return false
	}
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return false
	}
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, name[:i+1], unix.AT_STATX_DONT_SYNC, unix.STATX_MODE, &st)
	return err == unix.ENOENT || err == nil && st.Mode&unix.S_ISGID == 0
}

// executesAsIs reports whether executing a file changes nothing of who the caller is.
func (c *call) executesAsIs(w where) bool {
	cred := *c.cred()
	cred.user, cred.group = cred.user.executed(unchanged), cred.group.executed(unchanged)
	cred.caps.executed(cred.user)
	if !cred.equal(c.cred()) || c.task.tid != c.task.tgid {
		return false
	}
	name, _ := c.fileName(w)
	if name == "" {
		return false
	}
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, name, unix.AT_STATX_DONT_SYNC, unix.STATX_MODE, &st)
	return err == unix.ENOENT || err == nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0
}
