package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's own formats; OCI's are in ocispec.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	DockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	DockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	DockerForeignGzip  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

	dockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Limits on what is held in memory or believed. A manifest or config in the wild is a few KiB; the largest known
// configs, with thousands of history entries, stay below 1 MiB.
const (
	maxManifest   = 8 << 20
	maxConfig     = 8 << 20
	maxBlob       = 1 << 40
	maxLayers     = 10_000
	maxIndexDepth = 3
)

// Image is one image for one platform: its manifest and config, verified, and where they came from.
type Image struct {
	Ref         string        // canonical reference it was asked for by
	Repo        string        // repository its blobs are in: docker.io/library/debian; "" for a local layout
	Digest      digest.Digest // of the manifest
	IndexDigest digest.Digest // of the index it was chosen from, "" if there was none
	MediaType   string        // of the manifest
	ManifestRaw []byte
	ConfigRaw   []byte
	Manifest    ocispec.Manifest
	Config      dockerspec.DockerOCIImage
	DiffIDs     []digest.Digest  // as many as Manifest.Layers
	Platform    ocispec.Platform // what the config says it is, normalised
}

// acceptManifests is the Accept header of manifest requests. Schema 1 is not in it, so a registry that has nothing
// else says so or sends it uninvited, and both are reported by name.
var acceptManifests = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, DockerManifest, DockerManifestList,
}, ", ")

// document is a manifest or index of any kind, with the fields that tell the kinds apart.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
	History       json.RawMessage      `json:"history"`
}

func isIndexType(t string) bool { return t == ocispec.MediaTypeImageIndex || t == DockerManifestList }

func isManifestType(t string) bool { return t == ocispec.MediaTypeImageManifest || t == DockerManifest }

// parseDocument reads raw, which was served or described as said, and returns it with its settled media type. The same
// bytes must not be readable as two kinds of document (CVE-2021-41190), so whatever is said about the type has to agree
// with the type inside and with the fields present.
func parseDocument(raw []byte, said string) (document, string, error) {
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return doc, "", errorf(Unsupported, "manifest is not JSON: %w", err)
	}
	mt := mediaType(said)
	if mt == dockerSchema1 || mt == dockerSchema1Signed || doc.SchemaVersion == 1 || doc.FSLayers != nil {
		e := errorf(Unsupported, "the manifest has the obsolete schema 1 format (%s)", dockerSchema1Signed)
		e.Hint = "pull and push the image once with a current docker, or copy it with `skopeo copy --format v2s2`"
		return doc, "", e
	}
	known := isIndexType(mt) || isManifestType(mt)
	switch {
	case !known && doc.MediaType != "":
		mt = mediaType(doc.MediaType)
	case !known && doc.Manifests != nil:
		mt = ocispec.MediaTypeImageIndex
	case !known && doc.Config != nil:
		mt = ocispec.MediaTypeImageManifest
	}
	if doc.MediaType != "" && mediaType(doc.MediaType) != mt {
		return doc, "", errorf(Unsupported, "the manifest is described as %s but calls itself %s", mt, doc.MediaType)
	}
	switch {
	case isIndexType(mt):
		if doc.Config != nil || doc.Layers != nil {
			return doc, "", errorf(Unsupported, "the index has the fields of a manifest too; it could be read as either")
		}
	case isManifestType(mt):
		if doc.Manifests != nil {
			return doc, "", errorf(Unsupported, "the manifest has the fields of an index too; it could be read as either")
		}
		if doc.Config == nil {
			return doc, "", errorf(Unsupported, "the manifest has no config")
		}
	default:
		return doc, "", errorf(Unsupported, "%q is not the media type of an image", mt)
	}
	return doc, mt, nil
}

// checkDescriptor refuses descriptors that cannot be true before anything is fetched by them.
func checkDescriptor(what string, d ocispec.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if d.Size < 0 || d.Size > maxBlob {
		return errorf(Digest, "%s %s has the impossible size %d", what, d.Digest, d.Size)
	}
	return nil
}

