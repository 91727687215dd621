package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"build/internal/store"
	"build/internal/tree"
)

// fixedTree has one of everything; its digest is pinned.
func fixedTree() []testFile {
	xattrs := []tree.Xattr{{Name: capabilityXattr, Value: capability(2)}, {Name: "user.note", Value: "a\nb\x00c"}}
	long := strings.Repeat("long/", 25) + "name"
	files := []testFile{
		dir("", 0o755), dir("etc", 0o755), file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), dir("tmp", 0o1777),
		symlink("bin", "usr/bin"), whiteout("gone"), file("empty", ""), file("umlaut-\xc3\xa4-\xff", "any bytes"),
		{Entry: tree.Entry{Path: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3, ModTime: time.Unix(0, 0)}},
		{Entry: tree.Entry{Path: "loop", Type: tree.Block, Mode: 0o660, GID: 6, Major: 7, Minor: 0, ModTime: time.Unix(0, 0)}},
		{Entry: tree.Entry{Path: "pipe", Type: tree.Fifo, Mode: 0o600, UID: 3000000, ModTime: time.Unix(-5, 0)}},
		{Entry: tree.Entry{Path: "opaque", Type: tree.Dir, Mode: 0o700, Opaque: true, ModTime: time.Unix(1, 999)}},
		{Entry: tree.Entry{Path: "ping", Type: tree.File, Mode: 0o4755, ModTime: time.Unix(1e9, 0),
			Xattrs: xattrs}, data: []byte("elf")},
		{Entry: tree.Entry{Path: "ping2", Type: tree.File, Mode: 0o4755, ModTime: time.Unix(1e9, 0),
			Xattrs: xattrs, Hardlink: "ping"}},
		file(long, "deep"), symlink("far", strings.Repeat("../", 60)+"x"),
	}
	for i := range len(long) {
		if long[i] == '/' {
			files = append(files, dir(long[:i], 0o755))
		}
	}
	return files
}

// The digest of a layer is its identity in caches and images everywhere. If this test fails, the dialect has changed, and
// every layer that anybody built before is another one.
func TestDialectIsPinned(t *testing.T) {
	const want = "sha256:4119726cc48f2d367a5bc6139605c7484843414b9d14be200554e1d4e47210f7"
	l := newLayers(t)
	got := writeLayer(t, l, fixedTree())
	if got.DiffID != want {
		t.Errorf("layer %s, want %s", got.DiffID, want)
	}
}

// Other programs read our tars: what the standard library sees is what was written.
func TestWriterAgainstStandardReader(t *testing.T) {
	l := newLayers(t)
	for seed := range uint64(10) {
		files := randomTree(rand.New(rand.NewPCG(seed, 1)), 60)
		want := map[string]testFile{}
		for _, f := range files {
			want[f.Path] = f
		}
		tr := tar.NewReader(bytes.NewReader(readTar(t, l, writeLayer(t, l, files).DiffID)))
		n := 0
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			n++
			f, ok := want[strings.TrimSuffix(h.Name, "/")]
			if !ok {
				t.Fatalf("seed %d: %q was never written", seed, h.Name)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			compareHeader(t, h, &f, data)
		}
		if n != len(files) {
			t.Errorf("seed %d: %d entries of %d", seed, n, len(files))
		}
	}
}

func compareHeader(t *testing.T, h *tar.Header, f *testFile, data []byte) {
	t.Helper()
	if h.Uid != int(f.UID) || h.Gid != int(f.GID) || h.Mode != int64(f.Mode) || !h.ModTime.Equal(f.ModTime) {
		t.Errorf("%q: %d:%d %o %v, want %d:%d %o %v", h.Name, h.Uid, h.Gid, h.Mode, h.ModTime, f.UID, f.GID, f.Mode, f.ModTime)
	}
	if !bytes.Equal(data, f.data) {
		t.Errorf("%q: other content", h.Name)
	}
	if f.Hardlink != "" {
		if h.Typeflag != tar.TypeLink || h.Linkname != f.Hardlink {
			t.Errorf("%q: type %c to %q, want a hard link to %q", h.Name, h.Typeflag, h.Linkname, f.Hardlink)
		}
		return
	}
	if h.Linkname != f.Link || h.Devmajor != int64(f.Major) || h.Devminor != int64(f.Minor) {
		t.Errorf("%q: link %q, device %d:%d", h.Name, h.Linkname, h.Devmajor, h.Devminor)
	}
	for _, x := range f.Xattrs {
		if h.PAXRecords[xattrRecord+x.Name] != x.Value {
			t.Errorf("%q: attribute %s is %q", h.Name, x.Name, h.PAXRecords[xattrRecord+x.Name])
		}
	}
}

