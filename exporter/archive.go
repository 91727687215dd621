package exporter

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OCITar writes imgs as an OCI layout in a tar.
func OCITar(ctx context.Context, w io.Writer, imgs []Image) error {
	parts, err := layoutParts(imgs)
	if err != nil {
		return err
	}
	return writeArchive(ctx, w, parts)
}

// DockerTar writes one image as an archive that docker load and podman load accept: an OCI layout with the manifest.json
// of docker save beside it.
func DockerTar(ctx context.Context, w io.Writer, imgs []Image) error {
	if n := len(imgs); n != 1 || len(imgs[0].Children) > 0 {
		return errors.New("a docker archive holds the image of one platform: use type=oci for several")
	}
	parts, err := layoutParts(imgs)
	if err != nil {
		return err
	}
	list, err := dockerList(&imgs[0])
	if err != nil {
		return err
	}
	return writeArchive(ctx, w, append(parts, part{name: "manifest.json", mode: 0o644, data: list}))
}

// dockerList is the manifest.json of docker save.
func dockerList(im *Image) ([]byte, error) {
	tags, err := im.repoTags()
	if err != nil {
		return nil, err
	}
	layers := []string{}
	for _, l := range im.Layers {
		layers = append(layers, blobName(l.Digest))
	}
	return json.Marshal([]struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{{blobName(im.ConfigDigest()), tags, layers}})
}

// part is one file of a layout: small data, or a blob to be opened when its turn comes.
type part struct {
	name string
	mode int64
	data []byte
	desc ocispec.Descriptor // of a blob
	open func(ctx context.Context) (io.ReadCloser, error)
	mem  Memory // of a blob; never nil
}

func (p *part) size() int64 {
	if p.open != nil {
		return p.desc.Size
	}
	return int64(len(p.data))
}

func blobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// layoutParts lists the files of a layout that holds imgs, every blob once, the index last.
func layoutParts(imgs []Image) ([]part, error) {
	blobs, err := blobParts(imgs)
	if err != nil {
		return nil, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	for i := range imgs {
		entries, err := imgs[i].entries()
		if err != nil {
			return nil, err
		}
		index.Manifests = append(index.Manifests, entries...)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return append(blobs,
		part{name: ocispec.ImageLayoutFile, mode: 0o444, data: layoutFile()},
		part{name: ocispec.ImageIndexFile, mode: 0o644, data: raw}), nil
}

func layoutFile() []byte {
	return []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
}

func blobParts(imgs []Image) ([]part, error) {
	var parts []part
	seen := map[digest.Digest]bool{}
	add := func(p part, d digest.Digest) {
		if !seen[d] {
			seen[d] = true
			p.name, p.mode = blobName(d), 0o444
			parts = append(parts, p)
		}
	}
	var image func(im *Image) error
	image = func(im *Image) error {
		add(part{data: im.Manifest}, im.Digest())
		for i := range im.Children {
			if err := image(&im.Children[i]); err != nil {
				return err
			}
		}
		if len(im.Children) > 0 {
			return nil
		}
		add(part{data: im.Config}, im.ConfigDigest())
		for n, l := range im.Layers {
			if l.Open == nil {
				return fmt.Errorf("layer %d (%s) cannot be read", n+1, l.Digest)
			}
			add(part{desc: l.Descriptor, open: l.Open, mem: memoryOf(l)}, l.Digest)
		}
		return nil
	}
	for i := range imgs {
		if err := imgs[i].check(); err != nil {
			return nil, err
		}
		if err := image(&imgs[i]); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// writeArchive writes the parts sorted by name, with the directories of blobs, all of the time zero.
func writeArchive(ctx context.Context, w io.Writer, parts []part) error {
	dirs := map[string]bool{}
	for _, p := range parts {
		for i, c := range p.name {
			if c == '/' {
				dirs[p.name[:i+1]] = true
			}
		}
	}
	for d := range dirs {
		parts = append(parts, part{name: d, mode: 0o755})
	}
	slices.SortFunc(parts, func(a, b part) int { return strings.Compare(a.name, b.name) })
	buf := make([]byte, 256<<10)
	for i := range parts {
		if err := writePart(ctx, w, &parts[i], buf); err != nil {
			return fmt.Errorf("writing %s: %w", parts[i].name, err)
		}
	}
	return tar.NewWriter(w).Close()
}

// tarBlock is what members of a tar are padded to.
const tarBlock = 512

// writePart writes one member. The tar writer makes no more than its header: content goes to w itself, which may be a file
// that the kernel copies to.
func writePart(ctx context.Context, w io.Writer, p *part, buf []byte) error {
	h := &tar.Header{Name: p.name, Mode: p.mode, Size: p.size(), Typeflag: tar.TypeReg}
	if strings.HasSuffix(p.name, "/") {
		h.Typeflag = tar.TypeDir
	}
	if err := tar.NewWriter(w).WriteHeader(h); err != nil {
		return err
	}
	if p.open == nil {
		if _, err := w.Write(p.data); err != nil {
			return err
		}
	} else if err := copyBlob(ctx, w, p, buf); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, -h.Size&(tarBlock-1)))
	return err
}
