package executor

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// execve is execve(2). syscall.Exec also gives back the limit of open files that the runtime raised at its start.
func execve(path string, args, env []string) error {
	return syscall.Exec(path, args, env)
}

// sigaction is the kernel's struct; only the handler matters here.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// resetSignals gives ignored signals their default action and unblocks all: what the builder's caller chose to ignore (a shell's
// background job ignores SIGINT, nohup ignores SIGHUP) is not the step's business. Handlers go with execve anyway.
func resetSignals() {
	const sigIgn = 1
	for sig := uintptr(1); sig <= 64; sig++ {
		var old sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
		if errno == 0 && old.handler == sigIgn {
			var def sigaction
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0)
		}
	}
	var none uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
}
