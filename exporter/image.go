package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
)

// Media types of Docker's formats; OCI's are in ocispec.
const (
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	dockerForeignGzip  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	ociForeign         = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	ociForeignGzip     = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	annotationFullName = "io.containerd.image.name"
)

// Layer is one layer blob: its descriptor, what it is uncompressed, and how to read it.
type Layer struct {
	ocispec.Descriptor
	DiffID digest.Digest
	Open   func(ctx context.Context) (io.ReadCloser, error)
	Memory Memory // nil: the blob is hashed whenever it is read
}

// Image is a finished image: the exact bytes of manifest and config, and the layers they name.
type Image struct {
	Manifest    []byte
	Config      []byte
	MediaType   string // of the manifest
	Layers      []Layer
	Names       []string // tags, in any spelling docker accepts
	Platform    ocispec.Platform
	Annotations map[string]string // of the manifest's descriptor in an index
	// Children are the images of an index, one for each platform. Manifest is then the index; Config and Layers are empty.
	Children []Image
}

// AssembleIndex makes the index that unites images of several platforms, in the order given.
func AssembleIndex(children []Image, annotations map[string]string, docker bool) (*Image, error) {
	mediaType := ocispec.MediaTypeImageIndex
	if docker {
		mediaType = dockerManifestList
	}
	ix := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Annotations: annotations,
		Manifests: make([]ocispec.Descriptor, 0, len(children)),
	}
	for i := range children {
		ix.Manifests = append(ix.Manifests, children[i].Descriptor())
	}
	raw, err := json.MarshalIndent(ix, "", "  ")
	if err != nil {
		return nil, err
	}
	return &Image{Manifest: raw, MediaType: mediaType, Children: children}, nil
}

// Digest is the manifest's digest, which is the image's.
func (im *Image) Digest() digest.Digest { return digest.FromBytes(im.Manifest) }

// ConfigDigest is what docker calls the image ID.
func (im *Image) ConfigDigest() digest.Digest { return digest.FromBytes(im.Config) }

// Descriptor describes the manifest, as an index would list it, without a name.
func (im *Image) Descriptor() ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: im.MediaType, Digest: im.Digest(), Size: int64(len(im.Manifest))}
	if im.Platform.OS != "" {
		p := im.Platform
		d.Platform = &p
	}
	d.Annotations = maps.Clone(im.Annotations)
	return d
}

// entries are the image's lines in index.json: one for every name, one without a name if there is none. Each carries
// the image's creation time, taken from the config so that it is no other on the next export.
func (im *Image) entries() ([]ocispec.Descriptor, error) {
	base := im.Descriptor()
	if created, err := im.created(); err != nil {
		return nil, err
	} else if created != nil && base.Annotations[ocispec.AnnotationCreated] == "" {
		if base.Annotations == nil {
			base.Annotations = map[string]string{}
		}
		base.Annotations[ocispec.AnnotationCreated] = created.UTC().Format(time.RFC3339)
	}
	if len(im.Names) == 0 {
		return []ocispec.Descriptor{base}, nil
	}
	var out []ocispec.Descriptor
	seen := map[string]bool{}
	for _, n := range im.Names {
		named, err := normalName(n)
		if err != nil {
			return nil, err
		}
		if seen[named.String()] {
			continue
		}
		seen[named.String()] = true
		d := base
		d.Annotations = maps.Clone(base.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotationFullName] = named.String()
		d.Annotations[ocispec.AnnotationRefName] = refName(named)
		out = append(out, d)
	}
	return out, nil
}

func (im *Image) created() (*time.Time, error) {
	if len(im.Children) > 0 {
		return im.Children[0].created()
	}
	var c struct {
		Created *time.Time `json:"created"`
	}
	if err := json.Unmarshal(im.Config, &c); err != nil {
		return nil, fmt.Errorf("reading the image config: %w", err)
	}
	return c.Created, nil
}

// repoTags are the image's names as docker prints them.
func (im *Image) repoTags() ([]string, error) {
	tags := []string{}
	for _, n := range im.Names {
		named, err := normalName(n)
		if err != nil {
			return nil, err
		}
		if tag := named.Familiar(); !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

func normalName(n string) (reference.Reference, error) {
	named, err := reference.Parse(n)
	if err != nil {
		return reference.Reference{}, fmt.Errorf("image name %q: %w", n, err)
	}
	return named.Tagged(), nil
}

// refName is what the OCI specification wants in an index: the tag alone; the whole name if there is only a digest.
func refName(named reference.Reference) string {
	if named.Tag != "" {
		return named.Tag
	}
	return named.String()
}

// check finds images that contradict themselves before anything is written.
func (im *Image) check() error {
	if len(im.Children) > 0 {
		return im.checkIndex()
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(im.Manifest, &m); err != nil {
		return fmt.Errorf("reading the manifest: %w", err)
	}
	if m.Config.Digest != im.ConfigDigest() {
		return errors.New("the manifest names another config than the image has")
	}
	if len(m.Layers) != len(im.Layers) {
		return fmt.Errorf("the manifest has %d layers, the image %d", len(m.Layers), len(im.Layers))
	}
	for i, l := range m.Layers {
		if l.Digest != im.Layers[i].Digest || l.Size != im.Layers[i].Size {
			return fmt.Errorf("layer %d is %s in the manifest, %s in the image", i+1, l.Digest, im.Layers[i].Digest)
		}
		if err := l.Digest.Validate(); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return nil
}

func (im *Image) checkIndex() error {
	var ix ocispec.Index
	if err := json.Unmarshal(im.Manifest, &ix); err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	if len(ix.Manifests) != len(im.Children) {
		return fmt.Errorf("the index lists %d images, and there are %d", len(ix.Manifests), len(im.Children))
	}
	for i := range im.Children {
		if ix.Manifests[i].Digest != im.Children[i].Digest() {
			return fmt.Errorf("image %d is %s in the index, and really %s", i+1, ix.Manifests[i].Digest, im.Children[i].Digest())
		}
		if err := im.Children[i].check(); err != nil {
			return err
		}
	}
	return nil
}
