package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"build/dag"
	"build/internal/progress"
	"build/internal/registry"
	"build/internal/store"
	"build/snapshot"
)

// parallelFetches is how many blobs are on their way at the same time; BuildKit's limit per registry is the same.
const parallelFetches = 4

// blobSource opens one blob somewhere outside the store: in a registry, an OCI layout or an archive.
type blobSource func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)

// fetches brings layers into the store, each once, whoever needs it first.
type fetches struct {
	s    *session
	slot *semaphore.Weighted

	mu      sync.Mutex
	flying  map[digest.Digest]*future[struct{}] // by diffID, or by digest of the blob that is wanted
	from    map[digest.Digest]shown             // by diffID: the FROM it belongs to
	offered map[digest.Digest]offer             // by diffID: what FROM images of this build say about where a layer can be had
}

type offer struct {
	desc ocispec.Descriptor
	repo string // "" when it is in no registry
	from blobSource
}

func newFetches(s *session) *fetches {
	return &fetches{
		s: s, slot: semaphore.NewWeighted(parallelFetches),
		flying: map[digest.Digest]*future[struct{}]{}, offered: map[digest.Digest]offer{}, from: map[digest.Digest]shown{},
	}
}

// offer notes where the layer diffID can be had, for this build.
func (f *fetches) offer(diffID digest.Digest, desc ocispec.Descriptor, repo string, from blobSource) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.offered[diffID]; !ok {
		f.offered[diffID] = offer{desc, repo, from}
	}
}

// layer makes sure that a blob of the layer is in the store, and its index with it.
func (f *fetches) layer(ctx context.Context, diffID digest.Digest) error {
	return f.once(ctx, wanted{diffID: diffID, into: f.s.layers.Import})
}

// blob is layer for one that will be unpacked: the holder makes the index when it does, in the same pass.
func (f *fetches) blob(ctx context.Context, diffID digest.Digest) error {
	return f.once(ctx, wanted{diffID: diffID, into: f.s.layers.ImportBlob})
}

// original makes sure that this very blob of the layer is in the store, which may have the layer in another form only.
func (f *fetches) original(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor) error {
	return f.once(ctx, wanted{diffID: diffID, blob: desc, into: f.s.layers.ImportBlob})
}

// keep stores what a fetch brings.
type keep func(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader) error

// wanted is what a fetch is to bring.
type wanted struct {
	diffID digest.Digest
	blob   ocispec.Descriptor // if it has a digest, this blob of the layer and no other
	into   keep
}

func (f *fetches) here(w wanted) bool {
	if w.blob.Digest == "" {
		return f.s.layers.Here(w.diffID)
	}
	return f.s.store.HasBlob(w.blob.Digest, w.blob.Size)
}

func (f *fetches) once(ctx context.Context, w wanted) error {
	if f.here(w) {
		return nil
	}
	key := cmp.Or(w.blob.Digest, w.diffID)
	f.mu.Lock()
	fl, ok := f.flying[key]
	if !ok {
		fl = &future[struct{}]{done: make(chan struct{})}
		f.flying[key] = fl
		go func() {
			defer close(fl.done)
			fl.err = f.located(w.diffID, f.fetch(ctx, w))
		}()
	}
	f.mu.Unlock()
	_, err := fl.wait(ctx)
	return err
}

// located lets a fetch that failed point at the FROM that named the layer's image.
func (f *fetches) located(diffID digest.Digest, err error) error {
	f.mu.Lock()
	step := f.from[diffID].step
	f.mu.Unlock()
	if step == nil {
		return err
	}
	return f.s.located(step, err)
}

func (f *fetches) fetch(ctx context.Context, w wanted) error {
	diffID := w.diffID
	unlock, err := f.s.store.Lock(ctx, "fetch-"+diffID.Encoded(), nil)
	if err != nil {
		return err
	}
	defer unlock()
	if f.here(w) { // another build was faster
		return nil
	}
	f.s.vmu.Lock()
	f.s.added = true
	f.s.vmu.Unlock()
	if err := f.slot.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer f.slot.Release(1)

	sources, err := f.sources(diffID)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range sources {
		if w.blob.Digest != "" && o.desc.Digest != w.blob.Digest {
			continue
		}
		err := f.fetchFrom(ctx, diffID, o, w.into)
		if err != nil && ctx.Err() == nil && f.again(o, err) {
			err = f.fetchFrom(ctx, diffID, o, w.into)
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			errs = append(errs, err)
			continue
		}
		return nil
	}
	if len(errs) == 0 {
		return fmt.Errorf("layer %s: %w, and nothing says where to get it: build again with --pull", diffID, snapshot.ErrNotHere)
	}
	return errors.Join(errs...)
}

// sources lists where a layer can be had, what this build was told first.
func (f *fetches) sources(diffID digest.Digest) ([]offer, error) {
	var out []offer
	f.mu.Lock()
	if o, ok := f.offered[diffID]; ok {
		out = append(out, o)
	}
	f.mu.Unlock()
	blobs, err := f.s.layers.Blobs(diffID)
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		for _, repo := range b.Repos {
			if len(out) == 0 || out[0].repo != repo || out[0].desc.Digest != b.Digest {
				out = append(out, offer{b.Descriptor, repo, f.s.registrySource(repo)})
			}
		}
	}
	return out, nil
}

func (s *session) registrySource(repo string) blobSource {
	return func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		return s.client.Blob(ctx, repo, d)
	}
}

