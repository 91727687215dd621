// Package cgroup bounds what a step may use. It owns the control groups of the steps: where they are made, what is written into
// them, who notices that a process in them was killed for want of memory, and that they are removed, also those of a build that
// was killed.
//
// What this process may do is found out by doing it: cgroup v2 where a group was delegated to it, cgroup v1 as root, both at once
// on a hybrid machine, each controller by itself. Without limits nothing here is called and no group is touched.
//
// A limit that no group can hold becomes one of the weaker means that need no group (Fallback), and that is told; where there is
// none either, Open refuses with who is in the way and what would help. The package starts no process and moves none but its own:
// a process enters a group by CLONE_INTO_CGROUP or by writing into the files that Group hands out.
package cgroup

import (
	"fmt"
	"strings"
)

// The controllers that limits need, by the kernel's names.
const (
	memory = "memory"
	cpu    = "cpu"
	cpuset = "cpuset"
	pids   = "pids"
)

// Controllers are all that this package uses.
var Controllers = []string{memory, cpu, cpuset, pids}

// Limits bound one step: all its processes together. The zero value of a field is no limit.
type Limits struct {
	Memory     int64  // bytes
	MemorySwap int64  // bytes of memory and swap together, at least Memory; -1 is unlimited swap
	CPUQuota   int64  // microseconds of CPU time in each CPUPeriod
	CPUPeriod  int64  // microseconds; 0 is 100,000
	CPUShares  uint64 // relative weight, 1024 is the usual, 2 to 262144
	CPUs       string // the CPUs to run on, as in "0-2,7"
	Mems       string // the memory nodes to use
	Pids       int64  // processes and threads

	// Parent is the group below which the groups are made; "" is that of this process. It is a path in the hierarchy as it is seen
	// here, or the name of a systemd slice, alone or as SLICE:PREFIX: (what docker and BuildKit take).
	Parent string
}

// DefaultPeriod is the period in microseconds that a quota of CPU time refers to unless told otherwise.
const DefaultPeriod = 100_000

// Any reports whether anything is asked for.
func (l Limits) Any() bool { return l != Limits{} }

// period is the one that is in force.
func (l Limits) period() int64 {
	if l.CPUPeriod != 0 {
		return l.CPUPeriod
	}
	return DefaultPeriod
}

// needs lists the controllers that the limits need.
func (l Limits) needs() []string {
	var out []string
	for _, c := range Controllers {
		if len(l.flags(c)) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// flags names what was asked of a controller, as on the command line.
func (l Limits) flags(controller string) []string {
	var out []string
	add := func(on bool, flag string) {
		if on {
			out = append(out, flag)
		}
	}
	switch controller {
	case memory:
		add(l.Memory != 0, "--memory")
		add(l.MemorySwap != 0, "--memory-swap")
	case cpu:
		add(l.CPUQuota != 0, "--cpus/--cpu-quota")
		add(l.CPUPeriod != 0 && l.CPUQuota == 0, "--cpu-period")
		add(l.CPUShares != 0, "--cpu-shares")
	case cpuset:
		add(l.CPUs != "", "--cpuset-cpus")
		add(l.Mems != "", "--cpuset-mems")
	case pids:
		add(l.Pids != 0, "--pids-limit")
	}
	return out
}

// Error says what cannot be limited, what is in the way, and the smallest thing that would help.
type Error struct {
	What    string // a flag, or what was done
	Blocker string
	Fix     string // a command or a setting; may be empty
	Err     error  // what the kernel said; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.What)
	if e.Blocker != "" {
		b.WriteString(": " + e.Blocker)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Fix != "" {
		b.WriteString(" (fix: " + e.Fix + ")")
	}
	return b.String()
}

// Unwrap returns what the kernel said.
func (e *Error) Unwrap() error { return e.Err }
