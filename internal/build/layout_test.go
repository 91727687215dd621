package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/testenv"
	"build/internal/userns"
	"build/snapshot"
)

// lyingLayout is busybox with a configuration that gives its layer another diffID.
func (w *world) lyingLayout(t testing.TB) string {
	t.Helper()
	dir := w.tmp + "/lying"
	must(t, os.CopyFS(dir, os.DirFS(testenv.Base(t, "busybox"))))
	load := func(d digest.Digest, v any) {
		t.Helper()
		b, err := os.ReadFile(dir + "/blobs/sha256/" + d.Encoded())
		must(t, err)
		must(t, json.Unmarshal(b, v))
	}
	save := func(v any) ocispec.Descriptor {
		t.Helper()
		b, err := json.Marshal(v)
		must(t, err)
		d := digest.FromBytes(b)
		must(t, os.WriteFile(dir+"/blobs/sha256/"+d.Encoded(), b, 0o644))
		return ocispec.Descriptor{Digest: d, Size: int64(len(b))}
	}
	var index ocispec.Index
	b, err := os.ReadFile(dir + "/index.json")
	must(t, err)
	must(t, json.Unmarshal(b, &index))
	var m ocispec.Manifest
	load(index.Manifests[0].Digest, &m)
	var cfg ocispec.Image
	load(m.Config.Digest, &cfg)
	cfg.RootFS.DiffIDs[0] = digest.FromString("something else")
	c := save(cfg)
	m.Config.Digest, m.Config.Size = c.Digest, c.Size
	x := save(m)
	index.Manifests[0].Digest, index.Manifests[0].Size = x.Digest, x.Size
	b, err = json.Marshal(index)
	must(t, err)
	must(t, os.WriteFile(dir+"/index.json", b, 0o644))
	return dir
}

// layoutOf is an image of one layer, whose blob holds these bytes, and whose diffID is the digest they have unpacked.
func (w *world) layoutOf(t testing.TB, layer []byte, diffID digest.Digest) string {
	t.Helper()
	dir, err := os.MkdirTemp(w.tmp, "layout")
	must(t, err)
	must(t, os.MkdirAll(dir+"/blobs/sha256", 0o755))
	save := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		must(t, os.WriteFile(dir+"/blobs/sha256/"+d.Encoded(), b, 0o644))
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	doc := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		must(t, err)
		return save(mediaType, b)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{save(ocispec.MediaTypeImageLayerGzip, layer)}}
	m.SchemaVersion = 2
	m.Config = doc(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: hostPlatform(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
	})
	index := ocispec.Index{Manifests: []ocispec.Descriptor{doc(m.MediaType, m)}}
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	must(t, err)
	must(t, os.WriteFile(dir+"/index.json", b, 0o644))
	must(t, os.WriteFile(dir+"/oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return dir
}

// A layer with the right digest that is no layer is the image's fault, wherever it is found out.
func TestLayersThatAreNone(t *testing.T) {
	plain := func(hs ...tar.Header) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, h := range hs {
			must(t, tw.WriteHeader(&h))
		}
		must(t, tw.Close())
		return b.Bytes()
	}
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, err := z.Write(b)
		must(t, err)
		must(t, z.Close())
		return out.Bytes()
	}
	good := plain(tar.Header{Name: "f", Mode: 0o644})
	for name, c := range map[string]struct {
		tar, blob []byte
		word      string
	}{
		"escapes":   {tar: plain(tar.Header{Name: "../../f", Mode: 0o644}), word: "leads out"},
		"hard link": {tar: plain(tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "nothere"}), word: "nothere"},
		"below a file": {
			tar:  plain(tar.Header{Name: "f", Mode: 0o644}, tar.Header{Name: "f/g", Mode: 0o644}),
			word: "f/g",
		},
		"no tar":         {tar: bytes.Repeat([]byte("no tar "), 300), word: "header"},
		"truncated gzip": {tar: good, blob: packed(good)[:40], word: "EOF"},
		"followed":       {tar: good, blob: append(packed(good), "rubbish"...), word: "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.blob == nil {
				c.blob = packed(c.tar)
			}
			w.write("f", "f")
			bad := func(o *Options) {
				o.NamedContexts = []KeyValue{{"bad", "oci-layout://" + w.layoutOf(t, c.blob, digest.FromBytes(c.tar))}}
			}
			layer := digest.FromBytes(c.tar).String()
			w.fails(ExitNetwork, []string{"Dockerfile:", layer, c.word}, from("FROM bad\nCOPY f /x\n"), bad)
		})
	}
	err := fromHolder(fmt.Errorf("step: %w", &userns.RemoteError{Kind: snapshot.KindLayer, Msg: "unpack layer sha256:1: no tar"}))
	if ExitCode(err) != ExitNetwork || !strings.Contains(err.Error(), "sha256:1") {
		t.Errorf("unpacked by the holder: exit code %d: %v", ExitCode(err), err)
	}
}

