package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/progress"
)

// randomContext fills a context with more than what is read in two passes, in a shape that depends on the seed.
func (w *world) randomContext(seed uint64) {
	w.t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	old := time.Unix(1_600_000_000, 0)
	for i := range 60 {
		path := filepath.Join(w.dir, "src", fmt.Sprintf("d%d/e%d/f%02d", r.IntN(4), r.IntN(3), i))
		must(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
		data := make([]byte, r.IntN(60_000))
		for j := range data {
			data[j] = byte('a' + r.IntN(4))
		}
		must(w.t, os.WriteFile(path, data, os.FileMode(0o600|r.IntN(0o100))))
		must(w.t, os.Chtimes(path, old, old.Add(time.Duration(i)*time.Second)))
		switch i % 10 {
		case 3:
			must(w.t, os.Link(path, path+".link"))
		case 5:
			must(w.t, os.Symlink(filepath.Base(path), path+".sym"))
		}
	}
	w.write(".dockerignore", "**/f*7\n!src/d1/**\n")
	w.fillBig()
}

func (w *world) fillBig() {
	w.t.Helper()
	old := time.Unix(1_600_000_000, 0)
	must(w.t, os.WriteFile(w.dir+"/big", bytes.Repeat([]byte("0123456789abcdef"), 1<<17), 0o644))
	must(w.t, os.Chtimes(w.dir+"/big", old, old))
}

// layersOf lists the blobs of the layers of an image that is in the store.
func (w *world) layersOf(res *Result) []string {
	w.t.Helper()
	st, err := openStore(StoreOptions{Root: w.root})
	must(w.t, err)
	defer st.Close()
	raw, err := readBlob(st, res.Descriptor.Digest, res.Descriptor.Size)
	must(w.t, err)
	var m ocispec.Manifest
	must(w.t, json.Unmarshal(raw, &m))
	var out []string
	for _, l := range m.Layers {
		out = append(out, l.Digest.String())
	}
	return out
}

// inOnePass counts the steps that were written before their key was known: they are shown as started twice.
func inOnePass(rec *recorder, prefix string) func() int {
	started := map[progress.ID]int{}
	rec.watch = func(e progress.Event) {
		if s, ok := e.(progress.Started); ok && strings.Contains(s.Name, "] "+prefix) {
			started[s.ID]++
		}
	}
	return func() (n int) {
		for _, times := range started {
			if times == 2 {
				n++
			}
		}
		return n
	}
}

// A layer that is written while its files are hashed has the bytes and the key of one that is written after that.
func TestOnePassGivesWhatTwoGive(t *testing.T) {
	for i, df := range []string{
		"FROM scratch\nCOPY . /\n",
		"FROM base\nCOPY --chown=daemon:daemon --chmod=u+x . /bin/\n",
		"FROM base\nCOPY --link src/d? /\n",
		"FROM base\nADD src/d* big /etc/\nCOPY --exclude=**/*3 . /\n",
		"FROM base AS a\nCOPY . /bin/\nFROM base\nCOPY --from=a /bin/src/d0 /\nCOPY big /etc/f01\n",
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t)
			out := func(name string) (mod, string) {
				path := filepath.Join(w.tmp, name)
				return output(Output{Type: OutputOCI, Dest: path, Tar: true}), path
			}
			build := func(to mod) (int, []string) {
				rec := newRecorder()
				ahead := inOnePass(rec, "")
				o := w.options(rec, from(df), to)
				res, err := Run(t.Context(), o)
				must(t, err)
				return ahead(), w.layersOf(res)
			}
			w.randomContext(uint64(i))
			must(t, os.WriteFile(w.dir+"/big", bytes.Repeat([]byte("other"), 1<<18), 0o644))
			to, _ := out("before.tar") // of something else, so that a record is known the next time
			if n, _ := build(to); n == 0 {
				t.Fatal("nothing was written in one pass")
			}
			w.fillBig()
			to, _ = out("two.tar")
			n, two := build(to)
			if n != 0 {
				t.Fatalf("%d steps with a record were written in one pass", n)
			}
			keys := w.records(t)

			must(t, os.Rename(w.root, w.root+".two"))
			to, _ = out("one.tar")
			n, one := build(to)
			if n == 0 {
				t.Fatal("nothing was written in one pass")
			}
			if !slices.Equal(one, two) {
				t.Errorf("one pass gave %v, two %v", one, two)
			}
			for path, rec := range w.records(t) {
				if have := keys[path]; have == nil || !slices.Equal(have.Layers, rec.Layers) {
					t.Errorf("two passes did not record %s (%s) with %v", path, rec.Step, rec.Layers)
				}
			}
			removeAll(w.root + ".two")
		})
	}
}

// What was written ahead and is answered by a record after all leaves nothing.
func TestDraftIsDroppedOnAHit(t *testing.T) {
	w := newWorld(t)
	w.randomContext(7)
	w.ok(from("FROM base AS one\nCOPY . /x\n"))
	before := w.blobs(t)
	again := w.dir + ".copy" // other inodes, and a line that reads otherwise: neither digests nor a record are known
	if out, err := exec.Command("cp", "-a", w.dir, again).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.dir = again
	rec := newRecorder()
	ahead := inOnePass(rec, "COPY")
	res, err := Run(t.Context(), w.options(rec, from("FROM base AS two\nCOPY ./ /x\n")))
	must(t, err)
	if ahead() != 1 || res.Ran != 0 {
		t.Errorf("%d written ahead, %d carried out", ahead(), res.Ran)
	}
	w.openVertices(rec)
	if after := w.blobs(t); len(slices.DeleteFunc(after, func(b string) bool { return slices.Contains(before, b) })) > 2 {
		t.Errorf("blobs besides a manifest and a configuration: %q", after)
	}
}

func (w *world) blobs(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(w.root + "/blobs/sha256/*")
	must(t, err)
	return list
}

// A layer that a RUN stands on keeps its plain tar; one that nothing reads is stored compressed alone.
func TestPlainTarIsKeptForReaders(t *testing.T) {
	needIDs(t)
	for df, want := range map[string]bool{
		"FROM base\nCOPY . /x\nRUN test -e /x/big\n":                                   true,
		"FROM base AS a\nCOPY . /x\nFROM a\nCOPY --from=a /x/big /y\n":                 true,
		"FROM base\nCOPY . /x\n":                                                       false,
		"FROM base AS a\nRUN echo a > /a\nFROM base\nCOPY --from=a /a /a\nCOPY . /x\n": false,
	} {
		w := newWorld(t)
		w.randomContext(3)
		w.ok(from(df))
		plain := false
		for _, rec := range w.records(t) {
			if d := rec.Layers[len(rec.Layers)-1]; strings.Contains(rec.Step, "COPY . /x") {
				_, err := os.Stat(w.root + "/blobs/sha256/" + d.Encoded())
				plain = err == nil
			}
		}
		if plain != want {
			t.Errorf("%s: the plain tar is there: %v, want %v", df, plain, want)
		}
	}
}
