package fakeroot

import (
	"golang.org/x/sys/unix"
)

// call is one system call that waits for its answer.
type call struct {
	*Supervisor
	task *task
	id   uint64
	args [6]uint64
}

// handler answers a call.
type handler func(c *call) reply

// reply is the answer to a call.
type reply struct {
	val     int64
	errno   unix.Errno
	proceed bool // the kernel is to do it
	sent    bool // it is answered already
}

func value(v int64) reply         { return reply{val: v} }
func failed(err unix.Errno) reply { return reply{errno: err} }

// proceed lets the kernel do the call. It is also the answer when we fail where the kernel would fail too: what it says is right.
func proceed() reply { return reply{proceed: true} }

func (c *call) u32(i int) uint32 { return uint32(c.args[i]) }
func (c *call) fd(i int) int32   { return int32(c.args[i]) }
func (c *call) cred() *credentials {
	return c.task.cred
}

// commonCalls are those whose arguments mean the same in every ABI. The numbers are positions of arguments.
var commonCalls = map[string]handler{
	"fchownat": func(c *call) reply { return c.chown(c.fd(0), c.at(1), c.u32(2), c.u32(3), c.u32(4)) },

	"mknod":     func(c *call) reply { return c.mknod(unix.AT_FDCWD, c.at(0), c.u32(1), c.u32(2)) },
	"mknodat":   func(c *call) reply { return c.mknod(c.fd(0), c.at(1), c.u32(2), c.u32(3)) },
	"mkdir":     func(c *call) reply { return c.mkdir(unix.AT_FDCWD, c.at(0), c.u32(1)) },
	"mkdirat":   func(c *call) reply { return c.mkdir(c.fd(0), c.at(1), c.u32(2)) },
	"symlink":   func(c *call) reply { return c.symlink(c.at(0), unix.AT_FDCWD, c.at(1)) },
	"symlinkat": func(c *call) reply { return c.symlink(c.at(0), c.fd(1), c.at(2)) },
	"creat": func(c *call) reply {
		return c.open(unix.AT_FDCWD, c.at(0), how(unix.O_CREAT|unix.O_WRONLY|unix.O_TRUNC, c.u32(1)))
	},
	"open": func(c *call) reply {
		return c.open(unix.AT_FDCWD, c.at(0), how(c.u32(1), c.u32(2)))
	},
	"openat": func(c *call) reply {
		return c.open(c.fd(0), c.at(1), how(c.u32(2), c.u32(3)))
	},
	"openat2": func(c *call) reply { return c.openat2() },

	"statx": func(c *call) reply { return c.statx() },

	"setxattr":     func(c *call) reply { return c.changeXattr(1) },
	"lsetxattr":    func(c *call) reply { return c.changeXattr(1) },
	"fsetxattr":    func(c *call) reply { return c.changeXattr(1) },
	"removexattr":  func(c *call) reply { return c.changeXattr(1) },
	"lremovexattr": func(c *call) reply { return c.changeXattr(1) },
	"fremovexattr": func(c *call) reply { return c.changeXattr(1) },
	"listxattr":    func(c *call) reply { return c.listXattr(where{dir: unix.AT_FDCWD, path: c.at(0), follow: true}) },
	"llistxattr":   func(c *call) reply { return c.listXattr(where{dir: unix.AT_FDCWD, path: c.at(0)}) },
	"flistxattr":   func(c *call) reply { return c.listXattr(where{dir: c.fd(0), open: true}) },

	"execve":     func(c *call) reply { return c.exec(unix.AT_FDCWD, c.at(0), 0) },
	"execveat":   func(c *call) reply { return c.exec(c.fd(0), c.at(1), c.u32(4)) },
	"exit":       func(c *call) reply { c.tasks.ending(c.task, false); return proceed() },
	"exit_group": func(c *call) reply { c.tasks.ending(c.task, true); return proceed() },
	"chroot":     func(c *call) reply { c.Supervisor.chroot = true; return proceed() },
	"getsockopt": func(c *call) reply { return c.peer() },
	"prctl":      func(c *call) reply { return c.prctl() },
	"capset":     func(c *call) reply { return c.capset() },
	"capget":     func(c *call) reply { return c.capget() },
}

