package fakeroot

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's structures, of linux/seccomp.h. x/sys has their numbers only.

// notification is struct seccomp_notif: a system call that waits for an answer.
type notification struct {
	id    uint64
	pid   uint32 // thread id in the pid namespace of whoever reads; 0 if it is not there
	flags uint32
	data  struct {
		nr   int32
		arch uint32
		ip   uint64
		args [6]uint64
	}
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

// checkSizes refuses a kernel whose structures are larger than ours, which it would write past.
func checkSizes() error {
	var sizes struct{ notif, resp, data uint16 }
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes)))
	if errno != 0 {
		return fmt.Errorf("ask for the sizes of seccomp notifications: %w", errno)
	}
	if uintptr(sizes.notif) != unsafe.Sizeof(notification{}) || uintptr(sizes.resp) != unsafe.Sizeof(response{}) {
		return errors.New("this kernel's seccomp notifications have another layout than this program knows")
	}
	return nil
}

func ioctl(fd int, request uint, arg unsafe.Pointer) (int, unix.Errno) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
	return int(r), errno
}

// hurry asks the kernel to continue a caller on the CPU of whoever answers it. Kernels before 6.6 have their own mind.
func hurry(listener int) {
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
}

// next waits for a call. It returns false at the end: when nobody is left who could call, or stop was written to.
func (s *Supervisor) next(n *notification) (bool, error) {
	for {
		fds := [2]unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}, {Fd: int32(s.stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds[:], -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return false, fmt.Errorf("wait for system calls: %w", err)
		}
		if fds[1].Revents != 0 || fds[0].Revents&unix.POLLIN == 0 {
			return false, nil
		}
		*n = notification{}
		_, errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n))
		switch errno {
		case 0:
			return true, nil
		case unix.ENOENT, unix.EINTR: // the caller was killed, or interrupted, before we came
		default:
			return false, fmt.Errorf("receive a system call: %w", errno)
		}
	}
}

// answer ends a call. That its caller has gone is no error.
func (s *Supervisor) answer(id uint64, r reply) error {
	resp := response{id: id, val: r.val, err: -int32(r.errno)}
	switch {
	case r.sent:
		return nil
	case r.proceed:
		resp = response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	case r.errno != 0:
		resp.val = 0
	}
	_, errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&resp))
	runtime.KeepAlive(&resp)
	if errno != 0 && errno != unix.ENOENT && errno != unix.EINPROGRESS {
		return fmt.Errorf("answer a system call: %w", errno)
	}
	return nil
}

// valid reports whether the caller still waits. What was read through its thread id before that is its own then.
func (s *Supervisor) valid(id uint64) bool {
	_, errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id))
	runtime.KeepAlive(&id)
	return errno == 0
}

// giveFD makes a copy of our descriptor the result of the call: in one step where the kernel can (5.14), so that no descriptor
// is left in a caller that was interrupted in between.
func (s *Supervisor) giveFD(id uint64, fd int, flags uint32) reply {
	a := addFD{id: id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, srcFD: uint32(fd), newFDFlags: flags}
	_, errno := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
	if errno == unix.EINVAL {
		a.flags = 0
		n, e := ioctl(s.listener, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
		if e == 0 {
			return value(int64(n))
		}
		errno = e
	}
	runtime.KeepAlive(&a)
	switch errno {
	case 0, unix.ENOENT: // answered, or nobody is there to be answered
		return reply{sent: true}
	}
	return failed(errno) // EMFILE, for one, is the caller's
}
