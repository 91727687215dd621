package tree

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func finished(t testing.TB, b *Builder) *Index {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	if err := b.WriteTo(w); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	x, err := Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func list(t testing.TB, x *Index) string {
	t.Helper()
	var out []string
	for e, err := range x.Subtree("") {
		if err != nil {
			t.Fatal(err)
		}
		s := fmt.Sprintf("%s %v", e.Path, e.Type)
		if e.Implied {
			s += " implied"
		}
		if e.Opaque {
			s += " opaque"
		}
		if e.Link != "" {
			s += " -> " + e.Link
		}
		if e.Hardlink != "" {
			s += " = " + e.Hardlink
		}
		if e.Type == File {
			s += fmt.Sprintf(" #%d", e.Digest[0])
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

func TestBuilder(t *testing.T) {
	file := func(p string, n byte) Entry { return Entry{Path: p, Size: 1, Digest: [32]byte{n}, Offset: 512} }
	dir := func(p string) Entry { return Entry{Path: p, Type: Dir, Mode: 0o700} }
	white := func(p string) Entry { return Entry{Path: p, Type: Whiteout} }
	sym := func(p, to string) Entry { return Entry{Path: p, Type: Symlink, Link: to} }
	hard := func(p, to string) Entry { return Entry{Path: p, Hardlink: to} }
	for name, c := range map[string]struct {
		in   []Entry
		want string
	}{
		"implied parents":                {[]Entry{file("a/b/c", 1)}, "a directory implied\na/b directory implied\na/b/c file #1"},
		"parent comes later":             {[]Entry{file("a/b", 1), dir("a")}, "a directory\na/b file #1"},
		"order":                          {[]Entry{file("a-b", 1), file("a/c", 2), file("a b", 3)}, "a directory implied\na/c file #2\na b file #3\na-b file #1"},
		"file over directory":            {[]Entry{file("a/b", 1), file("a", 2)}, "a file #2"},
		"directory over file":            {[]Entry{file("a", 2), dir("a"), file("a/b", 1)}, "a directory\na/b file #1"},
		"duplicate":                      {[]Entry{file("a", 1), file("a", 2)}, "a file #2"},
		"hard link, target sorts later":  {[]Entry{file("z", 1), hard("a", "z")}, "a file #1\nz file = a #1"},
		"hard link to a link":            {[]Entry{file("z", 1), hard("m", "z"), hard("a", "m")}, "a file #1\nm file = a #1\nz file = a #1"},
		"target replaced":                {[]Entry{file("z", 1), hard("a", "z"), file("z", 2)}, "a file #1\nz file #2"},
		"target replaced, two left":      {[]Entry{file("z", 1), hard("a", "z"), hard("b", "z"), file("z", 2)}, "a file #1\nb file = a #1\nz file #2"},
		"hard link to symlink":           {[]Entry{sym("z", "x"), hard("a", "z")}, "a symlink -> x\nz symlink -> x = a"},
		"hard link through symlink":      {[]Entry{sym("lib", "/usr/lib"), file("usr/lib/x", 1), hard("y", "lib/x")}, "lib symlink -> /usr/lib\nusr directory implied\nusr/lib directory implied\nusr/lib/x file #1\ny file = usr/lib/x #1"},
		"through symlink":                {[]Entry{dir("d"), sym("l", "d"), file("l/f", 1)}, "d directory\nd/f file #1\nl symlink -> d"},
		"through absolute symlink":       {[]Entry{sym("l", "/../../d/../e"), file("l/f", 1)}, "e directory implied\ne/f file #1\nl symlink -> /../../d/../e"},
		"symlink replaced by file":       {[]Entry{dir("d"), sym("l", "d"), file("l", 1)}, "d directory\nl file #1"},
		"symlink replaced by directory":  {[]Entry{dir("d"), sym("l", "d"), dir("l"), file("l/f", 1)}, "d directory\nl directory\nl/f file #1"},
		"whiteout":                       {[]Entry{white("a/b")}, "a directory implied\na/b whiteout"},
		"whiteout, then directory":       {[]Entry{white("a"), dir("a")}, "a directory opaque"},
		"directory, then whiteout":       {[]Entry{file("a/b", 1), white("a")}, "a directory implied opaque\na/b file #1"},
		"whiteout, then child":           {[]Entry{white("a"), file("a/b", 1)}, "a directory implied opaque\na/b file #1"},
		"whiteout, then file":            {[]Entry{white("a"), file("a", 1)}, "a file #1"},
		"file, then whiteout":            {[]Entry{file("a", 1), white("a")}, "a file #1"},
		"opaque stays":                   {[]Entry{{Path: "a", Type: Dir, Opaque: true, Implied: true}, dir("a")}, "a directory opaque"},
		"root":                           {[]Entry{dir(""), file("a", 1)}, " directory\na file #1"},
		"directory meets symlink to dir": {[]Entry{sym("a", "b"), dir("b"), file("a/x", 1), file("b/x", 2)}, "a symlink -> b\nb directory\nb/x file #2"},
	} {
		t.Run(name, func(t *testing.T) {
			var b Builder
			for i := range c.in {
				if err := b.Add(&c.in[i]); err != nil {
					t.Fatal(err)
				}
			}
			if got := list(t, finished(t, &b)); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestBuilderRefuses(t *testing.T) {
	for name, in := range map[string][]Entry{
		"below a file":           {{Path: "a"}, {Path: "a/b"}},
		"root as a file":         {{Path: ""}},
		"root as a link":         {{Path: "", Type: Symlink, Link: "/"}},
		"parents":                {{Path: "../x"}},
		"absolute":               {{Path: "/x"}},
		"link to nothing":        {{Path: "a", Hardlink: "b"}},
		"link to itself":         {{Path: "a", Hardlink: "a"}},
		"link to a directory":    {{Path: "b", Type: Dir}, {Path: "a", Hardlink: "b"}},
		"link to the root":       {{Path: "", Type: Dir}, {Path: "a", Hardlink: ""}, {Path: "b", Hardlink: "a/.."}},
		"link to a whiteout":     {{Path: "b", Type: Whiteout}, {Path: "a", Hardlink: "b"}},
		"below a symlink loop":   {{Path: "a", Type: Symlink, Link: "b"}, {Path: "b", Type: Symlink, Link: "a"}, {Path: "a/c"}},
		"below a symlink itself": {{Path: "a", Type: Symlink, Link: "a/x"}, {Path: "a/c"}},
	} {
		var b Builder
		var err error
		for i := range in {
			if err = b.Add(&in[i]); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBuilderOpaque(t *testing.T) {
	var b Builder
	for _, err := range []error{
		b.Add(&Entry{Path: "a", Type: Dir}), b.Opaque("a"), b.Opaque("b/c"), b.Add(&Entry{Path: "b/c", Type: Dir}), b.Opaque(""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := " directory implied opaque\na directory opaque\nb directory implied\nb/c directory opaque"
	if got := list(t, finished(t, &b)); got != want {
		t.Errorf("got:\n%s", got)
	}
	if b.Len() != 4 {
		t.Errorf("%d entries", b.Len())
	}
	if err := b.Opaque("../x"); err == nil {
		t.Error("accepted a path outside")
	}
}

// TestBuilderAgainstKernel extracts random tars with plain system calls and compares what is on disk with the index.
func TestBuilderAgainstKernel(t *testing.T) {
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 9))
		root := t.TempDir()
		var b Builder
		var log []string
		for i := range 60 {
			e := randomTarEntry(r, byte(i))
			if extract(root, &e) != nil {
				continue
			}
			log = append(log, fmt.Sprintf("%v %s -> %s%s", e.Type, e.Path, e.Link, e.Hardlink))
			if err := b.Add(&e); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(log, "\n"))
			}
		}
		if got, want := onlyPlaces(list(t, finished(t, &b))), onDisk(t, root); got != want {
			t.Fatalf("seed %d: index:\n%s\ndisk:\n%s\ntar:\n%s", seed, got, want, strings.Join(log, "\n"))
		}
	}
}

func randomTarEntry(r *rand.Rand, n byte) Entry {
	path := func() string {
		var p string
		for range 1 + r.IntN(3) {
			p = Join(p, string("abc"[r.IntN(3)]))
		}
		return p
	}
	e := Entry{Path: path(), Type: []Type{File, File, Dir, Symlink, File}[r.IntN(5)], Mode: 0o755}
	switch {
	case e.Type == Symlink:
		e.Link = path() // relative and without dots: it cannot leave the test's directory
	case e.Type == File && r.IntN(2) == 0:
		e.Hardlink = path()
	case e.Type == File:
		e.Size, e.Digest = 1, [32]byte{n}
	}
	return e
}

// extract does what a careless tar would; an error means that it did nothing.
func extract(root string, e *Entry) error {
	at := filepath.Join(root, e.Path)
	if e.Hardlink != "" {
		// Checked first, so that a link to nothing leaves no parents behind.
		if info, err := os.Lstat(filepath.Join(root, e.Hardlink)); err != nil || info.IsDir() {
			return fs.ErrInvalid
		}
		if a, err := filepath.EvalSymlinks(filepath.Dir(at)); err == nil && filepath.Join(a, filepath.Base(at)) == realName(root, e.Hardlink) {
			return fs.ErrInvalid // tar would remove the target before linking to it
		}
		if strings.HasPrefix(e.Hardlink+"/", e.Path+"/") {
			return fs.ErrInvalid
		}
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if old, err := os.Lstat(at); err == nil && !(old.IsDir() && e.Type == Dir) {
		if e.Hardlink != "" && old.IsDir() {
			return fs.ErrInvalid // its target may be inside
		}
		if err := os.RemoveAll(at); err != nil {
			return err
		}
	} else if err == nil {
		return nil
	}
	switch {
	case e.Type == Dir:
		return os.Mkdir(at, 0o755)
	case e.Type == Symlink:
		return os.Symlink(e.Link, at)
	case e.Hardlink != "":
		return os.Link(filepath.Join(root, e.Hardlink), at)
	}
	return os.WriteFile(at, []byte{e.Digest[0]}, 0o644)
}

func realName(root, path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Join(root, filepath.Dir(path)))
	if err != nil {
		return ""
	}
	return filepath.Join(dir, filepath.Base(path))
}

func onDisk(t *testing.T, root string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	err = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(root, p); rel != "." {
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(paths, Compare)
	first := map[uint64]string{}
	var out []string
	for _, p := range paths {
		info, err := os.Lstat(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		s := p + " "
		switch {
		case info.IsDir():
			out = append(out, s+"directory")
			continue
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(filepath.Join(root, p))
			if err != nil {
				t.Fatal(err)
			}
			s += "symlink -> " + to
		default:
			s += "file"
		}
		if f, ok := first[st.Ino]; ok && st.Nlink > 1 {
			s += " = " + f
		} else {
			first[st.Ino] = p
		}
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(filepath.Join(root, p))
			if err != nil {
				t.Fatal(err)
			}
			s += fmt.Sprintf(" #%d", data[0])
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

// onlyPlaces drops what a disk does not show.
func onlyPlaces(s string) string { return strings.ReplaceAll(s, " implied", "") }
