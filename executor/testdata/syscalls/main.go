// Command syscalls tries system calls that a sandbox must refuse or allow, and prints what the kernel said. With dial NETWORK ADDRESS it
// connects there instead.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func try(name string, nr uintptr, args ...uintptr) {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 {
		fmt.Println(name, "ok")
		return
	}
	fmt.Println(name, unix.ErrnoName(errno))
}

// dial says whether somebody listens there.
func dial(network, addr string) {
	c, err := net.Dial(network, addr)
	switch {
	case err == nil:
		c.Close()
		fmt.Println("connected")
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EADDRNOTAVAIL):
		fmt.Println("refused")
	case errors.Is(err, unix.ENETUNREACH):
		fmt.Println("unreachable")
	default:
		fmt.Println(err)
	}
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "dial" {
		dial(os.Args[2], os.Args[3])
		return
	}
	runtime.LockOSThread()
	empty := [64]byte{}
	p := uintptr(unsafe.Pointer(&empty[0]))
	try("mount", unix.SYS_MOUNT, p, p, p, 0, 0)
	try("unshare-user", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	try("unshare-ns", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	try("setns", unix.SYS_SETNS, 0, 0)
	try("pivot_root", unix.SYS_PIVOT_ROOT, p, p)
	try("keyctl", unix.SYS_KEYCTL, 0, 0)
	try("add_key", unix.SYS_ADD_KEY, p, p)
	try("bpf", unix.SYS_BPF, 0, p, 0)
	try("io_uring", unix.SYS_IO_URING_SETUP, 1, p)
	try("clone3", unix.SYS_CLONE3, p, 64)
	try("clone-newuser", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	try("af_inet", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM)
	try("af_unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)
	try("af_alg", unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET)
	try("af_vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
	try("personality-0", unix.SYS_PERSONALITY, 0)
	try("personality-bad", unix.SYS_PERSONALITY, 0x4000000)
	try("open_by_handle", unix.SYS_OPEN_BY_HANDLE_AT, 0, p, 0)
	try("kexec", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0)
	try("reboot", unix.SYS_REBOOT, 0, 0, 0, 0)
	try("swapon", unix.SYS_SWAPON, p, 0)
	try("getpid", unix.SYS_GETPID)
	try("unknown", 900)
	if unsafe.Sizeof(p) == 8 {
		high := uint64(1) << 32
		try("af_alg-high-bits", unix.SYS_SOCKET, uintptr(high)|unix.AF_ALG, unix.SOCK_SEQPACKET)
		if runtime.GOARCH == "amd64" {
			try("x32", 0x40000000|unix.SYS_GETPID)
		}
	}
}
