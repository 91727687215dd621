package executor

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// devices is what /dev of a sandbox holds, as in other runtimes.
var devices = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
}

// device returns a detached mount of a device node. Where the kernel lets us, which is as real root, the node is made for this
// step: a step may then change its mode and owner as in any container. Otherwise it is the host's, read-only, which for a device
// is about the node and not about what is behind it: a step that is the owner's equal cannot chmod the host's /dev/null.
func (t *tree) device(name string, major, minor uint32) (int, error) {
	node := "dev-" + name
	err := unix.Mknodat(t.scratch, node, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
	if err != nil && err != unix.EEXIST { // EPERM: no node of ours can be made, or would work, here
		fd, err := openDevice(name, major, minor)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		return cloneFD(fd, 0, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	}
	if err := unix.Fchmodat(t.scratch, node, 0o666, 0); err != nil { // whatever the umask
		return -1, err
	}
	fd, err := unix.Openat(t.scratch, node, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	mnt, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, err
	}
	err = unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Attr_clr: unix.MOUNT_ATTR_NODEV,
	})
	if err != nil {
		unix.Close(mnt)
		return -1, err
	}
	return mnt, nil
}

func openDevice(name string, major, minor uint32) (int, error) {
	fd, err := unix.Open("/dev/"+name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := checkDevice(fd, major, minor); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("/dev/%s of the host: %w", name, err)
	}
	return fd, nil
}

func checkDevice(fd int, major, minor uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(major, minor) {
		return fmt.Errorf("not device %d:%d", major, minor)
	}
	return nil
}

// bindDevice puts a device on a name of a directory.
func (t *tree) bindDevice(dev int, name string, major, minor uint32) error {
	fd, err := unix.Openat(dev, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return err
	}
	unix.Close(fd)
	target, err := unix.Openat(dev, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m, err := t.device(name, major, minor)
	if err != nil {
		unix.Close(target)
		return err
	}
	return attach(m, target)
}

// ownNull replaces standard files that are /dev/null by the /dev/null of the sandbox, whose directory /dev is given. Through
// those that came with the process a step could change the mode of the host's: "chmod 600 /dev/stdin" goes through the
// descriptor, and no mount of ours is in between.
func ownNull(dev int) error {
	for fd := range initSocket {
		if checkDevice(fd, 1, 3) != nil {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		own, err := unix.Openat(dev, "null", flags&unix.O_ACCMODE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = checkDevice(own, 1, 3)
		if err == nil {
			err = unix.Dup3(own, fd, 0)
		}
		unix.Close(own)
		if err != nil {
			return errors.New("standard file " + strconv.Itoa(fd) + ": " + err.Error())
		}
	}
	return nil
}
