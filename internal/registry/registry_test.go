package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func asError(err error) *Error {
	var e *Error
	errors.As(err, &e)
	return e
}

var linuxAMD64 = &ocispec.Platform{OS: "linux", Architecture: "amd64"}

func TestPushAndPull(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run("tls="+strconv.FormatBool(tls), func(t *testing.T) {
			s := newServer(t, tls)
			img := newSample(t, "linux/amd64", 3, 50_000)
			seed(t, s.host+"/team/app:v1", img)
			c := testClient(t, Options{})
			im, err := c.Resolve(t.Context(), s.host+"/team/app:v1", linuxAMD64)
			if err != nil {
				t.Fatal(err)
			}
			if im.Digest != img.digest() || im.Repo != s.host+"/team/app" || im.IndexDigest != "" || len(im.DiffIDs) != 3 {
				t.Errorf("resolved %+v", im)
			}
			if !bytes.Equal(im.ManifestRaw, img.manifest) || !bytes.Equal(im.ConfigRaw, img.config) {
				t.Error("manifest or config differ")
			}
			for i, d := range im.Manifest.Layers {
				got, err := readBlob(t, c, im.Repo, d)
				if err != nil || !bytes.Equal(got, img.layers[i]) {
					t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
				}
			}
			byDigest, err := c.Resolve(t.Context(), s.host+"/team/app@"+im.Digest.String(), linuxAMD64)
			if err != nil || byDigest.Digest != im.Digest {
				t.Errorf("by digest: %v", err)
			}
			d, err := c.Head(t.Context(), s.host+"/team/app:v1")
			if err != nil || d.Digest != im.Digest || d.Size != int64(len(img.manifest)) {
				t.Errorf("head: %+v %v", d, err)
			}
		})
	}
}

func TestPushSendsOnlyWhatIsMissing(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 2, 1000)
	c := testClient(t, Options{})
	if err := c.Push(t.Context(), s.host+"/a:1", img.push()); err != nil {
		t.Fatal(err)
	}
	s.requests()

	// Another process: everything is there, so nothing is uploaded and no layer is even opened.
	p := img.push()
	var reported atomic.Int64
	p.Progress = func(_ digest.Digest, n, total int64) {
		if n == total {
			reported.Add(1)
		}
	}
	for i := range p.Layers {
		p.Layers[i].Open = func(context.Context) (io.ReadCloser, error) { t.Error("layer opened"); return nil, io.EOF }
	}
	if err := testClient(t, Options{}).Push(t.Context(), s.host+"/a:2", p); err != nil {
		t.Fatal(err)
	}
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "POST") || strings.Contains(r, "PUT /v2/a/blobs") {
			t.Errorf("needless %s", r)
		}
	}
	if reported.Load() != 3 {
		t.Errorf("%d blobs reported as complete, want 3", reported.Load())
	}

	// The same client knows without asking.
	if err := c.Push(t.Context(), s.host+"/a:3", img.push()); err != nil {
		t.Fatal(err)
	}
	if got := s.requests(); len(got) != 1 || got[0] != "PUT /v2/a/manifests/3" {
		t.Errorf("requests %q", got)
	}
}

func TestPushMountsAcrossRepositories(t *testing.T) {
	s := newServer(t, false)
	base := newSample(t, "linux/amd64", 1, 1000)
	seed(t, s.host+"/base:1", base)
	s.requests()
	p := base.push("docker.io/library/other", s.host+"/base")
	p.Layers[0].Open = func(context.Context) (io.ReadCloser, error) { t.Error("layer opened"); return nil, io.EOF }
	var mounts []string
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/app/blobs/") {
			w.WriteHeader(http.StatusNotFound) // the in-process registry shares blobs between repositories
			return true
		}
		if m := r.URL.Query().Get("mount"); m != "" {
			mounts = append(mounts, r.URL.Query().Get("from")+" "+m)
			w.Header().Set("Location", "/v2/app/blobs/"+m)
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	if err := testClient(t, Options{}).Push(t.Context(), s.host+"/app:1", p); err != nil {
		t.Fatal(err)
	}
	if want := []string{"base " + base.descs[0].Digest.String()}; !slices.Equal(mounts, want) {
		t.Errorf("mounts %q, want %q", mounts, want)
	}
}

