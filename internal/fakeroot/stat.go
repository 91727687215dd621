package fakeroot

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// owner returns what an open file should be.
func (c *call) owner(fd int, st *unix.Statx_t) owner.Record {
	return c.cfg.Records.of(c.name(fd), st)
}

// seen is a file that is not what the kernel says.
type seen struct {
	fd  int
	rec owner.Record
}

// look opens what a call asks about. Nothing is what the kernel itself can tell about.
func (c *call) look(w where, flags int) (seen, bool) {
	if c.unrecorded(w) {
		return seen{}, false
	}
	fd, err := c.resolve(w, flags)
	if err != nil {
		return seen{}, false
	}
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st) != nil {
		unix.Close(fd)
		return seen{}, false
	}
	rec := c.owner(fd, &st)
	if rec.Type == 0 && rec.UID == st.Uid && rec.GID == st.Gid {
		unix.Close(fd)
		return seen{}, false
	}
	return seen{fd, rec}, true
}

// stat answers stat(2) and its relatives, in the layout of this program's own ABI.
func (c *call) stat(w where, buf uint64) reply {
	var st unix.Stat_t
	if !c.statInto(w, &st) {
		return proceed()
	}
	out := unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st))
	return done(c.write(buf, out))
}

func done(errno unix.Errno) reply {
	if errno != 0 {
		return failed(errno)
	}
	return value(0)
}

func (c *call) statInto(w where, st *unix.Stat_t) bool {
	f, ok := c.look(w, 0)
	if !ok {
		return false
	}
	defer unix.Close(f.fd)
	if unix.Fstat(f.fd, st) != nil {
		return false
	}
	st.Uid, st.Gid = f.rec.UID, f.rec.GID
	if f.rec.Type != 0 {
		st.Mode = st.Mode&^unix.S_IFMT | f.rec.Type
		st.Rdev, st.Size, st.Blocks = f.rec.Rdev, 0, 0
	}
	return true
}

// statx is statx(2), whose layout is the same everywhere.
func (c *call) statx() reply {
	const syncFlags = unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC
	flags := c.u32(2)
	f, ok := c.look(c.lookAt(c.fd(0), c.at(1), flags), 0)
	if !ok {
		return proceed()
	}
	defer unix.Close(f.fd)
	var st unix.Statx_t
	if err := unix.Statx(f.fd, "", int(flags&syncFlags)|unix.AT_EMPTY_PATH, int(c.u32(3)), &st); err != nil {
		return failed(asErrno(err))
	}
	st.Uid, st.Gid = f.rec.UID, f.rec.GID
	if f.rec.Type != 0 {
		st.Mode = st.Mode&^unix.S_IFMT | uint16(f.rec.Type)
		st.Rdev_major, st.Rdev_minor = unix.Major(f.rec.Rdev), unix.Minor(f.rec.Rdev)
		st.Size, st.Blocks = 0, 0
	}
	return done(c.write(c.args[4], unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st))))
}
