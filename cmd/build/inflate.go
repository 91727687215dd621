package main

import (
	"os"
	"path/filepath"

	"build/internal/build"
)

// inflaters are the programs that inflate gzip faster than Go does, the fastest first, and understand -d -c.
var inflaters = []string{"igzip", "unpigz"}

// fillInflate reads --inflate, or the environment where there is none.
func (f *buildFlags) fillInflate(a *app, o *build.Options) error {
	value, where := f.inflate, "--inflate"
	if value == "" {
		value, where = a.getenv("BUILD_INFLATE"), "BUILD_INFLATE"
	}
	switch value {
	case "", "auto":
		o.Inflate = findInflater(a.getenv("PATH"))
		return nil
	case "builtin":
		return nil
	}
	return usagef("invalid %s=%s: the choices are auto and builtin", where, value)
}

// findInflater looks for one of the inflaters on a PATH. A directory that is not absolute is another one in the context than
// where the user stands, and does not count.
func findInflater(path string) string {
	for _, name := range inflaters {
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, name)
			if fi, err := os.Stat(file); filepath.IsAbs(dir) && err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
				return file
			}
		}
	}
	return ""
}