// idCalls are about 32-bit ids; the 32-bit ABIs have them with the suffix 32.
var idCalls = map[string]handler{
	"chown": func(c *call) reply { return c.chown(unix.AT_FDCWD, c.at(0), c.u32(1), c.u32(2), 0) },
	"lchown": func(c *call) reply {
		return c.chown(unix.AT_FDCWD, c.at(0), c.u32(1), c.u32(2), unix.AT_SYMLINK_NOFOLLOW)
	},
	"fchown": func(c *call) reply { return c.fchown(c.fd(0), c.u32(1), c.u32(2)) },
	"setuid": func(c *call) reply {
		return c.setUser(func(i ids, p bool) (ids, unix.Errno) { return i.set(c.u32(0), p) })
	},
	"setgid": func(c *call) reply {
		return c.setGroup(func(i ids, p bool) (ids, unix.Errno) { return i.set(c.u32(0), p) })
	},
	"setreuid": func(c *call) reply {
		return c.setUser(func(i ids, p bool) (ids, unix.Errno) { return i.setRE(c.u32(0), c.u32(1), p) })
	},
	"setregid": func(c *call) reply {
		return c.setGroup(func(i ids, p bool) (ids, unix.Errno) { return i.setRE(c.u32(0), c.u32(1), p) })
	},
	"setresuid": func(c *call) reply {
		return c.setUser(func(i ids, p bool) (ids, unix.Errno) { return i.setRES(c.u32(0), c.u32(1), c.u32(2), p) })
	},
	"setresgid": func(c *call) reply {
		return c.setGroup(func(i ids, p bool) (ids, unix.Errno) { return i.setRES(c.u32(0), c.u32(1), c.u32(2), p) })
	},
	"setfsuid":  func(c *call) reply { return c.setFSUser() },
	"setfsgid":  func(c *call) reply { return c.setFSGroup() },
	"setgroups": func(c *call) reply { return c.setGroups() },
	"getuid":    func(c *call) reply { return value(int64(c.cred().user.real)) },
	"geteuid":   func(c *call) reply { return value(int64(c.cred().user.effective)) },
	"getgid":    func(c *call) reply { return value(int64(c.cred().group.real)) },
	"getegid":   func(c *call) reply { return value(int64(c.cred().group.effective)) },
	"getresuid": func(c *call) reply { return c.threeIDs(c.cred().user) },
	"getresgid": func(c *call) reply { return c.threeIDs(c.cred().group) },
	"getgroups": func(c *call) reply { return c.getGroups() },
}

// nativeCalls and compatCalls are what is answered, by the names that the tables of internal/bpf have. Those that an architecture
// does not have are left out there.
var (
	nativeCalls = merge(commonCalls, idCalls, map[string]handler{
		"stat":       func(c *call) reply { return c.stat(where{dir: unix.AT_FDCWD, path: c.at(0), follow: true}, c.args[1]) },
		"lstat":      func(c *call) reply { return c.stat(where{dir: unix.AT_FDCWD, path: c.at(0)}, c.args[1]) },
		"fstat":      func(c *call) reply { return c.stat(where{dir: c.fd(0), open: true}, c.args[1]) },
		"newfstatat": func(c *call) reply { return c.stat(c.lookAt(c.fd(0), c.at(1), c.u32(3)), c.args[2]) },
		"fstatat":    func(c *call) reply { return c.stat(c.lookAt(c.fd(0), c.at(1), c.u32(3)), c.args[2]) },
	})
	compatCalls = merge(commonCalls, suffixed(idCalls), compatStats)
)

func merge(tables ...map[string]handler) map[string]handler {
	out := map[string]handler{}
	for _, t := range tables {
		for name, h := range t {
			out[name] = h
		}
	}
	return out
}

func suffixed(table map[string]handler) map[string]handler {
	out := map[string]handler{}
	for name, h := range table {
		out[name+"32"] = h
	}
	return out
}
