package main

import (
	"runtime"
	"runtime/debug"
)

const (
	// firstCollection is how many percent the heap may grow over the runtime's least size, 4 MiB, before it is collected for the
	// first time: to 40 MiB. Most builds end before that.
	firstCollection = 1000
	// laterCollections is how many percent it may grow from one collection to the next. A build with a large context keeps much of
	// what it allocates until it ends, so a collection is seldom worth waiting for, but the peak counts.
	laterCollections = 60
)

// collectLate puts the first garbage collection off, so that a small build never pays for collecting what the end of the process
// frees. GOGC=off in the environment of the process is Go's own setting, and stays.
func collectLate() {
	if debug.SetGCPercent(firstCollection) < 0 {
		debug.SetGCPercent(-1)
		return
	}
	type sentinel struct{ _ *int } // with a pointer: small objects without are not freed one by one
	runtime.AddCleanup(new(sentinel), func(int) { debug.SetGCPercent(laterCollections) }, 0)
}
