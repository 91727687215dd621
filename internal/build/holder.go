package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"build/executor"
	"build/internal/leak"
	"build/internal/owner"
	"build/internal/store"
	"build/internal/tree"
	"build/internal/usernet"
	"build/internal/userns"
	"build/snapshot"
)

// farewell is how long a holder has to give up what it holds in the store.
const farewell = 200 * time.Millisecond

func (h *holder) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	_ = h.h.Call(ctx, "close", nil, nil) // what it cannot tidy now, collection will
	h.h.Close()
	h.h = nil
}

// fromHolder gives errors that crossed the socket their type back.
func fromHolder(err error) error {
	var r *userns.RemoteError
	if errors.As(err, &r) {
		if own := executor.FromRemote(r.Kind, r.Data); own != nil {
			return own
		}
		switch r.Kind {
		case snapshot.KindNotHere:
			return &crossed{r, snapshot.ErrNotHere}
		case kindFull:
			if own := fullFromRemote(r.Data); own != nil {
				return own
			}
		case kindLeak:
			if own := new(SecretLeakError); json.Unmarshal(r.Data, own) == nil {
				return own
			}
		case tree.KindCorrupt:
			return &crossed{r, tree.ErrCorrupt}
		}
		if own := new(snapshot.DigestError); r.Kind == snapshot.KindDigest && json.Unmarshal(r.Data, own) == nil {
			return fmt.Errorf("unpack a layer: %w", own)
		}
		if r.Kind == snapshot.KindUnfit {
			return &snapshot.UnfitError{Err: r}
		}
		if r.Kind == snapshot.KindLayer {
			return &snapshot.LayerError{Err: r} // with the layer it is about
		}
	}
	var exit *exec.ExitError // of the holder itself
	if errors.As(err, &exit) && !exit.Exited() {
		return &EnvironmentError{Err: err, Hint: "somebody or something killed it; if it was the kernel for want of memory, dmesg says so"}
	}
	return err
}

// crossed is an error of the holder that wraps a known one.
type crossed struct {
	*userns.RemoteError
	known error
}

func (e *crossed) Unwrap() error { return e.known }

// Reentry runs this process as a holder, as the gateway of a private network or as a trimmer of the store, when it was started as
// one, and reports whether it was. It is the first thing main calls. One more helper, a step's first process, starts before main:
// importing executor is enough.
func Reentry() bool {
	n := &inside{}
	usernet.Reentry()
	if trimReentry() {
		return true
	}
	return userns.Reentry(map[string]userns.Handler{
		"open":    n.open,
		"run":     n.run,
		"unpack":  n.unpack,
		"try":     n.try,
		"examine": n.examine,
		"close":   n.close,
		"remove":  serveRemove,
		"measure": serveMeasure,
	})
}

// The messages between a build and its holder.
type (
	openRequest struct {
		Root     string
		Plan     userns.Plan
		RootKind RootKind // "": overlay if possible
		Inflate  string   // see Options
		Further  int      // commands that will probably run
	}
	openResponse struct {
		RootKind  RootKind
		NoOverlay string
	}

	runRequest struct {
		Chain []digest.Digest
		Spec  executor.Spec // without its root, which the holder makes

		Trees  []treeMount
		Caches []cacheMount
		Leaks  *leakRequest // nil: the layer is not searched
		Group  groupFiles

		Further int // commands that will probably run after this one has begun
	}
	runResponse struct {
		DiffID digest.Digest
		Leaks  []leak.Finding
		Notes  []string // to be told to the user
	}
)

// inside is the holder's side: the same store, opened in the process that owns the ids of what lies in local/.
type inside struct {
	store  *store.Store
	lease  *store.Lease
	layers *snapshot.Layers
	kind   string

	root     RootKind
	plain    bool // without namespaces
	sharePID bool // without a pid namespace
	ahead    executor.Ahead
	renewed  renewed
	unpacks  chan struct{} // as many as layers may be unpacked at a time while they arrive
	sweeping sync.WaitGroup
	stop     context.CancelFunc
	notes    notes
}

func (n *inside) close(context.Context, json.RawMessage, []*os.File) (any, error) {
	if n.store == nil {
		return nil, nil
	}
	n.stop()
	n.ahead.Close()
	n.sweeping.Wait()
	n.renewed.drop()
	n.layers.DropTrees()
	return nil, errors.Join(n.lease.Close(), n.store.Close())
}

