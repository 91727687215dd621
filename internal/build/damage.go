package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"build/internal/buildctx"
	"build/internal/registry"
	"build/internal/store"
	"build/internal/tree"
	"build/snapshot"
)

// On every hit a blob is believed by its name and size; reading all of it each time would make hits slow. So damage that
// keeps the size is met in the middle of a build, as content that is not what a digest promised. Then the layers this
// build came across are read, what is damaged is removed, and the build starts over: it makes or fetches them again. So it
// does when something that was there is gone: another build may have removed it for being damaged.

// uses notes that this build came across a layer.
func (s *session) uses(diffID digest.Digest) {
	s.vmu.Lock()
	defer s.vmu.Unlock()
	if s.used == nil {
		s.used = map[digest.Digest]bool{}
	}
	s.used[diffID] = true
}

// damagedError is a failure that damage in the store explains. The damage has been removed, by this build or another.
type damagedError struct {
	err     error
	removed []string
}

func (e *damagedError) found() string {
	if len(e.removed) == 0 {
		return "something of the store was removed while the build used it"
	}
	return fmt.Sprintf("the store was damaged: of %d things that are not what they are called, the first is %s; they are removed", len(e.removed), e.removed[0])
}

func (e *damagedError) Error() string { return e.err.Error() + "\n  " + e.found() + ": build again" }
func (e *damagedError) Unwrap() error { return e.err }

// blameStore finds out whether damage in the store explains a failure, and removes it.
func (s *session) blameStore(ctx context.Context, err error) error {
	if ctx.Err() != nil || !unexplained(err) {
		return err
	}
	s.vmu.Lock()
	var used []digest.Digest
	for d := range s.used {
		used = append(used, d)
	}
	s.vmu.Unlock()
	slices.Sort(used)
	removed, serr := s.layers.Scrub(ctx, used)
	if serr != nil || (len(removed) == 0 && !lost(err)) {
		return err
	}
	return &damagedError{err, removed}
}

// lost reports whether something that was found in the store could not be had later.
func lost(err error) bool {
	var incomplete *store.IncompleteError
	return errors.As(err, &incomplete) || isNotHere(err) || errors.Is(err, tree.ErrCorrupt) || errors.Is(err, errNoBlob) ||
		errors.Is(err, fs.ErrNotExist)
}

// unexplained reports whether content was not what it should be, or an error is none that has an explanation.
func unexplained(err error) bool {
	var (
		lie     *snapshot.DigestError
		layer   *snapshot.LayerError
		archive *snapshot.ArchiveError // perhaps of a download, which is in the store
		changed *snapshot.ChangedError
		context *buildctx.ChangedError
	)
	switch {
	case errors.As(err, &context):
		return false
	case errors.As(err, &lie), errors.As(err, &layer), errors.As(err, &archive), errors.As(err, &changed), registry.IsClass(err, registry.Digest):
		return true
	}
	return ExitCode(err) == ExitInternal
}

// verifier is a reader that ends with a DigestError, instead of well, when what was read is not what was promised. It says so
// with the last byte: who knows the size does not ask for more.
type verifier struct {
	io.ReadCloser
	want digest.Digest
	left int64
	what string
	sum  digest.Digester
}

func verified(r io.ReadCloser, want digest.Digest, size int64, what string) io.ReadCloser {
	return &verifier{r, want, size, what, want.Algorithm().Digester()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.sum.Hash().Write(p[:n])
	v.left -= int64(n)
	if err == io.EOF || err == nil && v.left == 0 && n > 0 {
		if got := v.sum.Digest(); got != v.want {
			return n, &snapshot.DigestError{What: v.what, Want: v.want, Got: got}
		}
	}
	return n, err
}
