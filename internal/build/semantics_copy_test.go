package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"build/internal/buildctx"
	"build/internal/testenv"
)

// These tests show the statements about the Dockerfile language that are easy to get wrong, each under its number.
// testdata_semantics_test.go in the module's root has the list; what text alone can show is in testdata/dockerfiles.

// rootfs is the tree a build made.
type rootfs map[string]rootEntry

type rootEntry struct {
	what    string // "f 0644 0:0", "d 0755 0:0", "l -> target"
	content string
	mtime   time.Time
	xattrs  []string
}

// inPlace is the world for one subtest: the same store, an empty context of its own.
func (w *world) inPlace(t *testing.T) *world {
	t.Helper()
	sub := *w
	sub.t = t
	dir, err := os.MkdirTemp(w.tmp, "ctx-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	sub.dir = dir
	return &sub
}

// rootfs builds and returns the tree.
func (w *world) rootfs(mods ...mod) rootfs {
	w.t.Helper()
	root, _ := w.rootfsOf(mods...)
	return root
}

func (w *world) rootfsOf(mods ...mod) (rootfs, *recorder) {
	w.t.Helper()
	var buf bytes.Buffer
	_, rec := w.ok(append(mods, output(Output{Type: OutputTar, Dest: "-", Stdout: &buf}))...)
	root := rootfs{}
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return root, rec
		}
		must(w.t, err)
		e := rootEntry{mtime: h.ModTime}
		owner := fmt.Sprintf(" %04o %d:%d", h.Mode, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			must(w.t, err)
			e.what, e.content = "f"+owner, string(b)
		case tar.TypeLink:
			e = root[h.Linkname]
		case tar.TypeSymlink:
			e.what = "l -> " + h.Linkname
		case tar.TypeDir:
			e.what = "d" + owner
		default:
			e.what = string(h.Typeflag) + owner
		}
		for k := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.xattrs = append(e.xattrs, name)
			}
		}
		root[strings.Trim(h.Name, "/")] = e
	}
}

// is checks entries: path, what, path, what… A file may have its content too: "f 0644 0:0 =text". "" is nothing.
func (r rootfs) is(t *testing.T, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		path, want := pairs[i], pairs[i+1]
		e := r[path]
		got := e.what
		if strings.Contains(want, " =") {
			got += " =" + e.content
		}
		if got != want {
			t.Errorf("/%s is %q, want %q", path, got, want)
		}
	}
}

// has is is for files of which only the content matters.
func (r rootfs) has(t *testing.T, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if e := r[pairs[i]]; !strings.HasPrefix(e.what, "f ") || e.content != pairs[i+1] {
			t.Errorf("/%s is %q with %q, want a file with %q", pairs[i], e.what, e.content, pairs[i+1])
		}
	}
}

