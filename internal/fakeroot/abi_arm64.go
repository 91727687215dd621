package fakeroot

// compatStats is empty: 32-bit ARM programs see the owners on disk when they look with stat. Their statx, which libraries of the
// last years use, shows what is recorded.
var compatStats = map[string]handler{}
