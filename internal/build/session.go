package build

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/internal/buildctx"
	"build/internal/progress"
	"build/internal/registry"
	"build/internal/store"
	"build/internal/tree"
	"build/internal/turns"
	"build/parser"
	"build/snapshot"
)

// session is what one build holds open: the store and its lease, the registry client, the holder of the namespaces once
// a step needs it, and where events go.
type session struct {
	opts  *Options
	began time.Time

	places func() *turns.Queue // of steps: a step that is carried out has one
	cpu    func() *turns.Queue // of our own work beside the steps. Whoever has a place waits for nothing but the processor and the disk

	store  *store.Store
	cache  *cache.Cache
	layers *snapshot.Layers
	lease  *store.Lease
	client *registry.Client

	proxy     func(*http.Request) (*url.URL, error)
	transport transport

	contexts *contexts
	remotes  remotes
	fetches  *fetches
	holder   holder
	limits   limits
	standIns standIns

	epoch        *time.Time // SOURCE_DATE_EPOCH of the build
	contextEpoch *time.Time // of a context that was fetched
	wantBlobs    bool       // some output is an image
	wantNothing  bool       // no output reads the result, and no layer is searched for secrets
	view         view       // how the layers will be wanted
	streamed     bool       // something was written to standard output or a pipe

	cancel context.CancelCauseFunc

	vmu      sync.Mutex
	used     map[digest.Digest]bool // layers this build came across: see damage.go
	vertices map[string]progress.ID
	lastID   progress.ID
	turns    map[cache.Key]chan struct{} // steps being worked on by this build, for whatever platform

	blobsHere sync.Map // of digest.Digest: layers with a blob in the store, which the lease keeps there

	dockerfile []byte       // its text, for error messages
	file       *parser.File // what it says
	history    history      // of earlier builds of the context
	dry        bool         // nothing is fetched, run or written: see plan.go
	definition *buildctx.Dockerfile
	found      findings // of lint
	leaks      *leakGate
	runsLeft   atomic.Int64 // RUN steps of which it is not known yet that they need not run
	asked      string       // what is asked instead of building, "" for a build
	tallies    struct{ cached, ran int }
	added      bool // something was fetched
	trimming   bool // a trimmer of the store was started
}

// openStore opens the store the way every command does.
func openStore(o StoreOptions) (*store.Store, error) {
	st, err := store.Open(o.Root, storeOptions(o.Root))
	if err != nil {
		return nil, &EnvironmentError{Err: err}
	}
	return st, nil
}

// newClient makes the client of registries. Without proxy it uses that of the environment.
func newClient(o StoreOptions, proxy func(*http.Request) (*url.URL, error)) *registry.Client {
	return registry.New(registry.Options{
		Proxy:    proxy,
		Insecure: o.Insecure, Offline: o.Offline, DockerConfig: o.DockerConfig, CertsDir: o.CertsDirs,
	})
}

// openSession opens everything a build needs that costs next to nothing; the rest is opened when it is needed. A dry session leaves
// the store as it is.
func openSession(ctx context.Context, o *Options, dry bool) (*session, context.Context, error) {
	st, err := openStore(o.Store)
	if err != nil {
		return nil, nil, err
	}
	if dry {
		st.NoteNoUses()
	}
	lease, err := st.Lease()
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &session{
		opts: o, began: time.Now(),
		store: st, cache: cache.New(st), lease: lease,
		cancel: cancel, dry: dry,
		vertices: map[string]progress.ID{}, turns: map[cache.Key]chan struct{}{},
	}
	inflate := snapshot.Inflate{Program: o.Inflate, Warn: func(text string) { s.warn("%s", text) }}
	s.layers = snapshot.New(st, snapshot.Options{Lease: lease, Inflate: inflate})
	// What control groups allow is looked up when there is work: a build whose steps are all cached has none.
	s.places = sync.OnceValue(func() *turns.Queue {
		if o.Jobs > 0 {
			return turns.New(o.Jobs)
		}
		return turns.New(defaultJobs())
	})
	s.cpu = sync.OnceValue(func() *turns.Queue { return turns.New(processors()) })
	s.proxy = proxyOf(s.buildArgs())
	s.client, s.transport.s = newClient(o.Store, s.proxy), s
	s.fetches = newFetches(s)
	s.trimEarly()
	return s, ctx, nil
}

