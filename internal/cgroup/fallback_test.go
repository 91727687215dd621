package cgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// Every limit without a group becomes something else and says so, or is refused by its name.
func TestFallback(t *testing.T) {
	not := blocked{}
	for _, c := range Controllers {
		not[c] = &Error{What: "make a control group", Blocker: "nobody may", Fix: "ask"}
	}
	for _, c := range []struct {
		limits Limits
		notes  string // of each one word, in order
		check  func(Fallback) bool
	}{
		{Limits{Memory: 1 << 30, MemorySwap: 2 << 30}, "RLIMIT_DATA", func(f Fallback) bool { return f.Data == 1<<30 }},
		{Limits{CPUQuota: 1, CPUPeriod: 100_000}, "sched_setaffinity", func(f Fallback) bool { return len(f.CPUs()) == 1 }},
		{Limits{CPUQuota: 800_000_000}, "sched_setaffinity", func(f Fallback) bool { return len(f.CPUs()) == len(f.cpus) }},
		{Limits{CPUs: "0"}, "sched_setaffinity", func(f Fallback) bool { return slices.Equal(f.CPUs(), []int{0}) }},
		{Limits{CPUs: "0", CPUQuota: 900_000}, "rounded sched_setaffinity", func(f Fallback) bool { return slices.Equal(f.CPUs(), []int{0}) }},
	} {
		mine := blocked{}
		for _, need := range c.limits.needs() {
			mine[need] = not[need]
		}
		f, err := fallback(c.limits, mine)
		if err != nil {
			t.Errorf("%+v: %v", c.limits, err)
			continue
		}
		words := strings.Fields(c.notes)
		if len(f.Notes) != len(words) || !c.check(f) {
			t.Errorf("%+v: %+v", c.limits, f)
			continue
		}
		for i, w := range words {
			if !strings.Contains(f.Notes[i], w) || !strings.Contains(f.Notes[i], "nobody may") || !strings.Contains(f.Notes[i], "ask") {
				t.Errorf("%+v: note %q", c.limits, f.Notes[i])
			}
		}
	}
	for flag, l := range map[string]Limits{
		"--cpu-shares": {CPUShares: 10, CPUQuota: 10_000}, "--cpuset-mems": {Mems: "0"}, "--memory-swap": {MemorySwap: -1}, "--cpuset-cpus 7777": {CPUs: "7777"},
	} {
		mine := blocked{}
		for _, need := range l.needs() {
			mine[need] = not[need]
		}
		var e *Error
		if f, err := fallback(l, mine); !errors.As(err, &e) || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %+v, %v", flag, f, err)
		}
	}
}

// Steps beside each other get different CPUs.
func TestTurns(t *testing.T) {
	f := Fallback{cpus: []int{0, 1, 4, 5}, count: 2}
	var got []int
	for f.turn = range 3 {
		got = append(got, f.CPUs()...)
	}
	if !slices.Equal(got, []int{0, 1, 4, 5, 0, 1}) {
		t.Error(got)
	}
}
