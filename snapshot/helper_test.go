package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/owner"
	"build/internal/store"
	"build/internal/tree"
)

// newLayers opens a fresh store.
func newLayers(t testing.TB) *Layers {
	t.Helper()
	return openLayers(t, t.TempDir()+"/store")
}

func openLayers(t testing.TB, dir string) *Layers {
	t.Helper()
	st, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := New(st, Options{IDKind: "root", IDs: readMap(t)})
	t.Cleanup(func() { l.Close(); st.Close() })
	return l
}

// testFile is an entry with its content.
type testFile struct {
	tree.Entry
	data []byte
}

// writeLayer writes files, in any order, as a layer.
func writeLayer(t testing.TB, l *Layers, files []testFile) Layer {
	t.Helper()
	w, err := l.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b testFile) int { return tree.Compare(a.Path, b.Path) })
	for _, f := range files {
		e := f.Entry
		e.Size = int64(len(f.data))
		var r io.Reader
		if e.Type == tree.File && e.Hardlink == "" {
			r = bytes.NewReader(f.data)
		}
		if err := w.Add(&e, r); err != nil {
			t.Fatal(err)
		}
	}
	layer, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func dir(path string, mode uint32) testFile {
	return testFile{Entry: tree.Entry{Path: path, Type: tree.Dir, Mode: mode, ModTime: time.Unix(1000, 0)}}
}

func file(path, data string) testFile {
	return testFile{Entry: tree.Entry{Path: path, Type: tree.File, Mode: 0o644, ModTime: time.Unix(2000, 0)}, data: []byte(data)}
}

func symlink(path, to string) testFile {
	return testFile{Entry: tree.Entry{Path: path, Type: tree.Symlink, Mode: 0o777, Link: to, ModTime: time.Unix(3000, 0)}}
}

func whiteout(path string) testFile {
	return testFile{Entry: tree.Entry{Path: path, Type: tree.Whiteout}}
}

// randomTree makes up a tree of n entries with everything in it that a file system can hold.
func randomTree(r *rand.Rand, n int) []testFile {
	dirs := []string{""}
	used := map[string]bool{}
	var out, plain []testFile
	for len(out) < n {
		path := joinPath(dirs[r.IntN(len(dirs))], randomName(r))
		if used[path] || len(path) > 3000 {
			continue
		}
		used[path] = true
		f := testFile{Entry: tree.Entry{
			Path: path, Mode: uint32(r.IntN(0o10000)), UID: randomID(r), GID: randomID(r),
			ModTime: time.Unix(r.Int64N(4e9)-1e9, 0),
		}}
		switch k := r.IntN(20); {
		case k < 5:
			f.Type = tree.Dir
			dirs = append(dirs, path)
		case k < 7:
			f.Type, f.Mode, f.Link = tree.Symlink, 0o777, strings.Repeat("x/../", r.IntN(40))+"t"
		case k == 7:
			f.Type = tree.Fifo
		case k == 8:
			f.Type, f.Major, f.Minor = tree.Char, 1, uint32(r.IntN(9))
		case k == 9:
			f.Type, f.Major, f.Minor = tree.Block, 7, uint32(r.IntN(9))
		default:
			f.Type, f.data = tree.File, randomData(r)
		}
		if f.Type == tree.File || f.Type == tree.Dir {
			f.Xattrs = randomXattrs(r, f.Type)
		}
		if f.Type == tree.File {
			plain = append(plain, f)
		}
		out = append(out, f)
	}
	return append(out, randomHardlinks(r, used, plain)...)
}

// randomHardlinks gives second names, later in path order, to some files.
func randomHardlinks(r *rand.Rand, used map[string]bool, plain []testFile) (out []testFile) {
	for _, f := range plain {
		if r.IntN(6) > 0 {
			continue
		}
		for range 1 + r.IntN(2) {
			link := f
			link.Path, link.Hardlink, link.data = f.Path+"~"+randomName(r), f.Path, nil
			if _, base := splitPath(link.Path); len(base) < 256 && !used[link.Path] {
				used[link.Path] = true
				out = append(out, link)
			}
		}
	}
	return out
}

