// Package snapshot owns layers and the three forms a layer has.
//
//   - Its index (internal/tree) lists every entry with its metadata and content digest. Where COPY lands, what a --chown
//     name means and whether a source changed are answered from indexes, without a mount and without unpacking.
//   - Its blob is the tar, plain or compressed, in the store or in a registry. The plain tar's digest is the layer's
//     identity (diffID), so a plain tar is a blob like any other.
//   - Its directory is the unpacked tree, fit to be a lower layer of an overlay.
//
// Where there is no overlay a command changes a PrivateTree instead, a directory with all layers of a chain.
//
// Any form can exist without the others and is made from another one only when something needs it. A pulled layer's blob is
// authoritative and its directory a copy; a layer made here is written once, as a deterministic tar, in the same pass that makes
// its index and its digest. The compressed blob comes out of that pass too, if somebody will want it, or later, beside the build.
//
// Two kinds of processes share this package's data. The front process runs as the caller and reads and writes blobs and
// indexes; a holder, which may be root of a user namespace, owns the directories below local/<id-kind>. A layer appears in
// this order: blob, index, metadata, and only then the record that somebody else writes. Whoever reads goes the other way
// round, and a form that is missing or damaged reads as absent.
//
// Everything that comes out of a tar is hostile: the scanner resolves names inside the layer, the applier never follows a
// symbolic link, and what cannot be represented in a namespace (device nodes, ids outside the map) is recorded in the index
// and held on disk as well as the disk can.
//
// The package refuses to know what a step is, to talk to a registry, to mount anything, and to run anything but a program that
// inflates, if it is told one (Inflate).
package snapshot