func (r rootfs) paths() []string {
	var out []string
	for p := range r {
		if p != "" && p != "." {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// only checks the names of everything in the tree.
func (r rootfs) only(t *testing.T, want ...string) {
	t.Helper()
	if got := r.paths(); !slices.Equal(got, want) {
		t.Errorf("the tree has %q, want %q", got, want)
	}
}

// symlink makes one in the context.
func (w *world) symlink(to, at string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(filepath.Join(w.dir, at)), 0o755))
	must(w.t, os.Symlink(to, filepath.Join(w.dir, at)))
}

// mode changes the permissions of files of the context.
func (w *world) mode(mode os.FileMode, paths ...string) {
	w.t.Helper()
	for _, p := range paths {
		must(w.t, os.Chmod(filepath.Join(w.dir, p), mode))
	}
}

// times sets the time of files of the context.
func (w *world) times(sec int64, paths ...string) {
	w.t.Helper()
	for _, p := range paths {
		ts := []unix.Timespec{{Sec: sec}, {Sec: sec}}
		must(w.t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(w.dir, p), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func TestSemanticsCopyDestination(t *testing.T) {
	all := newParallel(t)

	// `COPY f /abs` writes file /abs; `COPY f /abs/` writes /abs/f; `COPY f /existingdir` (no slash) writes /existingdir/f.
	t.Run("S1", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "hi", "dir/x", "x")
		root := w.rootfs(from(`
			FROM scratch
			COPY f /abs
			COPY f /slash/
			COPY f /dot/.
			COPY dir /existing
			COPY f /existing
		`))
		root.only(t, "abs", "dot", "dot/f", "existing", "existing/f", "existing/x", "slash", "slash/f")
		root.is(t, "abs", "f 0644 0:0 =hi", "slash", "d 0755 0:0", "slash/f", "f 0644 0:0 =hi", "existing/f", "f 0644 0:0 =hi")
	})

	// `COPY dir /d` copies the contents of dir, never dir itself; dir/, dir and dir/. are equivalent as source.
	t.Run("S2", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("dir/x", "x", "dir/sub/y", "y")
		root := w.rootfs(from(`
			FROM scratch
			COPY dir /a
			COPY dir/ /b
			COPY dir/. /c
			COPY dir /d/
			COPY dir /a
		`))
		var want []string
		for _, d := range []string{"a", "b", "c", "d"} {
			want = append(want, d, d+"/sub", d+"/sub/y", d+"/x")
		}
		root.only(t, want...)
	})

	// Missing destination directories are created 0755 root:root (or the --chown/--chmod value), not with the source
	// directory's owner: `COPY --from=src /dir /dir` into a new /dir leaves it 0:0 while /dir/subdir keeps 101:201.
	t.Run("S3", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "top/dir/subdir/f", "")
		w.mode(0o700, "top/dir", "top/dir/subdir")
		root := w.rootfs(from(`
			FROM scratch AS src
			COPY --chown=101:201 top /
			FROM scratch
			COPY --from=src /dir /dir
			COPY f /p/q/f
			COPY --chown=7:8 f /own/q/f
			COPY --chmod=751 f /mod/q/f
			COPY --chown=7:8 --chmod=751 --from=src /dir /new/dir
		`))
		root.is(t, "dir", "d 0755 0:0", "dir/subdir", "d 0700 101:201", "dir/subdir/f", "f 0644 101:201",
			"p", "d 0755 0:0", "p/q", "d 0755 0:0", "own", "d 0755 7:8", "own/q", "d 0755 7:8", "own/q/f", "f 0644 7:8",
			"mod", "d 0751 0:0", "mod/q", "d 0751 0:0", "mod/q/f", "f 0751 0:0",
			"new", "d 0751 7:8", "new/dir", "d 0751 7:8", "new/dir/subdir", "d 0751 7:8")
	})

	// An existing top-level destination directory keeps its own owner, mode and mtime; an existing nested directory that
	// also exists in the source takes the source's mode and owner; files are replaced one by one.
	t.Run("S4", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("old/e/nested/keep", "kept", "old/e/nested/f", "old", "old/e/untouched/f", "", "new/nested/f", "new")
		w.mode(0o700, "old/e", "old/e/nested", "old/e/untouched")
		w.mode(0o750, "new/nested")
		w.times(1000000000, "old/e", "new/nested")
		root := w.rootfs(from(`
			FROM scratch
			COPY --chown=1:2 old /
			COPY new /e
		`))
		root.is(t, "e", "d 0700 1:2", "e/untouched", "d 0700 1:2", "e/nested", "d 0750 0:0",
			"e/nested/keep", "f 0644 1:2 =kept", "e/nested/f", "f 0644 0:0 =new")
		if at := root["e"].mtime.Unix(); at != 1000000000 {
			t.Errorf("the existing directory has another time: %d", at)
		}
	})

	// Copying a directory onto an existing file fails (`cannot copy to non-directory`), and a nested file onto a directory
	// fails (`cannot replace to directory %s with file`).
	t.Run("S5", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "dir/x", "", "tree/d", "a file", "tree2/f/x", "")
		for df, words := range map[string][]string{
			"FROM scratch\nCOPY f /file\nCOPY dir /file\n": {"Dockerfile:3", "cannot copy to non-directory", "/file"},
			"FROM scratch\nCOPY f /f\nCOPY tree2 /\n":      {"Dockerfile:3", "cannot copy to non-directory", "/f"},
			"FROM scratch\nCOPY dir /d\nCOPY tree /\n":     {"Dockerfile:3", "cannot replace to directory /d with file"},
		} {
			w.fails(ExitUsage, words, from(df))
		}
	})

	// Symlinks in the destination path, including the last component, are resolved inside the rootfs: `COPY f /link/`
	// writes through. With --link they are not followed and become real directories.
	t.Run("S14", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "new", "base/real/old", "", "base/real/file", "old")
		w.symlink("/../../real", "base/link")
		w.symlink("real/file", "base/last")
		w.symlink("/real/made", "base/dangling")
		const before = "FROM scratch\nCOPY base /\n"
		root := w.rootfs(from(before + "COPY f /link/\nCOPY f /link/sub/g\nCOPY f /last\nCOPY f /dangling\n"))
		root.only(t, "dangling", "last", "link", "real", "real/f", "real/file", "real/made", "real/old", "real/sub", "real/sub/g")
		root.is(t, "link", "l -> /../../real", "last", "l -> real/file", "dangling", "l -> /real/made")
		root.has(t, "real/f", "new", "real/sub/g", "new", "real/file", "new", "real/made", "new")

		root = w.rootfs(from(before + "COPY --link f /link/\n"))
		root.is(t, "link", "d 0755 0:0", "link/f", "f 0644 0:0 =new", "real/f", "")
	})

	// --link is ignored (plain copy) when --chmod is also given.
	t.Run("S15", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "f", "base/real/old", "")
		w.symlink("real", "base/link")
		root, rec := w.rootfsOf(from("FROM scratch\nCOPY base /\nCOPY --link --chmod=600 f /link/\n"))
		root.is(t, "link", "l -> real", "real/f", "f 0600 0:0 =f")
		if w := rec.warned("--link has no effect together with --chmod"); len(w) != 1 {
			t.Errorf("warnings %q", rec.warnings)
		}
	})
}

