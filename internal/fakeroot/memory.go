package fakeroot

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// memory is room for what is read from callers.
type memory struct {
	path [unix.PathMax]byte
}

// pathArg is the address of a path in a caller's memory.
type pathArg uint64

func (c *call) at(i int) pathArg { return pathArg(c.args[i]) }

const pageSize = 4096 // the smallest there is: what is read does not cross into a page that is not there

// read fills buf from the caller's memory.
func (c *call) read(addr uint64, buf []byte) unix.Errno {
	if len(buf) == 0 {
		return 0
	}
	n, errno := c.readSome(addr, buf)
	if errno == 0 && n < len(buf) {
		errno = unix.EFAULT
	}
	return errno
}

func (c *call) readSome(addr uint64, buf []byte) (int, unix.Errno) {
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}
	n, err := unix.ProcessVMReadv(int(c.task.tid), local, remote, 0)
	if err != nil {
		return 0, asErrno(err)
	}
	return n, 0
}

// write puts buf into the caller's memory.
func (c *call) write(addr uint64, buf []byte) unix.Errno {
	if len(buf) == 0 {
		return 0
	}
	if !c.valid(c.id) { // the thread id may be another's by now
		return unix.ESRCH
	}
	local := []unix.Iovec{{Base: &buf[0]}}
	local[0].SetLen(len(buf))
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}
	n, err := unix.ProcessVMWritev(int(c.task.tid), local, remote, 0)
	if err == nil && n < len(buf) {
		err = unix.EFAULT
	}
	return asErrno(err)
}

// text reads a string that ends with a zero byte, and makes sure that it is the caller's.
func (c *call) text(p pathArg) (string, unix.Errno) {
	s, errno := c.readText(p)
	if errno == 0 && !c.valid(c.id) {
		return "", unix.ESRCH
	}
	return s, errno
}

// readText is text of a caller that may be gone, and another in its place.
func (c *call) readText(p pathArg) (string, unix.Errno) {
	addr, buf := uint64(p), c.memory.path[:]
	for have := 0; have < len(buf); {
		n := min(len(buf)-have, pageSize-int((addr+uint64(have))%pageSize))
		n, errno := c.readSome(addr+uint64(have), buf[have:have+n])
		if errno != 0 {
			return "", errno
		}
		if n == 0 {
			return "", unix.EFAULT
		}
		if i := bytes.IndexByte(buf[have:have+n], 0); i >= 0 {
			return string(buf[:have+i]), 0
		}
		have += n
	}
	return "", unix.ENAMETOOLONG
}

func asErrno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}