// checkManifest judges every descriptor of a manifest.
func checkManifest(m *ocispec.Manifest) error {
	if err := checkDescriptor("config", m.Config); err != nil {
		return err
	}
	if m.Config.Size > maxConfig {
		return errorf(Unsupported, "config is larger than %d MiB", maxConfig>>20)
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, DockerConfig, "application/octet-stream":
	default:
		kind := m.ArtifactType
		if kind == "" {
			kind = m.Config.MediaType
		}
		return errorf(Unsupported, "this is not a container image but an artifact of type %s", kind)
	}
	if len(m.Layers) > maxLayers {
		return errorf(Unsupported, "%d layers", len(m.Layers))
	}
	for i, l := range m.Layers {
		what := fmt.Sprintf("layer %d", i+1)
		if err := checkDescriptor(what, l); err != nil {
			return err
		}
		if !isLayerType(l.MediaType) {
			return errorf(Unsupported, "%s has the unknown media type %s", what, l.MediaType)
		}
	}
	return nil
}

func isLayerType(t string) bool {
	switch t {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		DockerLayer, DockerLayerGzip, DockerLayerZstd:
		return true
	}
	return IsForeign(t)
}

// IsForeign reports whether layers of this media type stay where they are when an image is pushed.
func IsForeign(t string) bool {
	return t == DockerForeign || t == DockerForeignGzip || strings.HasPrefix(t, "application/vnd.oci.image.layer.nondistributable.")
}

// newImage puts an image together from verified bytes.
func newImage(manifestRaw, configRaw []byte, mt string, m ocispec.Manifest) (*Image, error) {
	im := &Image{Digest: digest.FromBytes(manifestRaw), MediaType: mt, ManifestRaw: manifestRaw, ConfigRaw: configRaw, Manifest: m}
	if err := json.Unmarshal(configRaw, &im.Config); err != nil {
		return nil, errorf(Unsupported, "the image config is not valid: %w", err)
	}
	im.DiffIDs = im.Config.RootFS.DiffIDs
	if len(im.DiffIDs) != len(m.Layers) {
		return nil, errorf(Unsupported, "the manifest has %d layers but the config lists %d", len(m.Layers), len(im.DiffIDs))
	}
	for _, d := range im.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	im.Platform = platforms.Normalize(im.Config.Platform)
	if im.Platform.OS == "" || im.Platform.Architecture == "" {
		return nil, errorf(Unsupported, "the image config names no platform (os %q, architecture %q)", im.Config.OS, im.Config.Architecture)
	}
	return im, nil
}

// Platform fall-back: entries of an index are images or things attached to images (attestations, signatures).
func isAttachment(d ocispec.Descriptor) bool {
	if d.Annotations["vnd.docker.reference.type"] != "" {
		return true
	}
	return d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// candidates returns the entries of an index that may serve platform p, best first, followed by those that do not say
// what they are.
func candidates(ms []ocispec.Descriptor, p ocispec.Platform) (fit, unnamed []ocispec.Descriptor) {
	match := platforms.Only(p)
	for _, d := range ms {
		switch {
		case isAttachment(d), !isManifestType(d.MediaType) && !isIndexType(d.MediaType):
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			unnamed = append(unnamed, d)
		case match.Match(*d.Platform):
			fit = append(fit, d)
		}
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fit, unnamed
}

// noPlatform is the error for an index that has nothing for p; it lists what there is.
func noPlatform(ms []ocispec.Descriptor, p ocispec.Platform) error {
	var have []string
	for _, d := range ms {
		if d.Platform != nil && !isAttachment(d) {
			have = append(have, platforms.Format(platforms.Normalize(*d.Platform)))
		}
	}
	slices.Sort(have)
	have = slices.Compact(have)
	e := errorf(NotFound, "there is no image for %s; there are: %s", platforms.Format(p), strings.Join(have, ", "))
	if len(have) == 0 {
		e = errorf(NotFound, "there is no image for %s; the index is empty", platforms.Format(p))
	}
	e.Hint = "choose one of these with --platform"
	return e
}
