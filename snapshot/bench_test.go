package snapshot

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// benchTar makes a layer out of the Go distribution's sources: many small files, as layers have.
func benchTar(b *testing.B) []byte {
	b.Helper()
	root := filepath.Join(runtime.GOROOT(), "src")
	l := newLayers(b)
	w, err := l.NewWriter(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	dir, err := os.Open(root)
	if err != nil {
		b.Skipf("missing: the sources of Go: %v", err)
	}
	defer dir.Close()
	d := &differ{ctx: b.Context(), base: tree.NewChain(nil), w: w, owners: l.owners, first: map[inode]firstName{}}
	if err := d.diff(dir, nil); err != nil {
		b.Fatal(err)
	}
	layer, err := w.Commit()
	if err != nil {
		b.Fatal(err)
	}
	return readTar(b, l, layer.DiffID)
}

// cpu reports the CPU time of the process so far: wall times say little on a busy machine.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCPU reports how much was done per second of CPU.
func perCPU(b *testing.B, size int, before time.Duration) {
	b.ReportMetric(float64(size)*float64(b.N)/1e6/(cpu()-before).Seconds(), "MB/cpu-s")
}

func BenchmarkCompress(b *testing.B) {
	data := benchTar(b)
	for _, c := range []Compression{
		{Level: 1}, {Level: 2}, {Level: 3}, {Level: 4}, {Level: 5}, {Level: 6}, {Level: 9},
		{Kind: Zstd, Level: 1}, {Kind: Zstd, Level: 3}, {Kind: Zstd, Level: 7},
	} {
		c, err := c.fill()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(c.Kind, c.Level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			before, size := cpu(), int64(0)
			for b.Loop() {
				out := &counter{}
				z, err := c.writer(b.Context(), writeCounter{out})
				if err != nil {
					b.Fatal(err)
				}
				z.Write(data)
				z.Close()
				size = out.n
			}
			perCPU(b, len(data), before)
			b.ReportMetric(100*float64(size)/float64(len(data)), "%size")
		})
	}
}

type writeCounter struct{ c *counter }

func (w writeCounter) Write(p []byte) (int, error) { w.c.n += int64(len(p)); return len(p), nil }

func BenchmarkImport(b *testing.B) {
	data := benchTar(b)
	gz := deflated(b, 3, data, 1<<20)
	d, desc := digest.FromBytes(data), describe("", gz)
	b.SetBytes(int64(len(data)))
	before := cpu()
	for b.Loop() {
		b.StopTimer()
		l := newLayers(b)
		b.StartTimer()
		if err := l.Import(b.Context(), d, desc, bytes.NewReader(gz)); err != nil {
			b.Fatal(err)
		}
	}
	perCPU(b, len(data), before)
}

func BenchmarkApply(b *testing.B) {
	data := benchTar(b)
	b.SetBytes(int64(len(data)))
	before := cpu()
	for b.Loop() {
		if _, _, err := applyTar(b.Context(), b, data); err != nil {
			b.Fatal(err)
		}
	}
	perCPU(b, len(data), before)
}

// BenchmarkUnpack is a pull without and with a directory: blob, index and directory in two passes, or in one.
func BenchmarkUnpack(b *testing.B) {
	data := benchTar(b)
	gz := deflated(b, 3, data, 1<<20)
	d, desc := digest.FromBytes(data), describe("", gz)
	for _, once := range []bool{false, true} {
		b.Run(map[bool]string{false: "indexed", true: "unread"}[once], func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			before := cpu()
			for b.Loop() {
				l := newLayers(b)
				load := l.Import
				if once {
					load = l.ImportBlob
				}
				if err := load(b.Context(), d, desc, bytes.NewReader(gz)); err != nil {
					b.Fatal(err)
				}
				if _, err := l.Unpack(b.Context(), []digest.Digest{d}, 0); err != nil {
					b.Fatal(err)
				}
			}
			perCPU(b, len(data), before)
		})
	}
}

// BenchmarkCommit writes the layer of a directory full of files, and that of few changes over a large base.
func BenchmarkCommit(b *testing.B) {
	data := benchTar(b)
	l := newLayers(b)
	d := importTar(b, l, data)
	path, _, err := applyTar(b.Context(), b, data)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("all", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		before := cpu()
		for b.Loop() {
			diffDir(b, l, path, tree.NewChain(nil))
		}
		perCPU(b, len(data), before)
	})
	if _, err := l.Unpack(b.Context(), []digest.Digest{d}, 0); err != nil {
		b.Fatal(err)
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			u, err := l.Begin(b.Context(), []digest.Digest{d})
			if err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(u.Dir+"/new", []byte("new"), 0o644); err != nil {
				b.Fatal(err)
			}
			if _, err := u.Commit(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkOpenTar(b *testing.B) {
	data := benchTar(b)
	l := newLayers(b)
	gz := deflated(b, 3, data, 1<<20)
	d := digest.FromBytes(data)
	if err := l.Import(b.Context(), d, describe("", gz), bytes.NewReader(gz)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	before := cpu()
	for b.Loop() {
		r, err := l.OpenTar(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
	perCPU(b, len(data), before)
}
