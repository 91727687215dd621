package build

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"build/internal/userns"
	"build/snapshot"
)

// This file is about layers that a RUN stands on and that have to be fetched for it: the holder unpacks each while it arrives.

// unpackRequest comes with two files: the one the blob is written to, and a pipe that tells how much of it is there.
type unpackRequest struct {
	Chain []digest.Digest
	Layer int   // which of them arrives
	Size  int64 // of the blob
}

type unpackResponse struct {
	Notes []string // to be told to the user
}

// fetchForRun fetches layers of a chain, by their places in it, and returns when they are unpacked as well. The largest go first: what
// is left at the end is then too small to keep one processor busy for long while the others have nothing to do.
func (e *evaluator) fetchForRun(ctx context.Context, h *userns.Holder, g *ground, chain []digest.Digest, missing []int) error {
	slices.SortStableFunc(missing, func(a, b int) int { return cmp.Compare(e.fetches.size(chain[b]), e.fetches.size(chain[a])) })
	var unpacking sync.WaitGroup
	downloads, fetching := errgroup.WithContext(ctx)
	downloads.SetLimit(parallelFetches) // so that they begin in this order
	fetch := func(i int) error {
		if g.Root == RootTree { // no layer gets a directory of its own
			return e.fetches.blob(fetching, chain[i])
		}
		into := func(fetching context.Context, diffID digest.Digest, desc ocispec.Descriptor, r io.Reader) error {
			w := &unpacker{e: e, h: h, chain: chain, layer: i, size: desc.Size, running: &unpacking}
			defer w.close()
			// What is unpacked is not called off when the last blob has arrived, as what fetches is.
			return e.layers.ImportFollowed(fetching, diffID, desc, r, w.follow(ctx))
		}
		return e.fetches.once(fetching, wanted{diffID: chain[i], into: into})
	}
	for _, i := range missing {
		downloads.Go(func() error { return fetch(i) })
	}
	err := downloads.Wait()
	unpacking.Wait() // else the step would begin to unpack them once more
	return err
}

// unpacker lets the holder read behind one download.
type unpacker struct {
	e       *evaluator
	h       *userns.Holder
	chain   []digest.Digest
	layer   int
	size    int64
	running *sync.WaitGroup

	marks *os.File
}

func (u *unpacker) follow(ctx context.Context) snapshot.Follow {
	return func(f *os.File) (func(int64), error) {
		r, w, err := os.Pipe()
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("unpack a layer while it arrives: %w", err)
		}
		u.marks = w
		u.running.Go(func() {
			defer r.Close()
			defer f.Close()
			// An error of this is one of the download, which tells it itself, or it is met again when the step unpacks the layer.
			var resp unpackResponse
			_ = u.h.Call(ctx, "unpack", unpackRequest{Chain: u.chain, Layer: u.layer, Size: u.size}, &resp, f, r)
			u.e.tellNotes(resp.Notes)
		})
		return snapshot.TellGrowth(w), nil
	}
}

// close tells the holder that no more will come.
func (u *unpacker) close() {
	if u.marks != nil {
		u.marks.Close()
	}
}

// unpack is the holder's side.
func (n *inside) unpack(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	var req unpackRequest
	if err := json.Unmarshal(in, &req); err != nil {
		return nil, err
	}
	if len(files) != 2 {
		return nil, fmt.Errorf("internal error: %d files came with a layer", len(files))
	}
	// A canceled build closes its end of the pipe, and so does one that dies: nobody waits for marks that do not come.
	select {
	case n.unpacks <- struct{}{}:
		defer func() { <-n.unpacks }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := n.layers.UnpackFollowing(ctx, req.Chain, req.Layer, files[0], files[1], req.Size); err != nil {
		return nil, err
	}
	return &unpackResponse{Notes: n.notes.take()}, nil
}
