package fakeroot

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// prctl notes what decides over capabilities, and lets the kernel do the same.
func (c *call) prctl() reply {
	to := *c.cred()
	switch c.u32(0) {
	case unix.PR_SET_KEEPCAPS:
		to.caps.keep = c.u32(1) != 0
	case unix.PR_SET_SECUREBITS:
		const noSetuidFixup, keepCaps = 1 << 2, 1 << 4
		to.caps.unrelated, to.caps.keep = c.u32(1)&noSetuidFixup != 0, c.u32(1)&keepCaps != 0
	}
	c.change(to)
	return proceed()
}

// capHeader reads struct __user_cap_header_struct: the version, which says how many words a set has, and whose capabilities.
func (c *call) capHeader() (words int, pid int32, ok bool) {
	var b [8]byte
	if c.read(c.args[0], b[:]) != 0 {
		return 0, 0, false
	}
	switch binary.NativeEndian.Uint32(b[:]) {
	case unix.LINUX_CAPABILITY_VERSION_1:
		words = 1
	case unix.LINUX_CAPABILITY_VERSION_2, unix.LINUX_CAPABILITY_VERSION_3:
		words = 2
	default:
		return 0, 0, false
	}
	return words, int32(binary.NativeEndian.Uint32(b[4:])), true
}

// capSize is that of struct __user_cap_data_struct: effective, permitted, inheritable.
const capSize = 12

// capset notes which of the capabilities that go with the user a program gives up or takes back, and lets the kernel do the same:
// it has more to give.
func (c *call) capset() reply {
	words, _, ok := c.capHeader()
	if !ok || c.args[1] == 0 {
		return proceed()
	}
	buf := make([]byte, words*capSize)
	if c.read(c.args[1], buf) != 0 {
		return proceed()
	}
	var effective, permitted uint64
	for i := range words {
		effective |= uint64(binary.NativeEndian.Uint32(buf[i*capSize:])) << (32 * i)
		permitted |= uint64(binary.NativeEndian.Uint32(buf[i*capSize+4:])) << (32 * i)
	}
	to := *c.cred()
	if permitted&^to.caps.permitted != 0 || effective&^permitted != 0 {
		return failed(unix.EPERM)
	}
	to.caps.permitted, to.caps.effective = permitted, effective
	c.change(to)
	return proceed()
}

// capget shows the kernel's sets without what the caller would not have.
func (c *call) capget() reply {
	words, pid, ok := c.capHeader()
	if !ok || pid != 0 || c.args[1] == 0 {
		return proceed()
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(c.task.tid)}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return proceed()
	}
	caps := c.cred().caps
	var out []byte
	for i := range words {
		out = binary.NativeEndian.AppendUint32(out, data[i].Effective&uint32(caps.effective>>(32*i)))
		out = binary.NativeEndian.AppendUint32(out, data[i].Permitted&uint32(caps.permitted>>(32*i)))
		out = binary.NativeEndian.AppendUint32(out, data[i].Inheritable)
	}
	return done(c.write(c.args[1], out))
}
