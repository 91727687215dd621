package fakeroot

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// compatStats are i386's. Its calls with 16 bits for an id are older than any program that would be run in a container, and left
// to the kernel.
var compatStats = map[string]handler{
	"stat64": func(c *call) reply {
		return c.stat64(where{dir: unix.AT_FDCWD, path: c.at(0), follow: true}, c.args[1])
	},
	"lstat64":   func(c *call) reply { return c.stat64(where{dir: unix.AT_FDCWD, path: c.at(0)}, c.args[1]) },
	"fstat64":   func(c *call) reply { return c.stat64(where{dir: c.fd(0), open: true}, c.args[1]) },
	"fstatat64": func(c *call) reply { return c.stat64(c.lookAt(c.fd(0), c.at(1), c.u32(3)), c.args[2]) },
}

// stat64 writes struct stat64 of i386 (arch/x86/include/uapi/asm/stat.h), which is packed.
func (c *call) stat64(w where, buf uint64) reply {
	var st unix.Stat_t
	if !c.statInto(w, &st) {
		return proceed()
	}
	le := binary.LittleEndian
	var out []byte
	u32 := func(v uint64) { out = le.AppendUint32(out, uint32(v)) }
	u64 := func(v uint64) { out = le.AppendUint64(out, v) }
	u64(st.Dev)
	u32(0)
	u32(st.Ino)
	u32(uint64(st.Mode))
	u32(st.Nlink)
	u32(uint64(st.Uid))
	u32(uint64(st.Gid))
	u64(st.Rdev)
	u32(0)
	u64(uint64(st.Size))
	u32(uint64(st.Blksize))
	u64(uint64(st.Blocks))
	for _, t := range []unix.Timespec{st.Atim, st.Mtim, st.Ctim} {
		u32(uint64(t.Sec))
		u32(uint64(t.Nsec))
	}
	u64(st.Ino)
	return done(c.write(buf, out))
}
