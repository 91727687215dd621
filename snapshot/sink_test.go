package snapshot

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"build/internal/tree"
)

// fill writes files, which are in order.
func fillLayer(t *testing.T, w *Writer, files []testFile) Layer {
	t.Helper()
	for _, f := range files {
		e := f.Entry
		e.Size = int64(len(f.data))
		if err := w.Add(&e, bytes.NewReader(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sortedTree(seed uint64) []testFile {
	files := randomTree(rand.New(rand.NewPCG(seed, 2)), 60)
	files = append(files, file("zz", string(compressible(5<<18))))
	slices.SortFunc(files, func(a, b testFile) int { return tree.Compare(a.Path, b.Path) })
	return slices.DeleteFunc(files, func(f testFile) bool { return f.Hardlink != "" })
}

// A layer that is compressed while it is written is the same layer, index and all, and its blob has the bytes of one that is
// compressed afterwards.
func TestCompressWhileWriting(t *testing.T) {
	for seed := range uint64(2) {
		files := sortedTree(seed)
		for _, c := range []Compression{{}, {Level: 9}, {Kind: Zstd}, {Kind: None}} {
			for _, keep := range []bool{false, true} {
				after, beside := newLayers(t), newLayers(t)
				want := writeLayer(t, after, files)
				blob, err := after.Compressed(t.Context(), want.DiffID, c, nil)
				if err != nil {
					t.Fatal(err)
				}
				w, err := beside.NewWriter(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Compress(c, keep); err != nil {
					t.Fatal(err)
				}
				if got := fillLayer(t, w, files); got != want {
					t.Errorf("%+v: %+v, want %+v", c, got, want)
				}
				if plain := beside.st.HasBlob(want.DiffID, want.Size); plain != (keep || c.Kind == None) {
					t.Errorf("%+v, keep %v: the plain tar is there: %v", c, keep, plain)
				}
				if got, err := beside.Compressed(t.Context(), want.DiffID, c, nil); err != nil || got.Descriptor.Digest != blob.Descriptor.Digest {
					t.Errorf("%+v: %+v, %v, want %+v", c, got, err, blob)
				}
				if !bytes.Equal(readTar(t, beside, want.DiffID), readTar(t, after, want.DiffID)) {
					t.Errorf("%+v: another tar comes out", c)
				}
				sameIndex(t, after, beside, want)
			}
		}
	}
}

func sameIndex(t *testing.T, a, b *Layers, layer Layer) {
	t.Helper()
	read := func(l *Layers) []byte {
		data, err := os.ReadFile(l.st.IndexPath(indexKey(layer.DiffID)))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if !bytes.Equal(read(a), read(b)) {
		t.Errorf("the indexes of %s differ", layer.DiffID)
	}
}

func TestCompressIsForTheStart(t *testing.T) {
	l := newLayers(t)
	w, err := l.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Compress(Compression{Kind: "lzma"}, false); err == nil {
		t.Error("an unknown kind was accepted")
	}
	e := tree.Entry{Path: "d", Type: tree.Dir, ModTime: time.Unix(1, 0)}
	if err := w.Add(&e, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Compress(Compression{}, false); err == nil {
		t.Error("what was already written would be missing in the blob")
	}
}

// A writer that is given up leaves neither blob.
func TestCompressAborted(t *testing.T) {
	l := newLayers(t)
	w, err := l.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Compress(Compression{}, true); err != nil {
		t.Fatal(err)
	}
	e := tree.Entry{Path: "f", Size: 10, ModTime: time.Unix(1, 0)}
	if err := w.Add(&e, bytes.NewReader([]byte("short"))); err == nil {
		t.Error("a file that is too short was accepted")
	}
	if _, err := w.Commit(); err == nil {
		t.Error("a layer that failed was published")
	}
	left, err := filepath.Glob(l.st.Dir() + "/blobs/sha256/*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}
