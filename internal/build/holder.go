package build

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"build/executor"
	"build/internal/store"
	"build/internal/userns"
	"build/snapshot"
)

// holder is the process that owns the namespaces, started when the first step needs it. A build that finds everything in
// the cache never starts one.
type holder struct {
	mu sync.Mutex
	h  *userns.Holder
}

func (h *holder) get(ctx context.Context, s *session) (*userns.Holder, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.h != nil {
		return h.h, nil
	}
	hd, err := userns.Start(ctx, s.plan)
	if err != nil {
		return nil, fmt.Errorf("start the namespaces: %w", err)
	}
	if err := hd.Call(ctx, "open", openRequest{Root: s.store.Dir(), Kind: s.plan.Kind}, nil); err != nil {
		hd.Close()
		return nil, fmt.Errorf("open the store inside the namespaces: %w", err)
	}
	h.h = hd
	return hd, nil
}

func (h *holder) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.h != nil {
		h.h.Close()
		h.h = nil
	}
}

// Reentry runs this process as one of our helpers when it was started as one, and reports whether it was. It is the
// first thing main calls.
func Reentry() bool {
	if executor.Reentry() {
		return true
	}
	n := &inside{}
	return userns.Reentry(map[string]userns.Handler{
		"open": n.open,
		"run":  n.run,
	})
}

// The messages between a build and its holder.
type (
	openRequest struct{ Root, Kind string }

	runSpec struct {
		Args, Env     []string
		Dir, User     string
		NoNetwork     bool
		Hostname      string
		Resolv, Hosts []byte
		Files         []runFile
		Tmpfs         []runTmpfs
	}
	runFile struct {
		Target string
		Data   []byte
		Mode   uint32
	}
	runTmpfs struct {
		Target string
		Size   int64
	}
	runRequest struct {
		Chain []digest.Digest
		Spec  runSpec
	}
	runResponse struct {
		Exit   *executor.ExitError
		DiffID digest.Digest
	}
)

// inside is the holder's side: the same store, opened in the process that owns the ids of what lies in local/.
type inside struct {
	layers *snapshot.Layers
}

func (n *inside) open(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var req openRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	st, err := store.Open(req.Root, store.Options{})
	if err != nil {
		return nil, err
	}
	n.layers = snapshot.New(st, snapshot.Options{IDKind: req.Kind})
	return nil, nil
}

// run makes the directories a step stands on, runs it, and turns what it changed into a layer.
func (n *inside) run(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	var req runRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	if len(files) != 3 {
		return nil, fmt.Errorf("internal error: %d files came with a step", len(files))
	}
	up, err := n.layers.Begin(ctx, req.Chain)
	if err != nil {
		return nil, err
	}
	defer up.Discard()
	spec := req.Spec.executor(up)
	if err := executor.Run(ctx, spec, files[0], files[1], files[2]); err != nil {
		exit, err := exitOf(err)
		return &runResponse{Exit: exit}, err
	}
	for _, f := range files { // the step's output is complete: the front process need not wait for the layer to see its end
		f.Close()
	}
	l, err := up.Commit(ctx)
	if err != nil {
		return nil, err
	}
	return &runResponse{DiffID: l.DiffID}, nil
}

func (r *runSpec) executor(up *snapshot.Upper) *executor.Spec {
	s := &executor.Spec{
		Root: executor.Overlay{Lower: up.Lower, Upper: up.Dir, Work: up.Work},
		Args: r.Args, Env: r.Env, Dir: r.Dir, User: r.User,
		Hostname: r.Hostname, Resolv: r.Resolv, Hosts: r.Hosts,
	}
	if r.NoNetwork {
		s.Network = executor.None
	}
	for _, f := range r.Files {
		s.Mounts = append(s.Mounts, executor.Mount{Target: f.Target, Source: executor.File{Data: f.Data, Mode: f.Mode}})
	}
	for _, t := range r.Tmpfs {
		s.Mounts = append(s.Mounts, executor.Mount{Target: t.Target, Source: executor.Tmpfs{Size: t.Size, Mode: 0o1777}})
	}
	return s
}
