package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// diffDir writes a directory as a layer, as Commit does with an upper directory.
func diffDir(t testing.TB, l *Layers, path string, base *tree.Chain) Layer {
	t.Helper()
	w, err := l.NewWriter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d := &differ{ctx: t.Context(), base: base, w: w, owners: l.owners, first: map[inode]firstName{}}
	if err := d.diff(root, nil); err != nil {
		t.Fatal(err)
	}
	layer, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// What is applied and read back is the same tar, byte for byte: trees, tars and directories hold the same.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	for seed := range uint64(12) {
		want := writeLayer(t, l, randomTree(rand.New(rand.NewPCG(seed, 5)), 20+int(seed)*5))
		path, report, err := applyTar(t.Context(), t, readTar(t, l, want.DiffID))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if report.Placeholders+report.Xattrs > 0 {
			t.Skipf("missing: the rights to make devices, owners or attributes: %+v", report)
		}
		got := diffDir(t, l, path, tree.NewChain(nil))
		if got != want {
			t.Errorf("seed %d:\n%s\nwant\n%s", seed, dump(t, l, got.DiffID), dump(t, l, want.DiffID))
		}
	}
}

// The same with deletions and opaque directories over a base.
func TestRoundTripOverBase(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 6))
		base := randomTree(r, 40)
		chain, err := l.Chain(t.Context(), layersOf(writeLayer(t, l, base)))
		if err != nil {
			t.Fatal(err)
		}
		want := writeLayer(t, l, randomChange(r, base))
		path, _, err := applyTar(t.Context(), t, readTar(t, l, want.DiffID))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := diffDir(t, l, path, chain); got != want {
			t.Errorf("seed %d:\n%s\nwant\n%s", seed, dump(t, l, got.DiffID), dump(t, l, want.DiffID))
		}
	}
}

// randomChange makes up a layer over base: deletions, opaque directories, changed and new files, with all parents.
func randomChange(r *rand.Rand, base []testFile) []testFile {
	byPath, out := map[string]testFile{}, map[string]testFile{}
	for _, f := range base {
		byPath[f.Path] = f
	}
	blocked := func(path string) bool { // below what this layer already hides
		for p := path; p != ""; p, _ = splitPath(p) {
			if f, ok := out[p]; ok && (f.Type != tree.Dir || f.Opaque) {
				return true
			}
		}
		return false
	}
	var add func(testFile)
	add = func(f testFile) {
		if parent, _ := splitPath(f.Path); parent != "" && out[parent].Path == "" {
			add(byPath[parent])
		}
		out[f.Path] = f
	}
	for _, f := range base {
		if f.Hardlink != "" || blocked(f.Path) {
			continue
		}
		if _, ok := out[f.Path]; ok {
			continue
		}
		switch k := r.IntN(8); {
		case k == 0:
			add(whiteout(f.Path))
		case k == 1 && f.Type == tree.Dir:
			f.Opaque = true
			add(f)
		case k == 2 && f.Type == tree.File:
			f.data = append([]byte("changed"), f.data...)
			add(f)
		case k == 3 && f.Type == tree.Dir:
			add(f)
			add(file(f.Path+"/new", "new"))
		}
	}
	var list []testFile
	for _, f := range out {
		list = append(list, f)
	}
	return list
}

