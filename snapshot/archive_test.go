package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/ulikunitz/xz"

	"build/internal/tree"
)

// archiveOf makes a tar; files have their name for content unless they are links.
func archiveOf(t testing.TB, headers ...*tar.Header) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == tar.TypeXGlobalHeader {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if h.ModTime.IsZero() {
			h.ModTime = srcTime
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o640
		}
		data := h.Name
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(data))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func tarFile(name string) *tar.Header { return &tar.Header{Name: name} }
func tarDir(name string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o711, Uid: 8}
}
func tarSym(name, to string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func tarHard(name, to string) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}

func packed(t testing.TB, kind, data string) string {
	t.Helper()
	var buf bytes.Buffer
	switch kind {
	case "gzip":
		z := gzip.NewWriter(&buf)
		if _, err := z.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	case "zstd":
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	case "xz":
		z, err := xz.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	default:
		return data
	}
	return buf.String()
}

// smallBzip2 is a tar with one file "f" holding "hi\n", by bzip2(1); Go has no bzip2 writer.
const smallBzip2 = "QlpoOTFBWSZTWZLzfwIAAHJ7hMkQAEDAAG+AAADhYJ4AAACACCAAVDSmnqPSGTQ/VDGgkplNNGIANBb7ibuhBKICRXLBoSLisEkDB0w9mbWKSKoIMacHPXKBZR0XrQWFmq6h30REAwLuSKcKEhJeb+BA"