func randomName(r *rand.Rand) string {
	const letters = "abcXYZ-_.~0 \n\\\"\xff\xc3\xa4\x01=%"
	n := 1 + r.IntN(6)
	if r.IntN(15) == 0 {
		n = 60 + r.IntN(60)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	if s := string(b); s != "." && s != ".." && !strings.HasPrefix(s, whiteoutPrefix) {
		return s
	}
	return "dot"
}

func randomID(r *rand.Rand) uint32 {
	return []uint32{0, 0, 0, 1, 33, 1000, 65534, 3000000}[r.IntN(8)]
}

func randomData(r *rand.Rand) []byte {
	n := r.IntN(2000)
	if r.IntN(10) == 0 {
		n = 200<<10 + r.IntN(300<<10)
	}
	b := make([]byte, n)
	if r.IntN(3) > 0 { // the rest stays zero
		for i := range b {
			b[i] = byte(r.IntN(256))
		}
	}
	return b
}

func randomXattrs(r *rand.Rand, t tree.Type) (out []tree.Xattr) {
	if r.IntN(8) == 0 {
		out = append(out, tree.Xattr{Name: "user.a", Value: "x\x00\n=y"}, tree.Xattr{Name: "user.überall", Value: ""})
	}
	if t == tree.File && r.IntN(8) == 0 {
		out = append(out, tree.Xattr{Name: capabilityXattr, Value: capability(2)})
	}
	sortXattrs(out)
	return out
}

// capability is a cap_net_raw=ep in the given version of the format.
func capability(version byte) string {
	v := "\x01\x00\x00" + string(version) + "\x00\x20\x00\x00" + strings.Repeat("\x00", 12)
	if version == 3 {
		v += "\xe8\x03\x00\x00"
	}
	return v
}

// readTar returns the plain tar of a layer.
func readTar(t testing.TB, l *Layers, diffID digest.Digest) []byte {
	t.Helper()
	r, err := l.OpenTar(t.Context(), diffID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tarOf writes headers, with content in place of a nil Size, as a tar of the standard library's dialect.
func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.data))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if strings.HasSuffix(h.Name, "/") && h.Typeflag != tar.TypeDir { // the standard library does not write these
			var enc encoder
			b, err := enc.encode(&header{name: h.Name, kind: h.Typeflag, mode: 0o644, size: h.Size, link: h.Linkname})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			buf.Write(b)
			buf.WriteString(e.data)
			buf.Write(zeroBlocks[:padding(h.Size)])
			continue
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type tarEntry struct {
	tar.Header
	data string
}

func tFile(name, data string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name}, data}
}
func tDir(name string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func tLink(name, to string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}
func tHard(name, to string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}

// describe wraps bytes as a blob.
func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// importTar puts a tar into the store as a pulled plain layer.
func importTar(t testing.TB, l *Layers, b []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(b)
	if err := l.Import(t.Context(), d, describe(ocispec.MediaTypeImageLayer, b), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

// dump lists what an index holds, one line an entry, without what depends on where it came from.
func dump(t testing.TB, l *Layers, diffID digest.Digest) string {
	t.Helper()
	x, err := l.Index(t.Context(), diffID)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for e, err := range x.Subtree("") {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, line(&e))
	}
	return b.String()
}

func line(e *tree.Entry) string {
	s := fmt.Sprintf("%q %v %04o %d:%d", e.Path, e.Type, e.Mode, e.UID, e.GID)
	switch {
	case e.Type == tree.Whiteout:
		return fmt.Sprintf("%q whiteout", e.Path)
	case e.Hardlink != "":
		return fmt.Sprintf("%q hardlink %q", e.Path, e.Hardlink)
	case e.Type == tree.File:
		s += fmt.Sprintf(" %d %x", e.Size, e.Digest[:4])
	case e.Type == tree.Symlink:
		s = fmt.Sprintf("%q symlink %d:%d -> %q", e.Path, e.UID, e.GID, e.Link)
	case e.Type == tree.Char || e.Type == tree.Block:
		s += fmt.Sprintf(" %d,%d", e.Major, e.Minor)
	}
	if e.Implied {
		s += " implied"
	}
	if e.Opaque {
		s += " opaque"
	}
	for _, x := range e.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s
}

// canary puts files into a new directory and returns a function that fails the test if anything about them changed.
func canary(t testing.TB) (string, func(testing.TB)) {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{"secret", "dir/file"} {
		if err := os.MkdirAll(filepath.Dir(root+"/"+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/"+name, []byte("untouched"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	before := hashTree(t, root)
	return root, func(t testing.TB) {
		t.Helper()
		if after := hashTree(t, root); after != before {
			t.Errorf("the host was changed:\n%s\nwas\n%s", after, before)
		}
	}
}

// hashTree describes a directory of the host.
func hashTree(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		var sum [32]byte
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = sha256.Sum256(data)
		}
		fmt.Fprintln(&b, strings.TrimPrefix(path, root), fi.Mode(), fi.Size(), fi.ModTime().UnixNano(), fmt.Sprintf("%x", sum[:4]))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// applyTar applies a tar to a new directory below parent.
func applyTar(ctx context.Context, t testing.TB, b []byte) (string, ApplyReport, error) {
	t.Helper()
	root := t.TempDir() + "/root"
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	report, err := newLayers(t).Apply(ctx, f, bytes.NewReader(b))
	return root, report, err
}

// needRoot skips what only root can do.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("for root")
	}
}

func layersOf(layers ...Layer) (out []digest.Digest) {
	for _, l := range layers {
		out = append(out, l.DiffID)
	}
	return out
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}

func newHash() hash.Hash { return sha256.New() }

// readMap is the map of ids of the namespace the tests run in. An ordinary user outside of one can give files to nobody else.
func readMap(t testing.TB) owner.Map {
	t.Helper()
	m, err := owner.ReadMap()
	if os.Geteuid() != 0 {
		m, err = owner.ParseMap(fmt.Sprintf("%d 0 1\n", os.Geteuid()), fmt.Sprintf("%d 0 1\n", os.Getegid()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}
