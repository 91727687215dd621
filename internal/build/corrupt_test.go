package build

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"build/internal/progress"
	"build/snapshot"
)

// damages are what may happen to a file.
var damages = map[string]func([]byte) []byte{
	"empty":     func([]byte) []byte { return nil },
	"truncated": func(b []byte) []byte { return b[:len(b)/2] },
	"middle": func(b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	},
	"rubbish": func(b []byte) []byte { return bytes.Repeat([]byte("{}\n"), len(b)/3+1)[:len(b)] },
}

// derived are the kinds that no result comes from.
var derived = map[string]bool{"name": true, "link": true, "text": true, "index.json": true, "context": true}

// A damaged entry of the store reads as a miss, or is found out and made again: the build gives what it always gives, and
// what it exports is what it says.
func TestDamagedStore(t *testing.T) {
	needIDs(t)
	for _, kind := range []string{"record", "layer", "index", "blobs", "name", "link", "text", "index.json", "context", "local"} {
		t.Run(kind, func(t *testing.T) {
			w := newParallel(t)
			w.damaged = true
			w.write("f", strings.Repeat("f", 5000), "g", "g")
			good := w.everyOutput()
			if kind == "context" { // files that were only just written are not remembered at their first reading
				w.everyOutput()
			}
			for name, damage := range damages {
				if derived[kind] && (name == "empty" || name == "rubbish") { // it only saves work
					continue
				}
				files := damageAll(t, w.root+"/"+kind, damage)
				if len(files) == 0 && kind != "text" { // only long texts are kept apart
					t.Fatalf("there is no %s to damage", kind)
				}
				if d := w.everyOutput(); d != good {
					t.Errorf("%s: digest %s, want %s", name, d, good)
				}
				if name == "middle" { // once more, with what was repaired
					if d := w.everyOutput(); d != good {
						t.Errorf("%s, repaired: digest %s, want %s", name, d, good)
					}
				}
				for path, b := range files {
					must(t, os.RemoveAll(path))
					must(t, os.WriteFile(path, b.data, 0o600))
					must(t, os.Chmod(path, b.mode))
				}
			}
		})
	}
}

// everyOutput builds the image in every form that is read from the store, looks at each, and returns its digest.
func (w *world) everyOutput() string {
	w.t.Helper()
	dest, dir, file := w.tmp+"/out.tar", w.tmp+"/rootfs", w.tmp+"/rootfs.tar"
	defer os.RemoveAll(dir)
	res, _ := w.ok(from(`
		FROM base AS a
		COPY f /f
		RUN cp /f /copy; echo 1 > /one
		FROM base
		COPY --from=a /copy /c
		RUN cat /c > /d
		COPY g /g
	`), epoch(1700000000), tags("app:1"), ociTo(dest), output(Output{Type: OutputLocal, Dest: dir}), output(Output{Type: OutputTar, Dest: file}))
	if a := readArchive(w.t, dest); a.digest.String() != res.Digest {
		w.t.Errorf("the archive is %s, the result %s", a.digest, res.Digest)
	}
	if b, err := os.ReadFile(dir + "/d"); err != nil || string(b) != strings.Repeat("f", 5000) {
		w.t.Errorf("the tree has another /d: %.20q, %v", b, err)
	}
	if b, err := os.ReadFile(dir + "/bin/busybox"); err != nil || len(b) < 100<<10 || string(b[:4]) != "\x7fELF" {
		w.t.Errorf("the tree has another busybox: %d bytes, %v", len(b), err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Size() < 1<<20 {
		w.t.Errorf("the tar of the tree: %v, %v", fi, err)
	}
	return res.Digest
}

// original is a file before its damage.
type original struct {
	data []byte
	mode fs.FileMode
}

// damageAll changes every file below dir, or the file dir; directories of layers only by their markers.
func damageAll(t *testing.T, dir string, damage func([]byte) []byte) map[string]original {
	t.Helper()
	files := map[string]original{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "fs" {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		files[path] = original{b, fi.Mode()}
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(path, damage(bytes.Clone(b)), 0o600); err != nil {
			return err
		}
		return os.Chmod(path, fi.Mode())
	})
	must(t, err)
	return files
}

// Any one file of the store may be missing, too.
func TestMissingFiles(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	w.damaged = true
	w.write("f", "f")
	df := from(`
		FROM base AS a
		COPY f /f
		RUN cp /f /copy
		FROM base
		COPY --from=a /copy /c
	`)
	first, _ := w.ok(df, epoch(1700000000), tags("app:1"))
	for _, pattern := range []string{"record/*/*", "layer/*/*", "index/*/*", "blobs/sha256/*", "local/*/dir/*/marker", "name/*/*", "link/*/*", "boot/*/*", "lock/*"} {
		files, err := filepath.Glob(w.root + "/" + pattern)
		must(t, err)
		if len(files) == 0 {
			t.Fatalf("no %s", pattern)
		}
		for i, f := range files {
			if strings.HasPrefix(pattern, "lock") && filepath.Base(f) == "probe" {
				continue
			}
			must(t, os.Rename(f, fmt.Sprintf("%s/away%d", w.tmp, i)))
			if i == len(files)/2 || i == len(files)-1 {
				dest := w.tmp + "/out.tar"
				res, _ := w.ok(df, epoch(1700000000), ociTo(dest), tags("app:1"))
				if res.Digest != first.Digest {
					t.Errorf("without %s: %s, want %s", f, res.Digest, first.Digest)
				}
				readArchive(t, dest)
			}
		}
	}
	// Derived from the names, it comes back with the next one.
	must(t, os.Remove(w.root+"/index.json"))
	w.ok(df, tags("app:2"))
}

// What is removed or damaged while a build uses it, by hand or by another build that found it damaged, is made again too.
func TestLostWhileBuilding(t *testing.T) {
	needIDs(t)
	for kind, pattern := range map[string]string{"blobs": "blobs/sha256/*", "indexes": "index/*/*"} {
		for name, harm := range map[string]func(string) error{
			"removed":   os.Remove,
			"rubbished": func(f string) error { return os.WriteFile(f, []byte("rubbish"), 0o600) },
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				w := newParallel(t)
				w.damaged = true
				w.write("f", "content")
				df := from(`
					FROM base AS a
					COPY f /f
					RUN echo now; cp /f /copy
					FROM base
					COPY --from=a /f /copy /
					RUN test "$(cat /f /copy)" = contentcontent
				`)
				rec, once := newRecorder(), sync.Once{}
				rec.watch = func(e progress.Event) {
					if l, ok := e.(progress.Log); ok && strings.Contains(string(l.Data), "now") {
						once.Do(func() { harmAll(t, w.root+"/"+pattern, harm) })
					}
				}
				dest := w.tmp + "/out.tar"
				if _, err := Run(t.Context(), w.options(rec, df, ociTo(dest), tags("app:1"))); err != nil {
					t.Fatalf("%v (warnings %q)", err, rec.warnings)
				}
				readArchive(t, dest)
			})
		}
	}
}

