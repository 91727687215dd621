package fakeroot

import (
	"bytes"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// changeXattr keeps the step's hands off records: a copy of all attributes of a file is not to copy whose it is. Setting one
// seems to work, because programs that copy attributes stop at an error. arg is the position of the name.
func (c *call) changeXattr(arg int) reply {
	name, errno := c.text(c.at(arg))
	if errno == 0 && name == owner.Xattr {
		return value(0)
	}
	return proceed()
}

// listXattr lists attributes without our own.
func (c *call) listXattr(w where) reply {
	if c.unrecorded(w) {
		return proceed()
	}
	fd, err := c.resolve(w, 0)
	if err != nil {
		return proceed()
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return proceed()
	}
	path := c.name(fd)
	if n, err := unix.Getxattr(path, owner.Xattr, nil); err != nil || n == 0 {
		return proceed()
	}
	const maxList = 65536 // XATTR_LIST_MAX
	list := make([]byte, maxList)
	n, err := unix.Listxattr(path, list)
	if err != nil {
		return failed(asErrno(err))
	}
	list = withoutOurs(list[:n])
	addr, size := c.args[1], c.args[2]
	switch {
	case size == 0:
	case size < uint64(len(list)):
		return failed(unix.ERANGE)
	default:
		if errno := c.write(addr, list); errno != 0 {
			return failed(errno)
		}
	}
	return value(int64(len(list)))
}

func withoutOurs(list []byte) []byte {
	var out []byte
	for name := range bytes.SplitSeq(list, []byte{0}) {
		if len(name) > 0 && string(name) != owner.Xattr {
			out = append(append(out, name...), 0)
		}
	}
	return out
}
