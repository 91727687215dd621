package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Fallback is what takes the place of limits that no group keeps. All of it holds for one process at a time, or can be undone by
// it, and Notes says so.
type Fallback struct {
	Data  int64    // RLIMIT_DATA in bytes; 0: none. Not RLIMIT_AS: runtimes reserve address space that they never use
	Procs int64    // RLIMIT_NPROC; 0: none
	Notes []string // what the user has to be told

	cpus  []int // those that may be used
	count int   // how many of them, 0: no limit
	turn  int
}

// CPUs is the affinity of a step; nil is that of the caller. Where only a number is asked for each step gets others than the one
// before.
func (f Fallback) CPUs() []int {
	if f.count == 0 || f.count >= len(f.cpus) {
		return f.cpus
	}
	out := make([]int, f.count)
	for i := range out {
		out[i] = f.cpus[(f.turn*f.count+i)%len(f.cpus)]
	}
	return out
}

// fallback finds other means for the limits whose controllers are blocked.
func fallback(l Limits, not blocked) (Fallback, error) {
	var f Fallback
	if e := not[memory]; e != nil {
		if l.Memory == 0 {
			return f, refuse("--memory-swap", e)
		}
		f.Data = l.Memory
		f.note("--memory", "bounds the data of each process of a step by itself (RLIMIT_DATA) and not the step", e)
	}
	if e := not[pids]; e != nil {
		if hostRoot() {
			return f, refuse("--pids-limit", e)
		}
		f.Procs = l.Pids
		f.note("--pids-limit", "counts all processes and threads that this build has under the user of the step (RLIMIT_NPROC), those of other steps and of build itself included", e)
	}
	if e := not[cpu]; e != nil {
		if l.CPUShares != 0 {
			return f, refuse("--cpu-shares", e)
		}
		if err := f.affinity(l); err != nil {
			return f, err
		}
		if l.CPUQuota != 0 {
			f.note("--cpus/--cpu-quota", fmt.Sprintf("is rounded up to %d whole CPUs that a step starts on (sched_setaffinity); a program may choose others", f.count), e)
		}
	}
	if e := not[cpuset]; e != nil {
		if l.Mems != "" {
			return f, refuse("--cpuset-mems", e)
		}
		if err := f.affinity(l); err != nil {
			return f, err
		}
		f.note("--cpuset-cpus", "only says where a step starts (sched_setaffinity); a program may choose other CPUs", e)
	}
	return f, nil
}

func (f *Fallback) note(flag, instead string, e *Error) {
	f.Notes = append(f.Notes, fmt.Sprintf("%s %s: %v", flag, instead, e))
}

func refuse(flag string, e *Error) error {
	return &Error{What: flag + " needs a control group", Blocker: e.What + ": " + e.Blocker, Fix: e.Fix, Err: e.Err}
}

// affinity takes CPUs from --cpuset-cpus, or from all that this process may use.
func (f *Fallback) affinity(l Limits) error {
	list := l.CPUs
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return &Error{What: "--cpus", Blocker: "the CPUs of this process cannot be read", Err: err}
	}
	wanted, err := ParseList(list)
	if err != nil {
		return &Error{What: "--cpuset-cpus", Err: err}
	}
	if list == "" {
		for i := range len(set) * strconv.IntSize {
			wanted = append(wanted, i)
		}
	}
	f.cpus = nil
	for _, c := range wanted {
		if set.IsSet(c) {
			f.cpus = append(f.cpus, c)
		} else if list != "" {
			return &Error{What: "--cpuset-cpus " + list, Blocker: fmt.Sprintf("this process may not use CPU %d", c)}
		}
	}
	if l.CPUQuota > 0 {
		f.count = int((l.CPUQuota + l.period() - 1) / l.period())
	}
	return nil
}

// ParseList reads a list of numbers as the kernel's cpuset files have them: "0-2,7". Numbers are below 8192, the most CPUs that
// Linux can be built for.
func ParseList(s string) ([]int, error) {
	var out []int
	if s == "" {
		return nil, nil
	}
	for _, part := range strings.Split(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 13)
		b, err2 := strconv.ParseUint(last, 10, 13)
		if err1 != nil || err2 != nil || a > b {
			return nil, fmt.Errorf("%q is no list of numbers such as 0-2,7", s)
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	return out, nil
}

// hostRoot reports whether this is the root that RLIMIT_NPROC does not bind: user 0 of the first user namespace.
func hostRoot() bool {
	m := words("/proc/self/uid_map")
	return os.Geteuid() == 0 && len(m) == 3 && m[0] == "0" && m[1] == "0" && m[2] == "4294967295"
}
