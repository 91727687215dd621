package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watch looks at the memory of a builder while it runs: the sum of the largest resident sizes (VmHWM) of those of its own
// processes that live at the same time. A builder's own processes are descendants of ours that execute one of its programs:
// the daemon and its client, or a build, its holder and its steps before they become their command. What a RUN executes, and
// the runc of peers, does not count.
//
// Looking costs CPU time, so there are fewer looks the longer a run lasts. rusage's maxrss would not do instead: a child
// inherits the largest size of whoever started it (exec_mmap in fs/exec.c), which is this program.
type watch struct {
	programs []string // resolved paths, as /proc/PID/exe shows them
	peak     int64    // KiB
}

// start begins to look, until the function that it returns is called.
func (w *watch) start() (stop func()) {
	if w == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		for {
			w.peak = max(w.peak, memoryOf(w.programs))
			select {
			case <-quit:
				return
			case <-time.After(lookAgain(time.Since(began))):
			}
		}
	}()
	return func() { close(quit); <-done }
}

// lookAgain is how long to wait for the next look after a run has lasted that long.
func lookAgain(lasted time.Duration) time.Duration {
	switch {
	case lasted < 100*time.Millisecond:
		return time.Millisecond
	case lasted < time.Second:
		return 5 * time.Millisecond
	}
	return 20 * time.Millisecond
}

// memoryOf is the sum of VmHWM, in KiB, over the live descendants of ours that execute one of the programs.
func memoryOf(programs []string) int64 {
	proc, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return 0
	}
	var sum int64
	var counted []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		target, err := os.Readlink("/proc/" + name + "/exe")
		if err != nil || !slices.Contains(programs, target) || !descendant(pid) ||
			slices.ContainsFunc(counted, func(other int) bool { return sameMemory(pid, other) }) {
			continue
		}
		counted = append(counted, pid)
		sum += statusField(pid, "VmHWM:")
	}
	return sum
}

// sameMemory reports whether two processes share their address space, as one that was forked for exec and its parent do.
func sameMemory(a, b int) bool {
	const kcmpVM = 1 // KCMP_VM of linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && order == 0
}

// descendant reports whether a process descends from ours.
func descendant(pid int) bool {
	self := int64(os.Getpid())
	for p := int64(pid); p > 1; p = statusField(int(p), "PPid:") {
		if p == self {
			return true
		}
	}
	return false
}

// statusField is a number of /proc/PID/status, 0 for one that is not there: the process has ended.
func statusField(pid int, name string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return fieldOf(string(data), name)
}

func fieldOf(status, name string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// forgetPeak makes a live process's VmHWM start again from what is resident now (proc_pid_clear_refs(5)).
func forgetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}
