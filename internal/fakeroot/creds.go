package fakeroot

import (
	"slices"

	"golang.org/x/sys/unix"
)

// credentials is who a thread believes to be. It is never changed once it is in use: threads that agree share one.
type credentials struct {
	user, group ids
	groups      []uint32 // supplementary
	caps        capabilities
}

// capabilities are those of a thread in sets of bits, and what decides what becomes of them when the user changes. The kernel has
// more in its own sets, which it does not clear; what counts here is what a program would have if it were who it believes to be.
type capabilities struct {
	permitted, effective uint64
	keep                 bool // PR_SET_KEEPCAPS
	unrelated            bool // SECBIT_NO_SETUID_FIXUP: the user does not matter
}

// allCaps stands for whatever root is given: the kernel bounds that itself.
const allCaps = ^uint64(0)

// fsCaps are those that setfsuid(2) gives and takes: CAP_FS_MASK of the kernel.
const fsCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_MKNOD | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH |
	1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_MAC_OVERRIDE | 1<<unix.CAP_LINUX_IMMUTABLE

// ids are the four that the kernel keeps of a user and of a group.
type ids struct{ real, effective, saved, fs uint32 }

// same gives an id to all four.
func same(id uint32) ids { return ids{id, id, id, id} }

// newCredentials are those of a program that a user starts.
func newCredentials(uid, gid uint32, groups []uint32) *credentials {
	c := &credentials{user: same(uid), group: same(gid), groups: groups}
	c.caps.executed(c.user)
	return c
}

// can reports whether a capability is effective.
func (c *credentials) can(cap uint) bool { return c.caps.effective&(1<<cap) != 0 }

// changed is what a change of user other than by setfsuid does: cap_emulate_setxuid of the kernel.
func (c *capabilities) changed(from, to ids) {
	if c.unrelated {
		return
	}
	if from.has(0) && !to.has(0) && !c.keep {
		c.permitted, c.effective = 0, 0
	}
	switch {
	case from.effective == 0 && to.effective != 0:
		c.effective = 0
	case from.effective != 0 && to.effective == 0:
		c.effective = c.permitted
	}
}

// changedFS is what setfsuid does.
func (c *capabilities) changedFS(from, to ids) {
	switch {
	case c.unrelated:
	case from.fs == 0 && to.fs != 0:
		c.effective &^= fsCaps
	case from.fs != 0 && to.fs == 0:
		c.effective |= c.permitted & fsCaps
	}
}

// executed is what execve does: root has all, others have none. Capabilities of files and ambient ones are the kernel's business;
// they never make up for another id here.
func (c *capabilities) executed(user ids) {
	c.keep = false
	c.permitted, c.effective = 0, 0
	if user.real == 0 || user.effective == 0 {
		c.permitted = allCaps
	}
	if user.effective == 0 {
		c.effective = allCaps
	}
}

// inGroup reports whether the process acts for the group: in_group_p of the kernel.
func (c *credentials) inGroup(gid uint32) bool {
	return gid == c.group.fs || slices.Contains(c.groups, gid)
}

func (c *credentials) equal(o *credentials) bool {
	return c == o || c.user == o.user && c.group == o.group && c.caps == o.caps && slices.Equal(c.groups, o.groups)
}

// unchanged is the argument that leaves an id as it is.
const unchanged = ^uint32(0)

func (i ids) has(id uint32) bool { return id == i.real || id == i.effective || id == i.saved }

// The rules of kernel/sys.c. cap says whether the process may take any id.

// set is setuid(2) and setgid(2).
func (i ids) set(id uint32, cap bool) (ids, unix.Errno) {
	switch {
	case id == unchanged:
		return i, unix.EINVAL
	case cap:
		return same(id), 0
	case id == i.real || id == i.saved:
		i.effective, i.fs = id, id
		return i, 0
	}
	return i, unix.EPERM
}

// setRE is setreuid(2) and setregid(2).
func (i ids) setRE(real, effective uint32, cap bool) (ids, unix.Errno) {
	if real != unchanged && !cap && real != i.real && real != i.effective {
		return i, unix.EPERM
	}
	if effective != unchanged && !cap && !i.has(effective) {
		return i, unix.EPERM
	}
	old := i
	if real != unchanged {
		i.real = real
	}
	if effective != unchanged {
		i.effective = effective
	}
	if real != unchanged || effective != unchanged && effective != old.real {
		i.saved = i.effective
	}
	i.fs = i.effective
	return i, 0
}

// setRES is setresuid(2) and setresgid(2).
func (i ids) setRES(real, effective, saved uint32, cap bool) (ids, unix.Errno) {
	for _, id := range [...]uint32{real, effective, saved} {
		if id != unchanged && !cap && !i.has(id) {
			return i, unix.EPERM
		}
	}
	if real != unchanged {
		i.real = real
	}
	if effective != unchanged {
		i.effective = effective
	}
	if saved != unchanged {
		i.saved = saved
	}
	i.fs = i.effective
	return i, 0
}

// setFS is setfsuid(2) and setfsgid(2), which report no error.
func (i ids) setFS(id uint32, cap bool) ids {
	if id != unchanged && (cap || i.has(id) || id == i.fs) {
		i.fs = id
	}
	return i
}

// executed is what execve(2) makes of the ids; owner is unchanged, or the owner of a setuid or setgid file.
func (i ids) executed(owner uint32) ids {
	if owner != unchanged {
		i.effective = owner
	}
	i.saved, i.fs = i.effective, i.effective
	return i
}
