package fakeroot

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// Records finds and writes the records of a step's files. It may be used by several goroutines until Start has been called, and
// by the supervisor then.
type Records struct {
	owners owner.Map
	nodes  *owner.Nodes // of files of the root file system that can carry no record themselves
	upper  int          // upper directory of an overlay root; -1
	root   fileSystem
	mount  uint64 // the root's; 0: the kernel does not say

	mu    sync.Mutex
	other map[place]owner.Record // of files of other mounts, as long as the step lasts
}

// fileSystem is the device number that all files of a file system show.
type fileSystem struct{ major, minor uint32 }

// place is a file that is not on the root file system and cannot carry its record.
type place struct {
	dev  fileSystem
	node owner.Node
}

// NewRecords returns the records of a root. nodes is kept; nil is an empty table that nobody else wants to see. upper is a
// descriptor, that stays the caller's, of the directory an overlay root is written to, or -1.
func NewRecords(owners owner.Map, nodes *owner.Nodes, upper int) *Records {
	if nodes == nil {
		nodes = &owner.Nodes{}
	}
	return &Records{owners: owners, nodes: nodes, upper: upper, other: map[place]owner.Record{}}
}

// statMask is what statx is asked for here.
const statMask = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_UID | unix.STATX_GID | unix.STATX_MNT_ID | owner.NodeMask

// noTables reports whether all records there are, are in attributes.
func (r *Records) noTables() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.other) == 0 && r.nodes.Empty()
}

// useRoot says which file system the root is.
func (r *Records) useRoot(fd int) error {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st); err != nil {
		return fmt.Errorf("look at the root: %w", err)
	}
	r.root, r.mount = deviceOf(&st), mountOf(&st)
	return nil
}

// onRoot reports whether a file that statx described is on the file system of the root. The device number does not always say: an
// overlay whose layers are on several file systems (a container's, in memory over a read-only image) gives what is no directory that of
// its layer (Documentation/filesystems/overlayfs.rst, "Inode properties"). The mount does not either: a step can have its own copy.
func (r *Records) onRoot(st *unix.Statx_t) bool {
	return deviceOf(st) == r.root || r.mount != 0 && mountOf(st) == r.mount
}

// mountOf is the mount a file was found through, 0 where the kernel (before 5.8) does not say.
func mountOf(st *unix.Statx_t) uint64 {
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0
	}
	return st.Mnt_id
}

func deviceOf(st *unix.Statx_t) fileSystem { return fileSystem{st.Dev_major, st.Dev_minor} }

// get returns the record of a file that statx described. path leads to it, following a last link.
func (r *Records) get(path string, st *unix.Statx_t) (owner.Record, bool) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		if rec, ok, err := owner.GetPath(path); ok && err == nil {
			return rec, true
		}
	default:
		if r.onRoot(st) {
			return r.nodes.Get(owner.NodeOf(st))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.other[place{deviceOf(st), owner.NodeOf(st)}]
	return rec, ok
}

// set writes the record of an open file.
func (r *Records) set(fd int, path string, st *unix.Statx_t, rec owner.Record) error {
	onRoot := r.onRoot(st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		err := owner.SetPath(path, rec)
		if err == nil || onRoot || !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return err
		}
	default:
		if onRoot {
			r.nodes.Set(owner.NodeOf(st), rec)
			if n, ok := r.below(path, st); ok {
				r.nodes.Set(n, rec)
			}
			return nil
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.other[place{deviceOf(st), owner.NodeOf(st)}] = rec
	return nil
}

// below returns the name that a file of an overlay has in the upper directory. For a link that was copied up it is another than
// the overlay shows, until the overlay has forgotten where the copy came from.
func (r *Records) below(path string, st *unix.Statx_t) (owner.Node, bool) {
	if r.upper < 0 {
		return owner.Node{}, false
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(path, buf)
	if err != nil || n >= len(buf) {
		return owner.Node{}, false
	}
	name := strings.TrimPrefix(string(buf[:n]), "/")
	fd, err := unix.Openat2(r.upper, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return owner.Node{}, false
	}
	defer unix.Close(fd)
	var below unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &below) != nil {
		return owner.Node{}, false
	}
	real, shown := owner.NodeOf(&below), owner.NodeOf(st)
	same := below.Mode == st.Mode && real.Born == shown.Born && real.Born != 0
	return real, same && real != shown
}

// clear removes the record of a file whose owner on disk says all.
func (r *Records) clear(fd int, path string, st *unix.Statx_t) error {
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return r.set(fd, path, st, owner.Record{UID: st.Uid, GID: st.Gid})
	}
	if _, ok, _ := owner.GetPath(path); ok {
		return owner.ClearPath(path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.other, place{deviceOf(st), owner.NodeOf(st)})
	return nil
}

// of returns what a file should be: its owner, and the device it stands for.
func (r *Records) of(path string, st *unix.Statx_t) owner.Record {
	rec, ok := r.get(path, st)
	uid, gid := r.owners.Real(st.Uid, st.Gid, rec, ok)
	rec.UID, rec.GID = uid, gid
	return rec
}

// Give gives an open file an owner, before the step starts: on disk as far as that is possible, and in a record.
func (r *Records) Give(fd int, uid, gid uint32) error {
	diskUID, diskGID := r.owners.Disk(uid, gid)
	if err := unix.Fchownat(fd, "", int(diskUID), int(diskGID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("owner %d:%d: %w", uid, gid, err)
	}
	if !r.owners.Needs(uid, gid) {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st); err != nil {
		return err
	}
	return r.set(fd, fmt.Sprintf("/proc/self/fd/%d", fd), &st, owner.Record{UID: uid, GID: gid})
}
