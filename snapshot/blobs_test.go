package snapshot

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/store"
	"build/internal/tree"
)

// sampleTar is a layer as a stranger would write it.
func sampleTar(t testing.TB) []byte {
	return tarOf(t, tDir("etc"), tFile("etc/passwd", "root:x:0:0::/:/bin/sh\n"), tFile("usr/bin/tool", strings.Repeat("tool ", 100000)),
		tLink("etc/alias", "/etc/passwd"), tHard("usr/bin/again", "usr/bin/tool"))
}

func zstdOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(b)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImport(t *testing.T) {
	plain := sampleTar(t)
	diffID := digest.FromBytes(plain)
	for name, b := range map[string][]byte{
		"plain": plain, "gzip": deflated(t, 6, plain, 1<<20), "zstd": zstdOf(t, plain),
		"two gzip members": append(deflated(t, 6, plain[:1000], 1<<20), deflated(t, 6, plain[1000:], 1<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayers(t)
			desc := describe("application/x-"+name, b)
			if l.Here(diffID) {
				t.Fatal("here before it was imported")
			}
			if err := l.Import(t.Context(), diffID, desc, iotestHalf{bytes.NewReader(b)}); err != nil {
				t.Fatal(err)
			}
			if !l.Here(diffID) || !l.hasIndex(diffID) {
				t.Fatal("not here after it was imported")
			}
			if !bytes.Equal(readTar(t, l, diffID), plain) {
				t.Error("another tar comes out")
			}
			blobs, err := l.Blobs(diffID)
			if err != nil || len(blobs) != 1 || !blobs[0].Local || blobs[0].Made != MadePulled || blobs[0].Digest != desc.Digest {
				t.Errorf("blobs %+v, %v", blobs, err)
			}
			checkReads(t, l, diffID)
		})
	}
}

// iotestHalf reads half of what it is asked for.
type iotestHalf struct{ r io.Reader }

func (h iotestHalf) Read(p []byte) (int, error) { return h.r.Read(p[:(len(p)+1)/2]) }

