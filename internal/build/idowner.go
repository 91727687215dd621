package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"build/internal/store"
	"build/internal/userns"
)

// idOwners reach what lies below local/<id-kind>/ in a store, on behalf of commands that run no step: with what is in there this
// process can do nothing unless it is root or all of it has its own id. So a holder is started for each kind when it is needed.
type idOwners struct {
	mu      sync.Mutex
	holders map[string]*userns.Holder
	closed  map[string]error // kinds that cannot be reached, and why
}

// treesRequest names directories of one id map.
type treesRequest struct{ Paths []string }

// measureResponse has a size for each.
type measureResponse struct{ Sizes []int64 }

// remove removes trees. Of a kind that cannot be reached they stay, which unreachable tells.
func (o *idOwners) remove(ctx context.Context, idKind string, paths []string) error {
	h, err := o.holder(ctx, idKind)
	if err != nil {
		return err
	}
	switch {
	case h != nil:
		return fromHolder(h.Call(ctx, "remove", treesRequest{paths}, nil))
	case o.unreached(idKind) != nil:
		return nil
	}
	return removeTrees(ctx, paths)
}

// measure is a store.Measure. Of a kind that cannot be reached it counts what can be seen from outside.
func (o *idOwners) measure(ctx context.Context, idKind string, paths []string) ([]int64, error) {
	h, err := o.holder(ctx, idKind)
	if err != nil {
		return nil, err
	}
	if h != nil {
		var resp measureResponse
		if err := h.Call(ctx, "measure", treesRequest{paths}, &resp); err != nil {
			return nil, fromHolder(err)
		}
		if len(resp.Sizes) != len(paths) {
			return nil, fmt.Errorf("internal error: %d sizes of %d trees", len(resp.Sizes), len(paths))
		}
		return resp.Sizes, nil
	}
	sizes, err := measureTrees(ctx, paths)
	if o.unreached(idKind) != nil && ctx.Err() == nil {
		return sizes, nil
	}
	return sizes, err
}

// holder returns who owns the ids of a kind: nil when that is this process, or nobody.
func (o *idOwners) holder(ctx context.Context, idKind string) (*userns.Holder, error) {
	if os.Geteuid() == 0 || idKind == userns.KindSingle {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.holders[idKind]; h != nil || o.closed[idKind] != nil {
		return h, nil
	}
	h, _, _, err := userns.Open(ctx, func(p userns.Plan) bool { return p.Kind == idKind })
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		if o.closed == nil {
			o.closed = map[string]error{}
		}
		o.closed[idKind] = err
		return nil, nil
	}
	if o.holders == nil {
		o.holders = map[string]*userns.Holder{}
	}
	o.holders[idKind] = h
	return h, nil
}

func (o *idOwners) unreached(idKind string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed[idKind]
}

// unreachable says, for people, which directories nobody here could look into or remove.
func (o *idOwners) unreachable(st *store.Store) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for kind, err := range o.closed {
		var none *userns.LadderError
		if errors.As(err, &none) && len(none.Tried) == 0 {
			err = errors.New("they were made with another id map, such as an /etc/subuid that was changed since")
		}
		out = append(out, fmt.Sprintf("the directories in %s cannot be reached: %v; root can remove them", st.Local(kind), err))
	}
	return out
}

func (o *idOwners) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range o.holders {
		h.Close()
	}
	o.holders = nil
}

func removeTrees(ctx context.Context, paths []string) error {
	var errs []error
	for _, p := range paths {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := store.RemoveTree(p); err != nil { // the others can go
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func measureTrees(ctx context.Context, paths []string) ([]int64, error) {
	sizes := make([]int64, len(paths))
	var errs []error
	for i, p := range paths {
		if ctx.Err() != nil {
			return sizes, context.Cause(ctx)
		}
		n, err := store.MeasureTree(p)
		sizes[i] = n
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return sizes, errors.Join(errs...)
}

// serveRemove and serveMeasure are the holder's side.
func serveRemove(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var req treesRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	return nil, removeTrees(ctx, req.Paths)
}

func serveMeasure(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var req treesRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	sizes, err := measureTrees(ctx, req.Paths)
	return measureResponse{sizes}, err
}