// sweep takes away, beside the steps, what builds that were killed left in the store: directories of this id map can be
// removed by nobody but a holder.
func (n *inside) sweep(kind string) {
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	n.sweeping.Go(func() {
		_ = n.store.Sweep(ctx, func(ctx context.Context, idKind string, paths []string) error {
			if idKind != kind {
				return nil
			}
			return removeTrees(ctx, paths)
		})
	})
}

func (n *inside) open(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var req openRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	st, err := store.Open(req.Root, storeOptions(req.Root))
	if err != nil {
		return nil, err
	}
	lease, err := st.Lease()
	if err != nil {
		return nil, err
	}
	ids, err := owner.ReadMap()
	if err != nil {
		return nil, err
	}
	kind := req.Plan.Kind
	n.store, n.lease = st, lease
	n.layers = snapshot.New(st, snapshot.Options{IDKind: kind, IDs: ids, Lease: lease, Inflate: n.inflate(&req)})
	n.kind, n.plain, n.sharePID = kind, req.Plan.Plain, req.Plan.SharePID
	if !n.plain && !n.sharePID {
		n.ahead.Expect(req.Further)
	}
	n.unpacks = make(chan struct{}, 1+max(2, runtime.GOMAXPROCS(0))) // one more, because some wait for their downloads
	n.sweep(kind)
	return n.chooseRoot(&req)
}

// chooseRoot tries whether overlays work where the layers are.
func (n *inside) chooseRoot(req *openRequest) (*openResponse, error) {
	n.root = req.RootKind
	switch {
	case req.Plan.Plain:
		n.root = RootTree
	case n.root == RootTree:
	default:
		base, err := n.store.MakeLocal(n.kind)
		if err != nil {
			return nil, err
		}
		if err := executor.ProbeOverlay(base); err == nil {
			n.root = RootOverlay
		} else if n.root == RootOverlay {
			return nil, err
		} else {
			n.root = RootTree
			return &openResponse{RootKind: n.root, NoOverlay: err.Error()}, nil
		}
	}
	return &openResponse{RootKind: n.root}, nil
}

// run makes the directories a step stands on, runs it, and turns what it changed into a layer.
func (n *inside) run(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	var req runRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	if len(files) < 3 {
		return nil, fmt.Errorf("internal error: %d files came with a step", len(files))
	}
	files, err := req.Group.take(&req.Spec, files)
	if err != nil {
		return nil, err
	}
	if err := takeSockets(&req.Spec, files[3:]); err != nil {
		return nil, err
	}
	stand, err := n.begin(ctx, req.Chain)
	if err != nil {
		return nil, err
	}
	defer stand.Discard()
	release, err := n.attach(ctx, &req, files[2])
	if err != nil {
		return nil, err
	}
	defer release()
	req.Spec.Root, req.Spec.Owners = stand.root, n.layers.Nodes()
	if !n.plain && !n.sharePID {
		req.Spec.Ahead = &n.ahead
		n.ahead.Expect(1 + req.Further)
	}
	running, leave, err := joinNetwork(ctx, &req.Spec, files[2])
	if err != nil {
		return nil, err
	}
	defer leave()
	var traces executor.Traces
	req.Spec.Traces = &traces
	err = executor.Run(running, &req.Spec, files[0], files[1], files[2])
	for _, note := range traces.Notes {
		_, _ = fmt.Fprintf(files[2], "isolation: %s\n", note)
	}
	if err != nil {
		return nil, n.blameRoom(err)
	}
	search := req.Leaks.search()
	if search != nil {
		stand.Inspect(search)
	}
	l, err := stand.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return &runResponse{DiffID: l.DiffID, Leaks: search.findings(), Notes: n.notes.take()}, nil
}

// changeable is what a command changes: an upper directory over layers, or a private tree of them.
type changeable interface {
	Inspect(snapshot.Inspector)
	Commit(context.Context) (snapshot.Layer, error)
	Discard()
}

// stand is a chain of layers made ready for a command.
type stand struct {
	changeable
	root executor.Root
}

// begin makes a chain ready. One that is too deep for an overlay becomes a private tree as well.
func (n *inside) begin(ctx context.Context, chain []digest.Digest) (*stand, error) {
	if n.root == RootTree || len(chain) > executor.MaxLowers {
		t, err := n.layers.BeginTree(ctx, chain)
		if err != nil {
			return nil, err
		}
		return &stand{t, executor.Tree{Dir: t.Dir}}, nil
	}
	up, err := n.layers.Begin(ctx, chain)
	if err != nil {
		return nil, err
	}
	return &stand{up, executor.Overlay{Lower: up.Lower, Upper: up.Dir, Work: up.Work}}, nil
}
