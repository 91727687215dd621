// Package lazyregexp compiles regular expressions when they are first used. Most builds use few of ours, compiling all of them
// when the program starts takes about a millisecond, and every step of a build starts the program once.
//
// It does nothing else: what it returns is a regexp.Regexp.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that returns the compiled expression. It panics at its first call, and at each that follows, when the
// expression does not parse.
func New(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
