package exporter

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AssembleOptions are the choices of one export that change manifest or config.
type AssembleOptions struct {
	Docker      bool                       // Docker's media types instead of OCI's (oci-mediatypes=false)
	Annotations map[string]string          // of the manifest
	LayerTimes  []LayerTime                // one per layer, to fill gaps of the history; may be shorter or nil
	Epoch       *time.Time                 // SOURCE_DATE_EPOCH: no time of ours is later
	BaseHistory []ocispec.History          // of the FROM image: its entries keep their times whatever the epoch
	Extra       map[string]json.RawMessage // further fields of the config, such as an inline cache
}

// LayerTime says when a layer was made and by what, for layers that the history forgot.
type LayerTime struct {
	Created   time.Time // zero: unknown
	CreatedBy string
}

// Assemble makes manifest and config for layers (bottom first). config brings everything but rootfs; its history may
// lack times and entries, see NormalizeHistory. The JSON is what BuildKit writes for the same input: config keys sorted,
// manifest indented.
func Assemble(config dockerspec.DockerOCIImage, layers []Layer, o AssembleOptions) (*Image, error) {
	if config.OS == "" || config.Architecture == "" {
		return nil, fmt.Errorf("the image config names no platform (os %q, architecture %q)", config.OS, config.Architecture)
	}
	if o.Docker && len(o.Annotations) > 0 {
		return nil, errors.New("annotations need OCI media types; Docker's manifests have no place for them")
	}
	history := NormalizeHistory(config.History, len(layers), o.LayerTimes)
	if o.Epoch != nil {
		history = ClampHistory(history, o.BaseHistory, *o.Epoch)
	}
	raw, err := configJSON(config, layers, history, o)
	if err != nil {
		return nil, fmt.Errorf("writing the image config: %w", err)
	}
	im := &Image{Config: raw, Platform: config.Platform, MediaType: ocispec.MediaTypeImageManifest}
	configType := ocispec.MediaTypeImageConfig
	if o.Docker {
		im.MediaType, configType = dockerManifest, dockerConfig
	}
	m := ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   im.MediaType,
		Config:      ocispec.Descriptor{MediaType: configType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Layers:      []ocispec.Descriptor{},
		Annotations: o.Annotations,
	}
	for i, l := range layers {
		d, err := layerDescriptor(l.Descriptor, o.Docker)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		m.Layers = append(m.Layers, d)
		l.Descriptor = d
		im.Layers = append(im.Layers, l)
	}
	if im.Manifest, err = json.MarshalIndent(m, "", "  "); err != nil {
		return nil, fmt.Errorf("writing the manifest: %w", err)
	}
	return im, nil
}