func TestSemanticsCopyOwner(t *testing.T) {
	all := newParallel(t)

	// Files from a local context always arrive as 0:0 whatever the host owner is; `COPY --from=<stage>` preserves source
	// uid/gid.
	t.Run("S6", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("d/f", "", "named/g", "")
		w.symlink("f", "d/l")
		if os.Geteuid() == 0 { // a user's files belong to the user anyway
			for _, p := range []string{"d", "d/f", "d/l", "named", "named/g"} {
				must(t, os.Lchown(filepath.Join(w.dir, p), 1234, 5678))
			}
		}
		root := w.rootfs(from(`
			FROM scratch AS src
			COPY --chown=101:201 d /d
			FROM scratch
			COPY d /copied/d
			ADD d/f /added
			COPY --from=named / /named
			COPY --from=src / /
		`), func(o *Options) { o.NamedContexts = append(o.NamedContexts, KeyValue{"named", w.dir + "/named"}) })
		root.is(t, "copied/d", "d 0755 0:0", "copied/d/f", "f 0644 0:0", "added", "f 0644 0:0", "named/g", "f 0644 0:0",
			"d", "d 0755 101:201", "d/f", "f 0644 101:201")
	})

	// USER has no effect on COPY/ADD ownership; it does own directories made by WORKDIR.
	t.Run("S7", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "d/g", "")
		root := w.rootfs(from(`
			FROM scratch
			USER 1000:1001
			COPY f /f
			ADD f /a/f
			COPY d /d
			COPY <<EOF /doc
			EOF
			WORKDIR /w/x
			COPY f .
		`))
		root.is(t, "f", "f 0644 0:0", "a", "d 0755 0:0", "a/f", "f 0644 0:0", "d", "d 0755 0:0", "d/g", "f 0644 0:0", "doc", "f 0644 0:0",
			"w", "d 0755 1000:1001", "w/x", "d 0755 1000:1001", "w/x/f", "f 0644 0:0")
	})

	// --chown=name is resolved in the stage being built (/etc/passwd, /etc/group), following symlinks inside the rootfs only.
	t.Run("S8", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "here/data/users", "app:x:77:88::/:\n", "here/data/etc/group", "app:x:1:\nteam:x:99:\n",
			"other/etc/passwd", "app:x:5:5::/:\n", "outside/etc/.keep", "", "passwd", "app:x:6:6::/:\n")
		w.symlink("/../../data/etc", "here/etc")
		w.symlink("../../../data/users", "here/data/etc/passwd")
		w.symlink(w.dir+"/passwd", "outside/etc/passwd")
		root := w.rootfs(from(`
			FROM scratch AS other
			COPY other /
			COPY --chown=app f /f
			FROM scratch
			COPY here /
			COPY --chown=app --from=other /f /stage
			COPY --chown=app:team f /named
		`))
		root.is(t, "stage", "f 0644 77:88", "named", "f 0644 77:99")
		w.fails(ExitUsage, []string{"Dockerfile:3", "app"}, from("FROM scratch\nCOPY outside /\nCOPY --chown=app f /f\n"))
	})

	// Documentation says an unknown --chown name fails the build; BuildKit's code silently uses 0:0 when the name or the
	// file is absent. Here it is an error, and numbers need no files.
	t.Run("S9", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "users/etc/passwd", "app:x:77:88::/:\n", "users/etc/group", "app:x:88:\n")
		for df, words := range map[string][]string{
			"FROM scratch\nCOPY --chown=app f /\n":                            {"Dockerfile:2", "app", "/etc/passwd"},
			"FROM scratch\nCOPY --chown=1:team f /\n":                         {"Dockerfile:2", "team", "/etc/group"},
			"FROM scratch\nCOPY users /\nCOPY --chown=ap f /\n":               {"Dockerfile:3", "ap", "/etc/passwd"},
			"FROM scratch\nCOPY users /\nADD --chown=app:team f /\n":          {"Dockerfile:3", "team", "/etc/group"},
			"FROM scratch\nCOPY users /\nCOPY --link --chown=nobody f /new\n": {"Dockerfile:3", "nobody"},
		} {
			w.fails(ExitUsage, words, from(df))
		}
		w.rootfs(from("FROM scratch\nCOPY --chown=3:4 f /\n")).is(t, "f", "f 0644 3:4")
	})

	// --chown=1000 sets gid 1000 too; --chown=name without group uses the passwd primary gid.
	t.Run("S10", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "etc/passwd", "app:x:1000:50::/:\n", "etc/group", "app:x:60:\n")
		root := w.rootfs(from(`
			FROM scratch
			COPY etc /etc
			COPY --chown=1000 f /number
			COPY --chown=app f /name
			COPY --chown=app:app f /both
			COPY --chown=app:7 f /mixed
		`))
		root.is(t, "number", "f 0644 1000:1000", "name", "f 0644 1000:50", "both", "f 0644 1000:60", "mixed", "f 0644 1000:7")
	})

	// --chmod octal applies to every copied file, directory and implicitly created parent; range 0..07777; anything
	// non-numeric is parsed as symbolic.
	t.Run("S11", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "d/x", "", "d/sub/y", "", "exe", "")
		w.mode(0o755, "exe")
		root := w.rootfs(from(`
			FROM scratch
			COPY --chmod=7777 f /most
			COPY --chmod=0 f /least
			COPY --chmod=0751 d /p/q/d
			COPY --chmod=u=rwX,go=rX f exe /s/
			COPY --chmod=go-r f /g
		`))
		root.is(t, "most", "f 7777 0:0", "least", "f 0000 0:0", "p", "d 0751 0:0", "p/q", "d 0751 0:0", "p/q/d", "d 0751 0:0",
			"p/q/d/x", "f 0751 0:0", "p/q/d/sub", "d 0751 0:0", "p/q/d/sub/y", "f 0751 0:0",
			"s/f", "f 0644 0:0", "s/exe", "f 0755 0:0", "g", "f 0600 0:0")
		for _, bad := range []string{"10000", "888", "-1", "rwx", "u=q"} {
			w.fails(ExitUsage, []string{"Dockerfile:2", "invalid chmod parameter", bad}, from("FROM scratch\nCOPY --chmod="+bad+" f /\n"))
		}
	})
}

