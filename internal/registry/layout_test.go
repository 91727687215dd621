package registry

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type file struct {
	name string
	data []byte
	link string
}

func blobFile(b []byte) file {
	return file{name: "blobs/sha256/" + digest.FromBytes(b).Encoded(), data: b}
}

// ociFiles lays out images under tags.
func ociFiles(t *testing.T, images map[string]*sample) []file {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	files := []file{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	for tag, s := range images {
		files = append(files, blobFile(s.manifest), blobFile(s.config))
		for _, l := range s.layers {
			files = append(files, blobFile(l))
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: s.mediaType, Digest: s.digest(), Size: int64(len(s.manifest)),
			Annotations: map[string]string{ocispec.AnnotationRefName: tag}})
	}
	return append(files, file{name: "index.json", data: mustJSON(t, index)})
}

func writeTar(t *testing.T, files []file, prefix string) string {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: prefix + f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg}
		if f.link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.link, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = tw.Write(f.data)
	}
	tw.Close()
	p := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(p, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func writeDir(t *testing.T, files []file) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		p := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// checkLayout resolves ref and reads every layer.
func checkLayout(t *testing.T, path, ref string, want *sample) {
	t.Helper()
	l, err := OpenLayout(path, ref)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	im, err := l.Resolve(t.Context(), linuxAMD64)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(im.ConfigRaw, want.config) || len(im.Manifest.Layers) != len(want.layers) {
		t.Fatalf("resolved %s", im.Digest)
	}
	for i, d := range im.Manifest.Layers {
		r, err := l.Blob(t.Context(), im.Repo, d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, want.layers[i]) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

func TestOCILayouts(t *testing.T) {
	one, two := newSample(t, "linux/amd64", 2, 1000), newSample(t, "linux/arm64", 1, 500)
	files := ociFiles(t, map[string]*sample{"one": one, "docker.io/library/two:v2": two})
	for kind, path := range map[string]string{"dir": writeDir(t, files), "tar": writeTar(t, files, ""), "dotted tar": writeTar(t, files, "./")} {
		t.Run(kind, func(t *testing.T) {
			checkLayout(t, path, "one", one)
			checkLayout(t, path, "two:v2", two)
			checkLayout(t, path, two.digest().String(), two)
			_, err := OpenLayout(path, "three")
			wantClass(t, err, NotFound)
			if !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "two") {
				t.Errorf("error %q does not list what there is", err)
			}
			_, err = OpenLayout(path, "")
			wantClass(t, err, Invalid)
		})
	}
	single := writeTar(t, ociFiles(t, map[string]*sample{"x": one}), "")
	checkLayout(t, single, "", one)
}

// dockerFiles is what docker save wrote before it wrote OCI layouts.
func dockerFiles(t *testing.T, s *sample, tags ...string) []file {
	type entry struct {
		Config           string
		RepoTags, Layers []string
	}
	e := entry{Config: "config.json", RepoTags: tags}
	files := []file{{name: "config.json", data: s.config}}
	for i, l := range s.layers {
		id := strings.Repeat(string(rune('a'+i)), 8)
		files = append(files, file{name: id + "/real.tar", data: l}, file{name: id + "/layer.tar", link: "../" + id + "/real.tar"})
		e.Layers = append(e.Layers, id+"/layer.tar")
	}
	return append(files, file{name: "manifest.json", data: mustJSON(t, []entry{e})})
}

func TestDockerArchive(t *testing.T) {
	s := newSample(t, "linux/amd64", 3, 1000)
	path := writeTar(t, dockerFiles(t, s, "app:v1", "docker.io/library/other:latest"), "")
	for _, ref := range []string{"", "app:v1", "docker.io/library/app:v1", "other:latest", "v1"} {
		checkLayout(t, path, ref, s)
	}
	_, err := OpenLayout(path, "app:v2")
	wantClass(t, err, NotFound)
}

func TestHostileLayouts(t *testing.T) {
	s := newSample(t, "linux/amd64", 1, 1000)
	good := ociFiles(t, map[string]*sample{"x": s})
	change := func(name string, data []byte) []file {
		out := append([]file(nil), good...)
		for i := range out {
			if out[i].name == name {
				out[i].data = data
			}
		}
		return out
	}
	layer := blobFile(s.layers[0]).name
	flipped := bytes.Clone(s.layers[0])
	flipped[100] ^= 1
	read := func(path string) error {
		l, err := OpenLayout(path, "")
		if err != nil {
			return err
		}
		defer l.Close()
		im, err := l.Resolve(t.Context(), linuxAMD64)
		if err != nil {
			return err
		}
		r, err := l.Blob(t.Context(), "", im.Manifest.Layers[0])
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := read(writeDir(t, good)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		files []file
		class Class
	}{
		"flipped layer":     {change(layer, flipped), Digest},
		"short layer":       {change(layer, s.layers[0][:10]), Digest},
		"other manifest":    {change(blobFile(s.manifest).name, []byte(`{}`)), Digest},
		"other config":      {change(blobFile(s.config).name, s.manifest), Digest},
		"path in index":     {change("index.json", []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+s.mediaType+`","digest":"sha256:../../../etc/passwd","size":1}]}`)), Digest},
		"index not json":    {change("index.json", []byte(`<`)), Unsupported},
		"neither":           {[]file{{name: "hello", data: []byte("x")}}, Unsupported},
		"docker path":       {[]file{{name: "manifest.json", data: []byte(`[{"Config":"../../../../etc/passwd","Layers":[]}]`)}}, NotFound},
		"endless link":      {[]file{{name: "manifest.json", link: "manifest.json"}}, Unsupported},
		"compressed":        {nil, Unsupported},
		"missing blob":      {good[:len(good)-len(s.layers)-1], Unsupported},
		"empty index":       {change("index.json", []byte(`{"schemaVersion":2}`)), NotFound},
		"index entry of -1": {change("index.json", []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+s.mediaType+`","digest":"`+s.digest().String()+`","size":-1}]}`)), Digest},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeTar(t, tc.files, "")
			if name == "compressed" {
				if err := os.WriteFile(path, s.layers[0], 0o644); err != nil {
					t.Fatal(err)
				}
			}
			wantClass(t, read(path), tc.class)
		})
	}
	wantClass(t, read(filepath.Join(t.TempDir(), "none")), NotFound)
}

func TestSplitLayout(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd:name")
	if err := os.Mkdir(odd, 0o755); err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("x").String()
	for in, want := range map[string][2]string{
		dir:                  {dir, ""},
		dir + ":tag":         {dir, "tag"},
		dir + "@" + d:        {dir, d},
		dir + ":tag@" + d:    {dir, d},
		odd:                  {odd, ""},
		odd + ":tag":         {odd, "tag"},
		"/no:such/dir":       {"/no:such/dir", ""},
		"/no/such:v1":        {"/no/such", "v1"},
		"relative@directory": {"relative@directory", ""},
	} {
		if f, ref := SplitLayout(in); f != want[0] || ref != want[1] {
			t.Errorf("%s: %q %q, want %q", in, f, ref, want)
		}
	}
}
