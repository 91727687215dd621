package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every row has a workload and every target a row.
func TestTable(t *testing.T) {
	for _, s := range []scale{full, tiny} {
		p := table(s)
		var rows []string
		for _, r := range p.rows {
			if slices.Contains(rows, r.name) {
				t.Errorf("two rows are called %q", r.name)
			}
			rows = append(rows, r.name)
			if !slices.ContainsFunc(p.workloads, func(w workload) bool { return w.name == r.work }) {
				t.Errorf("%q: no workload %q", r.name, r.work)
			} else if r.begin == changed && p.workload(r.work).change == nil {
				t.Errorf("%q: %q cannot be changed", r.name, r.work)
			}
		}
		for _, target := range p.targets {
			i := slices.Index(rows, target.Row)
			if i < 0 && target.Row != rowAny || target.Minus != "" && !slices.Contains(rows, target.Minus) {
				t.Errorf("%+v: no such row", target)
			}
			if slices.Contains(both, target.Against) && !p.rows[i].measures(target.Against) {
				t.Errorf("%+v: that builder is not measured there", target)
			}
		}
	}
}

// Every workload is the same each time, and its change changes something.
func TestWorkloads(t *testing.T) {
	all := table(tiny).workloads
	for _, cv := range curves(true) {
		all = append(all, cv.work(cv.xs[0]))
	}
	for _, w := range all {
		dir, again := t.TempDir(), t.TempDir()
		if err := w.make(dir, "base"); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		if err := w.make(again, "base"); err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		before := hashTree(t, dir)
		if hashTree(t, again) != before {
			t.Errorf("%s: made twice, it is not the same", w.name)
		}
		data, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
		if err != nil || !strings.HasPrefix(string(data), "FROM ") || strings.Contains(string(data), "%!") {
			t.Errorf("%s: Dockerfile %q, %v", w.name, data, err)
		}
		if w.change != nil {
			if err := w.change(dir, "nonce"); err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
			if hashTree(t, dir) == before {
				t.Errorf("%s: the change changed nothing", w.name)
			}
		}
	}
}

func hashTree(t *testing.T, dir string) [32]byte {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %x\n", strings.TrimPrefix(path, dir), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// The tree has the shape that its comment says, a hundredth of it.
func TestTreeShape(t *testing.T) {
	dir := t.TempDir()
	if err := writeTree(dir, 1000); err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	entries := 0
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		entries++
		if !d.IsDir() {
			st, err := d.Info()
			if err != nil {
				return err
			}
			sizes = append(sizes, st.Size())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if entries != 1153 { // 15 % directories, and three
		t.Errorf("%d entries", entries)
	}
	slices.Sort(sizes)
	var sum int64
	for _, s := range sizes {
		sum += s
	}
	if mean, mid := sum/1000, sizes[500]; mean < 4000 || mean > 4450 || mid < 3600 || mid > 4000 {
		t.Errorf("mean %d, median %d bytes", mean, mid)
	}
}

func TestContextsOfParallelBuildsShareNothing(t *testing.T) {
	w := smallFiles(60, "busybox")
	seen := map[[32]byte]string{}
	for i := range 3 {
		dir := t.TempDir()
		if err := w.make(dir, "base"); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := w.other(dir, i); err != nil {
				t.Fatal(err)
			}
		}
		err := filepath.WalkDir(filepath.Join(dir, "src"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if other, ok := seen[sha256.Sum256(data)]; ok {
				t.Errorf("%s is the same as %s", path, other)
			}
			seen[sha256.Sum256(data)] = path
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBigLayer(t *testing.T) {
	shape := tiny.layers[0]
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := writeBigLayer(w, 1, shape); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same layer twice has other bytes")
	}
	if got, want := a.Len(), shape.mb<<20; got < want || got > want+want/2+2<<20 {
		t.Errorf("%d bytes, want about %d", got, want)
	}
	files := 0
	for r := tar.NewReader(&a); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files++
		}
	}
	if files < shape.files {
		t.Errorf("%d files, want at least %d", files, shape.files)
	}
}