// hostile tars: each is either refused or stays inside its root, and the index is refused exactly when the directory is.
func hostileTars(host string) map[string][]tarEntry {
	dev := func(name string, kind byte, major, minor int64) tarEntry {
		return tarEntry{tar.Header{Typeflag: kind, Name: name, Devmajor: major, Devminor: minor}, ""}
	}
	up := strings.Repeat("../", 40)
	return map[string][]tarEntry{
		"parent":                     {tFile("../x", "evil")},
		"parent inside":              {tFile("a/../../x", "evil")},
		"dot parent":                 {tFile("./../x", "evil")},
		"only parent":                {tDir("..")},
		"absolute":                   {tFile(host+"/secret", "stays inside")},
		"absolute link, then file":   {tLink("a", host), tFile("a/secret", "evil")},
		"absolute link, then dir":    {tLink("a", host), tDir("a/dir"), tFile("a/dir/file", "evil")},
		"relative link, then file":   {tLink("a", up[1:]+host), tFile("a/secret", "evil")},
		"chained links":              {tLink("a", "b"), tLink("b", "c"), tLink("c", host), tFile("a/secret", "evil")},
		"link loop":                  {tLink("a", "b"), tLink("b", "a"), tFile("a/x", "evil")},
		"link, then chmod":           {tLink("a", host+"/secret"), tFile("a", "replaced")},
		"link, then directory":       {tLink("a", host+"/dir"), tDir("a"), tFile("a/file", "inside")},
		"link with slash, then file": {tLink("a", host+"/secret"), tFile("a/", "replaced")},
		"link, then fifo":            {tLink("a", host+"/secret"), {tar.Header{Typeflag: tar.TypeFifo, Name: "a"}, ""}},
		"hard link out":              {tHard("a", "../../../../../.."+host+"/secret")},
		"hard link absolute":         {tHard("a", host+"/secret"), tFile("a", "evil")},
		"hard link through link":     {tLink("l", host), tHard("a", "l/secret")},
		"hard link to link":          {tLink("l", host+"/secret"), tHard("a", "l"), tFile("a", "replaced")},
		"hard link to itself":        {tFile("a", "x"), tHard("a", "a")},
		"hard link to directory":     {tDir("d"), tHard("a", "d")},
		"hard link to deletion":      {tFile(".wh.d", ""), tHard("a", "d")},
		"hard link to nothing":       {tHard("a", "b")},
		"hard link over its parent":  {tDir("d"), tFile("d/x", "x"), tHard("d", "d/x")},
		"deletion of nothing":        {tFile(".wh.", "")},
		"deletion of .":              {tFile(".wh..", "")},
		"deletion of ..":             {tFile(".wh...", "")},
		"deletion through link":      {tLink("a", host), tFile("a/.wh.secret", "")},
		"opaque through link":        {tLink("a", host), tFile("a/.wh..wh..opq", "")},
		"deletion as directory":      {tDir(".wh.a"), tFile(".wh.a/x", "")},
		"deletion of a link":         {tLink("x", host), tFile(".wh.x", "")},
		"child of a file":            {tFile("f", "x"), tFile("f/g", "evil")},
		"child of a device":          {dev("null", tar.TypeChar, 1, 3), tFile("null/x", "evil")},
		"unknown type":               {dev("x", 'Z', 0, 0)},
		"huge device":                {dev("x", tar.TypeChar, 1<<20, 0)},
		"root as link":               {tLink(".", host), tFile("secret", "evil")},
		"root as link with slash":    {tLink("./", host), tFile("dir/file", "evil")},
		"root as file":               {tFile(".", "x")},
		"root as hard link":          {tFile("a", "x"), tHard(".", "a")},
		"root as device":             {dev("/", tar.TypeBlock, 8, 0)},
		"long name":                  {tFile(strings.Repeat("n", 4000), "x")},
		"long path":                  {tFile(strings.Repeat("n/", 4000)+"x", "x")},
		"huge owner":                 {{tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: 1 << 33, Format: tar.FormatPAX}, ""}},
		"negative owner":             {{tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: -1, Format: tar.FormatGNU}, ""}},
	}
}

func TestApplyHostile(t *testing.T) {
	host, check := canary(t)
	refused := map[string]bool{}
	for _, name := range strings.Split("parent,parent inside,dot parent,only parent,link loop,hard link out,hard link absolute,"+
		"hard link through link,hard link to itself,hard link to directory,hard link to deletion,hard link to nothing,hard link over its parent,"+
		"deletion of nothing,deletion of .,deletion of ..,deletion as directory,child of a file,child of a device,unknown type,huge device,"+
		"root as link,root as link with slash,root as file,root as hard link,root as device,long name,long path,huge owner,negative owner", ",") {
		refused[name] = true
	}
	for name, entries := range hostileTars(host) {
		t.Run(name, func(t *testing.T) {
			b := tarOf(t, entries...)
			root, _, err := applyTar(t.Context(), t, b)
			if (err != nil) != refused[name] {
				t.Errorf("apply: %v", err)
			}
			x := newIndexer()
			if _, err := scanLayer(t.Context(), bytes.NewReader(b), nil, x); (err != nil) != refused[name] {
				t.Errorf("index: %v", err)
			}
			if _, err := os.Lstat(root + "/../x"); err == nil {
				t.Error("a file beside the root")
			}
			check(t)
		})
	}
}