func TestSemanticsCopySource(t *testing.T) {
	all := newParallel(t)

	// A symlink named directly as source (or matched by a wildcard) is followed and its target content copied under the
	// link's name; symlinks found inside a copied directory stay symlinks.
	t.Run("S13", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "target", "d/x", "x")
		w.symlink("f", "link")
		w.symlink("/f", "lroot")
		w.symlink("d", "dirlink")
		w.symlink("../f", "d/inside")
		w.symlink("/etc/hostname", "escape")
		root := w.rootfs(from(`
			FROM scratch
			COPY link /out/
			COPY l* /wild/
			COPY link /name
			COPY dirlink /dir
			COPY d /d
		`))
		root.is(t, "out/link", "f 0644 0:0 =target", "wild/link", "f 0644 0:0 =target", "wild/lroot", "f 0644 0:0 =target", "name", "f 0644 0:0 =target",
			"dir", "d 0755 0:0", "dir/x", "f 0644 0:0 =x", "dir/inside", "l -> ../f", "d/inside", "l -> ../f")
		w.fails(ExitUsage, []string{"Dockerfile:2", "escape", "not found"}, from("FROM scratch\nCOPY escape /\n"))
	})

	// ../x and /x sources are clamped to the context root, never escaping it.
	t.Run("S16", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "in", "dir/g", "g")
		outside := filepath.Join(filepath.Dir(w.dir), "outside")
		must(t, os.WriteFile(outside, []byte("out"), 0o644))
		root := w.rootfs(from(`
			FROM scratch
			COPY ../f /a
			COPY /f /b
			COPY ../../../dir/../../dir /c
		`))
		root.has(t, "a", "in", "b", "in", "c/g", "g")
		for _, src := range []string{"../outside", outside, "dir/../../outside", "../" + filepath.Base(w.dir) + "/f"} {
			w.fails(ExitUsage, []string{"Dockerfile:2", "not found"}, from("FROM scratch\nCOPY "+src+" /x\n"))
		}
	})

	// A wildcard that matches nothing is not an error (`COPY foo nomatch* /` works); a literal missing path is.
	t.Run("S17", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("foo", "foo")
		w.rootfs(from("FROM scratch\nCOPY foo nomatch* /\n")).only(t, "foo")
		w.rootfs(from("FROM scratch\nCOPY foo /\nCOPY nomatch? [x]y /new/\n")).only(t, "foo")
		for _, src := range []string{"missing", "missing/foo*"} {
			w.fails(ExitUsage, []string{"Dockerfile:2", `"/missing"`, "not found"}, from("FROM scratch\nCOPY foo "+src+" /\n"))
		}
	})

	// --parents pivot: the first /./ splits; `COPY --parents /test/a/./b/./c /out/` gives /out/b/c; a trailing /. is no pivot.
	t.Run("S18", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("test/a/b/c/f", "f")
		root := w.rootfs(from(`
			FROM scratch
			COPY --parents /test/a/./b/./c /out/
			COPY --parents test/a/b/c /whole/
			COPY --parents test/a/. /trailing/
			COPY --parents ./test/a/./b/*/f /wild/
		`))
		root.only(t, "out", "out/b", "out/b/c", "out/b/c/f",
			"trailing", "trailing/test", "trailing/test/a", "trailing/test/a/b", "trailing/test/a/b/c", "trailing/test/a/b/c/f",
			"whole", "whole/test", "whole/test/a", "whole/test/a/b", "whole/test/a/b/c", "whole/test/a/b/c/f",
			"wild", "wild/b", "wild/b/c", "wild/b/c/f")
	})

	// --parents with a literal missing path fails, with a wildcard it does not.
	t.Run("S19", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("a/f", "f")
		for _, src := range []string{"missing", "a/missing", "a/./missing", "missing/./f"} {
			w.fails(ExitUsage, []string{"Dockerfile:2", "not found", "missing"}, from("FROM scratch\nCOPY --parents "+src+" /out/\n"))
		}
		root := w.rootfs(from("FROM scratch\nCOPY --parents a/f a/missing* miss*/x a/./miss* /out/\n"))
		root.has(t, "out/a/f", "f")
	})

	// --exclude patterns are matched relative to the copied source directory and take part in the cache key selector.
	t.Run("S20", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("dir/a.md", "", "dir/sub/b.md", "1", "dir/sub/c.md", "", "dir/keep", "")
		df := from("FROM scratch\nCOPY --exclude=sub/b.md dir /d\n")
		w.rootfs(df).only(t, "d", "d/a.md", "d/keep", "d/sub", "d/sub/c.md")
		w.write("dir/sub/b.md", "2")
		_, rec := w.ok(df)
		wantRan(t, "an excluded file changed", rec)
		_, rec = w.ok(from("FROM scratch\nCOPY --exclude=sub/c.md dir /d\n"))
		wantRan(t, "another pattern", rec, "COPY --exclude=sub/c.md dir /d")
		w.rootfs(from("FROM scratch\nCOPY --exclude=dir/a.md --exclude=**/*b.md dir /d\n")).only(t, "d", "d/a.md", "d/keep", "d/sub", "d/sub/c.md")
		w.rootfs(from("FROM scratch\nCOPY --exclude=*.md dir /d\n")).only(t, "d", "d/keep", "d/sub", "d/sub/b.md", "d/sub/c.md")
		w.write("dir/keep", "changed")
		_, rec = w.ok(df)
		wantRan(t, "a file that is copied changed", rec, "COPY --exclude=sub/b.md dir /d")
	})

	// COPY preserves mtime of files; the copy time never appears unless SOURCE_DATE_EPOCH/rewrite applies.
	t.Run("S26", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "", "d/sub/g", "")
		w.symlink("x", "d/l")
		w.times(1000000000, "f", "d/sub/g", "d/l", "d/sub", "d")
		df := from("FROM scratch\nCOPY f /f\nADD f /added\nCOPY d /d\nCOPY --link f /linked\n")
		root := w.rootfs(df)
		for _, p := range []string{"f", "added", "d", "d/sub", "d/sub/g", "d/l", "linked"} {
			if at := root[p].mtime.Unix(); at != 1000000000 {
				t.Errorf("/%s has time %d", p, at)
			}
		}
		at := time.Unix(900000000, 0).UTC()
		var buf bytes.Buffer
		w.ok(df, output(Output{Type: OutputTar, Dest: "-", Stdout: &buf, Epoch: &at, RewriteTimestamp: true}))
		for tr := tar.NewReader(&buf); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			if h.ModTime.Unix() != 900000000 {
				t.Errorf("with an epoch, /%s has time %d", h.Name, h.ModTime.Unix())
			}
		}
	})

	// xattr copy errors are logged and ignored, not fatal.
	t.Run("S27", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		w.write("f", "f", "d/g", "g")
		foreign := map[string]string{"user.fine": "1", "user.overlay.opaque": "y"}
		if os.Geteuid() == 0 {
			foreign["trusted.odd"] = "1"
		}
		for _, p := range []string{"f", "d/g", "d"} {
			for k, v := range foreign {
				if err := unix.Lsetxattr(filepath.Join(w.dir, p), k, []byte(v), 0); errors.Is(err, syscall.ENOTSUP) {
					testenv.Skip(t, "extended attributes in "+w.dir)
				} else {
					must(t, err)
				}
			}
		}
		// Nobody in a user namespace can set these, and some can be set nowhere.
		w.write("x.tar", tarOf(t, "", &tar.Header{Name: "h", Mode: 0o644, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.x": "1", "SCHILY.xattr.security.selinux": "no_such:label", "SCHILY.xattr.nonsense": "1", "SCHILY.xattr.user.fine": "1",
		}}))
		root := w.rootfs(from(`
			FROM base
			COPY f /t/f
			COPY d /t/d
			ADD x.tar /t
			RUN cat /t/f /t/d/g > /t/both
		`))
		root.has(t, "t/both", "fg", "t/f", "f", "t/d/g", "g", "t/h", "")
		for _, p := range []string{"t/f", "t/d/g", "t/h"} {
			if x := root[p].xattrs; !slices.Equal(x, []string{"user.fine"}) {
				t.Errorf("/%s has the attributes %q", p, x)
			}
		}
	})

	// Heredoc source file mode is 0644, name equals the delimiter word if the destination is a directory.
	t.Run("S28", func(t *testing.T) {
		w := all.inPlace(t)
		root := w.rootfs(from(`
			FROM scratch
			COPY <<one <<"two.txt" /dir/
			1
			one
			2
			two.txt
			COPY <<EOF /file
			f
			EOF
			ADD <<EOF /dir
			a
			EOF
			COPY --chmod=755 --chown=1:2 <<EOF /x
			EOF
		`))
		root.only(t, "dir", "dir/EOF", "dir/one", "dir/two.txt", "file", "x")
		root.is(t, "dir/one", "f 0644 0:0 =1\n", "dir/two.txt", "f 0644 0:0 =2\n", "file", "f 0644 0:0 =f\n", "dir/EOF", "f 0644 0:0 =a\n", "x", "f 0755 1:2 =")
	})
}

