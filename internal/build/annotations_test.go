package build

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func on(level Level, p *ocispec.Platform, kv ...string) mod {
	return func(o *Options) {
		for i := 0; i < len(kv); i += 2 {
			o.Annotations = append(o.Annotations, Annotation{Level: level, Platform: p, Key: kv[i], Value: kv[i+1]})
		}
	}
}

func platformsOfBuild(list ...ocispec.Platform) mod { return func(o *Options) { o.Platforms = list } }

// document reads one JSON file of a layout.
func document(t *testing.T, layout, name string, to any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(layout, name))
	must(t, err)
	must(t, json.Unmarshal(data, to))
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func wantAnnotations(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	got = maps.Clone(got)
	delete(got, ocispec.AnnotationCreated)
	delete(got, ocispec.AnnotationRefName)
	delete(got, "io.containerd.image.name")
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// S86 and features 3.8: four levels, of all platforms or one; what has no place is refused before anything is done.
func TestS86Annotations(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	df := from("FROM scratch\nCOPY f /\n")
	amd, arm := ocispec.Platform{OS: "linux", Architecture: "amd64"}, ocispec.Platform{OS: "linux", Architecture: "arm64"}
	layout := w.tmp + "/multi"
	own := Output{Type: OutputOCI, Dest: layout, OCIMediaTypes: true, Annotations: []Annotation{{Level: OnManifest, Key: "a", Value: "output"}}}
	w.ok(df, platformsOfBuild(amd, arm), output(own), tags("example.com/x:1"),
		on(OnManifest, &arm, "p", "arm"), on(OnManifest, nil, "a", "all", "p", "all"), on(OnManifestDescriptor, &amd, "d", "amd"),
		on(OnIndex, nil, "i", "1"), on(OnIndexDescriptor, nil, "id", "2"))
	var top, ix ocispec.Index
	document(t, layout, "index.json", &top)
	wantAnnotations(t, "index-descriptor", top.Manifests[0].Annotations, map[string]string{"id": "2"})
	document(t, layout, blobName(top.Manifests[0].Digest), &ix)
	wantAnnotations(t, "index", ix.Annotations, map[string]string{"i": "1"})
	for _, d := range ix.Manifests {
		var m ocispec.Manifest
		document(t, layout, blobName(d.Digest), &m)
		descriptor, manifest := map[string]string{"d": "amd"}, map[string]string{"a": "output", "p": "all"}
		if d.Platform.Architecture == "arm64" {
			descriptor, manifest["p"] = nil, "arm"
		}
		wantAnnotations(t, "manifest-descriptor", d.Annotations, descriptor)
		wantAnnotations(t, "manifest", m.Annotations, manifest)
	}

	for _, level := range []Level{OnIndex, OnIndexDescriptor} {
		w.fails(ExitUsage, []string{string(level), "single platform"}, df, on(level, nil, "a", "b"))
	}
	w.fails(ExitUsage, []string{"linux/arm64", "not being built"}, df, on(OnManifest, &arm, "a", "b"))
	w.fails(ExitUsage, []string{"oci-mediatypes=false"}, df, on(OnManifest, nil, "a", "b"), output(Output{Type: OutputOCI, Dest: w.tmp + "/x.tar", Tar: true}))
	w.fails(ExitUsage, []string{"type=local"}, df, output(Output{Type: OutputLocal, Dest: w.tmp + "/x", Annotations: own.Annotations}))
}

// BUILDKIT_MULTI_PLATFORM makes an index of a single image, with room for what is written on one.
func TestIndexOfOnePlatform(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	df := from("FROM scratch\nCOPY f /\n")
	layout := w.tmp + "/one"
	res, _ := w.ok(df, output(Output{Type: OutputOCI, Dest: layout, OCIMediaTypes: true}), arg("BUILDKIT_MULTI_PLATFORM", "1"), on(OnIndex, nil, "i", "1"))
	var ix ocispec.Index
	document(t, layout, blobName(digest.Digest(res.Digest)), &ix)
	if ix.MediaType != ocispec.MediaTypeImageIndex || len(ix.Manifests) != 1 || ix.Manifests[0].Platform.Architecture != hostPlatform().Architecture || ix.Annotations["i"] != "1" {
		t.Errorf("%+v", ix)
	}
	dest := w.tmp + "/tree"
	w.ok(df, output(Output{Type: OutputLocal, Dest: dest}), arg("BUILDKIT_MULTI_PLATFORM", "true"))
	has(t, dest+"/linux_"+hostPlatform().Architecture+"/f", "x")
	w.fails(ExitUsage, []string{"invalid boolean value"}, df, arg("BUILDKIT_MULTI_PLATFORM", "maybe"))
}
