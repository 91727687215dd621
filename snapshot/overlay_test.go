package snapshot

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"build/internal/store"
)

// overlay mounts an upper as the executor does and returns the merged directory and what unmounts it.
func overlay(t testing.TB, lower []string, upper, work string) (string, func()) {
	t.Helper()
	merged := t.TempDir()
	top := slices.Clone(lower)
	slices.Reverse(top)
	opts := "userxattr,index=off,lowerdir=" + strings.Join(top, ":")
	if upper != "" {
		opts += ",upperdir=" + upper + ",workdir=" + work
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Skipf("missing: an overlay mount with userxattr: %v", err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(merged, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	}
	t.Cleanup(unmount)
	return merged, unmount
}

// change runs do in a merged tree on top of chain and commits what it did.
func change(t testing.TB, l *Layers, chain []digest.Digest, do func(root string)) Layer {
	t.Helper()
	private := changePrivate(t, l, chain, do)
	u, err := l.Begin(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Discard()
	root, unmount := overlay(t, u.Lower, u.Dir, u.Work)
	do(root)
	unmount()
	layer, err := u.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if private.Content != layer.Content {
		t.Errorf("in a private tree the layer is\n%s\nand on an overlay\n%s", dump(t, l, private.DiffID), dump(t, l, layer.DiffID))
	}
	return layer
}

// changePrivate does the same in a private tree, which must come out as the same layer.
func changePrivate(t testing.TB, l *Layers, chain []digest.Digest, do func(root string)) Layer {
	t.Helper()
	p, err := l.BeginTree(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	do(p.Dir)
	got, err := p.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// sh runs a script in a directory.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// merged describes what a process sees on top of a chain.
func merged(t testing.TB, l *Layers, chain []digest.Digest) string {
	t.Helper()
	u, err := l.Begin(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Discard()
	root, unmount := overlay(t, u.Lower, u.Dir, u.Work)
	defer unmount()
	return dumpDir(t, root, true)
}

func baseFiles() []testFile {
	owned := file("etc/conf", "conf")
	owned.UID, owned.GID, owned.Mode = 33, 44, 0o640
	return []testFile{
		dir("etc", 0o755), owned, file("etc/keep", "keep"), dir("etc/sub", 0o750), file("etc/sub/a", "a"), file("etc/sub/b", "b"),
		dir("tmp", 0o1777), dir("var", 0o755), dir("var/lib", 0o755), file("var/lib/x", "x"), symlink("link", "etc/conf"),
	}
}

// What commands do to a merged tree comes out as the layer it should be.
func TestCommit(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct{ script, want string }{
		"nothing":         {`true`, ``},
		"new file":        {`echo hi > etc/new`, `"etc" directory 0755 0:0;"etc/new" file 0644 0:0 3 98ea6e4f`},
		"changed":         {`echo hi > etc/conf`, `"etc" directory 0755 0:0;"etc/conf" file 0640 33:44 3 98ea6e4f`},
		"opened only":     {`: >> etc/conf`, ``},
		"mode":            {`chmod 600 etc/conf`, `"etc" directory 0755 0:0;"etc/conf" file 0600 33:44 4 `},
		"owner of a link": {`chown -h 5:6 link`, `"link" symlink 5:6 -> "etc/conf"`},
		"removed":         {`rm etc/conf`, `"etc" directory 0755 0:0;"etc/conf" whiteout`},
		"removed tree":    {`rm -r etc/sub`, `"etc" directory 0755 0:0;"etc/sub" whiteout`},
		"made and gone":   {`echo > etc/new; rm etc/new; mkdir d; rmdir d`, `"etc" directory 0755 0:0`},
		"replaced tree": {`rm -r etc/sub; mkdir etc/sub; echo hi > etc/sub/c`,
			`"etc" directory 0755 0:0;"etc/sub" directory 0755 0:0 opaque;"etc/sub/c" file 0644 0:0 3 98ea6e4f`},
		"new tree is not opaque": {`mkdir -p etc/n/m; echo hi > etc/n/m/f`,
			`"etc" directory 0755 0:0;"etc/n" directory 0755 0:0;"etc/n/m" directory 0755 0:0;"etc/n/m/f" file 0644 0:0 3 98ea6e4f`},
		"dir becomes file": {`rm -r etc/sub; echo hi > etc/sub`, `"etc" directory 0755 0:0;"etc/sub" file 0644 0:0 3 98ea6e4f`},
		"file becomes dir": {`rm etc/conf; mkdir etc/conf`, `"etc" directory 0755 0:0;"etc/conf" directory 0755 0:0`},
		"renamed":          {`mv etc/keep etc/kept`, `"etc" directory 0755 0:0;"etc/keep" whiteout;"etc/kept" file 0644 0:0 4 `},
		"hard links": {`echo hi > z; ln z a; ln a m`,
			`"a" file 0644 0:0 3 98ea6e4f;"m" hardlink "a";"z" hardlink "a"`},
		"special": {`mkfifo -m 640 p; mknod n c 1 3; mknod b b 7 1; ln -s /x s`,
			`"b" block device 0644 0:0 7,1;"n" character device 0644 0:0 1,3;"p" fifo 0640 0:0;"s" symlink 0:0 -> "/x"`},
		"special, linked": {`mkfifo -m 640 p; ln p q; mknod n c 1 3; ln n m; ln -s /x s; ln s t`,
			`"m" character device 0644 0:0 1,3;"n" hardlink "m";"p" fifo 0640 0:0;"q" hardlink "p";"s" symlink 0:0 -> "/x";"t" symlink 0:0 -> "/x"`},
		"setuid":         {`echo hi > su; chown 1:2 su; chmod 6711 su`, `"su" file 6711 1:2 3 98ea6e4f`},
		"any bytes":      {`printf x > "$(printf 'a\377\nb')"`, `"a\xff\nb" file 0644 0:0 1 2d711642`},
		"root mode":      {`chmod 711 .`, `"" directory 0711 0:0`},
		"root time only": {`touch -d 2001-01-01 .`, ``},
		"passwd kept":    {`echo root > etc/passwd`, `"etc" directory 0755 0:0;"etc/passwd" file 0644 0:0 5 `},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayers(t)
			base := layersOf(writeLayer(t, l, baseFiles()))
			before := 0
			var seen string
			layer := change(t, l, base, func(root string) {
				sh(t, root, "umask 022; "+tc.script)
				seen = dumpDir(t, root, true)
			})
			got := strings.Split(strings.TrimSuffix(dump(t, l, layer.DiffID), "\n"), "\n")
			want := strings.Split(tc.want, ";")
			if !slices.EqualFunc(got, want, strings.HasPrefix) {
				t.Errorf("%d\n%s\nwant\n%s", before, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			checkForms(t, l, append(base, layer.DiffID), seen)
		})
	}
}

// checkForms compares what the command saw with what the committed directory shows, and with what the tar alone gives in
// another store.
func checkForms(t *testing.T, l *Layers, chain []digest.Digest, seen string) {
	t.Helper()
	if !l.HasDir(l.idKind, chain, len(chain)-1) {
		t.Error("the upper did not become the layer's directory")
	}
	if got := merged(t, l, chain); got != seen {
		t.Errorf("the committed directory shows\n%s\nwhile the command saw\n%s", got, seen)
	}
	other := newLayers(t)
	for _, d := range chain {
		importTar(t, other, readTar(t, l, d))
	}
	if got := merged(t, other, chain); got != seen {
		t.Errorf("the tar gives\n%s\nwhile the command saw\n%s", got, seen)
	}
	c, err := other.Chain(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	var fromIndex strings.Builder
	for e, err := range c.Walk("") {
		if err != nil {
			t.Fatal(err)
		}
		if e.Path != "" {
			e.Opaque, e.Hardlink = false, ""
			fmt.Fprintln(&fromIndex, line(&e.Entry))
		}
	}
	plain := strings.ReplaceAll(seen, " opaque", "")
	_, plain, _ = strings.Cut(plain, "\n") // the root
	if !strings.Contains(plain, "hardlink") && strings.TrimSuffix(fromIndex.String(), "\n") != plain {
		t.Errorf("the indexes say\n%s\nwhile the command saw\n%s", fromIndex.String(), plain)
	}
}

func TestCommitXattrs(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	base := layersOf(writeLayer(t, l, baseFiles()))
	var seen string
	layer := change(t, l, base, func(root string) {
		sh(t, root, `echo hi > ping; mkdir d`)
		for path, x := range map[string][2]string{
			"ping": {capabilityXattr, capability(2)}, "d": {"user.note", "n\x00te"}, "etc/keep": {"user.kept", "y"},
		} {
			if err := unix.Setxattr(root+"/"+path, x[0], []byte(x[1]), 0); err != nil {
				t.Skipf("missing: the right to set %s: %v", x[0], err)
			}
		}
		if err := unix.Setxattr(root+"/ping", "trusted.ours", []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		seen = dumpDir(t, root, true)
	})
	want := `"d" directory 0755 0:0 user.note="n\x00te"
"etc" directory 0755 0:0
"etc/keep" file 0644 0:0 4 6ca7ea2f user.kept="y"
"ping" file 0644 0:0 3 98ea6e4f security.capability=` + fmt.Sprintf("%q", capability(2)) + "\n"
	if got := dump(t, l, layer.DiffID); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	checkForms(t, l, append(base, layer.DiffID), seen)
}

// A layer that names /tmp/x without /tmp leaves /tmp what it was.
func TestImpliedParents(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	loose := importTar(t, l, tarOf(t, tFile("tmp/x", "x"), tFile("var/lib/y", "y"), tFile("new/dir/z", "z")))
	tight := writeLayer(t, l, []testFile{dir("tmp", 0o700), dir("var", 0o755)})
	base := writeLayer(t, l, baseFiles())

	for name, tc := range map[string]struct {
		chain []digest.Digest
		want  string
	}{
		"over a base": {[]digest.Digest{base.DiffID, loose}, `"tmp" directory 1777 0:0`},
		"over two":    {[]digest.Digest{base.DiffID, tight.DiffID, loose}, `"tmp" directory 0700 0:0`},
		"alone":       {[]digest.Digest{loose}, `"tmp" directory 0755 0:0`},
	} {
		got := merged(t, l, tc.chain)
		if !strings.Contains(got, tc.want) || !strings.Contains(got, `"tmp/x" file`) {
			t.Errorf("%s:\n%s\nlacks %s", name, got, tc.want)
		}
	}
	dirs := map[string]bool{}
	for _, chain := range [][]digest.Digest{{base.DiffID, loose}, {tight.DiffID, loose}, {loose}, {base.DiffID, tight.DiffID, loose}} {
		d, err := l.Unpack(t.Context(), chain, len(chain)-1)
		if err != nil {
			t.Fatal(err)
		}
		dirs[d] = true
	}
	if len(dirs) != 3 { // 1777, 0700, default
		t.Errorf("%d directories: %v", len(dirs), dirs)
	}
}

// A chain may hold a layer twice, and an empty one, and a root that hides everything below.
func TestBeginOddChains(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	a := writeLayer(t, l, baseFiles()).DiffID
	b := writeLayer(t, l, []testFile{dir("etc", 0o755), whiteout("etc/conf"), file("etc/keep", "b")}).DiffID
	empty := writeLayer(t, l, nil).DiffID
	opaque := importTar(t, l, tarOf(t, tFile(".wh..wh..opq", ""), tFile("only", "x")))

	if got := merged(t, l, []digest.Digest{a, empty, b, empty, a}); got != merged(t, l, []digest.Digest{a}) {
		t.Errorf("the upper of two equal layers does not decide:\n%s", got)
	}
	if got := merged(t, l, []digest.Digest{a, opaque}); strings.Contains(got, "etc") || !strings.Contains(got, "only") {
		t.Errorf("an opaque root hides nothing:\n%s", got)
	}
	if got := merged(t, l, nil); got != `"" directory 0755 0:0` {
		t.Errorf("nothing at all shows\n%s", got)
	}
}

// Random commands' worth of changes: the upper the kernel made and the tar we wrote show the same.
func TestCommitRandom(t *testing.T) {
	needRoot(t)
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 11))
		l := newLayers(t)
		files := randomTree(r, 60)
		chain := layersOf(writeLayer(t, l, files))
		for round := range uint64(3) {
			var seen string
			layer := change(t, l, chain, func(root string) {
				mutate(t, rand.New(rand.NewPCG(seed, round)), root) // the same in every tree
				seen = dumpDir(t, root, true)
			})
			chain = append(chain, layer.DiffID)
			checkForms(t, l, chain, seen)
		}
	}
}

// mutate changes a tree at random.
func mutate(t *testing.T, r *rand.Rand, root string) {
	t.Helper()
	var paths []string
	for e := range strings.SplitSeq(dumpDir(t, root, true), "\n") {
		if path, err := fmtUnquote(e); err == nil && path != "" {
			paths = append(paths, path)
		}
	}
	for range 25 {
		p := root + "/" + paths[r.IntN(len(paths))]
		fi, err := os.Lstat(p)
		if err != nil {
			continue
		}
		switch r.IntN(7) {
		case 0:
			err = os.RemoveAll(p)
		case 1:
			if err = os.RemoveAll(p); err == nil {
				if err = os.Mkdir(p, 0o755); err == nil {
					err = os.WriteFile(p+"/f", randomData(r), 0o644)
				}
			}
		case 2:
			to := fmt.Sprintf("%s/moved%d", root, r.IntN(1e6))
			if !fi.IsDir() { // EXDEV for directories of lower layers
				err = os.Rename(p, to)
			}
		case 3:
			err = os.Lchown(p, r.IntN(100), r.IntN(100))
		case 4:
			if fi.Mode().IsRegular() {
				err = os.WriteFile(p, randomData(r), 0o644)
			}
		case 5:
			if fi.Mode().IsRegular() {
				err = os.Link(p, fmt.Sprintf("%s/linked%d", root, r.IntN(1e6)))
			}
		case 6:
			if fi.IsDir() {
				err = os.WriteFile(fmt.Sprintf("%s/new%d", p, r.IntN(1e6)), randomData(r), 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func quoted(s string) string { return fmt.Sprintf("%q", s) }

func fmtUnquote(line string) (string, error) {
	var s string
	_, err := fmt.Sscanf(line, "%q", &s)
	return s, err
}

// Commit writes nothing when the step's context ends, and leaves nothing behind.
func TestCommitLeavesNothing(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	base := layersOf(writeLayer(t, l, baseFiles()))
	u, err := l.Begin(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u.Dir+"/.wh.evil", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context()); err == nil || !strings.Contains(err.Error(), ".wh.evil") {
		t.Errorf("%v", err)
	}
	u.Discard()
	if _, err := u.Commit(t.Context()); err == nil {
		t.Error("a second commit worked")
	}
	if names, err := os.ReadDir(l.st.Local("root") + "/tmp"); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// Many callers, two of them in another process's shoes, get one directory.
func TestUnpackOnce(t *testing.T) {
	needRoot(t)
	root := t.TempDir() + "/store"
	l := openLayers(t, root)
	b := sampleTar(t)
	d := digest.FromBytes(b)
	gz := deflated(t, 3, b, 1<<20)
	if err := l.ImportBlob(t.Context(), d, describe("", gz), bytes.NewReader(gz)); err != nil {
		t.Fatal(err)
	}
	all := []*Layers{l, openLayers(t, root), openLayers(t, root)}
	type result struct {
		dir string
		err error
	}
	results := make(chan result)
	for i := range 9 {
		go func() {
			dir, err := all[i%3].Unpack(t.Context(), []digest.Digest{d}, 0)
			results <- result{dir, err}
		}()
	}
	var inode uint64
	for range 9 {
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		var st unix.Stat_t
		if err := unix.Stat(r.dir+"/usr/bin/tool", &st); err != nil {
			t.Fatal(err)
		}
		if inode != 0 && st.Ino != inode {
			t.Error("the layer was unpacked twice")
		}
		inode = st.Ino
	}
	if !l.hasIndex(d) || !l.HasDir(l.idKind, []digest.Digest{d}, 0) {
		t.Error("index or directory is missing")
	}
}

// A directory whose marker is gone is made again.
func TestUnpackAgain(t *testing.T) {
	needRoot(t)
	l := newLayers(t)
	chain := []digest.Digest{importTar(t, l, sampleTar(t))}
	dir, err := l.Unpack(t.Context(), chain, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir + "/usr"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(strings.TrimSuffix(dir, store.ContentDir) + "marker"); err != nil {
		t.Fatal(err)
	}
	if l.HasDir(l.idKind, chain, 0) {
		t.Error("half a directory counts")
	}
	if dir, err = l.Unpack(t.Context(), chain, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/usr/bin/tool"); err != nil {
		t.Error(err)
	}
	if _, err := l.Unpack(t.Context(), []digest.Digest{digest.FromString("x")}, 0); err == nil {
		t.Error("a layer that is not here was unpacked")
	}
}
