package buildctx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"build/internal/tree"
)

const benchFiles = 50_000

// benchTree makes 50,000 small files in 1,000 directories, old enough for the stat cache.
func benchTree(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	old := time.Now().Add(-time.Hour)
	for i := range 1000 {
		sub := filepath.Join(dir, fmt.Sprintf("pkg%02d/mod%02d/src", i/50, i%50))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range benchFiles / 1000 {
			name := filepath.Join(sub, fmt.Sprintf("file_%d.go", j))
			if err := os.WriteFile(name, fmt.Appendf(nil, "package p%d // %d\n", i, j), 0o644); err != nil {
				b.Fatal(err)
			}
			if err := os.Chtimes(name, old, old); err != nil {
				b.Fatal(err)
			}
		}
	}
	return dir
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// scan does what a build that changes nothing does with its context.
func scan(b *testing.B, dir, cache string, o DirOptions) int {
	b.Helper()
	o.StatCache = OpenStatCache(cache)
	d, err := OpenDir(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for e, err := range d.Walk("") {
		if err != nil {
			b.Fatal(err)
		}
		if e.Type == tree.File {
			if _, err := d.Digest(context.Background(), &e); err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	if err := d.Close(); err != nil {
		b.Fatal(err)
	}
	return n
}

func BenchmarkScan50k(b *testing.B) {
	dir := benchTree(b)
	ignoreFile := filepath.Join(b.TempDir(), "ignore")
	if err := os.WriteFile(ignoreFile, []byte(".git\n**/node_modules\n**/*.md\n*.log\ndist\n!dist/keep\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	time.Sleep(2 * fineGrain)
	for _, c := range []struct {
		name string
		o    DirOptions
	}{{"warm", DirOptions{NoIgnore: true}}, {"warm-ignore", DirOptions{IgnoreFile: ignoreFile}}} {
		b.Run(c.name, func(b *testing.B) {
			cache := filepath.Join(b.TempDir(), "cache")
			scan(b, dir, cache, c.o)
			b.ReportAllocs()
			b.ResetTimer()
			began := cpu()
			for b.Loop() {
				if n := scan(b, dir, cache, c.o); n != benchFiles {
					b.Fatalf("%d files", n)
				}
			}
			b.ReportMetric(float64((cpu()-began).Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			scan(b, dir, filepath.Join(b.TempDir(), "cache"), DirOptions{NoIgnore: true})
		}
	})
}

func BenchmarkLoadStatCache50k(b *testing.B) {
	path := filepath.Join(b.TempDir(), "cache")
	c := OpenStatCache(path)
	for i := range benchFiles {
		c.Put(numbered(i))
	}
	if err := c.Save(); err != nil {
		b.Fatal(err)
	}
	k, _ := numbered(benchFiles / 2)
	for b.Loop() {
		if _, ok := OpenStatCache(path).Get(k); !ok {
			b.Fatal("no record")
		}
	}
}