func TestAddArchive(t *testing.T) {
	l := testLayers(t)
	base := chainOf(t, l, writeTree(t, l, baseTree()))
	for name, c := range map[string]struct {
		dest    string
		owner   *Owner
		chmod   string
		entries []*tar.Header
		want    string
		err     string
	}{
		"makes a directory":   {dest: "/n/m", entries: []*tar.Header{tarFile("f")}, want: "n/ 755 now\nn/m/ 755 now\nn/m/f 640 f"},
		"any order":           {dest: "/n", entries: []*tar.Header{tarFile("z"), tarFile("./a"), tarDir("d/"), tarFile("d/x")}, want: "n/ 755 now\nn/a 640 ./a\nn/d/ 711 8:0\nn/d/x 640 d/x\nn/z 640 z"},
		"implied parents":     {dest: "/n", owner: &Owner{5, 6}, entries: []*tar.Header{tarFile("p/f")}, want: "n/ 755 5:6 now\nn/p/ 755 now\nn/p/f 640 5:6 p/f"},
		"chown, not chmod":    {dest: "/n", owner: &Owner{5, 6}, chmod: "777", entries: []*tar.Header{tarDir("d"), tarSym("l", "d")}, want: "n/ 755 5:6 now\nn/d/ 711 5:6\nn/l 777 5:6 -> d"},
		"climbing names":      {dest: "/srv", entries: []*tar.Header{tarFile("../x"), tarFile("/y"), tarFile("a/../../z")}, want: "srv/ 750 7:7 base\nsrv/x 640 ../x\nsrv/y 640 /y\nsrv/z 640 a/../../z"},
		"through own symlink": {dest: "/srv", entries: []*tar.Header{tarSym("l", "../../etc"), tarFile("l/passwd")}, want: "srv/ 750 7:7 base\nsrv/etc/ 755 now\nsrv/etc/passwd 640 l/passwd\nsrv/l 777 -> ../../etc"},
		"absolute symlink":    {dest: "/srv", entries: []*tar.Header{tarSym("l", "/etc"), tarFile("l/passwd")}, want: "srv/ 750 7:7 base\nsrv/etc/ 755 now\nsrv/etc/passwd 640 l/passwd\nsrv/l 777 -> /etc"},
		"through base's link": {dest: "/", entries: []*tar.Header{tarFile("lib/x")}, want: "usr/ 755 7:7 base\nusr/lib/ 755 7:7 base\nusr/lib/x 640 lib/x"},
		"destination link":    {dest: "/abs", entries: []*tar.Header{tarFile("x")}, want: "srv/ 750 7:7 base\nsrv/x 640 x"},
		"symlink replaced":    {dest: "/", entries: []*tar.Header{tarFile("lib")}, want: "lib 640 lib"},
		"directory replaced":  {dest: "/", entries: []*tar.Header{tarFile("data")}, want: "data 640 data"},
		"and made again":      {dest: "/", entries: []*tar.Header{tarFile("data"), tarDir("data/"), tarFile("data/n")}, want: "data/ 711 8:0 opaque\ndata/n 640 data/n"},
		"existing directory":  {dest: "/", entries: []*tar.Header{tarDir("data/")}, want: "data/ 711 8:0"},
		"duplicate":           {dest: "/n", entries: []*tar.Header{tarDir("a"), tarFile("a/b"), tarFile("a"), tarDir("a")}, want: "n/ 755 now\nn/a/ 711 8:0"},
		"hard links":          {dest: "/n", entries: []*tar.Header{tarFile("z"), tarHard("b", "z"), tarHard("a", "/b")}, want: "n/ 755 now\nn/a 640 z\nn/b 640 = n/a\nn/z 640 = n/a"},
		"link, then replaced": {dest: "/n", entries: []*tar.Header{tarFile("z"), tarHard("b", "z"), tarSym("z", "b")}, want: "n/ 755 now\nn/b 640 z\nn/z 777 -> b"},
		"link to symlink":     {dest: "/n", entries: []*tar.Header{tarSym("z", "q"), tarHard("b", "z")}, want: "n/ 755 now\nn/b 777 -> q\nn/z 777 -> q"},
		"devices":             {dest: "/n", entries: []*tar.Header{{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "p", Typeflag: tar.TypeFifo}}, want: "n/ 755 now\nn/c 640 character device\nn/p 640 fifo"},
		"global header":       {dest: "/n", entries: []*tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"a": "b"}}, tarFile("f")}, want: "n/ 755 now\nn/f 640 f"},
		"its root":            {dest: "/srv", entries: []*tar.Header{tarDir("./"), tarFile("./f")}, want: "srv/ 750 7:7 base\nsrv/f 640 ./f"},
		"xattrs":              {dest: "/n", entries: []*tar.Header{{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.trusted.x": "1"}}}, want: "n/ 755 now\nn/f 640 user.a f"},

		"link out":               {dest: "/srv", entries: []*tar.Header{tarHard("f", "../etc/passwd")}, err: "the archive has no such file"},
		"link to itself":         {dest: "/srv", entries: []*tar.Header{tarFile("f"), tarHard("f", "f")}, err: "that is itself"},
		"link to directory":      {dest: "/srv", entries: []*tar.Header{tarDir("d"), tarHard("f", "d")}, err: "that is a directory"},
		"link to the root":       {dest: "/srv", entries: []*tar.Header{tarHard("f", "/")}, err: "that is a directory"},
		"below a file":           {dest: "/srv", entries: []*tar.Header{tarFile("f"), tarFile("f/g")}, err: "not a directory"},
		"onto a file":            {dest: "/data/file", entries: []*tar.Header{tarFile("f")}, err: "not a directory"},
		"below a loop":           {dest: "/", entries: []*tar.Header{tarFile("loop/f")}, err: "too many levels"},
		"deletion mark":          {dest: "/srv", entries: []*tar.Header{tarFile(".wh.f")}, err: ".wh."},
		"deletion mark, opaque":  {dest: "/srv", entries: []*tar.Header{tarFile("d/.wh..wh..opq")}, err: ".wh."},
		"deletion device":        {dest: "/srv", entries: []*tar.Header{{Name: "c", Typeflag: tar.TypeChar}}, err: "0:0"},
		"name that is no name":   {dest: "/srv", entries: []*tar.Header{{Name: "..", Typeflag: tar.TypeReg}}, err: "without a name"},
		"long name":              {dest: "/srv", entries: []*tar.Header{tarFile(strings.Repeat("n", 300))}, err: "invalid path"},
		"negative owner":         {dest: "/srv", entries: []*tar.Header{{Name: "f", Uid: -1}}, err: "is not an id"},
		"huge owner":             {dest: "/srv", entries: []*tar.Header{{Name: "f", Uid: 1 << 32, Format: tar.FormatPAX}}, err: "is not an id"},
		"symlink without target": {dest: "/srv", entries: []*tar.Header{tarSym("l", "")}, err: "without a target"},
	} {
		for _, kind := range []string{"plain", "gzip", "xz", "zstd"} {
			src := memSource{}.file("archive", packed(t, kind, archiveOf(t, c.entries...)))
			id, err := copyLayer(t, l, base, src, &CopySpec{Add: true, Sources: sources("archive"), Dest: c.dest, Owner: c.owner, Chmod: c.chmod})
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s, %s: error %v, want %q", name, kind, err, c.err)
				}
			case err != nil:
				t.Errorf("%s, %s: %v", name, kind, err)
			default:
				if got := show(t, l, id); got != c.want {
					t.Errorf("%s, %s: got:\n%s\nwant:\n%s", name, kind, got, c.want)
				}
			}
		}
	}
}

