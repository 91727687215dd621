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
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one run.
type sample struct {
	Wall float64 `json:"wall"` // seconds
	CPU  float64 `json:"cpu"`  // seconds, user and system, of every process the run was made of
	Load float64 `json:"load"` // the machine's load average of the last minute when it ended
}

// invocation is what one build consists of: commands that run one after another.
type invocation []*exec.Cmd

// measure starts the invocations at the same time and waits for all of them. CPU time is that of every process that they and
// the daemon left behind, which end as children of ours or of the daemon: the builder's own, and those of RUN. daemon is 0
// where there is none. watch, where it is not nil, looks at memory meanwhile.
func measure(ctx context.Context, builds []invocation, daemon int, watch *watch) (sample, error) {
	before, err := cpuSoFar(daemon)
	if err != nil {
		return sample{}, err
	}
	stop := watch.start()
	began := time.Now()
	failed := runAll(builds)
	wall := time.Since(began)
	stop()
	if failed != nil {
		return sample{}, failed
	}
	if err := reapStrays(ctx, daemon); err != nil {
		return sample{}, err
	}
	after, err := cpuSoFar(daemon)
	if err != nil {
		return sample{}, err
	}
	return sample{Wall: wall.Seconds(), CPU: (after - before).Seconds(), Load: load()}, nil
}

func runAll(builds []invocation) error {
	errs := make([]error, len(builds))
	var all sync.WaitGroup
	for i, build := range builds {
		all.Go(func() {
			for _, cmd := range build {
				if out, err := cmd.CombinedOutput(); err != nil {
					errs[i] = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, tail(out))
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func tail(out []byte) []byte {
	const enough = 4000
	return out[max(0, len(out)-enough):]
}

// cpuSoFar is the CPU time of all processes that ended as our children (and of theirs), and of the daemon and its children.
func cpuSoFar(daemon int) (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	ours := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if daemon == 0 {
		return ours, nil
	}
	theirs, err := processCPU(daemon)
	return ours + theirs, err
}

// processCPU is the CPU time of a live process, and of its children that have ended. The process's own is exact (its CPU
// clock: clock_getcpuclockid(3), of which CPUCLOCK_SCHED is 2); its children's is in ticks of 10 ms (proc_pid_stat(5)).
func processCPU(pid int) (time.Duration, error) {
	var own unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &own); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	children, err := childTicks(string(stat))
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return time.Duration(own.Nano()) + children, nil
}

// childTicks reads cutime and cstime, fields 16 and 17, from a line of /proc/PID/stat.
func childTicks(stat string) (time.Duration, error) {
	// The second field is a name in parentheses, which may hold anything.
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	const cutime, userHz = 16 - 3, 100 // USER_HZ is 100 wherever Go runs
	if end < 0 || len(fields) < cutime+2 {
		return 0, errors.New("too few fields")
	}
	var ticks int64
	for _, f := range fields[cutime : cutime+2] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHz), nil
}

// reapStrays waits for processes that a build left behind and that became our children (we are their subreaper): what they
// do belongs to the run's account. The daemon and the registry are children, too, and stay.
func reapStrays(ctx context.Context, daemon int) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
		left, err := strays(daemon)
		if err != nil || len(left) == 0 {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v were left behind and go on for more than 10 s: their CPU time is unknown", left)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// strays are our children other than the daemon and those that were registered as staying.
func strays(daemon int) ([]int, error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	var left []int
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that has ended; its children are another's now
		}
		for _, f := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list, err)
			}
			if pid != daemon && !staying.has(pid) {
				left = append(left, pid)
			}
		}
	}
	return left, nil
}

// staying are children that outlive runs: the registry, daemons.
var staying pids

type pids struct{ m sync.Map }

func (p *pids) add(pid int)      { p.m.Store(pid, true) }
func (p *pids) has(pid int) bool { _, ok := p.m.Load(pid); return ok }
func (p *pids) drop(pid int)     { p.m.Delete(pid) }

// load is the load average of the last minute, 0 where it cannot be read.
func load() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	f, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return f
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

// output runs a command and returns what it printed; on failure that is part of the error.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail(out))
	}
	return out, nil
}
