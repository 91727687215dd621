package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The meaning the tests give to small files: a record and a layer are lists of references, one "kind key" a line.
func testReferences(_ Kind, _ string, data []byte) []Ref {
	var refs []Ref
	for line := range strings.Lines(string(data)) {
		kind, key, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && Kind(kind).rank() >= 0 {
			refs = append(refs, Ref{Kind: Kind(kind), Key: key})
		}
	}
	return refs
}

func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.TempDir()+"/s", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustBeSound(t, s) })
	return s
}

// mustBeSound ends every test of a store: whatever was done to it, nothing in it may lie.
func mustBeSound(t testing.TB, s *Store) {
	t.Helper()
	ps, err := s.Check(context.Background(), CheckOptions{References: testReferences})
	if err != nil {
		t.Errorf("check: %v", err)
	}
	for _, p := range ps {
		if !p.Harmless() {
			t.Errorf("the store lies: %v", p)
		}
	}
}

func putBlob(s *Store, data []byte) (digest.Digest, error) {
	w, err := s.NewBlob(context.Background())
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	d, _, err := w.Commit(digest.FromBytes(data))
	return d, err
}

func mustBlob(t testing.TB, s *Store, data []byte) digest.Digest {
	t.Helper()
	d, err := putBlob(s, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func readBlob(s *Store, d digest.Digest) ([]byte, error) {
	f, err := s.OpenBlob(d, -1)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// putImage publishes an image of the given layers and returns its manifest's descriptor.
func putImage(s *Store, layers ...[]byte) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var diffIDs []digest.Digest
	for _, l := range layers {
		d, err := putBlob(s, l)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		diffIDs = append(diffIDs, d)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(l))})
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	if _, err := putBlob(s, config); err != nil {
		return ocispec.Descriptor{}, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := putBlob(s, raw)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(raw))}, err
}

// randomBytes depends on seed alone.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b)
	return b
}

// age makes something look as if it was last used that long ago.
func age(t testing.TB, path string, ago time.Duration) {
	t.Helper()
	when := time.Now().Add(-ago)
	must(t, os.Chtimes(path, when, when))
}

func kinds(ps []Problem) string {
	var b bytes.Buffer
	for _, p := range ps {
		fmt.Fprintf(&b, "%s ", p.Kind)
	}
	return strings.TrimSpace(b.String())
}

// allOf lists what a collection could take.
func allOf(t testing.TB, s *Store) []Ref {
	t.Helper()
	g, err := s.list()
	must(t, err)
	var refs []Ref
	for _, e := range g.order {
		refs = append(refs, e.ref)
	}
	return refs
}
