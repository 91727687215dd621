// Package torture holds tests only: whole builds, by the real binary, to which the worst is done. Many at once, killed at random
// instants, the power lost, the disk full at every write, the clock set, the store copied, every file of it damaged. Whatever
// happened, the next build gives what a build alone on an empty store gives, or says clearly why not; nothing is stuck; and a
// check of the store finds nothing that lies.
//
// Each test is bounded, so that all of them are part of `make test`, but for the one that boots a virtual machine.
// testdata/torture/run.sh runs them long, by the flags below. A failure prints the seed that chose the instants; the instants
// themselves are the machine's.
package torture