func TestAddBzip2(t *testing.T) {
	data, err := base64.StdEncoding.DecodeString(smallBzip2)
	if err != nil {
		t.Fatal(err)
	}
	l := testLayers(t)
	id, err := copyLayer(t, l, nil, memSource{}.file("a.txt", string(data)), &CopySpec{Add: true, Sources: sources("a.txt"), Dest: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if got := show(t, l, id); !strings.HasPrefix(got, "f 644") || !strings.HasSuffix(got, "hi\n") {
		t.Errorf("%q", got)
	}
}

// TestAddWhatIsNoArchive copies whatever does not begin as an archive, and fails on what only begins as one.
func TestAddWhatIsNoArchive(t *testing.T) {
	l := testLayers(t)
	whole := packed(t, "gzip", archiveOf(t, tarFile("f"), tarFile(strings.Repeat("g", 200)), tarFile("h")))
	for name, data := range map[string]string{
		"gzip of text":       packed(t, "gzip", "text"),
		"gzip of nothing":    packed(t, "gzip", ""),
		"gzip, cut early":    whole[:12],
		"zstd magic only":    "\x28\xb5\x2f\xfd",
		"xz magic only":      string(xzMagic),
		"bzip2 magic only":   "BZh9",
		"an empty tar":       strings.Repeat("\x00", 1024),
		"nearly a tar":       archiveOf(t, tarFile("f"))[:300],
		"damaged header":     "x" + archiveOf(t, tarFile("f")),
		"huge xz dictionary": "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x28\x00\x00\x00",
	} {
		id, err := copyLayer(t, l, nil, memSource{}.file("a", data), &CopySpec{Add: true, Sources: sources("a"), Dest: "/d/"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := show(t, l, id); got != "d/ 755 now\nd/a 644 "+data {
			t.Errorf("%s: %.60q", name, got)
		}
	}
	plain := archiveOf(t, tarFile("f"), tarFile("g"))
	var many []*tar.Header
	for i := range 500 {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		many = append(many, tarFile(hex.EncodeToString(sum[:])))
	}
	for name, data := range map[string]string{
		"tar cut short":   plain[:1200],
		"gzip cut short":  packed(t, "gzip", archiveOf(t, many...))[:3000],
		"gzip bad ending": whole[:len(whole)-4] + "oops",
	} {
		if _, err := copyLayer(t, l, nil, memSource{}.file("a", data), &CopySpec{Add: true, Sources: sources("a"), Dest: "/d/"}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAddSeveral(t *testing.T) {
	no := false
	l := testLayers(t)
	src := memSource{}.file("1.tar", archiveOf(t, tarFile("x"), tarFile("only1"))).file("2.tar", archiveOf(t, tarFile("./x"))).file("t", "T").link("ln", "1.tar")
	for name, c := range map[string]struct {
		spec CopySpec
		want string
	}{
		"in order":        {CopySpec{Add: true, Sources: sources("1.tar", "t", "2.tar"), Dest: "/d/"}, "d/ 755 now\nd/only1 640 only1\nd/t 644 T\nd/x 640 ./x"},
		"wildcard":        {CopySpec{Add: true, Sources: sources("*.tar"), Dest: "/d"}, "d/ 755 now\nd/only1 640 only1\nd/x 640 ./x"},
		"symlink":         {CopySpec{Add: true, Sources: sources("ln"), Dest: "/d"}, "d/ 755 now\nd/only1 640 only1\nd/x 640 x"},
		"not in COPY":     {CopySpec{Sources: sources("2.tar"), Dest: "/d"}, "d 644 " + src["2.tar"].data},
		"not when told":   {CopySpec{Add: true, Unpack: &no, Sources: sources("2.tar"), Dest: "/d"}, "d 644 " + src["2.tar"].data},
		"not below a dir": {CopySpec{Add: true, Sources: sources("."), Exclude: []string{"1.tar", "t", "ln"}, Dest: "/d"}, "d/ 755\nd/2.tar 644 " + src["2.tar"].data},
	} {
		id, err := copyLayer(t, l, nil, src, &c.spec)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := show(t, l, id); got != c.want {
			t.Errorf("%s: got:\n%.300s\nwant:\n%.300s", name, got, c.want)
		}
	}
}

// TestAddSparse unpacks what GNU tar makes of a file with holes; its bytes are not in the tar in one piece.
func TestAddSparse(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs GNU tar")
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1 << 20, 3 << 20} {
		if _, err := f.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "last"), []byte("plain"), 0o644); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		out, err := exec.Command("tar", "--sparse", "--format="+format, "-C", dir, "-c", "holes", "last").Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > 1<<20 {
			t.Fatalf("%s: the tar is not sparse", format)
		}
		l := testLayers(t)
		id, err := copyLayer(t, l, nil, memSource{}.file("a", string(out)), &CopySpec{Add: true, Sources: sources("a"), Dest: "/"})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"holes": string(want), "last": "plain"} {
			got, err := l.ReadFile(context.Background(), chainOf(t, l, id), []digest.Digest{id}, name, 1<<30)
			if err != nil || string(got) != want {
				t.Errorf("%s: %s: %d bytes, %v", format, name, len(got), err)
			}
		}
	}
}

func TestAddNoticesChange(t *testing.T) {
	ctx := context.Background()
	l := testLayers(t)
	src := memSource{}.file("a", archiveOf(t, tarFile("f")))
	sel, err := Select(ctx, src, &CopySpec{Add: true, Sources: sources("a"), Dest: "/d"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sel.Digest(ctx); err != nil {
		t.Fatal(err)
	}
	src.file("a", archiveOf(t, tarFile("g")))
	w, err := l.NewWriter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var changed *ChangedError
	if err := sel.Write(ctx, tree.NewChain(nil), w); !errors.As(err, &changed) {
		t.Fatalf("%v", err)
	}
}

// FuzzAdd unpacks arbitrary bytes: the result is a layer or an error, and nothing outside of the destination changes.
func FuzzAdd(f *testing.F) {
	f.Add(archiveOf(f, tarSym("l", "../.."), tarFile("l/x"), tarHard("h", "l/x"), tarDir("l"), tarFile("../x")))
	f.Add(archiveOf(f, tarDir("a"), tarFile("a/b"), tarFile("a"), tarDir("a"), tarSym("a/c", "/")))
	l := testLayers(f)
	base := chainOf(f, l, writeTree(f, l, baseTree()))
	f.Fuzz(func(t *testing.T, data string) {
		id, err := copyLayer(t, l, base, memSource{}.file("a", data), &CopySpec{Add: true, Sources: sources("a"), Dest: "/srv/"})
		if err != nil {
			return
		}
		x, err := l.Index(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range x.Subtree("") {
			if err != nil {
				t.Fatal(err)
			}
			if e.Path != "srv" && !tree.Below(e.Path, "srv") {
				t.Fatalf("%q is outside of the destination", e.Path)
			}
		}
	})
}
