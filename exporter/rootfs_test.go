package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"build/internal/testenv"
	"build/internal/tree"

	"golang.org/x/sys/unix"
)

// testChain has two layers with everything a file system can hold, and an upper layer that removes and replaces.
func testChain(t *testing.T) (*tree.Chain, content) {
	t.Helper()
	c := content{}
	one := c.file("bin/one", "same content", 0o4755)
	gone := c.file("links/a", "linked", 0o640)
	caps := c.file("bin/ping", "ping", 0o755)
	caps.Xattrs = []tree.Xattr{{Name: "user.note", Value: "a\x00b"}}
	lower := layerIndex(t,
		dir("", 0o755), dir("bin", 0o755), one, linkTo(one, "bin/two"), caps,
		dir("links", 0o750), gone, linkTo(gone, "links/b"), linkTo(gone, "links/c"),
		dir("locked", 0o555), c.file("locked/file", "", 0o444),
		c.file("removed", "x", 0o644), symlink("abs", "/bin/one"), symlink("up", "../../../etc/passwd"),
		&tree.Entry{Path: "fifo", Type: tree.Fifo, Mode: 0o622, ModTime: t0, Offset: -1},
		&tree.Entry{Path: "null", Type: tree.Char, Mode: 0o666, Major: 1, Minor: 3, ModTime: t0, Offset: -1},
		c.file("odd \xff\n name", "odd", 0o600), c.file(strings.Repeat("long/", 30)+"name", "long", 0o644),
	)
	upper := layerIndex(t, dir("", 0o755), dir("links", 0o750),
		&tree.Entry{Path: "links/a", Type: tree.Whiteout}, &tree.Entry{Path: "removed", Type: tree.Whiteout})
	return tree.NewChain([]*tree.Index{lower, upper}), c
}

// Several file systems are each in a directory, and the targets of hard links with them.
func TestTarOfSeveral(t *testing.T) {
	chain, c := testChain(t)
	var one, two bytes.Buffer
	if err := Tar(t.Context(), &one, []Rootfs{{Chain: chain, Open: c.open}}, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	list := []Rootfs{{Dir: "linux_amd64", Chain: chain, Open: c.open}, {Dir: "linux_arm64", Chain: chain, Open: c.open}}
	if err := Tar(t.Context(), &two, list, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	read := func(b *bytes.Buffer) (out []string) {
		tr := tar.NewReader(b)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeLink {
				h.Name += " -> " + h.Linkname
			}
			out = append(out, h.Name)
		}
	}
	var want []string
	single := read(&one)
	for _, r := range list {
		want = append(want, r.Dir+"/")
		for _, name := range single {
			want = append(want, r.Dir+"/"+strings.ReplaceAll(name, " -> ", " -> "+r.Dir+"/"))
		}
	}
	if got := read(&two); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestTar(t *testing.T) {
	chain, c := testChain(t)
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := Tar(t.Context(), w, []Rootfs{{Chain: chain, Open: c.open}}, RootfsOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two exports differ")
	}
	var got []string
	for tr := tar.NewReader(&a); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(tr)
		if strings.HasPrefix(h.Name, "/") || strings.HasPrefix(h.Name, ".") || h.Uname != "" {
			t.Errorf("name %q", h.Name)
		}
		if strings.HasPrefix(h.Name, "long/") && strings.HasSuffix(h.Name, "/") {
			continue
		}
		got = append(got, fmt.Sprintf("%c %q %o %d:%d %q %q %d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, body, h.ModTime.Unix()-t0.Unix()))
		if h.Name == "bin/ping" && h.PAXRecords["SCHILY.xattr.user.note"] != "a\x00b" {
			t.Errorf("xattrs %q", h.PAXRecords)
		}
	}
	want := []string{
		`2 "abs" 777 0:0 "/bin/one" "" 0`,
		`5 "bin/" 755 0:0 "" "" 0`,
		`0 "bin/one" 4755 7:8 "" "same content" 0`,
		`0 "bin/ping" 755 7:8 "" "ping" 0`,
		`1 "bin/two" 4755 7:8 "bin/one" "" 0`,
		`6 "fifo" 622 0:0 "" "" 0`,
		`5 "links/" 750 0:0 "" "" 0`,
		`0 "links/b" 640 7:8 "" "linked" 0`,
		`1 "links/c" 640 7:8 "links/b" "" 0`,
		`5 "locked/" 555 0:0 "" "" 0`,
		`0 "locked/file" 444 7:8 "" "" 0`,
		fmt.Sprintf(`0 %q 644 7:8 "" "long" 0`, strings.Repeat("long/", 30)+"name"),
		`3 "null" 666 0:0 "" "" 0`,
		`0 "odd \xff\n name" 600 7:8 "" "odd" 0`,
		`2 "up" 777 0:0 "../../../etc/passwd" "" 0`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTarEpoch(t *testing.T) {
	chain, c := testChain(t)
	var buf bytes.Buffer
	if err := Tar(t.Context(), &buf, []Rootfs{{Chain: chain, Open: c.open}}, RootfsOptions{Epoch: at(77)}); err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil || !h.ModTime.Equal(*at(77)) {
			t.Fatalf("%s: %s %v", h.Name, h.ModTime, err)
		}
	}
}

func TestTarShortContent(t *testing.T) {
	c := content{}
	f := c.file("f", "content", 0o644)
	chain := tree.NewChain([]*tree.Index{layerIndex(t, dir("", 0o755), f)})
	short := func(tree.Located) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("con")), nil }
	err := Tar(t.Context(), io.Discard, []Rootfs{{Chain: chain, Open: short}}, RootfsOptions{})
	if err == nil || !strings.Contains(err.Error(), `"f"`) {
		t.Errorf("%v", err)
	}
}

// describe lists a directory as path, mode, target or content.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o", st.Mode)
		if int(st.Uid) != os.Geteuid() {
			s += fmt.Sprintf(" owner %d", st.Uid)
		}
		switch {
		case d.Type() == os.ModeSymlink:
			to, _ := os.Readlink(p)
			s += " -> " + to
		case d.Type().IsRegular():
			data, _ := os.ReadFile(p)
			s += fmt.Sprintf(" %q links %d", data, st.Nlink)
		}
		if rel != "." && time.Unix(st.Mtim.Unix()).UTC() != t0 {
			s += " time " + time.Unix(st.Mtim.Unix()).String()
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var wantLocal = map[string]string{
	"bin": "40755", "bin/one": `104755 "same content" links 2`, "bin/two": `104755 "same content" links 2`, "bin/ping": `100755 "ping" links 1`,
	"links": "40750", "links/b": `100640 "linked" links 2`, "links/c": `100640 "linked" links 2`,
	"locked": "40555", "locked/file": `100444 "" links 1`,
	"abs": "120777 -> /bin/one", "up": "120777 -> ../../../etc/passwd", "fifo": "10622", "odd \xff\n name": `100600 "odd" links 1`,
}

func checkLocal(t *testing.T, dest string) {
	t.Helper()
	got := describe(t, dest)
	for p, want := range wantLocal {
		if got[p] != want {
			t.Errorf("%q: %s, want %s", p, got[p], want)
		}
	}
	if got["removed"] != "" || got["links/a"] != "" {
		t.Error("removed files are there")
	}
}

// reopen lets the test clean up below the directory that testChain closes.
func reopen(t *testing.T, dest string) {
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dest, "locked"), 0o755) })
}

