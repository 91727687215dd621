package tree

import (
	"bytes"
	"fmt"
	"testing"
)

// big makes the index of a layer with 200,000 files.
func big(b *testing.B) *Index {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for d := range 200 {
		dir := fmt.Sprintf("usr/lib/dir%03d", d)
		if d == 0 {
			for _, p := range []string{"usr", "usr/lib"} {
				if err := w.Add(&Entry{Path: p, Type: Dir, Mode: 0o755, Offset: -1}); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := w.Add(&Entry{Path: dir, Type: Dir, Mode: 0o755, Offset: -1}); err != nil {
			b.Fatal(err)
		}
		for f := range 1000 {
			if err := w.Add(&Entry{Path: fmt.Sprintf("%s/file%05d.txt", dir, f), Mode: 0o644, Size: 100, Digest: [32]byte{byte(f)}}); err != nil {
				b.Fatal(err)
			}
		}
	}
	if _, err := w.Close(); err != nil {
		b.Fatal(err)
	}
	x, err := Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		b.Fatal(err)
	}
	return x
}

func BenchmarkWalk(b *testing.B) {
	c := NewChain([]*Index{big(b)})
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range c.Walk("") {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkLstat(b *testing.B) {
	x := big(b)
	layers := make([]*Index, 20)
	for i := range layers {
		layers[i] = x
	}
	c := NewChain(layers)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok, err := c.Lstat(fmt.Sprintf("usr/lib/dir%03d/file%05d.txt", i%200, i*7%1000)); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
}

func BenchmarkReadDir(b *testing.B) {
	c := NewChain([]*Index{big(b)})
	for b.Loop() {
		if got, err := c.ReadDir("usr/lib"); err != nil || len(got) != 200 {
			b.Fatal(len(got), err)
		}
	}
}