// tarOf makes an archive of files that have their name for content.
func tarOf(t *testing.T, compression string, headers ...*tar.Header) string {
	t.Helper()
	var buf, out bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.ModTime = time.Unix(1000000000, 0)
		must(t, tw.WriteHeader(h))
	}
	must(t, tw.Close())
	var z io.WriteCloser
	var err error
	switch compression {
	case "gzip":
		z = gzip.NewWriter(&out)
	case "xz":
		z, err = xz.NewWriter(&out)
	case "zstd":
		z, err = zstd.NewWriter(&out)
	default:
		return buf.String()
	}
	must(t, err)
	_, err = z.Write(buf.Bytes())
	must(t, err)
	must(t, z.Close())
	return out.String()
}

// bzip2Tar is a tar with the empty file "member", by bzip2(1); Go has no writer.
const bzip2Tar = "QlpoOTFBWSZTWcLlDKoAAHlbhOiAQAB/hAAQcgIeAAAQAAggAFQyU2oZDR+qBk9QSKR6mmg0ABHL+Egi0EIrEUhyvdwhDQ3TKSVjSzYlIphNmD1GeyeixeeCykb2Htoa8RFCSB+LuSKcKEhhcoZVAA=="

func TestSemanticsAdd(t *testing.T) {
	all := newParallel(t)
	member := func() *tar.Header { return &tar.Header{Name: "member", Mode: 0o640, Uid: 9, Gid: 9} }

	// --chmod/--chown on ADD of a local tar: chown applies to every extracted entry, chmod is not applied to extracted content.
	t.Run("S12", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("x.tar", tarOf(t, "", member(), &tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o711}, &tar.Header{Name: "dir/f", Mode: 0o604, Uid: 1}))
		root := w.rootfs(from("FROM scratch\nADD --chown=3:4 --chmod=777 x.tar /d/\nADD x.tar /plain\n"))
		root.is(t, "d", "d 0755 3:4", "d/member", "f 0640 3:4", "d/dir", "d 0711 3:4", "d/dir/f", "f 0604 3:4",
			"plain", "d 0755 0:0", "plain/member", "f 0640 9:9", "plain/dir/f", "f 0604 1:0")
	})

	// ADD extracts local archives by content, not name: gzip/bzip2/xz/zstd/plain tar; an empty x.tar.gz is copied; a URL
	// archive is not extracted unless --unpack.
	t.Run("S21", func(t *testing.T) {
		w := all.inPlace(t)
		df := "FROM scratch\nADD empty.tar.gz text.tar.gz /copied/\nADD --unpack=false gzip /whole/\n"
		served := map[string]string{}
		for _, c := range []string{"gzip", "xz", "zstd", "plain"} {
			served[c] = tarOf(t, c, member())
		}
		b, err := base64.StdEncoding.DecodeString(bzip2Tar)
		must(t, err)
		served["bzip2"] = string(b)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, served[strings.TrimSuffix(r.URL.Path[1:], ".tar")])
		}))
		defer s.Close()
		for c, data := range served {
			w.write(c, data)
			df += fmt.Sprintf("ADD %s /local/%s\nADD %s/%s.tar /url/\nADD --unpack %s/%s.tar /unpacked/%s\n", c, c, s.URL, c, s.URL, c, c)
		}
		w.write("empty.tar.gz", "", "text.tar.gz", "no archive")
		root, rec := w.rootfsOf(from(df), online)
		if warnings := rec.warned("compressed by zstd"); len(warnings) != 1 || len(rec.warnings) != 1 { // not in the reference's list
			t.Errorf("warnings %q", rec.warnings)
		}
		for c, data := range served {
			root.is(t, "local/"+c, "d 0755 0:0", "local/"+c+"/member", "f 0640 9:9", "unpacked/"+c+"/member", "f 0640 9:9")
			root.has(t, "url/"+c+".tar", data)
		}
		root.has(t, "copied/empty.tar.gz", "", "copied/text.tar.gz", "no archive", "whole/gzip", served["gzip"])
	})

	// ADD of an archive creates the destination as a directory even without a trailing slash.
	t.Run("S22", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("x.tar", tarOf(t, "", member()), "f", "")
		root := w.rootfs(from("FROM scratch\nADD x.tar /a/dest\nADD x.tar /x.tar\nADD f /plain\n"))
		root.only(t, "a", "a/dest", "a/dest/member", "plain", "x.tar", "x.tar/member")
		root.is(t, "a", "d 0755 0:0", "a/dest", "d 0755 0:0")
	})

	// ADD URL: file mode 0600, mtime from Last-Modified, name from URL path when dest ends in /, __unnamed__ if the URL has
	// no base name.
	t.Run("S23", func(t *testing.T) {
		w := all.inPlace(t)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/timeless" {
				w.Header().Set("Last-Modified", placeTime)
			}
			_, _ = io.WriteString(w, r.URL.Path)
		}))
		defer s.Close()
		root := w.rootfs(from(fmt.Sprintf(`
			FROM scratch
			ADD %[1]s/dir/name.txt?query=1 /d/
			ADD %[1]s/dir/name.txt /file
			ADD %[1]s/ %[1]s/timeless /d/
			ADD --chmod=755 --chown=1:2 %[1]s/exe /d/
		`, s.URL)), online)
		root.only(t, "d", "d/__unnamed__", "d/exe", "d/name.txt", "d/timeless", "file")
		root.is(t, "d/name.txt", "f 0600 0:0 =/dir/name.txt", "file", "f 0600 0:0 =/dir/name.txt", "d/__unnamed__", "f 0600 0:0 =/", "d/exe", "f 0755 1:2 =/exe")
		for p, sec := range map[string]int64{"d/name.txt": 1700000000, "file": 1700000000, "d/timeless": 0} {
			if at := root[p].mtime.Unix(); at != sec {
				t.Errorf("/%s has time %d, want %d", p, at, sec)
			}
		}
	})

	// https://host/org/repo is a plain file download; https://host/org/repo.git (path suffix .git) is a git source;
	// github.com/x/y is local for ADD and git only as a context.
	t.Run("S24", func(t *testing.T) {
		for _, c := range []struct {
			text         string
			add, context buildctx.RemoteKind
		}{
			{"https://host/org/repo", buildctx.HTTP, buildctx.HTTP},
			{"https://host/org/repo.git", buildctx.Git, buildctx.Git},
			{"https://host/org/repo.git#v1:sub", buildctx.Git, buildctx.Git},
			{"https://host/org/repo?x=.git", buildctx.HTTP, buildctx.HTTP},
			{"git@host:org/repo", buildctx.Git, buildctx.Git},
			{"github.com/x/y", buildctx.Local, buildctx.Git},
			{"example.com/x/y", buildctx.Local, buildctx.Local},
		} {
			add, err := buildctx.ParseRemote(c.text)
			must(t, err)
			context, err := buildctx.ParseContext(c.text)
			must(t, err)
			if add.Kind != c.add || context.Kind != c.context {
				t.Errorf("%s: %v for ADD, %v as context; want %v, %v", c.text, add.Kind, context.Kind, c.add, c.context)
			}
		}
		w := all.inPlace(t)
		w.write("github.com/x/y", "local")
		w.rootfs(from("FROM scratch\nADD github.com/x/y /\n")).has(t, "y", "local")
		p := newPlace(t)
		url, _ := p.repo(t, "org/repo", "in", "the repository")
		p.put(t, "org/file", "download")
		root := w.rootfs(from(fmt.Sprintf("FROM scratch\nADD %s /git\nADD %s/org/file /file\n", url, p.URL)), online)
		root.has(t, "git/in", "the repository", "file", "download")
	})

	// Git sources: files 0644 or 0755, directories 0755, .git removed unless keep-git-dir.
	t.Run("S25", func(t *testing.T) {
		w := all.inPlace(t)
		p := newPlace(t)
		url, _ := p.repo(t, "r", "plain", "p", "dir/tool", "t", "dir/secret", "s")
		must(t, os.Chmod(filepath.Join(p.dir, "r.git/dir/tool"), 0o711))
		must(t, os.Chmod(filepath.Join(p.dir, "r.git/dir/secret"), 0o600))
		p.git(t, "r.git", "add", "-A")
		p.git(t, "r.git", "commit", "-q", "-m", "modes")
		root := w.rootfs(from(fmt.Sprintf("FROM scratch\nADD %[1]s /a\nADD --keep-git-dir=true %[1]s /k\nADD %[1]s?keep-git-dir=1 /q\n", url)), online)
		for _, d := range []string{"a", "k", "q"} {
			root.is(t, d, "d 0755 0:0", d+"/plain", "f 0644 0:0 =p", d+"/dir", "d 0755 0:0", d+"/dir/tool", "f 0755 0:0 =t", d+"/dir/secret", "f 0644 0:0 =s")
		}
		root.is(t, "a/.git", "", "k/.git", "d 0755 0:0", "q/.git", "d 0755 0:0")
		root.has(t, "k/.git/HEAD", root["q/.git/HEAD"].content)
	})
}
