package snapshot

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
)

// compressible returns n bytes that are neither noise nor constant, the same ones every time.
func compressible(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	words := make([][]byte, 500)
	for i := range words {
		words[i] = []byte(randomName(r))
	}
	var b bytes.Buffer
	for b.Len() < n {
		b.Write(words[int(r.ExpFloat64()*40)%len(words)])
	}
	return b.Bytes()[:n]
}

// deflated compresses data, written in pieces of the given size.
func deflated(t testing.TB, level int, data []byte, piece int) []byte {
	t.Helper()
	var out bytes.Buffer
	z := newGzipWriter(t.Context(), &out, level)
	for rest := data; len(rest) > 0; {
		n := min(piece, len(rest))
		if _, err := z.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestGzipDependsOnInputAlone(t *testing.T) {
	data := compressible(2<<20 + 12345)
	for _, level := range []int{0, 1, defaultGzipLevel, 6, 9} {
		want := deflated(t, level, data, len(data))
		z, err := gzip.NewReader(bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("level %d: the standard library reads something else (%v)", level, err)
		}
		procs := runtime.GOMAXPROCS(1)
		one := deflated(t, level, data, 1000)
		runtime.GOMAXPROCS(procs)
		if !bytes.Equal(one, want) {
			t.Errorf("level %d: other bytes for the same input", level)
		}
	}
}

func TestGzipOfNothing(t *testing.T) {
	z, err := gzip.NewReader(bytes.NewReader(deflated(t, 3, nil, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
}

// A blob's digest names a layer in registries. Whoever changes what the compressors write changes compressorVersion too.
func TestCompressorIsPinned(t *testing.T) {
	data := compressible(2<<20 + 99)
	for _, tc := range []struct {
		c    Compression
		want string
	}{
		{Compression{Kind: Gzip}, "53590ae3966d7762"},
		{Compression{Kind: Gzip, Level: 6}, "978c3ed0006d35d3"},
		{Compression{Kind: Zstd}, "ffda149d9ea2887f"},
	} {
		c, err := tc.c.fill()
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		z, err := c.writer(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)[:8]); got != tc.want {
			t.Errorf("%s gives %s instead of %s: is a new compressorVersion due?", c.id(), got, tc.want)
		}
	}
}

type brokenWriter struct{ after int }

var errBroken = errors.New("no space left")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.after -= len(p); w.after < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestGzipReportsFailures(t *testing.T) {
	data := compressible(8 << 20)
	for _, after := range []int{0, 100, 1 << 20} {
		z := newGzipWriter(t.Context(), &brokenWriter{after}, 1)
		_, err := z.Write(data)
		if cerr := z.Close(); !errors.Is(cerr, errBroken) && !errors.Is(err, errBroken) {
			t.Errorf("after %d bytes: %v, %v", after, err, cerr)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	z := newGzipWriter(ctx, io.Discard, 1)
	_, err := z.Write(data)
	if cerr := z.Close(); !errors.Is(err, context.Canceled) && !errors.Is(cerr, context.Canceled) {
		t.Logf("a slot was free every time: %v, %v", err, cerr)
	}
}
