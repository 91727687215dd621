package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one run.
type sample struct {
	Wall    float64 `json:"wall"`              // seconds
	CPU     float64 `json:"cpu"`               // seconds, of every process the run was made of
	PeakMiB float64 `json:"peakMiB,omitempty"` // only of the run that memory was looked at
}

// sampleEvery is how often memory is looked at.
const sampleEvery = 3 * time.Millisecond

// measure runs commands one after another. CPU time is that of all processes they and the daemon left behind, which end
// as children of ours or the daemon's. With memory set, the builder's own processes, those that run one of the programs,
// are watched.
func measure(ctx context.Context, cmds []*exec.Cmd, daemon int, memory bool, programs []string) (*sample, error) {
	before, err := childrenCPU()
	if err != nil {
		return nil, err
	}
	daemonBefore := processCPU(daemon)
	watch := startWatch(memory, programs)
	began := time.Now()
	var largest int64
	for _, cmd := range cmds {
		out, err := cmd.CombinedOutput()
		if err != nil {
			watch.stop()
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(out))
		}
		if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			largest = max(largest, u.Maxrss)
		}
	}
	wall := time.Since(began)
	peak := watch.stop()
	reap()
	after, err := childrenCPU()
	if err != nil {
		return nil, err
	}
	s := &sample{Wall: wall.Seconds(), CPU: (after - before + processCPU(daemon) - daemonBefore).Seconds()}
	if memory {
		s.PeakMiB = float64(max(peak, largest)) / 1024
	}
	return s, nil
}

func tail(out []byte) []byte {
	if len(out) > 4000 {
		return out[len(out)-4000:]
	}
	return out
}

// reap waits for orphans that became our children, so that their time is counted.
func reap() {
	for range 50 {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != nil {
			return
		}
		if pid == 0 {
			return // what is left is alive: a daemon, the registry
		}
	}
}

// childrenCPU is the CPU time of all processes that ended as our children, and of theirs.
func childrenCPU() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// processCPU is the CPU time of a running process and of its children that have ended; 0 for no process.
func processCPU(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on every architecture Go runs on
}

// watcher looks at the memory of processes while a run lasts.
type watcher struct {
	quit chan struct{}
	peak chan int64
}

func startWatch(on bool, programs []string) *watcher {
	w := &watcher{quit: make(chan struct{}), peak: make(chan int64, 1)}
	if !on {
		w.peak <- 0
		return w
	}
	go func() {
		var peak int64
		for {
			peak = max(peak, memoryOf(programs))
			select {
			case <-w.quit:
				w.peak <- peak
				return
			case <-time.After(sampleEvery):
			}
		}
	}()
	return w
}

func (w *watcher) stop() int64 {
	close(w.quit)
	return <-w.peak
}

// memoryOf is the sum of the largest resident sizes (VmHWM, KiB) of the live processes that run one of the programs.
func memoryOf(programs []string) int64 {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0
	}
	var sum int64
	for _, exe := range exes {
		target, err := os.Readlink(exe)
		if err != nil {
			continue
		}
		for _, p := range programs {
			if target == p {
				sum += highWater(filepath.Dir(exe))
			}
		}
	}
	return sum
}

func highWater(proc string) int64 {
	data, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib
		}
	}
	return 0
}

// waitFor polls until ready reports success.
func waitFor(ctx context.Context, what string, ready func() bool) error {
	for range 600 {
		if ready() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.New(what + " does not answer")
}