// configJSON lays rootfs, history and creation time over the config.
func configJSON(config dockerspec.DockerOCIImage, layers []Layer, history []ocispec.History, o AssembleOptions) ([]byte, error) {
	base, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(base, &fields); err != nil {
		return nil, err
	}
	rootfs := ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for i, l := range layers {
		if err := l.DiffID.Validate(); err != nil {
			return nil, fmt.Errorf("diffID of layer %d: %w", i+1, err)
		}
		rootfs.DiffIDs = append(rootfs.DiffIDs, l.DiffID)
	}
	created := config.Created
	if created == nil {
		for _, h := range history {
			if h.Created != nil {
				created = h.Created
			}
		}
	}
	if created != nil && o.Epoch != nil && created.After(*o.Epoch) {
		created = utc(*o.Epoch)
	}
	if history == nil {
		history = []ocispec.History{}
	}
	for name, value := range map[string]any{"rootfs": rootfs, "history": history, "created": created} {
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	if created == nil {
		delete(fields, "created") // null is not a time; the field is optional
	}
	maps.Copy(fields, o.Extra)
	return json.Marshal(fields)
}

// NormalizeHistory makes a history fit n layers. The number of entries that are not marked as empty becomes n: surplus
// ones are marked as empty from the end, missing ones are appended with what times knows. Entries without a time get
// one: that of their layer, else of the first layer made after the ones that already had a time, so that an ENV between
// two RUNs seems made together with the second.
func NormalizeHistory(in []ocispec.History, n int, times []LayerTime) []ocispec.History {
	at := func(layer int) (created *time.Time, by string) {
		if layer < len(times) {
			if by = times[layer].CreatedBy; !times[layer].Created.IsZero() {
				created = utc(times[layer].Created)
			}
		}
		return created, by
	}
	history := slices.Clone(in)
	layer := 0
	for i := range history {
		h := &history[i]
		if !h.EmptyLayer && layer >= n {
			h.EmptyLayer = true
		}
		if h.EmptyLayer {
			continue
		}
		if h.Created == nil {
			h.Created, _ = at(layer)
		}
		layer++
	}
	for ; layer < n; layer++ {
		h := ocispec.History{Comment: "build.exporter.image.v0"}
		if h.Created, h.CreatedBy = at(layer); h.CreatedBy == "" {
			h.CreatedBy = "created by build"
		}
		history = append(history, h)
	}
	fillTimes(history)
	return history
}

// fillTimes gives every entry a time, as far as there is any.
func fillTimes(history []ocispec.History) {
	// The first time after a gap, or else the last one there is.
	var created *time.Time
	gap := false
	for _, h := range history {
		if h.Created == nil {
			gap = true
			continue
		}
		created = h.Created
		if gap {
			break
		}
	}
	gap = false
	for i := range history {
		switch h := &history[i]; {
		case h.Created == nil:
			gap = true
			h.Created = created
		case gap:
			created = h.Created
		}
	}
}

// ClampHistory lowers times later than epoch. The entries at the start that are the base image's own are left alone:
// they are facts about somebody else's build.
func ClampHistory(in, base []ocispec.History, epoch time.Time) []ocispec.History {
	history := slices.Clone(in)
	own := false
	for i := range history {
		h := &history[i]
		if own = own || i >= len(base) || !sameHistory(*h, base[i]); !own {
			continue
		}
		if h.Created == nil || h.Created.After(epoch) {
			h.Created = utc(epoch)
		}
	}
	return history
}

func sameHistory(a, b ocispec.History) bool {
	switch {
	case a.Created == nil || b.Created == nil:
		if a.Created != b.Created {
			return false
		}
	case !a.Created.Equal(*b.Created):
		return false
	}
	a.Created, b.Created = nil, nil
	return a == b
}

func utc(t time.Time) *time.Time {
	t = t.UTC()
	return &t
}

// layerDescriptor is a layer's descriptor as it stands in a manifest: media type of the manifest's family, and no
// annotations that only mean something to the tool that made them.
func layerDescriptor(in ocispec.Descriptor, docker bool) (ocispec.Descriptor, error) {
	mt, err := ConvertLayerType(in.MediaType, docker)
	if err != nil {
		return in, err
	}
	d := ocispec.Descriptor{MediaType: mt, Digest: in.Digest, Size: in.Size, URLs: in.URLs}
	if docker {
		return d, nil
	}
	for k, v := range in.Annotations {
		if strings.HasPrefix(k, "containerd.io/") || k == "buildkit/createdat" {
			continue
		}
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[k] = v
	}
	return d, nil
}

// layerTypes pairs OCI's layer types with Docker's.
var layerTypes = [...][2]string{
	{ocispec.MediaTypeImageLayer, dockerLayer},
	{ocispec.MediaTypeImageLayerGzip, dockerLayerGzip},
	{ocispec.MediaTypeImageLayerZstd, dockerLayerZstd},
	{ociForeign, dockerForeign},
	{ociForeignGzip, dockerForeignGzip},
}

// ConvertLayerType returns the type of the same bytes in the other family, or the same type if it is already right.
func ConvertLayerType(mt string, docker bool) (string, error) {
	for _, pair := range layerTypes {
		if mt == pair[0] || mt == pair[1] {
			if docker {
				return pair[1], nil
			}
			return pair[0], nil
		}
	}
	return "", fmt.Errorf("unknown layer type %q", mt)
}
