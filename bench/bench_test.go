package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	of := func(v ...float64) float64 {
		var s []sample
		for _, x := range v {
			s = append(s, sample{Wall: x})
		}
		return median(s, func(s sample) float64 { return s.Wall })
	}
	for _, tc := range []struct{ got, want float64 }{{of(3, 1, 2), 2}, {of(4, 1, 2, 3), 2.5}, {of(7), 7}} {
		if tc.got != tc.want {
			t.Errorf("median %v, want %v", tc.got, tc.want)
		}
	}
}

// Every workload can be written, says FROM a base, and its change changes something.
func TestWorkloads(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows(tiny) {
		if seen[r.name] {
			t.Errorf("two rows are called %q", r.name)
		}
		seen[r.name] = true
		dir := t.TempDir()
		if err := r.make(dir, func(name string) string { return "reg/" + name }); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
		if err != nil || !bytes.HasPrefix(data, []byte("FROM reg/")) {
			t.Errorf("%s: Dockerfile %q, %v", r.name, data, err)
		}
		if r.change == nil {
			continue
		}
		before := hashTree(t, dir)
		if err := r.change(dir, "nonce"); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		if hashTree(t, dir) == before {
			t.Errorf("%s: the change changed nothing", r.name)
		}
	}
	if !seen[rowRuns] || !seen[rowNoRuns] {
		t.Error("the rows that the overhead of RUN is derived from are missing")
	}
}

func hashTree(t *testing.T, dir string) [32]byte {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		io.WriteString(h, path)
		h.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestBigLayerIsDeterministicAndOfTheSizeWanted(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := writeBigLayer(w, 1, tiny); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same layer twice has other bytes")
	}
	if got, want := a.Len(), tiny.baseMB<<20; got < want || got > 2*want {
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
	if files < tiny.baseFiles {
		t.Errorf("%d files, want at least %d", files, tiny.baseFiles)
	}
}

func TestMeasureCountsChildrenAndReportsFailure(t *testing.T) {
	busy := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	s, err := measure(t.Context(), []*exec.Cmd{busy}, 0, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU <= 0.005 || s.Wall <= 0.005 || s.PeakMiB <= 0 {
		t.Errorf("a busy loop took %+v", s)
	}
	_, err = measure(t.Context(), []*exec.Cmd{exec.Command("sh", "-c", "echo why; exit 3")}, 0, false, nil)
	if err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v does not tell what was printed", err)
	}
	if d := processCPU(os.Getpid()); d < 0 || d > time.Hour {
		t.Errorf("own CPU time %v", d)
	}
}
