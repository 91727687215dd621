package build

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/dag"
	"build/exporter"
	"build/snapshot"
)

// view is how one output wants the same layers: compressed how, with times clamped to what.
type view struct {
	compression snapshot.Compression
	epoch       *time.Time
	docker      bool // Docker's media types instead of OCI's
	annotations []Annotation
}

// result puts together what the build made: an image, or an index of several.
func (s *session) result(ctx context.Context, products []*product, v view) (*exporter.Image, error) {
	images := make([]exporter.Image, len(products))
	err := each(ctx, indices(len(products)), func(ctx context.Context, i int) error {
		img, err := s.image(ctx, products[i].graph, products[i].out, v)
		if err == nil {
			images[i] = *img
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &images[0]
	if s.opts.MultiPlatform() {
		if out, err = exporter.AssembleIndex(images, annotationsOn(v.annotations, OnIndex, nil), v.docker); err != nil {
			return nil, err
		}
		out.Annotations = annotationsOn(v.annotations, OnIndexDescriptor, nil)
	}
	out.Names = slices.Clone(s.opts.Tags)
	return out, nil
}

// image puts a result for one platform together: the layers in the form the view wants, the configuration and the manifest.
func (s *session) image(ctx context.Context, g *dag.Graph, out *outcome, v view) (*exporter.Image, error) {
	layers := make([]exporter.Layer, len(out.chain))
	err := each(ctx, indices(len(out.chain)), func(ctx context.Context, i int) error {
		l, err := s.imageLayer(ctx, out, i, v)
		layers[i] = l
		return err
	})
	if err != nil {
		return nil, err
	}
	cfg, times, err := s.imageConfig(g, out)
	if err != nil {
		return nil, err
	}
	img, err := exporter.Assemble(cfg, layers, exporter.AssembleOptions{
		Docker: v.docker, Annotations: annotationsOn(v.annotations, OnManifest, &cfg.Platform),
		Epoch: v.epoch, LayerTimes: times, BaseHistory: baseHistory(g),
	})
	if err == nil {
		img.Annotations = annotationsOn(v.annotations, OnManifestDescriptor, &cfg.Platform)
	}
	return img, err
}

// imageLayer finds or makes the blob of one layer. Layers of a base keep the blob they came with.
func (s *session) imageLayer(ctx context.Context, out *outcome, i int, v view) (exporter.Layer, error) {
	d := out.chain[i]
	if i < out.base && !v.compression.Force {
		desc, err := s.originalBlob(d)
		if err != nil {
			return exporter.Layer{}, err
		}
		if desc != nil {
			return exporter.Layer{Descriptor: *desc, DiffID: d, Open: s.openLayer(d, *desc), Memory: s.store}, nil
		}
	}
	epoch := v.epoch
	if i < out.base {
		epoch = nil
		if err := s.fetches.layer(ctx, d); err != nil {
			return exporter.Layer{}, err
		}
	}
	r, err := s.layers.Compressed(ctx, d, v.compression, epoch)
	if err != nil {
		return exporter.Layer{}, fmt.Errorf("compress layer %s: %w", d, err)
	}
	s.uses(r.DiffID) // with times clamped it is a layer of its own
	return exporter.Layer{Descriptor: r.Descriptor, DiffID: r.DiffID, Open: openStored(s.store, r.Descriptor), Memory: s.store}, nil
}

// originalBlob is the blob a base's layer is known by, here or elsewhere; nil when it was built here and has none yet.
func (s *session) originalBlob(d digest.Digest) (*ocispec.Descriptor, error) {
	s.fetches.mu.Lock()
	o, ok := s.fetches.offered[d]
	s.fetches.mu.Unlock()
	if ok {
		return &o.desc, nil
	}
	blobs, err := s.layers.Blobs(d)
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		if b.Digest != d { // a compressed form; the plain tar is named by the diffID
			return &b.Descriptor, nil
		}
	}
	return nil, nil
}

// openLayer opens a base's blob, fetching it first when it has never been needed.
func (s *session) openLayer(diffID digest.Digest, desc ocispec.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		if !s.store.HasBlob(desc.Digest, desc.Size) {
			if err := s.fetches.original(ctx, diffID, desc); err != nil {
				return nil, err
			}
		}
		return s.store.OpenBlob(desc.Digest, desc.Size)
	}
}

// imageConfig completes the configuration with the history, and says when each layer was made.
func (s *session) imageConfig(g *dag.Graph, out *outcome) (dockerspec.DockerOCIImage, []exporter.LayerTime, error) {
	cfg := g.Config
	cfg.History = nil
	madeHere := func(h dag.History) bool { return h.Step >= 0 && isWork(&g.Steps[h.Step]) }
	own := 0
	for _, h := range g.History {
		if madeHere(h) {
			own++
		}
	}
	next := len(out.chain) - own
	if next < 0 {
		return cfg, nil, fmt.Errorf("internal error: %d steps of the history made layers, and the image has %d", own, len(out.chain))
	}
	times := make([]exporter.LayerTime, len(out.chain))
	for _, h := range g.History {
		entry := h.History
		if madeHere(h) {
			t := out.times[next]
			if entry.Created == nil { // an epoch of the build is the time of all its instructions, older layer or not
				entry.Created = &t
			}
			times[next] = exporter.LayerTime{Created: t, CreatedBy: entry.CreatedBy}
			next++
		}
		cfg.History = append(cfg.History, entry)
	}
	return cfg, times, nil
}

func baseHistory(g *dag.Graph) []ocispec.History {
	if g.BaseConfig == nil {
		return nil
	}
	return g.BaseConfig.History
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
