package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Zeros become holes, wherever they are and however the blob is written; what is read is what was written.
func TestSparseBlobs(t *testing.T) {
	s := openTest(t, Options{})
	r := rand.New(rand.NewPCG(1, 2))
	var content []byte
	for _, run := range []int{0, 1, holeSize - 1, holeSize, holeSize + 1, 5*holeSize + 17, 40 * holeSize} {
		content = append(content, make([]byte, run)...)
		content = append(content, randomBytes(uint64(run), 1+r.IntN(3*holeSize))...)
	}
	for _, tail := range []int{0, 1, holeSize, 64 * holeSize} {
		want := append(bytes.Clone(content), make([]byte, tail)...)
		for _, most := range []int{7, 1000, holeSize, 200 << 10, len(want)} {
			w, err := s.NewBlob(context.Background())
			must(t, err)
			for rest := want; len(rest) > 0; {
				n := min(1+r.IntN(most), len(rest))
				if most < 100 { // else it takes long
					n = min(n*1000, len(rest))
				}
				_, err := w.Write(rest[:n])
				must(t, err)
				rest = rest[n:]
			}
			d, size, err := w.Commit("")
			must(t, err)
			if d != digest.FromBytes(want) || size != int64(len(want)) {
				t.Fatalf("digest or size is wrong: %s, %d", d, size)
			}
			got, err := os.ReadFile(s.BlobPath(d))
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Fatalf("with %d zeros at the end and pieces of up to %d, other bytes are read", tail, most)
			}
			must(t, s.RemoveBlob(d))
		}
	}
	w, err := s.NewBlob(context.Background())
	must(t, err)
	_, err = w.Write(make([]byte, 64<<20))
	must(t, err)
	d, _, err := w.Commit("")
	must(t, err)
	fi, err := os.Stat(s.BlobPath(d))
	must(t, err)
	if blocks := fi.Sys().(*syscall.Stat_t).Blocks; fi.Size() != 64<<20 || blocks > 100 {
		t.Errorf("64 MiB of zeros take %d blocks", blocks)
	}
}

// A digest has one form, and is never a path.
func TestValidDigest(t *testing.T) {
	good := digest.FromString("x")
	if !ValidDigest(good) {
		t.Errorf("%s", good)
	}
	for _, bad := range []digest.Digest{
		"", "sha256:", good[:70], good + "0", digest.Digest(strings.ToUpper(string(good))), "sha256:" + digest.Digest(strings.ToUpper(good.Encoded())),
		"sha512:" + digest.Digest(good.Encoded()), "sha256:../../../../../../../../../../../../../../../../../../../../../../etc", digest.Digest(good.Encoded()),
		good[:70] + "/", good[:70] + "\x00", "sha512:" + digest.Digest(strings.Repeat("0", 128)),
	} {
		if ValidDigest(bad) {
			t.Errorf("%q", bad)
		}
	}
}
