// Package exporter turns a finished image into bytes for other tools: manifest and config, OCI layouts as a directory or
// tar, archives for docker load and podman load, and the bare root file system as a tar or directory.
//
// It owns the form of what leaves the house: the JSON of manifests and configs (as BuildKit writes it, so that results
// can be compared), the rules of history, names and annotations in an index, and the order, owners and times inside
// archives. The same image gives the same bytes: nothing here looks at the clock, and members of archives have the
// time zero. It refuses to know where layers come from (they are opened through functions it is given), what a
// registry is, and how a root file system came about; it reads that from the layers' indexes.
//
// Content is streamed and verified on the way out: no blob is held in memory, and a blob that is not what its
// descriptor says ends the export with an error rather than in somebody's registry. A file that the caller's Memory knows
// to hold the blob is copied without being hashed.
package exporter
