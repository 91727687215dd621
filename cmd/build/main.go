// Command build turns a Dockerfile and a directory into an OCI image. It is one process that ends: no daemon, no setuid
// helper of its own.
//
// This package owns the command line: flags and environment variables become typed options here and nowhere else,
// signals become the end of a context, errors become messages and exit codes. It decides nothing about a build.
//
// Where to start reading: app.go (from argv to an exit code), flags.go and options.go (the flags of `build`), then one
// file per command.
package main

import (
	"os"

	"build/internal/build"
)

func main() {
	// The same binary is started again as the process that holds the namespaces. As the first process of a step it does not
	// come this far: see executor/init.go.
	if build.Reentry() {
		return
	}
	a := newApp(os.Args)
	a.heap = collectLate()
	os.Exit(a.run())
}