func TestMountRefusedFallsBackToUpload(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 1000)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("mount") != "" {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	if err := testClient(t, Options{}).Push(t.Context(), s.host+"/app:1", img.push(s.host+"/secret")); err != nil {
		t.Fatal(err)
	}
	s.bend(nil)
	if _, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/app:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
}

func TestPlatformSelection(t *testing.T) {
	s := newServer(t, false)
	c := testClient(t, Options{})
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	want := map[string]digest.Digest{}
	for _, p := range []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v5", "windows/amd64"} {
		img := newSample(t, p, 1, 100)
		if err := c.Push(t.Context(), s.host+"/multi@"+img.digest().String(), img.push()); err != nil {
			t.Fatal(err)
		}
		parts := strings.SplitN(p+"/", "/", 4)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: img.mediaType, Digest: img.digest(), Size: int64(len(img.manifest)),
			Platform: &ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: strings.TrimSuffix(parts[2], "/")}})
		want[p] = img.digest()
	}
	attestation := newSample(t, "unknown/unknown", 1, 10)
	if err := c.Push(t.Context(), s.host+"/multi@"+attestation.digest().String(), attestation.push()); err != nil {
		t.Fatal(err)
	}
	index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: attestation.mediaType, Digest: attestation.digest(), Size: int64(len(attestation.manifest)),
		Platform:    &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}})
	raw := mustJSON(t, index)
	if err := c.PushManifest(t.Context(), s.host+"/multi:1", index.MediaType, raw); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		asked ocispec.Platform
		got   string
	}{
		{ocispec.Platform{OS: "linux", Architecture: "amd64"}, "linux/amd64"},
		{ocispec.Platform{OS: "linux", Architecture: "arm64"}, "linux/arm64"},
		{ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, "linux/arm/v7"},
		{ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, "linux/arm/v5"},
		{ocispec.Platform{OS: "linux", Architecture: "x86_64"}, "linux/amd64"},
	} {
		im, err := c.Resolve(t.Context(), s.host+"/multi:1", &tc.asked)
		if err != nil {
			t.Errorf("%v: %v", tc.asked, err)
			continue
		}
		if im.Digest != want[tc.got] || im.IndexDigest != digest.FromBytes(raw) {
			t.Errorf("%v: got %s of index %s", tc.asked, im.Platform, im.IndexDigest)
		}
	}
	_, err := c.Resolve(t.Context(), s.host+"/multi:1", &ocispec.Platform{OS: "linux", Architecture: "riscv64"})
	wantClass(t, err, NotFound)
	for _, part := range []string{"linux/riscv64", "linux/amd64", "linux/arm/v7", "windows/amd64"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not name %s", err, part)
		}
	}
	if strings.Contains(err.Error(), "unknown") {
		t.Errorf("error %q lists the attestation", err)
	}
}

func TestSingleManifestOfAnotherPlatform(t *testing.T) {
	s := newServer(t, false)
	seed(t, s.host+"/arm:1", newSample(t, "linux/arm64", 1, 10))
	im, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/arm:1", linuxAMD64)
	if err != nil {
		t.Fatal(err)
	}
	if im.Platform.Architecture != "arm64" {
		t.Errorf("platform %+v", im.Platform)
	}
}

func TestRetriesTransientStatus(t *testing.T) {
	for _, code := range []int{429, 500, 502, 503, 504} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			s := newServer(t, false)
			img := newSample(t, "linux/amd64", 1, 1000)
			seed(t, s.host+"/a:1", img)
			s.requests()
			var n atomic.Int32
			s.bend(func(w http.ResponseWriter, r *http.Request) bool {
				if r.TLS == nil && n.Add(1)%3 != 0 { // two of three requests fail
					w.WriteHeader(code)
					return true
				}
				return false
			})
			var notices atomic.Int32
			c := testClient(t, Options{Notify: func(Notice) { notices.Add(1) }})
			im, err := c.Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := readBlob(t, c, im.Repo, im.Manifest.Layers[0]); err != nil || !bytes.Equal(got, img.layers[0]) {
				t.Fatalf("blob: %v", err)
			}
			if notices.Load() < 4 {
				t.Errorf("%d notices", notices.Load())
			}
		})
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	s := newServer(t, false)
	seed(t, s.host+"/a:1", newSample(t, "linux/amd64", 1, 10))
	var n atomic.Int32
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if n.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	start := time.Now()
	if _, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < time.Second {
		t.Errorf("waited only %s", d)
	}

	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "86400")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	wantClass(t, err, Network)
	if !strings.Contains(err.Error(), "24h") {
		t.Errorf("error %q does not say how long the registry wants us to wait", err)
	}
}

