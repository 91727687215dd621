package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"build/internal/testenv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func saveTo(t *testing.T, write func(context.Context, io.Writer, []Image) error, imgs ...Image) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := write(t.Context(), f, imgs); err != nil {
		t.Fatal(err)
	}
	return p
}

func members(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	last := ""
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name <= last {
			t.Errorf("%s comes after %s", h.Name, last)
		}
		last = h.Name
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s has time %s, owner %d %q", h.Name, h.ModTime, h.Uid, h.Uname)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = body
	}
}

func TestArchiveContent(t *testing.T) {
	im := testImage(t, false, "user/app:v1", "ghcr.io/x/y", "docker.io/user/app:v1")
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := DockerTar(t.Context(), w, []Image{im}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two exports differ")
	}
	files := members(t, a.Bytes())
	var index ocispec.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range index.Manifests {
		if m.Digest != im.Digest() || m.Annotations[ocispec.AnnotationCreated] != "2024-05-01T12:03:00Z" {
			t.Errorf("entry %+v", m)
		}
		names = append(names, m.Annotations["io.containerd.image.name"]+" "+m.Annotations["org.opencontainers.image.ref.name"])
	}
	if got, want := strings.Join(names, ","), "docker.io/user/app:v1 v1,ghcr.io/x/y:latest latest"; got != want {
		t.Errorf("names %q, want %q", got, want)
	}
	if got, want := string(files["manifest.json"]), `[{"Config":"blobs/sha256/`+im.ConfigDigest().Encoded()+`","RepoTags":["user/app:v1","ghcr.io/x/y:latest"],"Layers":["blobs/sha256/`+
		im.Layers[0].Digest.Encoded()+`","blobs/sha256/`+im.Layers[1].Digest.Encoded()+`"]}]`; got != want {
		t.Errorf("manifest.json\n got %s\nwant %s", got, want)
	}
	for name, body := range files {
		if enc, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && enc != "" && digest.FromBytes(body).Encoded() != enc {
			t.Errorf("%s holds something else", name)
		}
	}
	var c bytes.Buffer
	if err := OCITar(t.Context(), &c, []Image{im}); err != nil {
		t.Fatal(err)
	}
	if _, ok := members(t, c.Bytes())["manifest.json"]; ok {
		t.Error("an OCI archive with docker's manifest.json")
	}
}

func TestLyingLayersEndTheExport(t *testing.T) {
	for name, open := range map[string]func(good []byte) (io.Reader, error){
		"flipped": func(g []byte) (io.Reader, error) { g[20] ^= 1; return bytes.NewReader(g), nil },
		"short":   func(g []byte) (io.Reader, error) { return bytes.NewReader(g[:10]), nil },
		"long":    func(g []byte) (io.Reader, error) { return bytes.NewReader(append(g, 'x')), nil },
		"gone":    func([]byte) (io.Reader, error) { return nil, errors.New("gone") },
	} {
		t.Run(name, func(t *testing.T) {
			im := testImage(t, false)
			orig := im.Layers[0].Open
			im.Layers[0].Open = func(ctx context.Context) (io.ReadCloser, error) {
				r, _ := orig(ctx)
				good, _ := io.ReadAll(r)
				bad, err := open(good)
				return io.NopCloser(bad), err
			}
			if err := OCITar(t.Context(), io.Discard, []Image{im}); err == nil {
				t.Error("archive written")
			}
			dir := t.TempDir()
			if err := OCIDir(t.Context(), dir, []Image{im}); err == nil {
				t.Error("directory written")
			}
			if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
				t.Error("the index names an image that is not there")
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".tmp*")); len(left) > 0 {
				t.Errorf("left behind %q", left)
			}
		})
	}
}

func TestExportRefusesContradictions(t *testing.T) {
	im := testImage(t, false)
	im.Config = append(im.Config, ' ')
	if err := OCITar(t.Context(), io.Discard, []Image{im}); err == nil {
		t.Error("foreign config accepted")
	}
	im = testImage(t, false)
	im.Layers = im.Layers[:1]
	if err := OCITar(t.Context(), io.Discard, []Image{im}); err == nil {
		t.Error("missing layer accepted")
	}
	im = testImage(t, false, "Not A Name")
	if err := DockerTar(t.Context(), io.Discard, []Image{im}); err == nil {
		t.Error("bad name accepted")
	}
	if err := DockerTar(t.Context(), io.Discard, []Image{testImage(t, false), testImage(t, false)}); err == nil {
		t.Error("two images in a docker archive")
	}
}

