package fakeroot

import (
	"errors"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

func (c *call) chown(dir int32, path pathArg, uid, gid, flags uint32) reply {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return proceed() // EINVAL
	}
	return c.changeOwner(c.lookAt(dir, path, flags), uid, gid)
}

func (c *call) fchown(fd int32, uid, gid uint32) reply {
	return c.changeOwner(where{dir: fd, open: true}, uid, gid)
}

// changeOwner does the chown to the owner that can be on disk, which clears set-id bits, copies the file up, sets its times and
// knows read-only mounts; then it records the one that was asked for.
func (c *call) changeOwner(w where, uid, gid uint32) reply {
	fd, err := c.resolve(w, 0)
	if err != nil {
		return proceed()
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st); err != nil {
		return failed(asErrno(err))
	}
	rec, had := c.cfg.Records.get(c.name(fd), &st)
	oldUID, oldGID := c.cfg.Records.owners.Real(st.Uid, st.Gid, rec, had)
	if !c.mayChown(oldUID, oldGID, uid, gid) {
		return failed(unix.EPERM)
	}
	newUID, newGID := oldUID, oldGID
	diskUID, diskGID := c.cfg.Records.owners.Disk(uid, gid)
	if uid == unchanged {
		diskUID = unchanged
	} else {
		newUID = uid
	}
	if gid == unchanged {
		diskGID = unchanged
	} else {
		newGID = gid
	}
	if err := unix.Fchownat(fd, "", int(int32(diskUID)), int(int32(diskGID)), unix.AT_EMPTY_PATH); err != nil {
		return failed(asErrno(err))
	}
	rec.UID, rec.GID = newUID, newGID
	return c.record(fd, rec, had)
}

// record writes what a file should be, if its owner on disk does not say it.
func (c *call) record(fd int, rec owner.Record, had bool) reply {
	var st unix.Statx_t // anew: a copy-up changes what a table knows the file by
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st); err != nil {
		return failed(asErrno(err))
	}
	var err error
	plain := rec.Type == 0 && !c.cfg.Records.owners.Needs(rec.UID, rec.GID)
	switch {
	case plain && !had:
	case plain:
		err = c.cfg.Records.clear(fd, c.name(fd), &st)
	default:
		err = c.cfg.Records.set(fd, c.name(fd), &st, rec)
	}
	if err != nil {
		var errno unix.Errno
		if !errors.As(err, &errno) {
			errno = unix.EIO
		}
		return failed(errno)
	}
	return value(0)
}

// mayChown is the rule of chown_ok and chgrp_ok of the kernel.
func (c *call) mayChown(oldUID, oldGID, uid, gid uint32) bool {
	if !Single(c.cfg.Records.owners) {
		// The kernel knows who the caller is; whether it has CAP_CHOWN is what counts.
		caps := numberBase(c.tasks.readAll(c.task.dir, "status"), "CapEff:", 16)
		return caps&(1<<unix.CAP_CHOWN) != 0
	}
	cred := c.cred()
	if cred.can(unix.CAP_CHOWN) {
		return true
	}
	if uid != unchanged && (uid != oldUID || cred.user.fs != oldUID) {
		return false
	}
	return gid == unchanged || cred.user.fs == oldUID && (gid == oldGID || cred.inGroup(gid))
}