// again reports whether a blob that turned out to be a wrong one is worth a second try, because of how it was put together.
func (f *fetches) again(o offer, err error) bool {
	var wrong *wrongBlobError
	if !errors.As(err, &wrong) {
		return false
	}
	parts := f.s.client.OnePiece(o.repo)
	switch {
	case wrong.resumed > 0:
		f.s.warn("%v: its first %d bytes were downloaded by an earlier build, and are downloaded once more", err, wrong.resumed)
	case parts:
		f.s.warn("%v: it may have come over several connections, and is asked for once more over one", err)
	default:
		return false
	}
	return true
}

// wrongBlobError is a blob of a registry that is not what it should be.
type wrongBlobError struct {
	err     error
	resumed int64 // how much of it an earlier build had downloaded
}

func (e *wrongBlobError) Error() string { return e.err.Error() }
func (e *wrongBlobError) Unwrap() error { return e.err }

func (f *fetches) fetchFrom(ctx context.Context, diffID digest.Digest, o offer, into keep) error {
	r, have, err := f.open(ctx, o)
	if err != nil {
		return err
	}
	defer r.Close()
	t := &transferReader{r: r, s: f.s, key: o.desc.Digest.String(), total: o.desc.Size}
	t.start(f.shownUnder(diffID))
	err = into(ctx, diffID, o.desc, t)
	t.end(err)
	if err == nil || o.repo == "" {
		return err
	}
	var wrong *store.WrongDigestError
	if errors.As(err, &wrong) {
		err = &registry.Error{
			Class: registry.Digest, Ref: o.repo + "@" + o.desc.Digest.String(),
			Err: fmt.Errorf("blob %s turned out to have the digest %s", o.desc.Digest, wrong.Got),
		}
		return &wrongBlobError{err, have}
	}
	err = fmt.Errorf("%s: %w", o.repo, err)
	if have > 0 && !t.failed {
		return &wrongBlobError{err, have} // it showed before the end
	}
	return err
}

// open opens a blob where it is offered. What a registry gives begins with what an earlier build left of it.
func (f *fetches) open(ctx context.Context, o offer) (r io.ReadCloser, have int64, err error) {
	if o.repo == "" {
		r, err = o.from(ctx, o.desc)
		return r, 0, err
	}
	part, have := f.s.store.Partial(o.desc.Digest)
	if part == nil || have > o.desc.Size {
		if part != nil {
			part.Close()
		}
		r, err = f.s.client.BlobFrom(ctx, o.repo, o.desc, 0)
		return r, 0, err
	}
	rest, err := f.s.client.BlobFrom(ctx, o.repo, o.desc, have)
	if err != nil {
		part.Close()
		return nil, 0, err
	}
	return &joined{io.MultiReader(io.NewSectionReader(part, 0, have), rest), part, rest}, have, nil
}

// joined is a blob of two parts.
type joined struct {
	io.Reader
	part *os.File
	rest io.Closer
}

func (j *joined) Close() error {
	_ = j.part.Close() // only read from
	return j.rest.Close()
}

// shownUnder is the vertex that a fetch is shown under: the FROM that named the layer's image.
func (f *fetches) shownUnder(diffID digest.Digest) (progress.ID, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok := f.from[diffID]; ok {
		return v.id, v.name
	}
	const other = "fetching layers"
	return f.s.vertexNamed(other), other
}

// show lets the fetches of an image's layers appear under the FROM that names it.
func (f *fetches) show(e *evaluator) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range e.graph.Steps {
		step := &e.graph.Steps[i]
		if op, ok := step.Op.(dag.Image); ok {
			for _, d := range op.DiffIDs {
				f.from[d] = shown{e.vertex(step), step.Name, step}
			}
		}
	}
}

// shown is a vertex of the display.
type shown struct {
	id   progress.ID
	name string
	step *dag.Step
}

// transferReader reports what passes through it.
type transferReader struct {
	r     io.Reader
	s     *session
	id    progress.ID
	key   string
	n     int64
	total int64
	last  time.Time

	failed bool // to read; to be looked at when nobody reads any more
}

func (t *transferReader) start(id progress.ID, name string) {
	t.id = id
	t.s.emit(progress.Started{ID: id, Name: name, Time: time.Now()})
	t.report(false)
}

func (t *transferReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n += int64(n)
	t.failed = t.failed || err != nil && err != io.EOF
	if time.Since(t.last) > 100*time.Millisecond {
		t.report(false)
	}
	return n, err
}

func (t *transferReader) end(err error) {
	t.report(err == nil)
	done := progress.Done{ID: t.id, Time: time.Now()}
	if err != nil {
		done.Err = err.Error()
	}
	t.s.emit(done)
}

func (t *transferReader) report(done bool) {
	t.last = time.Now()
	t.s.emit(progress.Transfer{ID: t.id, Key: t.key, Label: t.key, Current: t.n, Total: t.total, Done: done, Time: t.last})
}

// each calls do for every item, in parallel.
func each[T any](ctx context.Context, items []T, do func(context.Context, T) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, x := range items {
		g.Go(func() error { return do(gctx, x) })
	}
	return g.Wait()
}

// obtainable reports whether a layer can be had without running anything.
func (s *session) obtainable(d digest.Digest) bool {
	if s.layers.Here(d) {
		return true
	}
	s.fetches.mu.Lock()
	_, offered := s.fetches.offered[d]
	s.fetches.mu.Unlock()
	if offered {
		return true
	}
	if s.opts.Store.Offline {
		return false
	}
	blobs, err := s.layers.Blobs(d)
	if err != nil {
		return false
	}
	for _, b := range blobs {
		if len(b.Repos) > 0 {
			return true
		}
	}
	return false
}

func isNotHere(err error) bool { return errors.Is(err, snapshot.ErrNotHere) }