// Names and links that look strange and are legal, as real images have them.
func TestApplyLegal(t *testing.T) {
	for name, tc := range map[string]struct {
		in   []tarEntry
		want string
	}{
		"implied parents": {[]tarEntry{tFile("a/b/c", "x")}, `"a" directory 0755 0:0 implied
"a/b" directory 0755 0:0 implied
"a/b/c" file 0644 0:0 1 2d711642`},
		"link as parent": {[]tarEntry{tDir("usr/lib/"), tLink("lib", "/usr/lib"), tFile("lib/x", "x")}, `"lib" symlink 0:0 -> "/usr/lib"
"usr" directory 0755 0:0 implied
"usr/lib" directory 0755 0:0
"usr/lib/x" file 0644 0:0 1 2d711642`},
		"deep links up": {[]tarEntry{tLink("l", "../../../../usr"), tFile("l/x", "x")}, `"l" symlink 0:0 -> "../../../../usr"
"usr" directory 0755 0:0 implied
"usr/x" file 0644 0:0 1 2d711642`},
		"hard link through an absolute link": {[]tarEntry{tLink("b", "/usr/bin"), tFile("usr/bin/x", "x"), tHard("y", "/b/x")}, `"b" symlink 0:0 -> "/usr/bin"
"usr" directory 0755 0:0 implied
"usr/bin" directory 0755 0:0 implied
"usr/bin/x" file 0644 0:0 1 2d711642
"y" hardlink "usr/bin/x"`},
		"hard link that sorts before its file": {[]tarEntry{tFile("z", "x"), tHard("a", "z")}, `"a" file 0644 0:0 1 2d711642
"z" hardlink "a"`},
		"hard link to a link": {[]tarEntry{tLink("l", "t"), tHard("m", "l")}, `"l" symlink 0:0 -> "t"
"m" symlink 0:0 -> "t"`},
		"hard link to a file replaced later": {[]tarEntry{tFile("a", "x"), tHard("b", "a"), tLink("a", "b")}, `"a" symlink 0:0 -> "b"
"b" file 0644 0:0 1 2d711642`},
		"replaced": {[]tarEntry{tFile("sh", "x"), tLink("sh", "dash"), tDir("d"), tFile("d/x", "x"), tFile("d", "x")}, `"d" file 0644 0:0 1 2d711642
"sh" symlink 0:0 -> "dash"`},
		"directory twice": {[]tarEntry{tDir("d"), tFile("d/x", "x"), {tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o1777}, ""}}, `"d" directory 1777 0:0
"d/x" file 0644 0:0 1 2d711642`},
		"odd names": {[]tarEntry{tFile("./a//b/../c", "x"), tFile("/e\\f", "x"), tDir("./")}, `"" directory 0755 0:0
"a" directory 0755 0:0 implied
"a/c" file 0644 0:0 1 2d711642
"e\\f" file 0644 0:0 1 2d711642`},
		"deleted, then made": {[]tarEntry{tFile(".wh.d", ""), tDir("d"), tFile("d/x", "x"), tFile(".wh.f", ""), tFile("f", "x")}, `"d" directory 0755 0:0 opaque
"d/x" file 0644 0:0 1 2d711642
"f" file 0644 0:0 1 2d711642`},
		"made, then deleted": {[]tarEntry{tDir("d"), tFile("d/x", "x"), tFile(".wh.d", ""), tFile("f", "x"), tFile(".wh.f", "")}, `"d" directory 0755 0:0 opaque
"d/x" file 0644 0:0 1 2d711642
"f" file 0644 0:0 1 2d711642`},
		"deleted, then implied": {[]tarEntry{tFile(".wh.d", ""), tFile("d/x", "x")}, `"d" directory 0755 0:0 implied opaque
"d/x" file 0644 0:0 1 2d711642`},
		"opaque without an entry": {[]tarEntry{tFile("d/.wh..wh..opq", "")}, `"d" directory 0755 0:0 implied opaque`},
		"opaque after its entry":  {[]tarEntry{{tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o700, Uid: 5}, ""}, tFile("d/.wh..wh..opq", "")}, `"d" directory 0700 5:0 opaque`},
		"opaque before its entry": {[]tarEntry{tFile("d/.wh..wh..opq", ""), {tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o700}, ""}}, `"d" directory 0700 0:0 opaque`},
		"opaque root":             {[]tarEntry{{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o711}, ""}, tFile(".wh..wh..opq", "")}, `"" directory 0711 0:0 opaque`},
		"opaque over a deletion":  {[]tarEntry{tFile(".wh.d", ""), tFile("d/.wh..wh..opq", "")}, `"d" directory 0755 0:0 implied opaque`},
		"aufs housekeeping":       {[]tarEntry{tFile(".wh..wh.aufs", ""), tDir(".wh..wh.plnk"), tFile(".wh..wh.plnk/1.2", "x")}, ``},
		"foreign attributes": {[]tarEntry{{tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.build.owner": "0",
			"SCHILY.xattr.security.selinux": "z", "SCHILY.xattr.security.capability": capability(3), "SCHILY.xattr.user.ok": "v"}}, ""}},
			`"x" file 0644 0:0 0 e3b0c442 security.capability=` + fmt.Sprintf("%q", capability(2)) + ` user.ok="v"`},
	} {
		t.Run(name, func(t *testing.T) {
			needRoot(t)
			l := newLayers(t)
			b := tarOf(t, tc.in...)
			d := importTar(t, l, b)
			if got := strings.TrimSuffix(dump(t, l, d), "\n"); got != tc.want {
				t.Errorf("index:\n%s\nwant\n%s", got, tc.want)
			}
			root, _, err := applyTar(t.Context(), t, b)
			if err != nil {
				t.Fatal(err)
			}
			if got := dumpDir(t, root, strings.HasPrefix(tc.want, `"" `)); got != strings.ReplaceAll(tc.want, " implied", "") && name != "opaque root" {
				t.Errorf("directory:\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

// dumpDir describes an applied directory in the words of dump.
func dumpDir(t testing.TB, root string, withRoot bool) string {
	t.Helper()
	var b strings.Builder
	first := map[uint64]string{}
	var walk func(fd int, path string)
	walk = func(fd int, path string) {
		names, err := readNames(fd)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range sorted(names) {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
			e := statEntry(joinPath(path, name), &st)
			sub := -1
			switch {
			case whiteoutStat(&st):
				e.Type = tree.Whiteout
			case e.Type == tree.Symlink:
				e.Link, _ = readLink(fd, name)
			case e.Type == tree.File || e.Type == tree.Dir:
				if sub, err = openAt(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0); err != nil {
					t.Fatal(err)
				}
				var marks overlayMarks
				if e.Xattrs, marks, err = readXattrs(sub, e.Type); err != nil {
					t.Fatal(err)
				}
				e.Opaque = marks.opaque
			}
			if e.Type == tree.File {
				e.Hardlink = first[st.Ino]
				if st.Nlink > 1 && e.Hardlink == "" {
					first[st.Ino] = e.Path
				}
				h := newHash()
				f := os.NewFile(uintptr(sub), "")
				io.Copy(h, f)
				h.Sum(e.Digest[:0])
				fmt.Fprintln(&b, line(e))
				f.Close()
				continue
			}
			fmt.Fprintln(&b, line(e))
			if e.Type == tree.Dir {
				walk(sub, e.Path)
				unix.Close(sub)
			}
		}
	}
	fd, err := openDirAt(unix.AT_FDCWD, root)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	walk(fd, "")
	out := strings.TrimSuffix(b.String(), "\n")
	if !withRoot {
		return out
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line(statEntry("", &st))+"\n"+out, "\n")
}

// Times of directories survive what is put into them; holes stay holes.
func TestApplyTimesAndHoles(t *testing.T) {
	big := tFile("d/hole", string(make([]byte, 4<<20))+"end")
	d := tDir("d")
	d.ModTime = time.Unix(12345, 0)
	root, _, err := applyTar(t.Context(), t, tarOf(t, d, big))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root+"/d", &st); err != nil || st.Mtim.Sec != 12345 {
		t.Errorf("time of the directory: %d, %v", st.Mtim.Sec, err)
	}
	if err := unix.Stat(root+"/d/hole", &st); err != nil || st.Size != 4<<20+3 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, %d blocks, %v", st.Size, st.Blocks, err)
	}
}

// A tar that ends too early is an error, wherever it is cut.
func TestApplyTruncated(t *testing.T) {
	b := tarOf(t, tDir("d"), tFile("d/f", strings.Repeat("x", 3000)), tFile("g", "y"))
	for n := 1; n < len(b)-1024; n += 97 {
		if n%512 == 0 || n > 1024+3000 && n < 1024+3072 || n > 4096+512 {
			continue // between two entries, or where only padding is missing, a tar may end: some programs do that
		}
		if _, _, err := applyTar(t.Context(), t, b[:n]); err == nil {
			t.Errorf("cut at %d: no error", n)
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func FuzzApply(f *testing.F) {
	host, check := canary(f)
	for _, entries := range hostileTars(host) {
		f.Add(tarOf(f, entries...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, applyErr := applyTar(t.Context(), t, b)
		x := newIndexer()
		_, indexErr := scanLayer(t.Context(), bytes.NewReader(b), nil, x)
		if (applyErr == nil) != (indexErr == nil) {
			t.Errorf("apply: %v, index: %v", applyErr, indexErr)
		}
		check(t)
	})
}
