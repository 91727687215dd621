package fakeroot

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// A new file belongs to who makes it, and its group is the directory's where that is setgid. Where the kernel gets that right by
// itself, which is nearly always, it makes the file. Otherwise it is made here, because only who makes a file knows that it is
// new.

// target is where a file is to be made.
type target struct {
	dir  int // O_PATH
	name string
	rec  owner.Record // what it will be
}

// parent opens the directory that a new name goes into and says whom it will belong to. ok is false if the kernel can
// do the rest, or will fail.
func (c *call) parent(dir int32, path string) (t target, ok bool) {
	trimmed := strings.TrimRight(path, "/")
	i := strings.LastIndexByte(trimmed, '/')
	t.name = trimmed[i+1:]
	if t.name == "" || t.name == "." || t.name == ".." {
		return t, false
	}
	above := trimmed[:i+1]
	var err error
	if above == "" {
		t.dir, err = c.openFile(dir)
	} else {
		t.dir, err = c.openPath(dir, above, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY})
	}
	if err != nil {
		return t, false
	}
	uid, gid, err := c.heir(t.dir)
	if err != nil {
		unix.Close(t.dir)
		return t, false
	}
	t.rec = owner.Record{UID: uid, GID: gid}
	return t, true
}

// heir returns the owner of what the caller makes in a directory.
func (c *call) heir(dir int) (uid, gid uint32, err error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH, statMask, &st); err != nil {
		return 0, 0, err
	}
	cred := c.cred()
	uid, gid = cred.user.fs, cred.group.fs
	if st.Mode&unix.S_ISGID != 0 {
		gid = c.owner(dir, &st).GID
	}
	return uid, gid, nil
}

// plain reports whether the file needs no record.
func (c *call) plain(t target) bool {
	return t.rec.Type == 0 && !c.cfg.Records.owners.Needs(t.rec.UID, t.rec.GID)
}

// withUmask runs f with the caller's mask of permission bits, so that the kernel applies it the way it does: not where the
// directory has default access lists. The mask is this thread's own.
func (c *call) withUmask(f func() error) error {
	mask := numberBase(c.tasks.read(c.task.dir, "status"), "Umask:", 8)
	unix.Umask(int(mask & 0o777))
	return f()
}

// make makes a file other than by open: create makes it, and then its record is written.
func (c *call) make(dir int32, path pathArg, typ uint32, rdev uint64, create func(t target) error) reply {
	if typ == 0 && c.rootsOwn(dir, path) {
		return proceed()
	}
	text, errno := c.text(path)
	if errno != 0 || text == "" {
		return proceed()
	}
	t, ok := c.parent(dir, text)
	if !ok {
		return proceed()
	}
	defer unix.Close(t.dir)
	t.rec.Type, t.rec.Rdev = typ, rdev
	if c.plain(t) {
		return proceed()
	}
	if strings.HasSuffix(text, "/") {
		t.name += "/"
	}
	if err := c.withUmask(func() error { return create(t) }); err != nil {
		return failed(asErrno(err))
	}
	fd, err := unix.Openat(t.dir, t.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return value(0) // made, and renamed by somebody else already
	}
	defer unix.Close(fd)
	return c.record(fd, t.rec, false)
}

func (c *call) mkdir(dir int32, path pathArg, mode uint32) reply {
	return c.make(dir, path, 0, 0, func(t target) error { return unix.Mkdirat(t.dir, t.name, mode) })
}

func (c *call) symlink(to pathArg, dir int32, path pathArg) reply {
	if c.rootsOwn(dir, path) {
		return proceed()
	}
	dest, errno := c.text(to)
	if errno != 0 {
		return proceed()
	}
	return c.make(dir, path, 0, 0, func(t target) error { return unix.Symlinkat(dest, t.dir, t.name) })
}

// mknod makes an empty file in place of a device; other nodes may need an owner only.
func (c *call) mknod(dir int32, path pathArg, mode, dev uint32) reply {
	typ := mode & unix.S_IFMT
	if typ != unix.S_IFCHR && typ != unix.S_IFBLK {
		return c.make(dir, path, 0, 0, func(t target) error { return unix.Mknodat(t.dir, t.name, mode, 0) })
	}
	if !c.mayMknod() {
		return failed(unix.EPERM)
	}
	return c.make(dir, path, typ, device32(dev), func(t target) error {
		return unix.Mknodat(t.dir, t.name, mode&^unix.S_IFMT|unix.S_IFREG, 0)
	})
}

func (c *call) mayMknod() bool {
	if Single(c.cfg.Records.owners) {
		return c.cred().can(unix.CAP_MKNOD)
	}
	caps := numberBase(c.tasks.readAll(c.task.dir, "status"), "CapEff:", 16)
	return caps&(1<<unix.CAP_MKNOD) != 0
}

// device32 widens the device number of mknod(2), which has 12 bits for the major and 20 for the minor one.
func device32(dev uint32) uint64 {
	return unix.Mkdev(dev&0xfff00>>8, dev&0xff|dev>>12&0xfff00)
}