func TestGivesUpInTheEnd(t *testing.T) {
	s := newServer(t, false)
	var n atomic.Int32
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		n.Add(1)
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return true
	})
	_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	if e := wantClass(t, err, Network); e.Status != 503 {
		t.Errorf("status %d", e.Status)
	}
	if got := n.Load(); got != int32(len(backoff))+1 {
		t.Errorf("%d attempts, want %d", got, len(backoff)+1)
	}
}

// cut serves a blob but closes the connection after the given number of bytes of the body.
func cut(w http.ResponseWriter, data []byte, header string, after int) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = buf.WriteString(header)
	_, _ = buf.Write(data[:after])
	buf.Flush()
	conn.Close()
}

func TestBlobResumesWhereItWasCut(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run("ranges="+strconv.FormatBool(ranges), func(t *testing.T) {
			s := newServer(t, false)
			img := newSample(t, "linux/amd64", 1, 300_000)
			seed(t, s.host+"/a:1", img)
			data := img.layers[0]
			var asked []string
			s.bend(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, img.descs[0].Digest.String()) {
					return false
				}
				asked = append(asked, r.Header.Get("Range"))
				if len(asked) <= 2 {
					off := 0
					head := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(data)) + "\r\n\r\n"
					if rg := r.Header.Get("Range"); rg != "" && ranges {
						off, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rg, "bytes="), "-"+strconv.Itoa(len(data)-1)))
						head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes " + strconv.Itoa(off) + "-" + strconv.Itoa(len(data)-1) + "/" + strconv.Itoa(len(data)) +
							"\r\nContent-Length: " + strconv.Itoa(len(data)-off) + "\r\n\r\n"
					}
					cut(w, data[off:], head, 100_000)
					return true
				}
				if !ranges {
					r.Header.Del("Range")
				}
				return false
			})
			c := testClient(t, Options{})
			got, err := readBlob(t, c, s.host+"/a", img.descs[0])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Error("content differs")
			}
			if len(asked) != 3 || asked[0] != "" || asked[1] != "bytes=100000-"+strconv.Itoa(len(data)-1) {
				t.Errorf("ranges asked for: %q", asked)
			}
		})
	}
}

func TestSilentConnectionIsReplaced(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 100_000)
	seed(t, s.host+"/a:1", img)
	var n atomic.Int32
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || n.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(img.layers[0])))
		_, _ = w.Write(img.layers[0][:5000])
		w.(http.Flusher).Flush()
		<-block
		return true
	})
	c := testClient(t, Options{})
	c.stall = 300 * time.Millisecond
	if got, err := readBlob(t, c, s.host+"/a", img.descs[0]); err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestSlowReaderIsNotASilentConnection(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 5_000_000)
	seed(t, s.host+"/a:1", img)
	c := testClient(t, Options{Notify: func(n Notice) { t.Errorf("retry because of %v", n.Err) }})
	c.stall = 400 * time.Millisecond
	r, err := c.Blob(t.Context(), s.host+"/a", img.descs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
}

func TestBlobCutForEver(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 1000)
	seed(t, s.host+"/a:1", img)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			cut(w, img.layers[0], "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(img.layers[0]))+"\r\n\r\n", 10)
			return true
		}
		return false
	})
	_, err := readBlob(t, testClient(t, Options{}), s.host+"/a", img.descs[0])
	wantClass(t, err, Network)
	if !strings.Contains(err.Error(), "after 10 of ") {
		t.Errorf("error %q does not say how far it got", err)
	}
}

