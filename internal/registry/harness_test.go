package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// server is an in-process registry whose answers a test can bend.
type server struct {
	*httptest.Server
	host string

	mu    sync.Mutex
	seen  []*http.Request
	fault func(w http.ResponseWriter, r *http.Request) bool // true: answered
}

func newServer(t *testing.T, tls bool) *server {
	t.Helper()
	s := &server{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		fault := s.fault
		s.mu.Unlock()
		if fault != nil && fault(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	})
	s.Server = httptest.NewUnstartedServer(h)
	s.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(strings.TrimPrefix(s.URL, "https://"), "http://")
	return s
}

func (s *server) bend(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// requests returns what arrived so far as "METHOD path" and forgets it.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.seen {
		out = append(out, r.Method+" "+r.URL.Path)
	}
	s.seen = nil
	return out
}

func (s *server) headers(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.seen {
		if v := r.Header.Get(name); v != "" {
			out = append(out, v)
		}
	}
	return out
}

func testClient(t *testing.T, o Options) *Client {
	t.Helper()
	o.Patience = 0.001
	if o.Proxy == nil {
		o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

// sample is an image in memory.
type sample struct {
	manifest, config []byte
	mediaType        string
	layers           [][]byte
	descs            []ocispec.Descriptor
}

func (s *sample) digest() digest.Digest { return digest.FromBytes(s.manifest) }

// newSample makes an image with n gzip layers of the given size for a platform.
func newSample(t testing.TB, platform string, n, size int) *sample {
	t.Helper()
	os, arch, _ := strings.Cut(platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	s := &sample{mediaType: ocispec.MediaTypeImageManifest}
	img := ocispec.Image{Platform: ocispec.Platform{OS: os, Architecture: arch, Variant: variant}}
	img.RootFS.Type = "layers"
	src := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", t.Name()+platform))))
	for range n {
		plain := make([]byte, size)
		_, _ = src.Read(plain)
		var buf bytes.Buffer
		zw := gzip.NewWriter(&buf)
		_, _ = zw.Write(plain)
		zw.Close()
		s.layers = append(s.layers, buf.Bytes())
		s.descs = append(s.descs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(buf.Bytes()), Size: int64(buf.Len())})
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.FromBytes(plain))
	}
	s.config = mustJSON(t, img)
	s.seal(t)
	return s
}

func (s *sample) seal(t testing.TB) {
	s.manifest = mustJSON(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: s.mediaType, Layers: s.descs,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(s.config), Size: int64(len(s.config))}})
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *sample) push(mounts ...string) PushImage {
	p := PushImage{ManifestRaw: s.manifest, MediaType: s.mediaType, Config: s.config}
	for i := range s.layers {
		p.Layers = append(p.Layers, PushLayer{Desc: s.descs[i], MountFrom: mounts, Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(s.layers[i])), nil
		}})
	}
	return p
}

// seed pushes img to ref with a client of its own, so that the client under test has learnt nothing.
func seed(t *testing.T, ref string, img *sample) {
	t.Helper()
	if err := testClient(t, Options{}).Push(t.Context(), ref, img.push()); err != nil {
		t.Fatal(err)
	}
}

func readBlob(t *testing.T, c *Client, repo string, d ocispec.Descriptor) ([]byte, error) {
	t.Helper()
	r, err := c.Blob(t.Context(), repo, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func wantClass(t *testing.T, err error, c Class) *Error {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want class %s", c)
	}
	if !IsClass(err, c) {
		t.Fatalf("error %v (%T), want class %s", err, err, c)
	}
	return asError(err)
}
