package cgroup

import (
	"math"
	"path"
	"slices"
	"strconv"
	"sync"
)

// Usage is what a step's group says about memory. Zero values are unknown, or none.
type Usage struct {
	OOMKills int64  // processes killed by the kernel for want of memory
	Peak     int64  // bytes; v2 tells it since Linux 5.19
	Limit    int64  // bytes; after a kill that which was reached
	Above    string // the group that sets Limit, when it is not the step's
}

// Memory reads what has been used. ok is false when no memory controller is in the group.
func (g *Group) Memory() (u Usage, ok bool) {
	for _, n := range g.nodes {
		dir := n.dir.Name()
		kills, found := counter(n.h, dir, "oom_kill")
		if !found {
			continue
		}
		u.OOMKills = kills
		u.Limit = limitOf(n.h, dir)
		var reached int64
		if n.h.v2 {
			u.Peak = number(dir + "/memory.peak")
			reached, _ = counter(n.h, dir, "max")
		} else {
			u.Peak = number(dir + "/memory.max_usage_in_bytes")
			reached = number(dir + "/memory.failcnt") // stays 0 where memory and swap together are what was reached
		}
		if kills > 0 && reached == 0 && u.Peak < u.Limit-u.Limit/16 { // the limit of somebody above, whom others may have brought there
			u.Limit, u.Above = lowest(n.h, path.Dir(dir))
		}
		return u, true
	}
	return u, false
}

// Refused is how often the group's limit of processes refused a new one.
func (g *Group) Refused() int64 {
	for _, n := range g.nodes {
		if w := words(n.dir.Name() + "/pids.events"); len(w) >= 2 && w[0] == "max" {
			refused, _ := strconv.ParseInt(w[1], 10, 64)
			return refused
		}
	}
	return 0
}

// counter reads a counter of events: from memory.events of v2, which counts those in groups below, too, and memory.oom_control of
// v1, which does not. Both have oom_kill (v1 since Linux 4.13), whoever's limit it was.
func counter(h *hierarchy, dir, name string) (int64, bool) {
	file := dir + "/memory.events"
	if !h.v2 {
		if !slices.Contains(h.controllers, memory) {
			return 0, false
		}
		file = dir + "/memory.oom_control"
	}
	w := words(file)
	for i := 0; i+1 < len(w); i += 2 {
		if w[i] == name {
			n, err := strconv.ParseInt(w[i+1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// number reads a file with one number; 0 is unknown or unlimited.
func number(file string) int64 {
	w := words(file)
	if len(w) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(w[0], 10, 64)
	return n
}

// limitOf is the limit that a group sets itself; 0 is none, which v1 writes as a number near the largest.
func limitOf(h *hierarchy, dir string) int64 {
	if h.v2 {
		return number(dir + "/memory.max")
	}
	if n := number(dir + "/memory.limit_in_bytes"); n < math.MaxInt64/2 {
		return n
	}
	return 0
}

// lowest finds the lowest limit of a group and those above it that can be seen, and which sets it.
func lowest(h *hierarchy, dir string) (limit int64, where string) {
	for ; ; dir = path.Dir(dir) {
		if l := limitOf(h, dir); l > 0 && (limit == 0 || l < limit) {
			limit, where = l, dir
		}
		if len(dir) <= len(h.mount) {
			return limit, where
		}
	}
}

// Watch notices that processes of the group this process is in are killed for want of memory: steps without a limit of their own
// are in it, and a limit of the container around the build is met there.
type Watch struct {
	h   *hierarchy
	dir string

	mu    sync.Mutex
	kills int64
}

// NewWatch begins to watch. It is nil, and may be used so, where no group of this process counts its memory.
func NewWatch() *Watch {
	lay, err := look("/proc")
	if err != nil {
		return nil
	}
	w := &Watch{h: lay.v1[memory]}
	if w.h == nil {
		w.h = lay.v2
	}
	if w.h == nil {
		return nil
	}
	w.dir = w.h.own
	if path.Base(w.dir) == mainGroup && w.h.v2 && w.dir != w.h.mount {
		w.dir = path.Dir(w.dir) // the groups of the steps are beside it
	}
	var ok bool
	if w.kills, ok = counter(w.h, w.dir, "oom_kill"); !ok {
		return nil
	}
	return w
}

// Killed reports how many processes were killed since it was called last, and the lowest limit that holds for the group, in
// bytes, with the group that sets it. A limit of 0 means that none is to be seen from here.
func (w *Watch) Killed() (n, limit int64, where string) {
	if w == nil {
		return 0, 0, ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now, ok := counter(w.h, w.dir, "oom_kill")
	if !ok {
		return 0, 0, ""
	}
	n, w.kills = now-w.kills, now
	limit, where = lowest(w.h, w.dir)
	return n, limit, where
}

// CPUs is the CPU time per second that the groups of this process allow, the lowest of all it can see; 0 is no limit. The Go
// runtime looks at the innermost group alone, and never goes below 2.
func CPUs() float64 { return cpus("/proc") }

func cpus(proc string) float64 {
	lay, err := look(proc)
	if err != nil {
		return 0
	}
	h := lay.v1[cpu]
	if h == nil {
		h = lay.v2
	}
	if h == nil {
		return 0
	}
	lowest := 0.0
	for dir := h.own; ; dir = path.Dir(dir) {
		quota, period := 0.0, 0.0
		if w := words(dir + "/cpu.max"); h.v2 && len(w) == 2 {
			quota, _ = strconv.ParseFloat(w[0], 64) // "max" is 0
			period, _ = strconv.ParseFloat(w[1], 64)
		} else if !h.v2 {
			quota, period = float64(number(dir+"/cpu.cfs_quota_us")), float64(number(dir+"/cpu.cfs_period_us"))
		}
		if quota > 0 && period > 0 && (lowest == 0 || quota/period < lowest) {
			lowest = quota / period
		}
		if len(dir) <= len(h.mount) {
			return lowest
		}
	}
}
