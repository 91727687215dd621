package buildctx

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// files makes a directory from paths and contents. A path that ends in / is a directory, content "-> x" a symlink to x.
func files(t testing.TB, list map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range list {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, full)
		} else if strings.HasSuffix(path, "/") {
			err = os.MkdirAll(full, 0o755)
		} else {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t testing.TB, dir string, o DirOptions) *Dir {
	t.Helper()
	d, err := OpenDir(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func walkPaths(t testing.TB, d *Dir, path string) []string {
	t.Helper()
	var out []string
	for e, err := range d.Walk(path) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Path)
	}
	return out
}

func TestIgnore(t *testing.T) {
	list := map[string]string{
		"Dockerfile": "x", "README.md": "x", "a.md": "x", "dir/keep": "x", "dir/drop": "x", "dir/sub/keep": "x", "dir/sub/x.go": "x",
		"src/a.go": "x", "src/deep/b.go": "x", "src/b.txt": "x", "#x": "x", "node_modules/m/index.js": "x", "pkg/node_modules/n": "x",
	}
	all := []string{"", "#x", "Dockerfile", "README.md", "a.md", "dir", "dir/drop", "dir/keep", "dir/sub", "dir/sub/keep", "dir/sub/x.go",
		"node_modules", "node_modules/m", "node_modules/m/index.js", "pkg", "pkg/node_modules", "pkg/node_modules/n",
		"src", "src/a.go", "src/b.txt", "src/deep", "src/deep/b.go"}
	without := func(drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(p string) bool {
			return slices.ContainsFunc(drop, func(d string) bool { return p == d || tree.Below(p, d) })
		})
	}
	for _, c := range []struct {
		name, rules string
		want        []string
	}{
		{"none", "", all},
		{"comment and blank", "# dir\n\n   \n", all},
		{"byte order mark", "\ufeffdir\n", without("dir")},
		{"leading space before #", " #x\n", without("#x")},
		{"directory", "dir", without("dir")},
		{"slashes and dots", "/dir/\n./src\n", without("dir", "src")},
		{"dot dot", "src/../dir", without("dir")},
		{"exception below", "dir\n!dir/keep", without("dir/drop", "dir/sub")},
		{"deep exception", "dir\n!dir/sub/keep", without("dir/drop", "dir/keep", "dir/sub/x.go")},
		{"exception that matches nothing", "dir\n!dir/nothing", without("dir")},
		{"last match wins", "*.md\n!README.md\nREADME.*\n", without("README.md", "a.md")},
		{"exception first", "!README.md\n*.md", without("README.md", "a.md")},
		{"exception last", "*.md\n!README.md", without("a.md")},
		{"any depth", "**/*.go", without("src/a.go", "src/deep/b.go", "dir/sub/x.go")},
		{"any depth, exception", "**/*.go\n!src/**/b.go", without("src/a.go", "dir/sub/x.go")},
		{"all but", "*\n!src", append([]string{""}, "src", "src/a.go", "src/b.txt", "src/deep", "src/deep/b.go")},
		{"all but deep", "**\n!src/deep/b.go", []string{"", "src", "src/deep", "src/deep/b.go"}},
		{"vendored", "**/node_modules", without("node_modules", "pkg/node_modules")},
		{"exception is ignored again", "dir\n!dir/sub\ndir/sub/x.go", without("dir/drop", "dir/keep", "dir/sub/x.go")},
		{"everything", "*", []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := files(t, list)
			ignoreFile := filepath.Join(t.TempDir(), "X.dockerignore")
			if err := os.WriteFile(ignoreFile, []byte(c.rules), 0o644); err != nil {
				t.Fatal(err)
			}
			d := open(t, dir, DirOptions{IgnoreFile: ignoreFile})
			if got := walkPaths(t, d, ""); !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			checkAgrees(t, dir, DirOptions{IgnoreFile: ignoreFile}, all)
		})
	}
}

