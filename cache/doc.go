// Package cache remembers what steps gave. A Key is a hash of everything that a step depends on; under it lies a Record
// that names the layers the step led to, and the text the key was hashed from, so that a later miss can name what
// changed.
//
// It owns what a key and a record look like. It does not know what enters a key (that is the list in internal/build),
// nor whether the layers a record names can still be had: who asks must see to that. A record that is missing or
// damaged in any way is a *Miss with a reason and never an error: a cache may forget, but must not fail a build.
package cache
