package snapshot

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// blocksOf makes files that fill about 6 blocks of the gzip writer, in order.
func blocksOf(r *rand.Rand) []testFile {
	files := []testFile{dir("d", 0o755), dir("d/e", 0o755)}
	for i := range 120 {
		f := file(fmt.Sprintf("d/e/f%03d", i), string(compressible(30_000+r.IntN(40_000))))
		f.data[r.IntN(len(f.data))] = byte(i)
		files = append(files, f)
		switch i % 30 {
		case 3:
			files = append(files, symlink(fmt.Sprintf("d/e/f%03d.link", i), "f000"))
		case 7:
			files = append(files, dir(fmt.Sprintf("d/e/f%03d.dir", i), 0o700))
		}
	}
	for i := range files {
		if files[i].Type == tree.File {
			files[i].Digest = sha256.Sum256(files[i].data)
		}
	}
	return files
}

// compressBeside writes a layer with its blob; how many blocks were taken from an earlier one is the second result.
func compressBeside(t *testing.T, l *Layers, files []testFile, old digest.Digest) (Layer, digest.Digest, int) {
	t.Helper()
	w, err := l.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Compress(Compression{}, false); err != nil {
		t.Fatal(err)
	}
	taken := 0
	if w.Reuse(old); w.reuse != nil {
		z := w.sink.z.(*gzipWriter)
		known := z.known
		z.known = func(i int, buf []byte) ([]byte, bool) {
			b, ok := known(i, buf)
			if ok {
				taken++
			}
			return b, ok
		}
	}
	layer := fillLayer(t, w, files)
	res, err := l.Compressed(t.Context(), layer.DiffID, Compression{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return layer, res.Descriptor.Digest, taken
}

// Whatever changed since the earlier layer, the blob is the one that compressing all of it gives.
func TestReusedBlocks(t *testing.T) {
	files := blocksOf(rand.New(rand.NewPCG(1, 1)))
	at := func(n int) int {
		return slices.IndexFunc(files, func(f testFile) bool { return f.Path == fmt.Sprintf("d/e/f%03d", n) })
	}
	with := func(n int, f testFile) []testFile {
		out := slices.Clone(files)
		if f.Type == tree.File {
			f.Digest = sha256.Sum256(f.data)
		}
		out[at(n)] = f
		return out
	}
	other := slices.Clone(files[at(60)].data)
	other[17] ^= 1
	mode := files[at(60)]
	mode.Mode = 0o700
	times := files[at(60)]
	times.ModTime = times.ModTime.AddDate(1, 0, 0)
	for _, c := range []struct {
		name  string
		files []testFile
		least int
	}{
		{"nothing", files, 4},
		{"one byte", with(60, file("d/e/f060", string(other))), 2},
		{"mode", with(60, mode), 2},
		{"time", with(60, times), 2},
		{"grows", with(60, file("d/e/f060", string(append(slices.Clone(other), other...)))), 1},
		{"the last", with(119, file("d/e/f119", "short")), 2},
		{"the first", with(0, file("d/e/f000", "short")), 0},
		{"gone", slices.Delete(slices.Clone(files), at(60), at(61)), 1},
		{"new", slices.Insert(slices.Clone(files), at(60), file("d/e/f059a", "new")), 1},
		{"another type", with(60, symlink("d/e/f060", "elsewhere")), 1},
		{"everything", []testFile{dir("x", 0o755)}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, fresh := newLayers(t), newLayers(t)
			old, _, _ := compressBeside(t, l, files, "")
			want, blob, _ := compressBeside(t, fresh, c.files, "")
			got, reused, taken := compressBeside(t, l, c.files, old.DiffID)
			if got != want || reused != blob {
				t.Errorf("%+v in %s, want %+v in %s", got, reused, want, blob)
			}
			if taken < c.least {
				t.Errorf("%d blocks were taken, want %d or more", taken, c.least)
			}
		})
	}
}

// An earlier blob with other bytes than it had gives nothing.
func TestReuseOfDamage(t *testing.T) {
	files := blocksOf(rand.New(rand.NewPCG(2, 1)))
	l := newLayers(t)
	old, blob, _ := compressBeside(t, l, files, "")
	path := l.st.BlobPath(blob)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := slices.Clone(data)
	for i := range data[10:] {
		data[10+i] ^= 0x55
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	change := slices.Clone(files)
	change[len(change)-1] = file("d/e/f119", "changed")
	change[len(change)-1].Digest = sha256.Sum256([]byte("changed"))
	layer, got, taken := compressBeside(t, l, change, old.DiffID)
	if taken != 0 {
		t.Errorf("%d damaged blocks were taken", taken)
	}
	if _, want, _ := compressBeside(t, newLayers(t), change, ""); got != want {
		t.Errorf("%s has the blob %s, want %s", layer.DiffID, got, want)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
}
