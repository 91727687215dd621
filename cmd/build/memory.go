package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// firstCollection is how many percent the heap may grow over the runtime's least size, 4 MiB, before it is collected for the
	// first time: to 96 MiB. Most builds that find nothing to do end before that, one with 100,000 files among them.
	firstCollection = 2300
	// firstWhereStepsRun is the same once a command is executed: to 40 MiB. A step takes longer than a collection, and the memory
	// is wanted for what it executes.
	firstWhereStepsRun = 900
	// laterCollections is how many percent it may grow from one collection to the next. A build with a large context keeps much of
	// what it allocates until it ends, so a collection is seldom worth waiting for, but the peak counts.
	laterCollections = 60
	// denseCollections is the least it may grow, however large it is: collecting more often costs more time than memory is worth.
	denseCollections = 25
	// heapGoal is how many bytes it should not exceed as long as what lives leaves room: growth is slower near it. The rest of the
	// process takes about 35 MiB (the program, stacks, the runtime's own), and 256 MiB is what a build with 200,000 files may have.
	heapGoal = 144 << 20
)

// heap is how much this process's memory grows between two garbage collections.
type heap struct {
	mu      sync.Mutex
	percent int // as Go's GOGC; below 0 nothing is collected
}

// collectLate puts the first garbage collection off, so that a small build never pays for collecting what the end of the process
// frees. GOGC=off in the environment of the process is Go's own setting, and stays.
func collectLate() *heap {
	h := &heap{percent: firstCollection}
	if debug.SetGCPercent(firstCollection) < 0 {
		debug.SetGCPercent(-1)
		h.percent = -1
		return h
	}
	afterCollection(h.adjust)
	return h
}

// stepRuns lets the first collection come earlier, if none has come so far.
func (h *heap) stepRuns() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.percent == firstCollection {
		h.grow(firstWhereStepsRun)
	}
}

// adjust sets, now and after each collection from now on, how much the heap may grow until the next one.
func (h *heap) adjust() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grow(growth(live[0].Value.Uint64()))
	afterCollection(h.adjust)
}

// grow sets the growth unless it is what it was: that stops the world for a moment. The caller holds the lock.
func (h *heap) grow(percent int) {
	if h.percent != percent {
		h.percent = percent
		debug.SetGCPercent(percent)
	}
}

// growth is how many percent a heap of which so many bytes live may grow.
func growth(live uint64) int {
	switch {
	case live == 0:
		return laterCollections
	case live >= heapGoal:
		return denseCollections
	}
	return max(denseCollections, int(min(laterCollections, (heapGoal-live)*100/live)))
}

// afterCollection calls f once, after the next garbage collection.
func afterCollection(f func()) {
	type sentinel struct{ _ *int } // with a pointer: small objects without are not freed one by one
	runtime.AddCleanup(new(sentinel), func(f func()) { f() }, f)
}
