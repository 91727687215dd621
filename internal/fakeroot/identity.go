package fakeroot

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// change gives the caller other credentials. Whom it started before keeps what it had.
func (c *call) change(to credentials) {
	if to.equal(c.cred()) {
		return
	}
	c.tasks.settle(c.task)
	c.task.cred = &to
}

func (c *call) setUser(rule func(ids, bool) (ids, unix.Errno)) reply {
	to := *c.cred()
	user, errno := rule(to.user, to.can(unix.CAP_SETUID))
	if errno != 0 {
		return failed(errno)
	}
	to.caps.changed(to.user, user)
	to.user = user
	c.change(to)
	return value(0)
}

func (c *call) setGroup(rule func(ids, bool) (ids, unix.Errno)) reply {
	to := *c.cred()
	group, errno := rule(to.group, to.can(unix.CAP_SETGID))
	if errno != 0 {
		return failed(errno)
	}
	to.group = group
	c.change(to)
	return value(0)
}

// maxGroups is NGROUPS_MAX.
const maxGroups = 65536

func (c *call) setGroups() reply {
	if !c.cred().can(unix.CAP_SETGID) {
		return failed(unix.EPERM)
	}
	n := c.u32(0)
	if n > maxGroups {
		return failed(unix.EINVAL)
	}
	buf := make([]byte, 4*n)
	if errno := c.read(c.args[1], buf); errno != 0 {
		return failed(errno)
	}
	to := *c.cred()
	to.groups = make([]uint32, n)
	for i := range to.groups {
		to.groups[i] = binary.NativeEndian.Uint32(buf[4*i:])
	}
	slices.Sort(to.groups) // as the kernel does
	c.change(to)
	return value(0)
}

func (c *call) getGroups() reply {
	groups := c.cred().groups
	switch size := c.fd(0); {
	case size < 0:
		return failed(unix.EINVAL)
	case size == 0:
		return value(int64(len(groups)))
	case int(size) < len(groups):
		return failed(unix.EINVAL)
	}
	buf := make([]byte, 0, 4*len(groups))
	for _, g := range groups {
		buf = binary.NativeEndian.AppendUint32(buf, g)
	}
	if errno := c.write(c.args[1], buf); errno != 0 {
		return failed(errno)
	}
	return value(int64(len(groups)))
}

// threeIDs is getresuid(2) and getresgid(2).
func (c *call) threeIDs(i ids) reply {
	for n, id := range [...]uint32{i.real, i.effective, i.saved} {
		if errno := c.write(c.args[n], binary.NativeEndian.AppendUint32(nil, id)); errno != 0 {
			return failed(errno)
		}
	}
	return value(0)
}

// exec lets execve pass and notes who the program will be if it comes to run: setuid and setgid files change that, and the saved
// ids become the effective ones.
func (c *call) exec(dir int32, p pathArg, flags uint32) reply {
	w := c.lookAt(dir, p, flags)
	if c.executesAsIs(w) {
		return proceed()
	}
	cred := c.cred()
	to := *cred
	fd, err := c.resolve(w, 0)
	if err != nil {
		return proceed()
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, &st) != nil {
		return proceed()
	}
	uid, gid := unchanged, unchanged
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 && st.Mode&unix.S_IFMT == unix.S_IFREG && c.honoursSetID(fd) {
		owner := c.owner(fd, &st)
		if st.Mode&unix.S_ISUID != 0 {
			uid = owner.UID
		}
		if st.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP {
			gid = owner.GID
		}
	}
	to.user, to.group = to.user.executed(uid), to.group.executed(gid)
	to.caps.executed(to.user)
	leader := c.tasks.of(c.task.tgid) // its id is the one that the thread will have
	if leader.cred.equal(&to) && cred.equal(&to) {
		return proceed()
	}
	leader.pending = &pendingExec{cred: &to, image: c.tasks.image(leader)}
	return proceed()
}

// honoursSetID reports whether the set-id bits of a file that is about to be executed count.
func (c *call) honoursSetID(fd int) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Flags&unix.ST_NOSUID != 0 {
		return false
	}
	if number(c.tasks.read(c.task.dir, "status"), "NoNewPrivs:") != 0 {
		return false
	}
	f, err := unix.Open(c.name(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(f)
	var magic [2]byte
	n, _ := unix.Pread(f, magic[:], 0)
	return n != 2 || magic != [2]byte{'#', '!'}
}

// setFSUser is setfsuid(2): it reports what was, and nothing else.
func (c *call) setFSUser() reply {
	to := *c.cred()
	old := to.user
	to.user = old.setFS(c.u32(0), to.can(unix.CAP_SETUID))
	to.caps.changedFS(old, to.user)
	c.change(to)
	return value(int64(old.fs))
}

func (c *call) setFSGroup() reply {
	to := *c.cred()
	old := to.group
	to.group = old.setFS(c.u32(0), to.can(unix.CAP_SETGID))
	c.change(to)
	return value(int64(old.fs))
}

// ucred is struct ucred: process, user, group.
const ucredSize = 12

// peer is getsockopt(SO_PEERCRED): the kernel's answer, with who the process at the other end believes to be. What it was when it
// connected is not known.
func (c *call) peer() reply {
	pidfd, err := unix.PidfdOpen(int(c.task.tgid), 0)
	if err != nil {
		return proceed()
	}
	defer unix.Close(pidfd)
	sock, err := unix.PidfdGetfd(pidfd, int(c.fd(0)), 0)
	if err != nil {
		return proceed()
	}
	defer unix.Close(sock)
	ours, err := unix.GetsockoptUcred(sock, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || ours.Pid <= 0 || ours.Uid != 0 {
		return proceed() // nobody, or somebody outside of the step
	}
	other := c.tasks.of(uint32(ours.Pid))
	theirs := lastPID(c.tasks.read(other.dir, "status"))
	var size [4]byte
	if errno := c.read(c.args[4], size[:]); errno != 0 || binary.NativeEndian.Uint32(size[:]) < ucredSize || theirs == 0 {
		return proceed()
	}
	buf := binary.NativeEndian.AppendUint32(nil, theirs)
	buf = binary.NativeEndian.AppendUint32(buf, other.cred.user.effective)
	buf = binary.NativeEndian.AppendUint32(buf, other.cred.group.effective)
	if errno := c.write(c.args[3], buf); errno != 0 {
		return failed(errno)
	}
	binary.NativeEndian.PutUint32(size[:], ucredSize)
	if errno := c.write(c.args[4], size[:]); errno != 0 {
		return failed(errno)
	}
	return value(0)
}