// archive is an OCI archive with every digest in it verified.
type archive struct {
	manifest ocispec.Manifest
	config   ocispec.Image
	digest   digest.Digest
	file     string
	offsets  map[digest.Digest][2]int64
}

// readArchive reads an OCI archive and checks that everything in it is what its name says.
func readArchive(t testing.TB, file string) *archive {
	t.Helper()
	a := &archive{file: file, offsets: map[digest.Digest][2]int64{}}
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	var index ocispec.Index
	small := map[digest.Digest][]byte{}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if h.Name == "index.json" {
			must(t, json.NewDecoder(tr).Decode(&index))
			continue
		}
		const prefix = "blobs/sha256/"
		if h.Typeflag != tar.TypeReg || len(h.Name) != len(prefix)+64 {
			continue
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, h.Name[len(prefix):])
		at, err := f.Seek(0, io.SeekCurrent)
		must(t, err)
		a.offsets[d] = [2]int64{at, h.Size}
		v := d.Verifier()
		if h.Size < 1<<20 {
			b, err := io.ReadAll(tr)
			must(t, err)
			small[d] = b
			_, _ = v.Write(b)
		} else if _, err := io.Copy(v, tr); err != nil {
			t.Fatal(err)
		}
		if !v.Verified() {
			t.Errorf("%s: blob %s is not what its name says", file, d)
		}
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%s: %d manifests", file, len(index.Manifests))
	}
	a.digest = index.Manifests[0].Digest
	must(t, json.Unmarshal(small[a.digest], &a.manifest))
	must(t, json.Unmarshal(small[a.manifest.Config.Digest], &a.config))
	for i, l := range a.manifest.Layers {
		if size, ok := a.offsets[l.Digest]; !ok || size[1] != l.Size {
			t.Fatalf("%s: layer %d is missing or has another size", file, i)
		}
		r, done := a.layer(t, i)
		v := a.config.RootFS.DiffIDs[i].Verifier()
		_, err := io.Copy(v, r)
		must(t, err)
		done()
		if !v.Verified() {
			t.Errorf("%s: layer %d is not what its diffID says", file, i)
		}
	}
	return a
}

// layer opens the plain tar of a layer.
func (a *archive) layer(t testing.TB, i int) (io.Reader, func()) {
	t.Helper()
	f, err := os.Open(a.file)
	must(t, err)
	at := a.offsets[a.manifest.Layers[i].Digest]
	z, err := gzip.NewReader(io.NewSectionReader(f, at[0], at[1]))
	must(t, err)
	return z, func() { f.Close() }
}

// diffArchives says which entries of the layers of two archives differ.
func diffArchives(t testing.TB, a, b string) {
	t.Helper()
	x, y := readArchive(t, a), readArchive(t, b)
	for i := range min(len(x.manifest.Layers), len(y.manifest.Layers)) {
		ex, ey := x.entries(t, i), y.entries(t, i)
		for name, h := range ex {
			if o, ok := ey[name]; !ok {
				t.Logf("layer %d: %q only in the first", i, name)
			} else if h != o {
				t.Logf("layer %d: %q:\n%s\n%s", i, name, h, o)
			}
		}
		for name := range ey {
			if _, ok := ex[name]; !ok {
				t.Logf("layer %d: %q only in the second", i, name)
			}
		}
	}
}

// entries are the headers of a layer, as text.
func (a *archive) entries(t testing.TB, i int) map[string]string {
	t.Helper()
	r, done := a.layer(t, i)
	defer done()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		out[h.Name] = fmt.Sprintf("%c %o %d:%d %d %q %v %q", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname, h.ModTime.UTC(), h.PAXRecords)
	}
}
