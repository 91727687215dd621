package tree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestResolveAgainstKernel compares Resolve with openat2(RESOLVE_IN_ROOT) on random trees full of symlinks.
func TestResolveAgainstKernel(t *testing.T) {
	found := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		root := t.TempDir()
		var b Builder
		for range 25 {
			e := Entry{Path: randomPath(r, false), Type: []Type{Dir, Symlink, File}[r.IntN(3)], Mode: 0o755}
			if e.Type == Symlink {
				e.Link = randomPath(r, true)
			}
			_ = b.Add(&e) // what cannot be is refused, and is not what this test is about
		}
		x := finished(t, &b)
		unpack(t, root, x)
		c := NewChain([]*Index{x})
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if checkResolve(t, c, root, fd, randomPath(r, true), r.IntN(2) == 0) {
				found++
			}
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	if found < 500 {
		t.Fatalf("only %d paths led anywhere: the test tests nothing", found)
	}
}

// unpack puts what an index says on disk; all parents are plain directories, so nothing is followed.
func unpack(t *testing.T, root string, x *Index) {
	t.Helper()
	for e, err := range x.Subtree("") {
		at := filepath.Join(root, e.Path)
		switch {
		case err != nil || e.Path == "":
		case e.Type == Dir:
			err = os.Mkdir(at, 0o755)
		case e.Type == Symlink:
			err = os.Symlink(e.Link, at)
		default:
			err = os.WriteFile(at, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// checkResolve reports whether the path exists.
func checkResolve(t *testing.T, c *Chain, root string, fd int, path string, follow bool) bool {
	t.Helper()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	at, err := unix.Openat2(fd, path, &how)
	got, ours := c.Resolve(path, follow)
	if err != nil {
		if errors.Is(err, unix.ELOOP) && ours == nil {
			t.Fatalf("%q: the kernel says %v, we %q", path, err, got)
		}
		return false
	}
	defer unix.Close(at)
	where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at))
	if err != nil {
		t.Fatal(err)
	}
	want, err := filepath.Rel(root, where)
	if err != nil {
		t.Fatal(err)
	}
	if want == "." {
		want = ""
	}
	if ours != nil || got != want {
		t.Fatalf("Resolve(%q, %v) = %q, %v; the kernel says %q", path, follow, got, ours, want)
	}
	l, ok, err := c.Lstat(got)
	if err != nil || !ok {
		t.Fatalf("%q: resolved to what is not there: %+v %v", path, l, err)
	}
	return true
}

// randomPath makes a path; a loose one may be absolute and have dots in it.
func randomPath(r *rand.Rand, loose bool) string {
	parts := []string{"a", "b", "c"}
	if loose {
		parts = append(parts, "..", ".", "")
	}
	var p []string
	for range 1 + r.IntN(4) {
		p = append(p, parts[r.IntN(len(parts))])
	}
	s := strings.Join(p, "/")
	if !loose {
		return s
	}
	if last := p[len(p)-1]; last == "" || last == "." {
		s += "/a" // what a slash or a dot at the end means differs between callers
	}
	if r.IntN(4) == 0 {
		s = "/" + s
	}
	return s
}

func TestResolveMissing(t *testing.T) {
	var b Builder
	for _, e := range []Entry{{Path: "l", Type: Symlink, Link: "gone/x"}, {Path: "f"}} {
		if err := b.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	c := NewChain([]*Index{finished(t, &b)})
	for path, want := range map[string]string{
		"":              "",
		"/":             "",
		"../../x/./y//": "x/y",
		"l/y":           "gone/x/y",
		"l/../y":        "gone/y",
		"f/x/y":         "f/x/y",
	} {
		if got, err := c.Resolve(path, true); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := c.Resolve(strings.Repeat("x/", 3000), true); !errors.Is(err, ErrPath) {
		t.Errorf("a path of 6000 bytes: %v", err)
	}
}