// checkAgrees checks that looking at single paths gives what walking gives.
func checkAgrees(t *testing.T, dir string, o DirOptions, paths []string) {
	t.Helper()
	walked := walkPaths(t, open(t, dir, o), "")
	fresh := open(t, dir, o)
	for _, path := range paths {
		e, ok, err := fresh.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := slices.Contains(walked, path); ok != want {
			t.Errorf("Lstat(%q) finds it: %v; Walk: %v", path, ok, want)
		}
		var below []string
		for _, p := range walked {
			if p != "" && tree.Parent(p) == path {
				below = append(below, p)
			}
		}
		listed, err := fresh.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		if ok && e.Type == tree.Dir {
			var got []string
			for _, e := range listed {
				got = append(got, e.Path)
			}
			if !slices.Equal(got, below) {
				t.Errorf("ReadDir(%q) = %q, want %q", path, got, below)
			}
		} else if len(listed) > 0 {
			t.Errorf("ReadDir(%q) of no directory: %v", path, listed)
		}
	}
}

// TestIgnoreAgainstPlainRules compares with the rules applied to a complete walk, for random rules.
func TestIgnoreAgainstPlainRules(t *testing.T) {
	names := []string{"a", "b", "ab", "c.go"}
	list := map[string]string{}
	for _, x := range names {
		for _, y := range names {
			list[x+"/"+y+"/z"], list[x+"/"+y+"/c.go"] = "1", "2"
		}
	}
	dir := files(t, list)
	var all []string
	for _, p := range walkPaths(t, open(t, dir, DirOptions{NoIgnore: true}), "") {
		if p != "" {
			all = append(all, p)
		}
	}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		var rules []string
		for range 1 + r.IntN(5) {
			parts := make([]string, 1+r.IntN(3))
			for i := range parts {
				parts[i] = []string{"a", "b", "ab", "z", "c.go", "*", "**", "a*", "?", "[ab]", "*.go"}[r.IntN(11)]
			}
			rules = append(rules, []string{"", "!"}[r.IntN(2)]+strings.Join(parts, "/"))
		}
		name := filepath.Join(t.TempDir(), "ignore")
		if err := os.WriteFile(name, []byte(strings.Join(rules, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
		want := plainRules(t, rules, all)
		if got := walkPaths(t, open(t, dir, DirOptions{IgnoreFile: name}), ""); !slices.Equal(got, want) {
			t.Fatalf("rules %q:\ngot  %q\nwant %q", rules, got, want)
		}
		if seed%10 == 0 {
			checkAgrees(t, dir, DirOptions{IgnoreFile: name}, all)
		}
	}
}

// plainRules applies rules to every path, and keeps the directories of what is kept.
func plainRules(t *testing.T, rules, all []string) []string {
	m, err := patternmatcher.New(rules)
	if err != nil {
		t.Fatal(err)
	}
	info := map[string]patternmatcher.MatchInfo{}
	keep := map[string]bool{"": true}
	for _, p := range all {
		out, i, err := m.MatchesUsingParentResults(p, info[tree.Parent(p)])
		if err != nil {
			t.Fatal(err)
		}
		info[p] = i
		for ; !out && !keep[p]; p = tree.Parent(p) {
			keep[p] = true
		}
	}
	var want []string
	for p := range keep {
		want = append(want, p)
	}
	slices.SortFunc(want, tree.Compare)
	return want
}

func TestIgnoreFileErrors(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ content, want string }{
		{"a\n!\n", `illegal exclusion pattern: "!"`},
		{"[", "syntax error in pattern"},
		{"a\n!a*[", "syntax error in pattern"},
		{"-> " + secret, "leads out of the build context"},
		{"-> nowhere", "no such file"},
	} {
		dir := files(t, map[string]string{".dockerignore": c.content})
		_, err := OpenDir(dir, DirOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), ".dockerignore") {
			t.Errorf("%q: %v", c.content, err)
		}
		if d, err := OpenDir(dir, DirOptions{NoIgnore: true}); err != nil {
			t.Error(err)
		} else {
			d.Close()
		}
	}
	for _, list := range []map[string]string{
		{".dockerignore/": "", "f": "x"}, // a directory of that name has no rules
		{".dockerignore": "-> rules", "rules": "b\n", "f": "x"},
		{".dockerignore": "*", "X": "x", "X.dockerignore": "", "f": "x"}, // the specific one replaces the other, even when empty
	} {
		dir := files(t, list)
		d := open(t, dir, DirOptions{IgnoreFile: filepath.Join(dir, "X.dockerignore")})
		if _, ok, err := d.Lstat("f"); !ok || err != nil {
			t.Errorf("%v: f is there: %v, %v", list, ok, err)
		}
	}
}

