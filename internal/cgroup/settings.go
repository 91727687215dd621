package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// setting is one file of a group and what is written into it.
type setting struct {
	controller  string
	file, value string
	flag        string
	optional    bool // a kernel that does not have the file loses nothing
}

// settings translates the limits for one hierarchy. The order matters: v1 refuses a limit of memory and swap below that of memory.
func (l Limits) settings(v2 bool) []setting {
	if v2 {
		return l.settings2()
	}
	return l.settings1()
}

func (l Limits) settings1() []setting {
	var out []setting
	add := func(on bool, controller, file, value, flag string) {
		if on {
			out = append(out, setting{controller: controller, file: file, value: value, flag: flag})
		}
	}
	add(l.Memory != 0, memory, "memory.limit_in_bytes", decimal(l.Memory), "--memory")
	if l.MemorySwap != 0 {
		out = append(out, setting{memory, "memory.memsw.limit_in_bytes", decimal(l.MemorySwap), "--memory-swap", l.MemorySwap < 0 || !swapping()})
	}
	add(l.CPUPeriod != 0, cpu, "cpu.cfs_period_us", decimal(l.CPUPeriod), "--cpu-period")
	add(l.CPUQuota != 0, cpu, "cpu.cfs_quota_us", decimal(l.CPUQuota), "--cpus/--cpu-quota")
	add(l.CPUShares != 0, cpu, "cpu.shares", strconv.FormatUint(l.CPUShares, 10), "--cpu-shares")
	add(l.CPUs != "", cpuset, "cpuset.cpus", l.CPUs, "--cpuset-cpus")
	add(l.Mems != "", cpuset, "cpuset.mems", l.Mems, "--cpuset-mems")
	add(l.Pids != 0, pids, "pids.max", decimal(l.Pids), "--pids-limit")
	return out
}

func (l Limits) settings2() []setting {
	var out []setting
	add := func(on bool, controller, file, value, flag string) {
		if on {
			out = append(out, setting{controller: controller, file: file, value: value, flag: flag})
		}
	}
	add(l.Memory != 0, memory, "memory.max", decimal(l.Memory), "--memory")
	switch {
	case l.MemorySwap < 0:
		out = append(out, setting{memory, "memory.swap.max", "max", "--memory-swap", true})
	case l.MemorySwap > 0: // v2 counts swap alone
		out = append(out, setting{memory, "memory.swap.max", decimal(l.MemorySwap - l.Memory), "--memory-swap", !swapping()})
	}
	if l.CPUQuota != 0 || l.CPUPeriod != 0 {
		quota := "max"
		if l.CPUQuota > 0 {
			quota = decimal(l.CPUQuota)
		}
		add(true, cpu, "cpu.max", quota+" "+decimal(l.period()), "--cpus/--cpu-quota")
	}
	add(l.CPUShares != 0, cpu, "cpu.weight", strconv.FormatUint(weight(l.CPUShares), 10), "--cpu-shares")
	add(l.CPUs != "", cpuset, "cpuset.cpus", l.CPUs, "--cpuset-cpus")
	add(l.Mems != "", cpuset, "cpuset.mems", l.Mems, "--cpuset-mems")
	add(l.Pids != 0, pids, "pids.max", decimal(l.Pids), "--pids-limit")
	return out
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// weight maps the shares of v1, 2 to 262144, to the weights of v2, 1 to 10000, as the OCI runtimes do: linearly from end to end.
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

// swapping reports whether the machine has any swap.
func swapping() bool {
	b, err := os.ReadFile("/proc/swaps")
	return err != nil || strings.Count(string(b), "\n") > 1
}

// apply writes what concerns the controllers into the group.
func apply(dir string, settings []setting, controllers []string) error {
	for _, s := range settings {
		if !slices.Contains(controllers, s.controller) {
			continue
		}
		err := write(dir+"/"+s.file, s.value)
		if err == nil && s.controller == cpuset {
			err = effective(dir, s)
		}
		if err == nil || (s.optional && errors.Is(err, fs.ErrNotExist)) {
			continue
		}
		return &settingError{s, err}
	}
	return nil
}

// settingError says that a group did not take a value.
type settingError struct {
	setting
	err error
}

func (e *settingError) Error() string {
	return "write " + e.value + " to " + e.file + ": " + e.err.Error()
}
func (e *settingError) Unwrap() error { return e.err }

// badValue reports whether the value is to blame: who may open the file may write into it.
func (e *settingError) badValue() bool {
	var p *fs.PathError
	return errors.As(e.err, &p) && p.Op == "write"
}

// refused explains it. Nil means that the right to write the file is missing.
func (e *settingError) refused() *Error {
	switch {
	case errors.Is(e.err, errNotEffective):
		return &Error{What: e.flag + " " + e.value, Err: e.err}
	case e.badValue():
		return &Error{What: e.flag + " " + e.value, Blocker: "the kernel refuses the value", Err: e.err}
	case errors.Is(e.err, fs.ErrNotExist) && strings.Contains(e.file, "sw"):
		return &Error{What: e.flag, Blocker: "this kernel does not count swap", Fix: "boot with swapaccount=1, or leave the flag out", Err: e.err}
	case errors.Is(e.err, fs.ErrNotExist):
		return &Error{What: e.flag, Blocker: "this kernel cannot limit it", Err: e.err}
	}
	return nil
}

// errNotEffective says that a group of v2 took a value and goes by another.
var errNotEffective = errors.New("the groups above do not allow all of it")

// effective checks what cpuset of v2 made of a list: one outside of what the group above has is accepted and ignored.
func effective(dir string, s setting) error {
	got, err := os.ReadFile(dir + "/" + s.file + ".effective")
	if err != nil {
		return nil // v1, which refuses such a list
	}
	wanted, err := ParseList(s.value)
	if err != nil {
		return err
	}
	have, err := ParseList(strings.TrimSpace(string(got)))
	if err != nil {
		return err
	}
	for _, n := range wanted {
		if !slices.Contains(have, n) {
			return errNotEffective
		}
	}
	return nil
}

// write sets an existing file of a group. The kernel takes a value whole, by one call.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