func TestLyingBlobs(t *testing.T) {
	img := newSample(t, "linux/amd64", 1, 5000)
	data := img.layers[0]
	flipped := bytes.Clone(data)
	flipped[2000] ^= 1
	for name, body := range map[string][]byte{"flipped": flipped, "longer": append(bytes.Clone(data), 'x'), "other": []byte("hello")} {
		for _, chunked := range []bool{false, true} {
			t.Run(name+" chunked="+strconv.FormatBool(chunked), func(t *testing.T) {
				s := newServer(t, false)
				s.bend(func(w http.ResponseWriter, r *http.Request) bool {
					if !chunked {
						w.Header().Set("Content-Length", strconv.Itoa(len(body)))
					}
					w.WriteHeader(http.StatusOK)
					if chunked {
						w.(http.Flusher).Flush()
					}
					_, _ = w.Write(body)
					return true
				})
				_, err := readBlob(t, testClient(t, Options{}), s.host+"/a", img.descs[0])
				if name == "other" && chunked {
					wantClass(t, err, Network) // ends early without saying so: could be a cut
					return
				}
				wantClass(t, err, Digest)
			})
		}
	}
}

func TestHostileManifests(t *testing.T) {
	good := newSample(t, "linux/amd64", 1, 10)
	layer := good.descs[0]
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(good.config), Size: int64(len(good.config))}
	manifest := func(change func(*ocispec.Manifest)) []byte {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
		change(&m)
		return mustJSON(t, m)
	}
	for name, tc := range map[string]struct {
		contentType string
		body        []byte
		class       Class
		says        string
	}{
		"schema1":      {dockerSchema1Signed, []byte(`{"schemaVersion":1,"name":"a","fsLayers":[],"history":[]}`), Unsupported, dockerSchema1Signed},
		"both kinds":   {ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), Unsupported, "either"},
		"index+config": {ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"config":{},"manifests":[]}`), Unsupported, "either"},
		"two types":    {ocispec.MediaTypeImageIndex, manifest(func(*ocispec.Manifest) {}), Unsupported, "calls itself"},
		"not json":     {ocispec.MediaTypeImageManifest, []byte("login please"), Unsupported, "not JSON"},
		"web page":     {"text/html; charset=utf-8", []byte("\n<!DOCTYPE html><title>login please</title>"), Network, "answered with a web page"},
		"in disguise":  {ocispec.MediaTypeImageManifest, []byte("<html>login please</html>"), Network, "answered with a web page"},
		"huge":         {ocispec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), maxManifest+1), Unsupported, "larger than"},
		"negative":     {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), Digest, "impossible size"},
		"2^62":         {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 62 }), Digest, "impossible size"},
		"big config":   {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Config.Size = 1 << 30 }), Unsupported, "larger than"},
		"path digest":  {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../etc" }), Digest, "digest"},
		"md5":          {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Config.Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }), Digest, "digest"},
		"helm chart": {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }),
			Unsupported, "artifact"},
		"encrypted":  {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }), Unsupported, "+encrypted"},
		"no diffIDs": {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest) { m.Layers = nil }), Unsupported, "0 layers"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, false)
			seed(t, s.host+"/a:ok", good)
			s.bend(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/manifests/") {
					w.Header().Set("Content-Type", tc.contentType)
					_, _ = w.Write(tc.body)
					return true
				}
				return false
			})
			_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
			wantClass(t, err, tc.class)
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %q does not say %q", err, tc.says)
			}
		})
	}
}

func TestLyingDigests(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 10)
	seed(t, s.host+"/a:1", img)
	other := digest.FromString("something else")
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", img.mediaType)
			w.Header().Set("Docker-Content-Digest", other.String())
			_, _ = w.Write(img.manifest)
			return true
		}
		return false
	})
	_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	wantClass(t, err, Digest)
	_, err = testClient(t, Options{}).Resolve(t.Context(), s.host+"/a@"+other.String(), linuxAMD64)
	wantClass(t, err, Digest)
}

func TestNotFound(t *testing.T) {
	s := newServer(t, false)
	_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/nothing:1", linuxAMD64)
	if e := wantClass(t, err, NotFound); e.Ref != s.host+"/nothing:1" {
		t.Errorf("ref %q", e.Ref)
	}
}

func TestOfflineOpensNoSocket(t *testing.T) {
	s := newServer(t, false)
	c := testClient(t, Options{Offline: true})
	_, err := c.Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	wantClass(t, err, Offline)
	_, err = c.Blob(t.Context(), s.host+"/a", ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1})
	wantClass(t, err, Offline)
	wantClass(t, c.Push(t.Context(), s.host+"/a:1", newSample(t, "linux/amd64", 0, 0).push()), Offline)
	_, err = c.Login(t.Context(), s.host, "u", "p")
	wantClass(t, err, Offline)
	_, err = c.Head(t.Context(), s.host+"/a:1")
	wantClass(t, err, Offline)
	if got := s.requests(); len(got) != 0 {
		t.Errorf("requests %q", got)
	}
}

func TestRegistryDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = testClient(t, Options{}).Resolve(t.Context(), addr+"/a:1", linuxAMD64)
	if e := wantClass(t, err, Network); e.Hint == "" {
		t.Error("no hint")
	}
}

func TestCancelIsPrompt(t *testing.T) {
	s := newServer(t, false)
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	s.bend(func(w http.ResponseWriter, r *http.Request) bool { <-block; return true })
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("told to stop")
	time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
	start := time.Now()
	_, err := testClient(t, Options{}).Resolve(ctx, s.host+"/a:1", linuxAMD64)
	if !errors.Is(err, stop) || time.Since(start) > time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

func TestUploadIsRepeatedAfterACut(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 2_000_000)
	var cuts atomic.Int32
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") && r.ContentLength > 1_000_000 && cuts.Add(1) <= 2 {
			_, _ = io.CopyN(io.Discard, r.Body, 500_000)
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
			return true
		}
		return false
	})
	if err := testClient(t, Options{}).Push(t.Context(), s.host+"/a:1", img.push()); err != nil {
		t.Fatal(err)
	}
	s.bend(nil)
	got, err := readBlob(t, testClient(t, Options{}), s.host+"/a", img.descs[0])
	if err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Errorf("after the push: %v", err)
	}
}

func TestUploadReportsTheSourcesError(t *testing.T) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 100_000)
	broken := errors.New("disk on fire")
	p := img.push()
	opened := 0
	p.Layers[0].Open = func(context.Context) (io.ReadCloser, error) {
		opened++
		return io.NopCloser(io.MultiReader(bytes.NewReader(img.layers[0][:1000]), errReader{broken})), nil
	}
	err := testClient(t, Options{}).Push(t.Context(), s.host+"/a:1", p)
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if opened != 1 {
		t.Errorf("opened %d times; reading again does not help", opened)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestFailedPushLeavesTheTag(t *testing.T) {
	s := newServer(t, false)
	old := newSample(t, "linux/arm64", 1, 100)
	seed(t, s.host+"/a:1", old)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusInsufficientStorage)
			return true
		}
		return false
	})
	wantClass(t, testClient(t, Options{}).Push(t.Context(), s.host+"/a:1", newSample(t, "linux/amd64", 1, 100).push()), Network)
	s.bend(nil)
	im, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	if err != nil || im.Digest != old.digest() {
		t.Errorf("tag moved: %v", err)
	}
}

func TestReadOnlyHost(t *testing.T) {
	// A plain server that is no registry at all.
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>", http.StatusTeapot) }))
	t.Cleanup(s.Close)
	_, err := testClient(t, Options{}).Resolve(t.Context(), strings.TrimPrefix(s.URL, "http://")+"/a:1", linuxAMD64)
	wantClass(t, err, Network)
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), "application/json")
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"MANIFESTS":[],"config":{},"Config":null}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, raw []byte, said string) {
		doc, mt, err := parseDocument(raw, said)
		if err != nil {
			return
		}
		if isIndexType(mt) == isManifestType(mt) {
			t.Errorf("accepted as %q", mt)
		}
		if isIndexType(mt) && doc.Config != nil || isManifestType(mt) && (doc.Config == nil || doc.Manifests != nil) {
			t.Errorf("%s with the fields of another kind", mt)
		}
	})
}
