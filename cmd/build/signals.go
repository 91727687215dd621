package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"build/internal/build"
)

// graceTime is how long a build may take to clean up after a signal. What is left then, the kernel ends with us (every
// process of a step dies with the one that holds its namespaces), and leftovers on disk are collected by a later build.
const graceTime = 900 * time.Millisecond

// withSignals returns a context that SIGINT, SIGTERM and SIGHUP end, with the signal as its cause. A second signal has
// its usual effect: the process dies at once. A signal that was ignored when we were started (nohup) stays ignored.
func withSignals(parent context.Context, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	c := make(chan os.Signal, 1)
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case s := <-c:
			signal.Stop(c)
			cause := &build.SignalError{Signal: s.(syscall.Signal)}
			cancel(cause)
			select {
			case <-done:
			case <-time.After(graceTime):
				fmt.Fprintf(stderr, "\nbuild: %v: cleaning up takes too long, leaving it to the next build\n", cause)
				os.Exit(build.ExitCode(cause))
			}
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		close(done)
		cancel(nil)
	}
}