// resolveCached is RESOLVE_CACHED of linux/openat2.h.
const resolveCached = 0x20

// how is what open(2) and openat(2) mean: they ignore what they do not know, where openat2 fails.
func how(flags, mode uint32) unix.OpenHow {
	const known = unix.O_ACCMODE | unix.O_CREAT | unix.O_EXCL | unix.O_NOCTTY | unix.O_TRUNC | unix.O_APPEND | unix.O_NONBLOCK |
		unix.O_SYNC | unix.O_ASYNC | unix.O_DIRECT | unix.O_LARGEFILE | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME |
		unix.O_CLOEXEC | unix.O_PATH | unix.O_TMPFILE
	return unix.OpenHow{Flags: uint64(flags & known), Mode: uint64(mode & 0o7777)}
}

func (c *call) openat2() reply {
	const size = 24 // struct open_how of 5.6; what a larger one adds is the kernel's business if it is not zero
	if c.args[3] != size {
		return proceed()
	}
	var raw [size]byte
	if errno := c.read(c.args[2], raw[:]); errno != 0 {
		return proceed()
	}
	how := unix.OpenHow{
		Flags: binary.NativeEndian.Uint64(raw[:]), Mode: binary.NativeEndian.Uint64(raw[8:]), Resolve: binary.NativeEndian.Uint64(raw[16:]),
	}
	if how.Resolve&resolveCached != 0 {
		return proceed() // will be asked again without
	}
	return c.open(c.fd(0), c.at(1), how)
}

// open answers opens that may make a file. One that is there already is the kernel's to open.
func (c *call) open(dir int32, path pathArg, how unix.OpenHow) reply {
	const unnamed = unix.O_TMPFILE &^ unix.O_DIRECTORY
	if how.Flags&(unix.O_CREAT|unnamed) == 0 || how.Flags&unix.O_PATH != 0 {
		return proceed()
	}
	if how.Flags&unnamed == 0 && c.rootsOwn(dir, path) {
		return proceed()
	}
	text, errno := c.text(path)
	if errno != 0 || text == "" {
		return proceed()
	}
	if how.Flags&unnamed != 0 {
		return c.openUnnamed(dir, text, how)
	}
	t, ok := c.parent(dir, text)
	if !ok {
		return proceed()
	}
	defer unix.Close(t.dir)
	if c.plain(t) && how.Flags&unix.O_EXCL != 0 {
		return proceed()
	}
	name := unix.OpenHow{Flags: unix.O_PATH, Resolve: how.Resolve}
	if how.Flags&(unix.O_EXCL|unix.O_NOFOLLOW) != 0 {
		name.Flags |= unix.O_NOFOLLOW
	}
	fd, err := c.openPath(dir, text, &name)
	if err == nil {
		unix.Close(fd)
		return proceed()
	}
	if err != unix.ENOENT {
		return proceed()
	}
	if how.Flags&unix.O_EXCL == 0 {
		if link, err := c.isLink(t); err != nil {
			return proceed()
		} else if link {
			return c.openThrough(dir, text, how)
		}
	}
	if c.plain(t) {
		return proceed()
	}
	how.Flags |= unix.O_EXCL
	return c.openNew(dir, text, how, t.rec)
}

func (c *call) isLink(t target) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(t.dir, t.name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK, err
}

// openThrough makes the file that a dangling link points to. Where that is only shows afterwards: it does not get the group of a
// setgid directory there.
func (c *call) openThrough(dir int32, text string, how unix.OpenHow) reply {
	cred := c.cred()
	if !c.cfg.Records.owners.Needs(cred.user.fs, cred.group.fs) {
		return proceed()
	}
	return c.openNew(dir, text, how, owner.Record{UID: cred.user.fs, GID: cred.group.fs})
}

func (c *call) openUnnamed(dir int32, text string, how unix.OpenHow) reply {
	above, err := c.openPath(dir, text, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: how.Resolve})
	if err != nil {
		return proceed()
	}
	defer unix.Close(above)
	uid, gid, err := c.heir(above)
	if err != nil || !c.cfg.Records.owners.Needs(uid, gid) {
		return proceed()
	}
	return c.openNew(dir, text, how, owner.Record{UID: uid, GID: gid})
}

// openNew makes a file, records its owner and gives it to the caller open. O_NONBLOCK keeps us from waiting for whatever somebody
// may have put in its place.
func (c *call) openNew(dir int32, text string, how unix.OpenHow, rec owner.Record) reply {
	want := how.Flags
	how.Flags |= unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_LARGEFILE
	var fd int
	err := c.withUmask(func() (err error) {
		fd, err = c.openPath(dir, text, &how)
		return err
	})
	if err != nil {
		return proceed()
	}
	defer unix.Close(fd)
	if want&unix.O_NONBLOCK == 0 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
		}
		if err != nil {
			return failed(asErrno(err))
		}
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return proceed()
	}
	if r := c.record(fd, rec, false); r.errno != 0 {
		return r
	}
	return c.giveFD(c.id, fd, uint32(want&unix.O_CLOEXEC))
}
