package userns

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweep kills everything that descends from this process, which is a child subreaper, and waits until it is gone. A process that
// forks while others are killed leaves its child to us, so one round follows the other until there is nobody.
func sweep() {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		for _, pid := range children(os.Getpid()) {
			killTree(pid)
		}
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.ECHILD {
				return
			}
			if pid <= 0 && err != unix.EINTR {
				break
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// killTree kills a process and what it started, stopped first so that it cannot start more.
func killTree(pid int) {
	_ = unix.Kill(pid, unix.SIGSTOP)
	for _, c := range children(pid) {
		killTree(c)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
}

// children lists the processes whose parent is pid.
func children(pid int) []int {
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil
	}
	var out []int
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}
