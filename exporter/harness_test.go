package exporter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"build/internal/testenv"
	"build/internal/tree"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var t0 = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func at(minutes int) *time.Time {
	t := t0.Add(time.Duration(minutes) * time.Minute)
	return &t
}

// gzipLayer makes a layer blob with the given files.
func gzipLayer(t *testing.T, files ...string) Layer {
	t.Helper()
	var plain, packed bytes.Buffer
	tw := tar.NewWriter(&plain)
	for _, f := range files {
		name, data, _ := strings.Cut(f, "=")
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg, ModTime: t0}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(tw, data)
	}
	tw.Close()
	zw := gzip.NewWriter(&packed)
	_, _ = zw.Write(plain.Bytes())
	zw.Close()
	blob := packed.Bytes()
	return Layer{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob))},
		DiffID:     digest.FromBytes(plain.Bytes()),
		Open:       func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
	}
}

func testConfig(history ...ocispec.History) dockerspec.DockerOCIImage {
	var c dockerspec.DockerOCIImage
	c.OS, c.Architecture = "linux", "amd64"
	c.Config.Env = []string{"PATH=/bin"}
	c.Config.Cmd = []string{"/hello", "a<b"}
	c.History = history
	return c
}

// testImage has two layers and two names.
func testImage(t *testing.T, docker bool, names ...string) Image {
	t.Helper()
	layers := []Layer{gzipLayer(t, "hello=world", "etc/conf=1"), gzipLayer(t, "etc/.wh.conf=")}
	im, err := Assemble(testConfig(
		ocispec.History{Created: at(1), CreatedBy: "COPY hello / # buildkit", Comment: "buildkit.dockerfile.v0"},
		ocispec.History{Created: at(2), CreatedBy: "ENV a=b", EmptyLayer: true},
		ocispec.History{Created: at(3), CreatedBy: "RUN |1 A=b /bin/sh -c rm /etc/conf # buildkit"},
	), layers, AssembleOptions{Docker: docker})
	if err != nil {
		t.Fatal(err)
	}
	im.Names = names
	return *im
}

// tool runs another program on what was exported.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		testenv.Skip(t, name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// content is a fake layer store: files by digest.
type content map[[32]byte]string

func (c content) open(e tree.Located) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(c[e.Digest])), nil
}

func (c content) file(path, data string, mode uint32) *tree.Entry {
	d := sha256.Sum256([]byte(data))
	c[d] = data
	return &tree.Entry{Path: path, Type: tree.File, Mode: mode, UID: 7, GID: 8, Size: int64(len(data)), Digest: d, ModTime: t0}
}

func dir(path string, mode uint32) *tree.Entry {
	return &tree.Entry{Path: path, Type: tree.Dir, Mode: mode, ModTime: t0, Offset: -1}
}

func linkTo(e *tree.Entry, path string) *tree.Entry {
	l := *e
	l.Path, l.Hardlink = path, e.Path
	return &l
}

func symlink(path, to string) *tree.Entry {
	return &tree.Entry{Path: path, Type: tree.Symlink, Mode: 0o777, Link: to, ModTime: t0, Offset: -1}
}

func layerIndex(t *testing.T, entries ...*tree.Entry) *tree.Index {
	t.Helper()
	var b tree.Builder
	for _, e := range entries {
		if err := b.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	w := tree.NewWriter(&buf)
	if err := b.WriteTo(w); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	x, err := tree.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return x
}
