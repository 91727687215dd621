package main

import (
	"encoding/csv"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"build/internal/build"
)

// resourceFlags bound what each RUN step may use. Names and forms are those of docker build; --resource is that of buildx, where
// the others are its old spelling; --cpus and --pids-limit are those of docker run.
type resourceFlags struct {
	memory, memorySwap     string
	cpus                   string
	cpuPeriod, cpuQuota    int64
	cpuShares              uint64
	cpusetCPUs, cpusetMems string
	pids                   int64
	parent                 string
	pairs                  []string
}

func (r *resourceFlags) define(fs *pflag.FlagSet) {
	fs.StringVarP(&r.memory, "memory", "m", "", "memory that each RUN step may use, `BYTES` with b, k, m or g")
	fs.StringVar(&r.memorySwap, "memory-swap", "", "memory and swap that each RUN step may use together, `BYTES` with b, k, m or g; -1 for any amount of swap")
	fs.StringVar(&r.cpus, "cpus", "", "`NUMBER` of CPUs' time that each RUN step may use, such as 1.5")
	fs.Int64Var(&r.cpuPeriod, "cpu-period", 0, "`MICROSECONDS` in which a RUN step may use --cpu-quota (default 100000)")
	fs.Int64Var(&r.cpuQuota, "cpu-quota", 0, "`MICROSECONDS` of CPU time that each RUN step may use in --cpu-period")
	fs.Uint64VarP(&r.cpuShares, "cpu-shares", "c", 0, "`WEIGHT` of each RUN step where CPUs are scarce; 1024 is the usual")
	fs.StringVar(&r.cpusetCPUs, "cpuset-cpus", "", "the `CPUS` that RUN steps run on, such as 0-2,7")
	fs.StringVar(&r.cpusetMems, "cpuset-mems", "", "the memory `NODES` that RUN steps use, such as 0,1")
	fs.Int64Var(&r.pids, "pids-limit", 0, "`NUMBER` of processes and threads that each RUN step may have; -1 for any")
	fs.StringVar(&r.parent, "cgroup-parent", "", "the control `GROUP` below which RUN steps run: a path, or NAME.slice")
	textsVar(fs, &r.pairs, "resource", "", "limits of each RUN step in one flag, `NAME=VALUE,…`: memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems (repeatable)")
}

// spread turns --resource into the flags that its pairs stand for.
func (r *resourceFlags) spread() error {
	for _, given := range r.pairs {
		pairs, err := csv.NewReader(strings.NewReader(given)).Read()
		if err != nil {
			return usagef("invalid --resource %q: the form is NAME=VALUE,…", given)
		}
		for _, pair := range pairs {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || value == "" {
				return usagef("invalid --resource %q: %q is not NAME=VALUE", given, pair)
			}
			if err := r.set(strings.TrimSpace(name), value); err != nil {
				return usagef("invalid --resource %q: %v", given, err)
			}
		}
	}
	return nil
}

func (r *resourceFlags) set(name, value string) (err error) {
	switch name {
	case "memory":
		r.memory = value
	case "memory-swap":
		r.memorySwap = value
	case "cpu-shares":
		r.cpuShares, err = strconv.ParseUint(value, 10, 64)
	case "cpu-period":
		r.cpuPeriod, err = strconv.ParseInt(value, 10, 64)
	case "cpu-quota":
		r.cpuQuota, err = strconv.ParseInt(value, 10, 64)
	case "cpuset-cpus":
		r.cpusetCPUs = value
	case "cpuset-mems":
		r.cpusetMems = value
	default:
		return usagef("the names are memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus and cpuset-mems")
	}
	if err != nil {
		return usagef("%s=%s is no number", name, value)
	}
	return nil
}

// leastMemory is what docker asks for at least: less does not even start a command.
const leastMemory = 6 << 20