func harmAll(t *testing.T, pattern string, harm func(string) error) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Errorf("no %s: %v", pattern, err)
	}
	for _, f := range files {
		if err := errors.Join(os.Chmod(f, 0o600), harm(f)); err != nil {
			t.Error(err)
		}
	}
}

// What went to standard output cannot be taken back: no second try appends to it.
func TestDamageWhileStreaming(t *testing.T) {
	w := newWorld(t)
	w.damaged = true
	w.write("f", strings.Repeat("f", 5000))
	df := from("FROM base\nCOPY f /f\n")
	w.ok(df, tags("app:1"))
	damageAll(t, w.root+"/blobs", damages["middle"])
	var out bytes.Buffer
	stream := func(o *Options) {
		o.Outputs = []Output{{Type: OutputOCI, Tar: true, OCIMediaTypes: true, Dest: "-", Stdout: &out}}
	}
	_, _, err := w.build(df, stream)
	if err == nil || !strings.Contains(err.Error(), "build again") {
		t.Fatalf("the build went on after damage: %v", err)
	}
	out.Reset()
	w.ok(df, stream)
	file := w.tmp + "/streamed.tar"
	must(t, os.WriteFile(file, out.Bytes(), 0o600))
	readArchive(t, file)
}

// Whoever reads a file of a layer knows its size and reads no further. The digest is compared all the same.
func TestVerifiedToTheLastByte(t *testing.T) {
	const content = "what was promised"
	for name, c := range map[string]struct {
		have string
		ok   bool
	}{"right": {content, true}, "changed": {"What was promised", false}, "short": {content[:5], false}} {
		r := verified(io.NopCloser(strings.NewReader(c.have)), digest.FromString(content), int64(len(content)), "content")
		_, err := io.Copy(io.Discard, io.LimitReader(r, int64(len(content))))
		var lie *snapshot.DigestError
		if c.ok != (err == nil) || !c.ok && !errors.As(err, &lie) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A base's blob may be gone while its layer is here in another form: an export fetches it again.
func TestOnlyPlainFormOfABase(t *testing.T) {
	w := newWorld(t)
	w.damaged = true
	w.write("f", "f")
	df, dest := from("FROM base\nCOPY f /f\n"), w.tmp+"/out.tar"
	first, _ := w.ok(df, ociTo(dest), epoch(1700000000))
	w.ok(df, output(Output{Type: OutputLocal, Dest: w.tmp + "/rootfs"})) // read from plain tars, which are kept
	for _, l := range readArchive(t, dest).manifest.Layers {
		must(t, os.Remove(w.root+"/blobs/sha256/"+l.Digest.Encoded()))
	}
	if again, _ := w.ok(df, ociTo(dest), epoch(1700000000)); again.Digest != first.Digest {
		t.Errorf("%s, before %s", again.Digest, first.Digest)
	}
	readArchive(t, dest)
}