func TestIgnored(t *testing.T) {
	d := open(t, files(t, map[string]string{".dockerignore": "a\n!a/b", "a/b": "x", "a/c": "x"}), DirOptions{})
	for path, want := range map[string]bool{"": false, "a": true, "a/b": false, "a/c": true, "z": false} {
		if got, err := d.Ignored(path); got != want || err != nil {
			t.Errorf("Ignored(%q) = %v, %v", path, got, err)
		}
	}
}

func TestOnlyWhatIsAskedForIsRead(t *testing.T) {
	dir := files(t, map[string]string{".dockerignore": "skipped", "a/b/c": "1", "big/x/y": "2", "skipped/z/z": "3"})
	d := open(t, dir, DirOptions{})
	if _, ok, err := d.Lstat("a/b/c"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if len(d.lists) != 0 {
		t.Errorf("a look at one file read %d directories", len(d.lists))
	}
	walkPaths(t, d, "a")
	if len(d.lists) != 2 || d.lists["a"] == nil || d.lists["a/b"] == nil {
		t.Errorf("walking a/ read %v", d.lists)
	}
	walkPaths(t, d, "")
	if d.lists["skipped"] != nil || d.lists["skipped/z"] != nil {
		t.Error("an ignored directory was read")
	}
}

func TestSymlinksAreNotFollowed(t *testing.T) {
	outside := files(t, map[string]string{"secret": "s"})
	dir := files(t, map[string]string{"abs": "-> " + outside, "rel": "-> ../", "in": "-> sub", "sub/f": "x", "loop": "-> loop", "dang": "-> no"})
	for _, slow := range []bool{false, true} {
		d := open(t, dir, DirOptions{})
		d.root.slow.Store(slow)
		for _, path := range []string{"abs/secret", "in/f", "loop/x", "rel/x", "../x", "..", "/etc", "sub/../sub/f", "sub//f", "f/", ".", "sub/f/x", "no", "a\x00b", strings.Repeat("x", 300)} {
			if e, ok, err := d.Lstat(path); ok || err != nil {
				t.Errorf("slow %v: Lstat(%q) = %+v, %v, %v", slow, path, e, ok, err)
			}
			if _, err := d.Open(context.Background(), &tree.Entry{Path: path}); err == nil {
				t.Errorf("slow %v: Open(%q) succeeds", slow, path)
			}
		}
		e, ok, err := d.Lstat("abs")
		if !ok || err != nil || e.Type != tree.Symlink || e.Link != outside {
			t.Errorf("abs: %+v, %v, %v", e, ok, err)
		}
		if got := walkPaths(t, d, "in"); !slices.Equal(got, []string{"in"}) {
			t.Errorf("walking a symlink: %q", got)
		}
		if e, ok, err := d.Lstat("sub/f"); !ok || err != nil || e.Size != 1 {
			t.Errorf("sub/f: %+v, %v, %v", e, ok, err)
		}
	}
}

// TestSwappedForSymlink replaces a directory by a symlink after it was looked at.
func TestSwappedForSymlink(t *testing.T) {
	outside := files(t, map[string]string{"f": "secret"})
	dir := files(t, map[string]string{"d/f": "mine"})
	d := open(t, dir, DirOptions{})
	e, ok, err := d.Lstat("d/f")
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	var changed *ChangedError
	if _, err := d.Digest(context.Background(), &e); !errors.As(err, &changed) || changed.Path != filepath.Join(dir, "d/f") {
		t.Errorf("Digest: %v", err)
	}
}

func TestSpecialFilesAndMetadata(t *testing.T) {
	dir := files(t, map[string]string{"f": "hello", "sub/g": "x", "we\xffird\nname": "y"})
	at := filepath.Join(dir, "f")
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(at, 0o751|os.ModeSetuid|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	old := time.Date(1931, 5, 6, 7, 8, 9, 123456789, time.UTC)
	if err := os.Chtimes(at, old, old); err != nil {
		t.Fatal(err)
	}
	attrs := unix.Setxattr(at, "user.b", []byte("2"), 0)
	for _, name := range []string{"user.a", "user.overlay.x", "user.build.x", "user.empty"} {
		if err := unix.Setxattr(at, name, []byte(strings.TrimPrefix("1", name[5:6])), 0); err != nil {
			attrs = err
		}
	}
	for _, procs := range []bool{true, false} {
		d := open(t, dir, DirOptions{})
		if !procs {
			d.root.procs = ""
		}
		if got, want := walkPaths(t, d, ""), []string{"", "f", "fifo", "sub", "sub/g", "we\xffird\nname"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if _, ok, err := d.Lstat("socket"); ok || err != nil {
			t.Errorf("socket: %v, %v", ok, err)
		}
		if e, _, _ := d.Lstat("fifo"); e.Type != tree.Fifo {
			t.Errorf("fifo: %+v", e)
		}
		if _, err := d.Open(context.Background(), &tree.Entry{Path: "fifo"}); !errors.Is(err, errNotRegular) {
			t.Errorf("reading a fifo: %v", err)
		}
		e, _, err := d.Lstat("f")
		if err != nil || e.Mode != 0o5751 || !e.ModTime.Equal(old) || e.UID != 0 || e.GID != 0 || e.Size != 5 || e.Offset != -1 {
			t.Errorf("f: %+v, %v", e, err)
		}
		if attrs != nil {
			t.Logf("no user xattrs on %s: %v", dir, attrs)
		} else if fmt.Sprint(e.Xattrs) != "[{user.a 1} {user.b 2} {user.empty 1}]" {
			t.Errorf("xattrs %v", e.Xattrs)
		}
	}
}

func TestHardLinks(t *testing.T) {
	dir := files(t, map[string]string{"b/two": "same", "c": "other"})
	for _, name := range []string{"a", "d/e"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(dir, "b/two"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, dir, DirOptions{})
	links := func(path string) map[string]string {
		out := map[string]string{}
		for e, err := range d.Walk(path) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Hardlink != "" {
				out[e.Path] = e.Hardlink
			}
		}
		return out
	}
	if got := fmt.Sprint(links("")); got != "map[b/two:a d/e:a]" {
		t.Error(got)
	}
	if got := links("d"); len(got) != 0 { // the first name is elsewhere
		t.Error(got)
	}
}

func TestDigest(t *testing.T) {
	big := strings.Repeat("0123456789", 100_000)
	d := open(t, files(t, map[string]string{"empty": "", "small": "hello", "big": big}), DirOptions{})
	for path, content := range map[string]string{"empty": "", "small": "hello", "big": big} {
		e, _, err := d.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if sum, err := d.Digest(context.Background(), &e); sum != sha256.Sum256([]byte(content)) || err != nil {
					t.Errorf("%s: %x, %v", path, sum, err)
				}
			})
		}
		wg.Wait()
		r, err := d.Open(context.Background(), &e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if string(got) != content || err != nil {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
		r.Close()
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("enough")
	cancel(cause)
	fresh := open(t, d.Path(), DirOptions{})
	e, _, _ := fresh.Lstat("big")
	if _, err := fresh.Digest(ctx, &e); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestChangedFiles(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(string) error{
		"longer":  func(p string) error { return os.WriteFile(p, []byte("longer content"), 0o644) },
		"shorter": func(p string) error { return os.Truncate(p, 1) },
		"same size": func(p string) error {
			time.Sleep(fineGrain)
			return os.WriteFile(p, []byte("HELLO"), 0o644)
		},
		"same times": func(p string) error { // as tools do that hide what they did; ctime tells
			fi, err := os.Stat(p)
			if err != nil {
				return err
			}
			time.Sleep(fineGrain)
			if err := os.WriteFile(p, []byte("HELLO"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(p, fi.ModTime(), fi.ModTime())
		},
		"gone":     os.Remove,
		"replaced": func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("hello"), 0o644)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, map[string]string{"d/f": "hello"})
			path := filepath.Join(dir, "d/f")
			var changed *ChangedError
			d := open(t, dir, DirOptions{})
			walkPaths(t, d, "")
			e, _, _ := d.Lstat("d/f")
			during, err := d.Open(ctx, &e)
			if err != nil {
				t.Fatal(err)
			}
			defer during.Close()
			if err := change(path); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(during); !errors.As(err, &changed) || changed.Path != path {
				t.Errorf("changed while open: %v", err)
			}
			_, err = d.Digest(ctx, &e)
			if _, statErr := os.Stat(path); statErr == nil && err != nil { // it was forgotten, so the new state is read
				t.Errorf("after it was found out: %v", err)
			} else if statErr != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("gone: %v", err)
			}
		})
	}
}

func TestUnreadable(t *testing.T) {
	dir := files(t, map[string]string{"d/f": "x", "g": "x"})
	for _, p := range []string{"d", "g"} {
		if err := os.Chmod(filepath.Join(dir, p), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer os.Chmod(filepath.Join(dir, "d"), 0o755)
	d := open(t, dir, DirOptions{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 { // root reads everything: be somebody else for the file system, in this thread alone
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Setfsuid(65534); err != nil {
				t.Errorf("setfsuid: %v", err)
			}
		}
		var pathErr *fs.PathError
		if _, err := d.ReadDir("d"); !errors.As(err, &pathErr) || pathErr.Path != filepath.Join(dir, "d") || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("directory: %v", err)
		}
		if _, err := d.Digest(context.Background(), &tree.Entry{Path: "g"}); !errors.As(err, &pathErr) || pathErr.Path != filepath.Join(dir, "g") || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("file: %v", err)
		}
	}()
	<-done
}

// Walk yields the same however many read ahead of it, also the second time and for who stops in the middle.
func TestWalkWithHelpers(t *testing.T) {
	dir := t.TempDir()
	for i := range 300 {
		sub := filepath.Join(dir, fmt.Sprintf("a%d/b%d/c%d", i%3, i%7, i%11))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("f", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, ignored := range []string{"", "a1\n!a1/b2\n"} {
		if err := os.WriteFile(dir+"/.dockerignore", []byte(ignored), 0o644); err != nil {
			t.Fatal(err)
		}
		alone := walkWith(t, 1, open(t, dir, DirOptions{}), -1)
		for range 20 {
			for _, processors := range []int{2, 5} {
				d := open(t, dir, DirOptions{})
				if some := walkWith(t, processors, d, len(alone)/3); !slices.Equal(some, alone[:len(alone)/3]) {
					t.Fatalf("with %q, the first third: %q", ignored, some)
				}
				for range 2 {
					if all := walkWith(t, processors, d, -1); !slices.Equal(all, alone) {
						t.Fatalf("with %q: %q, alone %q", ignored, all, alone)
					}
				}
			}
		}
	}
}

// walkWith lists the first n paths of a walk, or all.
func walkWith(t *testing.T, processors int, d *Dir, n int) (paths []string) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
	for e, err := range d.Walk("") {
		if err != nil {
			t.Fatal(err)
		}
		if len(paths) == n {
			break
		}
		paths = append(paths, e.Path)
	}
	return paths
}

// What a reader gave to its end need not be read again; what it gave in part says nothing.
func TestReadingTeachesTheDigest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"whole", "part"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, dir, DirOptions{})
	for _, name := range []string{"whole", "part"} {
		e, _, err := d.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := d.Open(t.Context(), &e)
		if err != nil {
			t.Fatal(err)
		}
		if name == "whole" {
			_, err = io.Copy(io.Discard, r)
		} else {
			_, err = r.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		r.(interface{ Learn([32]byte) }).Learn([32]byte{1})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err == nil {
			t.Error("closed twice")
		}
		again, _, err := d.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if known := again.Digest == [32]byte{1}; known != (name == "whole") {
			t.Errorf("%s: known: %v", name, known)
		}
	}
}