func (f *buildFlags) fillResources(_ *app, o *build.Options) error {
	r := &f.resources
	if err := r.spread(); err != nil {
		return err
	}
	for _, part := range []func(*build.Limits) error{r.fillMemory, r.fillCPU, r.fillSets} {
		if err := part(&o.Limits); err != nil {
			return err
		}
	}
	return nil
}

func (r *resourceFlags) fillMemory(l *build.Limits) error {
	var err error
	if r.memory != "" && r.memory != "0" {
		if l.Memory, err = units.RAMInBytes(r.memory); err != nil {
			return usagef("invalid --memory %q: the form is a number and b, k, m or g", r.memory)
		}
		if l.Memory < leastMemory {
			return usagef("invalid --memory %q: the least is 6m, a command needs that to start", r.memory)
		}
	}
	switch r.memorySwap {
	case "", "0":
		return nil
	case "-1":
		l.MemorySwap = -1
	default:
		if l.MemorySwap, err = units.RAMInBytes(r.memorySwap); err != nil || l.MemorySwap < 0 {
			return usagef("invalid --memory-swap %q: the form is a number and b, k, m or g, or -1", r.memorySwap)
		}
	}
	if l.Memory == 0 {
		return usagef("--memory-swap needs --memory: it is the sum of both")
	}
	if l.MemorySwap > 0 && l.MemorySwap < l.Memory {
		return usagef("invalid --memory-swap %q: it is memory and swap together, and so not less than --memory %s", r.memorySwap, r.memory)
	}
	return nil
}

func (r *resourceFlags) fillCPU(l *build.Limits) error {
	// The kernel's bounds: a period of 1 ms to 1 s, a quota of at least 1 ms (Documentation/scheduler/sched-bwc.rst).
	switch {
	case r.cpuPeriod != 0 && (r.cpuPeriod < 1000 || r.cpuPeriod > 1_000_000):
		return usagef("invalid --cpu-period %d: it is 1000 to 1000000 microseconds", r.cpuPeriod)
	case r.cpuQuota < -1 || r.cpuQuota > 0 && r.cpuQuota < 1000:
		return usagef("invalid --cpu-quota %d: it is at least 1000 microseconds", r.cpuQuota)
	case r.cpuShares == 1 || r.cpuShares > 262144:
		return usagef("invalid --cpu-shares %d: it is 2 to 262144", r.cpuShares)
	}
	l.CPUPeriod, l.CPUShares = r.cpuPeriod, r.cpuShares
	if r.cpuQuota > 0 {
		l.CPUQuota = r.cpuQuota
	}
	if r.cpus == "" || r.cpus == "0" {
		return nil
	}
	if r.cpuPeriod != 0 || r.cpuQuota != 0 {
		return usagef("--cpus and --cpu-period or --cpu-quota say the same: leave one of them out")
	}
	n, err := strconv.ParseFloat(r.cpus, 64)
	if err != nil || !(n >= 0.01 && n <= 8192) {
		return usagef("invalid --cpus %q: it is a number such as 1.5, at least 0.01", r.cpus)
	}
	l.CPUQuota, l.CPUPeriod = int64(math.Round(n*build.DefaultCPUPeriod)), build.DefaultCPUPeriod
	return nil
}

func (r *resourceFlags) fillSets(l *build.Limits) error {
	for flag, value := range map[string]string{"--cpuset-cpus": r.cpusetCPUs, "--cpuset-mems": r.cpusetMems} {
		if err := build.CheckCPUList(value); err != nil {
			return usagef("invalid %s: %v", flag, err)
		}
	}
	l.CPUs, l.Mems = r.cpusetCPUs, r.cpusetMems
	switch {
	case r.pids < -1:
		return usagef("invalid --pids-limit %d: it is a number, or -1 for any", r.pids)
	case r.pids > 0:
		l.Pids = r.pids
	}
	if r.parent != "" {
		if err := build.CheckCgroupParent(r.parent); err != nil {
			return usagef("invalid %v", err)
		}
		l.Parent = r.parent
	}
	return nil
}
