// Package store is the directory that every build of one user shares: how things are named in it, how they appear, how
// long they stay, and who may touch what at which time. FORMAT.md beside this file states the rules; the code carries
// them out.
//
// It owns the layout, the publishing of files, locks, leases, names, collection and the check of all that. It does not
// know what a layer, a record or an index means: those are bytes under a key, and whoever collects or checks says which
// of them stand on which others.
//
// Any number of processes may have one store open at the same time, also on both sides of a user namespace. They may
// do the same work twice; they never see half of something. Nothing here needs a daemon, and a process that is killed
// leaves nothing that the next one could believe wrongly: locks end with it, and what it had not published is rubbish
// that collection takes away.
package store
