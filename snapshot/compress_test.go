package snapshot

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobOf reads the blob of a result, plain.
func blobOf(t *testing.T, l *Layers, r Result) []byte {
	t.Helper()
	f, err := l.st.OpenBlob(r.Descriptor.Digest, r.Descriptor.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := decompress(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCompressed(t *testing.T) {
	l := newLayers(t)
	layer := writeLayer(t, l, randomTree(rand.New(rand.NewPCG(1, 1)), 100))
	plain := readTar(t, l, layer.DiffID)
	seen := map[digest.Digest]bool{}
	for _, c := range []Compression{{}, {Level: 9}, {Level: StoreLevel}, {Kind: Zstd}, {Kind: Zstd, Level: 19}, {Kind: None}} {
		r, err := l.Compressed(t.Context(), layer.DiffID, c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.DiffID != layer.DiffID || seen[r.Descriptor.Digest] {
			t.Errorf("%+v: %+v", c, r)
		}
		seen[r.Descriptor.Digest] = true
		if !bytes.Equal(blobOf(t, l, r), plain) {
			t.Errorf("%+v: another tar comes out", c)
		}
		again, err := l.Compressed(t.Context(), layer.DiffID, c, nil)
		if err != nil || again.Descriptor.Digest != r.Descriptor.Digest {
			t.Errorf("%+v: the second time %+v, %v", c, again, err)
		}
	}
	for _, c := range []Compression{{Kind: "lzma"}, {Level: 10}, {Level: -2}, {Kind: Zstd, Level: 23}, {Kind: Zstd, Level: StoreLevel}, {Kind: None, Level: 1}} {
		if _, err := l.Compressed(t.Context(), layer.DiffID, c, nil); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// Another program's gunzip agrees.
func TestCompressedIsGzip(t *testing.T) {
	gzip, err := exec.LookPath("gzip")
	if err != nil {
		t.Skip("missing: program gzip")
	}
	l := newLayers(t)
	layer := writeLayer(t, l, []testFile{file("f", string(compressible(3<<20)))})
	r, err := l.Compressed(t.Context(), layer.DiffID, Compression{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(gzip, "-dc")
	if cmd.Stdin, err = os.Open(l.st.BlobPath(r.Descriptor.Digest)); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	if err != nil || digest.FromBytes(out) != layer.DiffID {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestCompressedKeepsPulled(t *testing.T) {
	l := newLayers(t)
	plain := sampleTar(t)
	gz := deflated(t, 9, plain, 1<<20)
	d, desc := digest.FromBytes(plain), describe(ocispec.MediaTypeImageLayerGzip, gz)
	if err := l.AddRemote(d, desc, "repo"); err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(0, 0)
	if r, err := l.Compressed(t.Context(), d, Compression{}, &epoch); err != nil || r.Descriptor.Digest != desc.Digest || r.DiffID != d {
		t.Errorf("not here: %+v, %v", r, err)
	}
	if err := l.Import(t.Context(), d, desc, bytes.NewReader(gz)); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Compressed(t.Context(), d, Compression{}, &epoch); err != nil || r.Descriptor.Digest != desc.Digest || r.DiffID != d {
		t.Errorf("here: %+v, %v", r, err)
	}
	r, err := l.Compressed(t.Context(), d, Compression{Kind: Zstd, Force: true}, &epoch)
	if err != nil || r.DiffID != d || r.Descriptor.MediaType != ocispec.MediaTypeImageLayerZstd || !bytes.Equal(blobOf(t, l, r), plain) {
		t.Errorf("forced: %+v, %v", r, err)
	}
}

func TestCompressedDropsPlain(t *testing.T) {
	l := newLayers(t)
	layer := writeLayer(t, l, fixedTree())
	plain := readTar(t, l, layer.DiffID)
	if _, err := l.Compressed(t.Context(), layer.DiffID, Compression{DropPlain: true}, nil); err != nil {
		t.Fatal(err)
	}
	if l.st.HasBlob(layer.DiffID, -1) || !l.Here(layer.DiffID) {
		t.Error("the plain tar is still here, or nothing is")
	}
	if !bytes.Equal(readTar(t, l, layer.DiffID), plain) {
		t.Error("another tar comes out")
	}
	r, err := l.ReaderAt(t.Context(), layer.DiffID)
	if err != nil || r.Size() != int64(len(plain)) {
		t.Fatal(err)
	}
	r.Close()
	none, err := l.Compressed(t.Context(), layer.DiffID, Compression{Kind: None}, nil)
	if err != nil || none.Descriptor.Digest != layer.DiffID {
		t.Errorf("%+v, %v", none, err)
	}
}

// An epoch later than everything changes nothing; an earlier one changes times only, and the same ones every time.
func TestEpoch(t *testing.T) {
	for seed := range uint64(6) {
		l := newLayers(t)
		files := randomTree(rand.New(rand.NewPCG(seed, 8)), 50)
		if seed == 0 {
			files = fixedTree()
		}
		layer := writeLayer(t, l, files)
		plain := readTar(t, l, layer.DiffID)

		var same bytes.Buffer
		if err := clampTimes(t.Context(), &same, bytes.NewReader(plain), time.Unix(1<<40, 0)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(same.Bytes(), plain) {
			t.Errorf("seed %d: rewriting is not faithful", seed)
		}

		epoch := time.Unix(1500, 0)
		clamped := make([]testFile, len(files))
		for i, f := range files {
			if f.ModTime.After(epoch) {
				f.ModTime = epoch
			}
			clamped[i] = f
		}
		want := writeLayer(t, newLayers(t), clamped)
		for range 2 {
			got, err := l.Compressed(t.Context(), layer.DiffID, Compression{}, &epoch)
			if err != nil {
				t.Fatal(err)
			}
			if got.DiffID != want.DiffID || digest.FromBytes(blobOf(t, l, got)) != want.DiffID {
				t.Errorf("seed %d: %s, want %s", seed, got.DiffID, want.DiffID)
			}
			if !l.Here(got.DiffID) {
				t.Errorf("seed %d: the clamped layer is not known", seed)
			}
		}
		later := time.Unix(1<<40, 0)
		if got, err := l.Compressed(t.Context(), layer.DiffID, Compression{}, &later); err != nil || got.DiffID != layer.DiffID {
			t.Errorf("seed %d: %+v, %v", seed, got, err)
		}
	}
}

func TestCompressedNotHere(t *testing.T) {
	_, err := newLayers(t).Compressed(t.Context(), digest.FromString("x"), Compression{}, nil)
	if err == nil || !strings.Contains(err.Error(), ErrNotHere.Error()) {
		t.Errorf("%v", err)
	}
}
