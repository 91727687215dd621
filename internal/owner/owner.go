// Package owner keeps beside a file what the kernel would not keep in it: an owner that is not mapped in this user namespace, and
// which device a file stands for. Whoever unpacks layers writes these records, whoever answers for a step's system calls reads and
// changes them, and whoever turns changes into a layer reads them again.
//
// A record lives in an extended attribute of the file, so that it follows the file through rename, hard link and copy-up, and is
// there after a crash. Symbolic links, fifos and sockets cannot carry attributes of users; theirs are in a table by inode (Nodes).
//
// Which owners can stand on disk, and when a record counts, is a Map's to say; which owner a file should have is its callers'
// business.
package owner

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Xattr is the attribute that holds a record. Layers never contain attributes of this prefix.
const Xattr = "user.build.owner"

// Record is what a file should be. The permission bits are not in it: the kernel keeps those for anybody.
type Record struct {
	UID, GID uint32
	// Type is S_IFCHR or S_IFBLK for an empty regular file that stands for a device, otherwise 0.
	Type uint32
	// Rdev is the number of that device.
	Rdev uint64
}

// Get returns the record of an open regular file or directory. The descriptor may be O_PATH. What is no record of ours is as
// good as none.
func Get(fd int) (Record, bool, error) { return GetPath(procPath(fd)) }

// GetPath is Get of a file by a name, whose last link is followed.
func GetPath(path string) (Record, bool, error) {
	var buf [64]byte
	n, err := unix.Getxattr(path, Xattr, buf[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EPERM):
		return Record{}, false, nil
	case err != nil:
		return Record{}, false, fmt.Errorf("read the owner's record: %w", err)
	}
	r, ok := parse(string(buf[:n]))
	return r, ok, nil
}

// Set writes the record of an open regular file or directory. The descriptor may be O_PATH.
func Set(fd int, r Record) error { return SetPath(procPath(fd), r) }

// SetPath is Set of a file by a name, whose last link is followed.
func SetPath(path string, r Record) error {
	if err := unix.Setxattr(path, Xattr, []byte(r.String()), 0); err != nil {
		return fmt.Errorf("record the owner %d:%d: %w", r.UID, r.GID, err)
	}
	return nil
}

// Clear removes the record of an open file. That there is none is no error.
func Clear(fd int) error { return ClearPath(procPath(fd)) }

// ClearPath is Clear of a file by a name, whose last link is followed.
func ClearPath(path string) error {
	err := unix.Removexattr(path, Xattr)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return fmt.Errorf("remove the owner's record: %w", err)
}

// procPath names an open file to calls that take no O_PATH descriptor.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// String is the form of a record on disk: "uid gid", or "uid gid c|b major minor".
func (r Record) String() string {
	s := strconv.FormatUint(uint64(r.UID), 10) + " " + strconv.FormatUint(uint64(r.GID), 10)
	if r.Type == 0 {
		return s
	}
	kind := " c "
	if r.Type == unix.S_IFBLK {
		kind = " b "
	}
	return s + kind + strconv.FormatUint(uint64(unix.Major(r.Rdev)), 10) + " " + strconv.FormatUint(uint64(unix.Minor(r.Rdev)), 10)
}

func parse(s string) (Record, bool) {
	f := strings.Split(s, " ")
	if len(f) != 2 && len(f) != 5 {
		return Record{}, false
	}
	kind := ""
	if len(f) == 5 {
		kind = f[2]
		f = append(f[:2], f[3:]...)
	}
	var n [4]uint32
	for i, v := range f {
		u, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return Record{}, false
		}
		n[i] = uint32(u)
	}
	r := Record{UID: n[0], GID: n[1]}
	switch kind {
	case "":
		return r, true
	case "c":
		r.Type = unix.S_IFCHR
	case "b":
		r.Type = unix.S_IFBLK
	default:
		return Record{}, false
	}
	r.Rdev = unix.Mkdev(n[2], n[3])
	return r, true
}