func TestCancelledExport(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := OCITar(ctx, io.Discard, []Image{testImage(t, false)}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestOCIDirKeepsWhatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "layout")
	one := testImage(t, false, "x:1")
	two, err := Assemble(testConfig(), []Layer{gzipLayer(t, "b=2")}, AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	two.Names = []string{"x:2"}
	third := *two
	third.Names = []string{"x:1"}
	for _, im := range []Image{one, *two, third, third} {
		if err := OCIDir(t.Context(), dir, []Image{im}); err != nil {
			t.Fatal(err)
		}
	}
	raw, _ := os.ReadFile(filepath.Join(dir, "index.json"))
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 2 || index.Manifests[0].Digest != two.Digest() || index.Manifests[1].Annotations[ocispec.AnnotationRefName] != "1" {
		t.Errorf("index %s", raw)
	}
	// A damaged blob of the right size is replaced.
	blob := filepath.Join(dir, blobName(two.Layers[0].Digest))
	data, _ := os.ReadFile(blob)
	if err := os.WriteFile(blob, make([]byte, len(data)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := OCIDir(t.Context(), dir, []Image{*two}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(blob); !bytes.Equal(got, data) {
		t.Error("the damaged blob stayed")
	}
}

func TestOCIDirDoesNotLeaveTheDirectory(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	if err := OCIDir(t.Context(), dir, []Image{testImage(t, false)}); err == nil {
		t.Error("wrote through a symlink out of the directory")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside: %v", left)
	}
}

func TestOthersReadOurImages(t *testing.T) {
	for _, docker := range []bool{false, true} {
		im := testImage(t, docker, "user/app:v1")
		dir := t.TempDir()
		if err := OCIDir(t.Context(), filepath.Join(dir, "layout"), []Image{im}); err != nil {
			t.Fatal(err)
		}
		oci, arch := saveTo(t, OCITar, im), saveTo(t, DockerTar, im)
		for _, ref := range []string{"oci:" + dir + "/layout:v1", "oci-archive:" + oci + ":v1", "docker-archive:" + arch + ":user/app:v1", "oci-archive:" + arch + ":v1"} {
			if docker && strings.HasPrefix(ref, "oci") {
				continue // Docker's media types are not for OCI tools
			}
			out := tool(t, "skopeo", "inspect", "--config", ref)
			if !strings.Contains(out, "RUN |1 A=b") {
				t.Errorf("%s: %s", ref, out)
			}
			tool(t, "skopeo", "copy", "-q", ref, "dir:"+filepath.Join(t.TempDir(), "copy"))
		}
	}
}

func TestUmociUnpacks(t *testing.T) {
	dir := t.TempDir()
	if err := OCIDir(t.Context(), filepath.Join(dir, "layout"), []Image{testImage(t, false, "user/app:v1")}); err != nil {
		t.Fatal(err)
	}
	args := []string{"unpack", "--image", filepath.Join(dir, "layout") + ":v1", filepath.Join(dir, "bundle")}
	if os.Geteuid() != 0 {
		args = append(args, "--rootless")
	}
	tool(t, "umoci", args...)
	if got, err := os.ReadFile(filepath.Join(dir, "bundle", "rootfs", "hello")); string(got) != "world" {
		t.Errorf("%q %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bundle", "rootfs", "etc", "conf")); !os.IsNotExist(err) {
		t.Errorf("the whiteout has no effect: %v", err)
	}
}

func TestPodmanLoads(t *testing.T) {
	testenv.Root(t)
	im := testImage(t, false, "user/app:v1", "other:v2")
	arch := saveTo(t, DockerTar, im)
	dir := t.TempDir()
	base := []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs", "--events-backend", "none"}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	out := tool(t, "podman", append(base, "load", "-q", "-i", arch)...)
	if !strings.Contains(out, "user/app:v1") || !strings.Contains(out, "other:v2") {
		t.Errorf("podman load: %s", out)
	}
	id := tool(t, "podman", append(base, "image", "inspect", "--format", "{{.Id}}", "user/app:v1")...)
	if strings.TrimSpace(id) != im.ConfigDigest().Encoded() {
		t.Errorf("id %s, want %s", id, im.ConfigDigest())
	}
}