// close ends what the session holds. The lease goes last: until then nothing the build used can be collected.
func (s *session) close() {
	s.cancel(errCanceled)
	s.holder.close()
	s.limits.close()
	s.contexts.close()
	s.transport.close()
	s.lease.Close()
	s.store.Close()
	s.trimLate()
}

// leaseLayer keeps a layer from being collected while this build lasts. Its name is that of its notes in the store.
func (s *session) leaseLayer(d digest.Digest) error {
	s.uses(d)
	return s.lease.Add(store.KindLayer, d.String())
}

// fail ends the build with err as its cause, unless something else failed first.
func (s *session) fail(err error) { s.cancel(err) }

func (s *session) emit(e progress.Event) { s.opts.Progress.Emit(e) }

// vertex returns the display's id of something shown under name.
func (s *session) vertexNamed(name string) progress.ID {
	s.vmu.Lock()
	defer s.vmu.Unlock()
	id, ok := s.vertices[name]
	if !ok {
		s.lastID++
		id = s.lastID
		s.vertices[name] = id
	}
	return id
}

func (s *session) newVertex() progress.ID {
	s.vmu.Lock()
	defer s.vmu.Unlock()
	s.lastID++
	return s.lastID
}

// task shows f as one vertex that starts and ends.
func (s *session) task(name string, f func(id progress.ID) error) error {
	id := s.newVertex()
	s.emit(progress.Started{ID: id, Name: name, Time: time.Now()})
	err := f(id)
	done := progress.Done{ID: id, Time: time.Now()}
	if err != nil {
		done.Err = err.Error()
	}
	s.emit(done)
	return err
}

func (s *session) warn(format string, args ...any) {
	s.emit(progress.Warning{Text: fmt.Sprintf(format, args...)})
}

func (s *session) count(_ *dag.Step, cached bool) {
	s.vmu.Lock()
	defer s.vmu.Unlock()
	if cached {
		s.tallies.cached++
	} else {
		s.tallies.ran++
	}
}

// index returns the index of a layer, fetching its blob when there is no other way to know it.
func (s *session) index(ctx context.Context, d digest.Digest) (*tree.Index, error) {
	if s.dry {
		if x, ok := s.layers.KnownIndex(d); ok {
			return x, nil
		}
		return nil, &undecidedError{fmt.Sprintf("layer %s, which is not here", d)}
	}
	if x, err := s.layers.Index(ctx, d); err == nil {
		return x, nil
	} else if !isNotHere(err) {
		return nil, err
	}
	if err := s.fetches.layer(ctx, d); err != nil {
		return nil, err
	}
	return s.layers.Index(ctx, d)
}

// chain returns the merged view of layers by their indexes.
func (s *session) chain(ctx context.Context, layers []digest.Digest) (*tree.Chain, error) {
	// Every step asks for the whole chain it stands on, of which the last layer alone is new.
	if err := each(ctx, s.layers.Unopened(layers), func(ctx context.Context, d digest.Digest) error {
		_, err := s.index(ctx, d)
		return err
	}); err != nil {
		return nil, err
	}
	return s.layers.Chain(ctx, layers)
}

// contexts are the directories a build reads, opened when first asked for.
type contexts struct {
	mu          sync.Mutex
	open        func(name string) (*buildctx.Dir, error)
	openFetched func(name, dir string) (*buildctx.Dir, error)
	opened      map[string]*buildctx.Dir
	cleanup     []func()
	dirs        map[string]string // named contexts that were fetched
}

func (c *contexts) get(name string) (*buildctx.Dir, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.opened[name]; ok {
		return d, nil
	}
	open := c.open
	if dir, ok := c.dirs[name]; ok {
		open = func(string) (*buildctx.Dir, error) { return c.openFetched(name, dir) }
	}
	d, err := open(name)
	if err != nil {
		return nil, err
	}
	c.opened[name] = d
	return d, nil
}

func (c *contexts) close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.opened {
		d.Close()
	}
	for _, f := range c.cleanup {
		f()
	}
}

// fetched says where a named context is that came from elsewhere.
func (c *contexts) fetched(name, dir string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dirs == nil {
		c.dirs = map[string]string{}
	}
	c.dirs[name] = dir
}

func (c *contexts) onClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleanup = append(c.cleanup, f)
}

// statCachePath is where the hashes of a directory's files are remembered: one file for each directory.
func (s *session) statCachePath(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return filepath.Join(s.store.Dir(), store.ContextsDir, digest.FromString(dir).Encoded())
}
