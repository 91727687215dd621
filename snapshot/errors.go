package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// ErrNotHere says that a layer has no blob in the store. Callers fetch it, or treat a cache hit as a miss.
var ErrNotHere error = notHere{}

type notHere struct{}

func (notHere) Error() string { return "the layer is not in the store" }

// KindNotHere is the kind under which ErrNotHere crosses a process boundary.
const KindNotHere = "snapshot.nothere"

// Remote lets the error cross a process boundary.
func (notHere) Remote() (string, any) { return KindNotHere, nil }

// DigestError says that content is not what its digest promised.
type DigestError struct {
	What      string // which digest: "diffID", "blob"
	Want, Got digest.Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("the %s is %s, not %s as promised", e.What, e.Got, e.Want)
}

// KindDigest is the kind under which a DigestError crosses a process boundary.
const KindDigest = "snapshot.digest"

// Remote lets the error cross a process boundary.
func (e *DigestError) Remote() (string, any) { return KindDigest, e }

// LayerError says that a layer has the digest it should have and yet is none that could be unpacked: it is no tar, its
// compression is broken, or an entry contradicts the others or leads out of it.
type LayerError struct{ Err error }

func (e *LayerError) Error() string { return e.Err.Error() }
func (e *LayerError) Unwrap() error { return e.Err }

// KindLayer is the kind under which a LayerError crosses a process boundary.
const KindLayer = "snapshot.layer"

// Remote lets the error cross a process boundary; the message says it all.
func (e *LayerError) Remote() (string, any) { return KindLayer, nil }

// contradictions are what the kernel answers to entries that cannot be in one tree; other errors of it are the machine's.
var contradictions = []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ELOOP, unix.ENAMETOOLONG}

// layerFailure tells what is wrong with the layer from what hindered reading it.
func layerFailure(ctx context.Context, err error) error {
	var errno unix.Errno
	var lie *DigestError
	machine := errors.As(err, &errno) && !slices.Contains(contradictions, errno)
	err = fmt.Errorf("read layer tar: %w", err)
	if ctx.Err() != nil || machine || errors.As(err, &lie) {
		return err
	}
	return &LayerError{Err: err}
}

// ArchiveError says that a file that ADD was to unpack begins as an archive and cannot be unpacked: it is damaged, or its
// entries contradict each other or lead out of it.
type ArchiveError struct{ Err error }

func (e *ArchiveError) Error() string { return e.Err.Error() }
func (e *ArchiveError) Unwrap() error { return e.Err }

// archiveFailure tells a bad archive from a machine or a context that failed while it was unpacked.
func archiveFailure(ctx context.Context, path string, err error) error {
	var errno unix.Errno
	var changed *ChangedError
	machine := errors.As(err, &errno) && !slices.Contains(contradictions, errno)
	err = fmt.Errorf("unpack /%s: %w", path, err)
	if ctx.Err() != nil || machine || errors.As(err, &changed) {
		return err
	}
	return &ArchiveError{Err: err}
}

// UnfitError says that a file has a name no layer can hold: longer than paths can be, or one that marks a deletion.
type UnfitError struct{ Err error }

func (e *UnfitError) Error() string { return e.Err.Error() }
func (e *UnfitError) Unwrap() error { return e.Err }

// KindUnfit is the kind under which an UnfitError crosses a process boundary.
const KindUnfit = "snapshot.unfit"

// Remote lets the error cross a process boundary; the message says it all.
func (e *UnfitError) Remote() (string, any) { return KindUnfit, nil }
