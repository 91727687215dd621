package main

import (
	"runtime"
	"runtime/debug"
)

// firstCollection is how many percent the heap may grow over the runtime's least size, 4 MiB, before it is collected for the
// first time: to 40 MiB. Most builds end before that.
const firstCollection = 1000

// collectLate puts the first garbage collection off. From then on the heap grows and shrinks as in any program, so that the peak of
// a large build is what it would have been; a small one never pays for collecting what the end of the process frees.
// GOGC=off in the environment of the process is Go's own setting, and stays.
func collectLate() {
	before := debug.SetGCPercent(firstCollection)
	if before < 0 || before > firstCollection {
		debug.SetGCPercent(before)
		return
	}
	type sentinel struct{ _ *int } // with a pointer: small objects without are not freed one by one
	runtime.AddCleanup(new(sentinel), func(before int) { debug.SetGCPercent(before) }, before)
}