func TestLocal(t *testing.T) {
	chain, c := testChain(t)
	dest := filepath.Join(t.TempDir(), "new", "dest")
	reopen(t, dest)
	var warned []string
	o := RootfsOptions{Warn: func(s string) { warned = append(warned, s) }}
	for range 2 { // the second time over the first
		if err := Local(t.Context(), dest, chain, c.open, o); err != nil {
			t.Fatal(err)
		}
		checkLocal(t, dest)
	}
	_, err := os.Lstat(filepath.Join(dest, "null"))
	if os.Geteuid() != 0 && (err == nil || !strings.Contains(strings.Join(warned, ""), "null")) {
		t.Errorf("device for an ordinary user: %v, warnings %q", err, warned)
	}
	if os.Geteuid() == 0 && err != nil && !strings.Contains(strings.Join(warned, ""), "null") {
		t.Errorf("device for root: %v, warnings %q", err, warned)
	}
}

// An export must replace what is in its way and never write through a symlink.
func TestLocalOverHostileDirectory(t *testing.T) {
	chain, c := testChain(t)
	dest, outside := t.TempDir(), t.TempDir()
	reopen(t, dest)
	canary := filepath.Join(outside, "canary")
	for _, err := range []error{
		os.WriteFile(canary, []byte("alive"), 0o644),
		os.Symlink(outside, filepath.Join(dest, "bin")),              // where the image has a directory
		os.Symlink(canary, filepath.Join(dest, "fifo")),              // where it has a fifo
		os.MkdirAll(filepath.Join(dest, "abs", "deep", "er"), 0o755), // where it has a symlink
		os.Mkdir(filepath.Join(dest, "links"), 0o755),
		os.Symlink(canary, filepath.Join(dest, "links", "b")), // where it has a file
		os.Link(canary, filepath.Join(dest, "links", "c")),    // a file shared with somebody
		os.Mkdir(filepath.Join(dest, "locked"), 0o000),
		os.WriteFile(filepath.Join(dest, "mine"), []byte("kept"), 0o644),
	} {
		if err != nil && !errors.Is(err, syscall.EXDEV) {
			t.Fatal(err)
		}
	}
	if err := Local(t.Context(), dest, chain, c.open, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	checkLocal(t, dest)
	if got, _ := os.ReadFile(canary); string(got) != "alive" {
		t.Errorf("canary %q", got)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("outside: %v", left)
	}
	if got, _ := os.ReadFile(filepath.Join(dest, "mine")); string(got) != "kept" {
		t.Error("an unrelated file was lost")
	}
}

func TestLocalAsUser(t *testing.T) {
	testenv.NotRoot(t)
	c := content{}
	shared := c.file("shut/a", "x", 0o600)
	chain := tree.NewChain([]*tree.Index{layerIndex(t, dir("", 0o755), dir("shut", 0o000), shared, dir("z", 0o755), linkTo(shared, "z/a"))})
	dest := t.TempDir()
	if err := Local(t.Context(), dest, chain, c.open, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dest, "z", "a")); string(got) != "x" {
		t.Errorf("a link to a file in a closed directory: %q %v", got, err)
	}
	_ = os.Chmod(filepath.Join(dest, "shut"), 0o700)
}

func TestLocalCancelled(t *testing.T) {
	chain, c := testChain(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Local(ctx, t.TempDir(), chain, c.open, RootfsOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
