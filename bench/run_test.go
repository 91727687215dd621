package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"build/internal/testenv"
)

// program builds what is to be measured, once for all tests.
var program = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(scratch, "build")
	cmd := exec.Command("go", "build", "-o", bin, "../cmd/build")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

// smallConfig is a run without peers.
func smallConfig(t *testing.T, rows string) *config {
	t.Helper()
	testenv.Root(t)
	for _, tool := range []string{"docker-registry", "skopeo", "umoci"} {
		testenv.Tool(t, tool)
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if ok, err := isTmpfs("/dev/shm"); err == nil && ok { // a busy disk makes builds wait for it, and nothing is learned from that
		if dir, err = os.MkdirTemp("/dev/shm", "bench-test-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
	}
	testenv.Base(t, "busybox") // or there is nothing to measure
	c := &config{ours: bin, dir: dir, bases: testenv.CacheDir(), n: 1, slow: 60, slowN: 1, level: 6, small: true,
		json: filepath.Join(dir, "bench.json"), md: filepath.Join(dir, "bench.md"), docs: filepath.Join(dir, "docs"), rows: regexp.MustCompile(rows)}
	if c.self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	return c
}

// Rows of each kind, from the registry to the verified image.
func TestSmallTable(t *testing.T) {
	c := smallConfig(t, "tiny|cold|one of .* OCI|export again")
	r := newReport(c)
	if err := c.measure(t.Context(), filepath.Join(c.dir, "run"), r); err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Rows {
		ours := r.cell(row, oursName)
		if !c.rows.MatchString(row) {
			continue
		}
		if !ours.ok() || ours.PeakMiB <= 0 || ours.cpu() <= 0 {
			t.Errorf("%s: %+v", row, ours)
		}
		if strings.Contains(row, "OCI") && (ours.Bytes == 0 || len(ours.Layers) == 0) {
			t.Errorf("%s: was not verified: %+v", row, ours)
		}
	}
	for row, limit := range map[string]string{rowBigCold: floorName, "2 stages, cold, OCI tar": aloneName} {
		if !r.cell(row, limit).ok() {
			t.Errorf("%s: no %s", row, limit)
		}
	}
	md, err := os.ReadFile(c.md)
	if err != nil || !strings.Contains(string(md), rowBigCold) {
		t.Errorf("%s: %v", md, err)
	}
	if left, err := filepath.Glob(filepath.Join(c.dir, "run", "ours-*")); err != nil || len(left) > 0 {
		t.Errorf("states are left: %v, %v", left, err)
	}
}

// A row whose image is not what it should be fails.
func TestVerifyFindsDamage(t *testing.T) {
	testenv.Tool(t, "skopeo")
	run := &tableRun{c: &config{}, states: newStates(t.TempDir(), 0, func(string) {})}
	bad := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(bad, []byte("not an archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	who := &contender{b: &ours{}, cell: &cell{}, outs: []string{bad}}
	if err := run.verify(t.Context(), row{out: ociTar, begin: same}, workload{}, []*contender{who}); err != nil || who.cell.Error == "" {
		t.Errorf("%v, %+v", err, who.cell)
	}
}

func TestSmallGrowth(t *testing.T) {
	c := smallConfig(t, "files|stages|parallel")
	c.growth = true
	if err := c.measure(t.Context(), filepath.Join(c.dir, "run"), newReport(c)); err != nil {
		t.Fatal(err)
	}
	var g growth
	if err := readJSON(filepath.Join(c.docs, "growth", "growth.json"), &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Points) != 9 {
		t.Errorf("%d points", len(g.Points))
	}
	for _, p := range g.Points {
		if p.Error != "" || len(p.Cold) != 1 || len(p.NoOp) != 1 {
			t.Errorf("%+v", p)
		}
	}
	page, err := os.ReadFile(filepath.Join(c.docs, "growth.md"))
	if err != nil || !strings.Contains(string(page), "growth/stages.svg") || !strings.Contains(string(page), "grow") {
		t.Errorf("%s, %v", page, err)
	}
	for _, name := range []string{"files.svg", "stages.svg", "parallel.svg", "growth.csv"} {
		if st, err := os.Stat(filepath.Join(c.docs, "growth", name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