// The index made while writing is the index made by reading, byte for byte: it does not matter which one a store has.
func TestIndexOfWriterIsIndexOfTar(t *testing.T) {
	for seed := range uint64(10) {
		l := newLayers(t)
		files := fixedTree()
		if seed > 0 {
			files = randomTree(rand.New(rand.NewPCG(seed, 2)), 80)
		}
		layer := writeLayer(t, l, files)
		path := l.st.IndexPath(indexKey(layer.DiffID))
		written, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.st.Remove(store.KindIndex, indexKey(layer.DiffID)); err != nil {
			t.Fatal(err)
		}
		x, err := l.Index(t.Context(), layer.DiffID)
		if err != nil {
			t.Fatal(err)
		}
		if x.Summary().Content != layer.Content || x.Summary().Entries != layer.Entries {
			t.Errorf("seed %d: the summary differs", seed)
		}
		read, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(written, read) {
			t.Errorf("seed %d: the index that was written differs from the one that was read", seed)
		}
	}
}

func TestWriterIsDeterministic(t *testing.T) {
	files := randomTree(rand.New(rand.NewPCG(7, 7)), 200)
	a, b := newLayers(t), newLayers(t)
	if x, y := writeLayer(t, a, files), writeLayer(t, b, files); x != y {
		t.Errorf("%+v and %+v", x, y)
	}
}

func TestWriterNoticesChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		size   int64
		digest [32]byte
		data   string
	}{
		"longer":   {3, [32]byte{}, "four"},
		"shorter":  {3, [32]byte{}, "tw"},
		"other":    {3, [32]byte{1}, "thr"},
		"appeared": {0, [32]byte{}, "x"},
	} {
		w, err := newLayers(t).NewWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = w.Add(&tree.Entry{Path: "f", Type: tree.File, Size: tc.size, Digest: tc.digest}, strings.NewReader(tc.data))
		var changed *ChangedError
		if !errors.As(err, &changed) || changed.Path != "f" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := w.Commit(); err == nil {
			t.Errorf("%s: the layer was published", name)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, e := range map[string]tree.Entry{
		"whiteout prefix":  {Path: ".wh.x", Type: tree.File},
		"deletion device":  {Path: "x", Type: tree.Char},
		"missing parent":   {Path: "a/b", Type: tree.File},
		"escape":           {Path: "../x", Type: tree.File},
		"zero byte":        {Path: "a\x00b", Type: tree.File},
		"unwritable xattr": {Path: "x", Type: tree.File, Xattrs: []tree.Xattr{{Name: "user.a=b", Value: ""}}},
		"link to nothing":  {Path: "x", Type: tree.File, Hardlink: "w"},
		"file as root":     {Path: "", Type: tree.File},
	} {
		l := newLayers(t)
		w, err := l.NewWriter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(&e, strings.NewReader("")); err == nil {
			t.Errorf("%s was accepted", name)
		}
		w.Abort()
		w.Abort()
	}
}

func TestKeptFiles(t *testing.T) {
	l := newLayers(t)
	passwd := "root:x:0:0::/root:/bin/sh\n"
	layer := writeLayer(t, l, []testFile{dir("etc", 0o755), file("etc/passwd", passwd)})
	x, err := l.Index(t.Context(), layer.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := x.Kept("etc/passwd"); !ok || string(got) != passwd {
		t.Errorf("kept %q, %v", got, ok)
	}
	// A file that something else replaces in the same tar is not kept.
	d := importTar(t, l, tarOf(t, tFile("etc/passwd", passwd), tLink("etc/passwd", "/proc/self/environ")))
	if x, err = l.Index(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got, ok := x.Kept("etc/passwd"); ok {
		t.Errorf("kept %q of a file that is not there", got)
	}
}
