package executor

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Socket is a listening unix socket in memory: it is on no disk, and it is gone with the step, however that ends. Who listens
// is the caller's business: the listening end is sent over Hand, in a message of one byte, before the command starts.
type Socket struct {
	Hand     int    // descriptor of a connected unix socket of the process that calls Run
	Mode     uint32 // who may connect: the write bits
	UID, GID uint32
}

func (Socket) source() {}

// socketBacklog is how many connections wait for the listener: programs that log in to many hosts at a time.
const socketBacklog = 64

// socket makes a socket on the step's memory file system and hands over its listening end.
func (s *sources) socket(target string, k Socket) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name := strconv.Itoa(s.count)
	s.count++
	// bind(2) knows no directory descriptor, and the file system is attached nowhere.
	addr := &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(s.memory) + "/" + name}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	at, err := unix.Openat(s.memory, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	if err := s.records.Give(at, k.UID, k.GID); err != nil {
		return err
	}
	if err := unix.Fchmodat(s.memory, name, k.Mode&0o777, 0); err != nil {
		return err
	}
	if err := unix.Listen(fd, socketBacklog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := unix.Sendmsg(k.Hand, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand over the listening end: %w", err)
	}
	s.mounts = append(s.mounts, preparedMount{
		Target: target, FD: -1, Memory: name, Attrs: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
	})
	return nil
}