// checkReads reads files of the sample tar in every way, before and after the plain tar exists.
func checkReads(t *testing.T, l *Layers, diffID digest.Digest) {
	t.Helper()
	chain, err := l.Chain(t.Context(), []digest.Digest{diffID})
	if err != nil {
		t.Fatal(err)
	}
	tool := strings.Repeat("tool ", 100000)
	for range 2 {
		for path, want := range map[string]string{"etc/alias": "root:x:0:0::/:/bin/sh\n", "/usr/bin/tool": tool, "usr/bin/../bin/again": tool} {
			got, err := l.ReadFile(t.Context(), chain, []digest.Digest{diffID}, path, 1<<20)
			if err != nil || string(got) != want {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		}
		r, err := l.ReaderAt(t.Context(), diffID)
		if err != nil {
			t.Fatal(err)
		}
		e, ok, err := chain.Lstat("usr/bin/tool")
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		b := make([]byte, e.Size)
		if _, err := r.ReadAt(b, e.Offset); err != nil || string(b) != tool {
			t.Errorf("at offset %d: %v", e.Offset, err)
		}
		r.Close()
	}
	if _, err := l.ReadFile(t.Context(), chain, []digest.Digest{diffID}, "usr/bin/tool", 10); !errors.As(err, new(*TooLargeError)) {
		t.Errorf("too large: %v", err)
	}
	if _, err := l.ReadFile(t.Context(), chain, []digest.Digest{diffID}, "nothing", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := l.ReadFile(t.Context(), chain, []digest.Digest{diffID}, "etc", 10); err == nil {
		t.Error("a directory was read")
	}
}

// Nothing that is not what was announced gets into the store.
func TestImportRefuses(t *testing.T) {
	plain := sampleTar(t)
	gz := deflated(t, 6, plain, 1<<20)
	diffID, desc := digest.FromBytes(plain), describe(ocispec.MediaTypeImageLayerGzip, gz)
	other := digest.FromString("other")
	short, long, wrong := desc, desc, desc
	short.Size--
	long.Size++
	wrong.Digest = other
	evil := tarOf(t, tFile("../x", "evil"))
	for name, tc := range map[string]struct {
		diffID digest.Digest
		desc   ocispec.Descriptor
		b      []byte
	}{
		"cut":            {diffID, desc, gz[:len(gz)-100]},
		"empty":          {diffID, desc, nil},
		"longer":         {diffID, short, gz},
		"shorter":        {diffID, long, gz},
		"other blob":     {diffID, wrong, gz},
		"other layer":    {other, desc, gz},
		"garbage behind": {diffID, describe("", append(slices.Clone(gz), "garbage"...)), append(slices.Clone(gz), "garbage"...)},
		"no digest":      {"../../etc", desc, gz},
		"flipped":        {diffID, desc, flipped(gz)},
		"hostile":        {digest.FromBytes(evil), describe("", evil), evil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayers(t)
			if err := l.Import(t.Context(), tc.diffID, tc.desc, bytes.NewReader(tc.b)); err == nil {
				t.Error("it was accepted")
			}
			if l.Here(tc.diffID) || l.st.HasBlob(tc.desc.Digest, -1) || l.st.HasBlob(digest.FromBytes(tc.b), -1) {
				t.Error("something was published")
			}
			if _, err := os.Stat(l.st.IndexPath(indexKey(tc.diffID))); err == nil {
				t.Error("an index was published")
			}
		})
	}
}

// What was stored unread is checked when it is first read.
func TestImportBlobChecksLater(t *testing.T) {
	l := newLayers(t)
	plain := sampleTar(t)
	gz := deflated(t, 1, plain, 1<<20)
	good, bad := digest.FromBytes(plain), digest.FromString("bad")
	for _, d := range []digest.Digest{good, bad} {
		if err := l.ImportBlob(t.Context(), d, describe("", gz), bytes.NewReader(gz)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Index(t.Context(), good); err != nil {
		t.Error(err)
	}
	var wrong *DigestError
	if _, err := l.Index(t.Context(), bad); !errors.As(err, &wrong) || wrong.Got != good {
		t.Errorf("%v", err)
	}
}

func TestIndexIsRepaired(t *testing.T) {
	l := newLayers(t)
	d := importTar(t, l, sampleTar(t))
	path := l.st.IndexPath(indexKey(d))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Index(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("the index was not made again: %v", err)
	}
	if _, err := l.Index(t.Context(), digest.FromString("nowhere")); !errors.Is(err, ErrNotHere) {
		t.Errorf("%v", err)
	}
}

// Metadata that cannot be read is as good as none.
func TestMetaDamaged(t *testing.T) {
	l := newLayers(t)
	d := importTar(t, l, sampleTar(t))
	for _, data := range []string{"", "{", `{"version":99}`, `[]`} {
		if err := l.st.Write(store.KindLayer, d.String(), []byte(data)); err != nil {
			t.Fatal(err)
		}
		if blobs, err := l.Blobs(d); err != nil || len(blobs) != 1 || !blobs[0].Local {
			t.Errorf("%q: %+v, %v", data, blobs, err)
		}
	}
}

func TestAddRemote(t *testing.T) {
	l := newLayers(t)
	d, blob := digest.FromString("layer"), describe(ocispec.MediaTypeImageLayerGzip, []byte("blob"))
	for _, repo := range []string{"r/a", "r/b", "r/a"} {
		if err := l.AddRemote(d, blob, repo); err != nil {
			t.Fatal(err)
		}
	}
	blobs, err := l.Blobs(d)
	if err != nil || len(blobs) != 1 || !slices.Equal(blobs[0].Repos, []string{"r/a", "r/b"}) || blobs[0].Local {
		t.Errorf("%+v, %v", blobs, err)
	}
	if l.Here(d) {
		t.Error("a remote layer is here")
	}
	if _, err := l.OpenTar(t.Context(), d); !errors.Is(err, ErrNotHere) {
		t.Error(err)
	}
}

// Several processes add what they know at the same time; nothing is lost.
func TestAddRemoteConcurrently(t *testing.T) {
	root := t.TempDir() + "/store"
	d := digest.FromString("layer")
	done := make(chan error)
	for i := range 8 {
		l := openLayers(t, root)
		go func() {
			done <- l.AddRemote(d, describe("", []byte{byte(i)}), "repo")
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if blobs, err := openLayers(t, root).Blobs(d); err != nil || len(blobs) != 8 {
		t.Errorf("%d blobs, %v", len(blobs), err)
	}
}

// A sparse file in a tar is not its bytes; reading it expands it.
func TestReadSparse(t *testing.T) {
	// An old GNU sparse entry: 1 MiB, of which the four bytes at the end are stored.
	var h [512]byte
	copy(h[0:], "s")
	copy(h[100:], "0000644\x000000000\x000000000\x0000000000004\x0000000000000\x00        S")
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "00003777774\x0000000000004\x00")
	copy(h[483:], "00004000000\x00")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	octal(h[148:155], int64(sum))
	b := append(append(h[:], "tail"...), make([]byte, 508+1024)...)
	l := newLayers(t)
	d := importTar(t, l, b)
	chain, err := l.Chain(t.Context(), []digest.Digest{d})
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.ReadFile(t.Context(), chain, []digest.Digest{d}, "s", 2<<20)
	if err != nil || len(got) != 1<<20 || string(got[len(got)-4:]) != "tail" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestReadFileThroughLayers(t *testing.T) {
	l := newLayers(t)
	layers := layersOf(
		writeLayer(t, l, []testFile{dir("etc", 0o755), file("etc/passwd", "old"), file("etc/shadow", "secret"), symlink("e", "/etc")}),
		writeLayer(t, l, []testFile{dir("etc", 0o755), file("etc/passwd", "new"), whiteout("etc/shadow")}),
	)
	chain, err := l.Chain(t.Context(), layers)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.ReadFile(t.Context(), chain, layers, "e/passwd", 100); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := l.ReadFile(t.Context(), chain, layers, "etc/shadow", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A big random layer goes through gzip and back with its index unchanged.
func TestImportKeepsIndex(t *testing.T) {
	a, b := newLayers(t), newLayers(t)
	layer := writeLayer(t, a, randomTree(rand.New(rand.NewPCG(9, 9)), 400))
	gz := deflated(t, 3, readTar(t, a, layer.DiffID), 1<<20)
	if err := b.Import(t.Context(), layer.DiffID, describe("", gz), bytes.NewReader(gz)); err != nil {
		t.Fatal(err)
	}
	if x, y := dump(t, a, layer.DiffID), dump(t, b, layer.DiffID); x != y {
		t.Errorf("%s\nwant\n%s", y, x)
	}
}

// flipped returns b with one bit in the middle changed.
func flipped(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// An index that lies in the place of another's is none, however whole it is: it is made again.
func TestIndexOfAnotherLayer(t *testing.T) {
	root := t.TempDir() + "/s"
	l := openLayers(t, root)
	one, two := writeLayer(t, l, []testFile{file("a", "one")}), writeLayer(t, l, []testFile{file("b", "two"), file("c", "three")})
	want := dump(t, l, one.DiffID)
	path := l.st.IndexPath(indexKey(one.DiffID))
	other, err := os.ReadFile(l.st.IndexPath(indexKey(two.DiffID)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckIndex(path); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("checked: %v", err)
	}
	if got := dump(t, openLayers(t, root), one.DiffID); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if err := CheckIndex(path); err != nil {
		t.Error(err)
	}
}
