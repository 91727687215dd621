package executor

import (
	"slices"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// The kernel's seccomp_notif, seccomp_notif_resp and seccomp_notif_addfd (linux/seccomp.h).
type notification struct {
	id    uint64
	pid   uint32 // of the thread
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

type injection struct {
	id         uint64
	flags      uint32
	src        uint32
	newFD      uint32
	newFDFlags uint32
}

// noDirectory is AT_FDCWD as the int that it is declared to be.
const noDirectory = 1<<32 + unix.AT_FDCWD

// watchFilter lets a listener decide about the given system calls of this machine's own ABI, and allows everything else. Of the
// calls that take a directory it means those without one: programs that walk trees, and those that examine an open file, pay
// nothing.
func watchFilter(names, withDirectory []string) ([]unix.SockFilter, error) {
	abis, err := bpf.HostABIs()
	if err != nil {
		return nil, err
	}
	native := abis[0]
	table := map[uint32][]rule{}
	for _, n := range slices.Concat(names, withDirectory) {
		nr, ok := native.Numbers[n]
		if !ok {
			continue // newer architectures do without some
		}
		r := rule{action: unix.SECCOMP_RET_USER_NOTIF}
		if slices.Contains(withDirectory, n) {
			r.args = []comparison{{specs.LinuxSeccompArg{Index: 0, Value: noDirectory, Op: specs.OpEqualTo}, true}}
		}
		table[nr] = []rule{r}
	}
	a := assembler{&bpf.Assembler{}}
	a.Load(bpf.DataArch)
	foreign := a.NewLabel()
	a.JumpIf(unix.BPF_JEQ, native.Audit, bpf.FallThrough, foreign)
	a.Load(bpf.DataNr)
	a.search(ranges(table, unix.SECCOMP_RET_ALLOW), native.Bits, unix.SECCOMP_RET_ALLOW)
	a.Place(foreign)
	a.Ret(unix.SECCOMP_RET_ALLOW)
	return a.Assemble()
}

// What x/sys does not have (linux/seccomp.h).
const (
	ioctlNotifValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	ioctlNotifAddFD = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD
)

// listener is the other end of a filter.
type listener int

// next waits for a call. It fails for good only when nobody is left who could call.
func (l listener) next(n *notification) error {
	for {
		*n = notification{}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(n)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.ENOENT: // the caller was killed while we were told; or nobody is left
			fds := []unix.PollFd{{Fd: int32(l), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLHUP != 0 {
				return errno
			}
			continue
		}
		return errno
	}
}

// send answers; a caller that is gone by now needs none.
func (l listener) send(a *answer) {
	unix.Syscall(unix.SYS_IOCTL, uintptr(l), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(a)))
}

// pass lets the kernel make the call.
func (l listener) pass(n *notification) {
	l.send(&answer{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func (l listener) fail(n *notification, errno unix.Errno) {
	l.send(&answer{id: n.id, err: -int32(errno)})
}

func (l listener) succeed(n *notification, val int64) { l.send(&answer{id: n.id, val: val}) }

// valid reports whether the caller still waits, and so whether its pid was its own all the time.
func (l listener) valid(n *notification) bool {
	id := n.id
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifValid, uintptr(unsafe.Pointer(&id)))
	return errno == 0
}

// give makes fd a descriptor of the caller and its number the call's result (Linux 5.14).
func (l listener) give(n *notification, fd int, cloexec bool) {
	in := injection{id: n.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, src: uint32(fd)}
	if cloexec {
		in.newFDFlags = unix.O_CLOEXEC
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(l), ioctlNotifAddFD, uintptr(unsafe.Pointer(&in)))
	if errno != 0 {
		l.fail(n, errno)
	}
}

// memory is that of a caller.
type memory int

// text reads a string that ends with a zero byte, at most a path long.
func (m memory) text(addr uint64) (string, error) {
	const page = 4096
	var buf [unix.PathMax]byte
	have, want := 0, 256 // nearly all paths
	for have < len(buf) {
		// Pages are there or not, so no read crosses the end of one.
		n := min(page-int((addr+uint64(have))%page), want, len(buf)-have)
		want = page
		got, err := unix.ProcessVMReadv(int(m), []unix.Iovec{{Base: &buf[have], Len: uint64(n)}}, []unix.RemoteIovec{{Base: uintptr(addr) + uintptr(have), Len: n}}, 0)
		if err != nil {
			return "", err
		}
		for i, c := range buf[have : have+got] {
			if c == 0 {
				return string(buf[:have+i]), nil
			}
		}
		have += got
	}
	return "", unix.ENAMETOOLONG
}

func (m memory) write(addr uint64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	n, err := unix.ProcessVMWritev(int(m), []unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(data)}}, 0)
	if err == nil && n != len(data) {
		err = unix.EFAULT
	}
	return err
}
