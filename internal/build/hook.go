package build

import "build/internal/store"

// storePoint is nil except in tests of this package. It is asked once for each store that is opened, in this process and
// in the holder; what it returns is called at every named point of publishing, so that a test can end the process there.
var storePoint func(dir string) func(point string)

func storeOptions(dir string) store.Options {
	if storePoint == nil {
		return store.Options{}
	}
	return store.Options{Point: storePoint(dir)}
}
