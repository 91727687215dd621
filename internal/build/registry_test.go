package build

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/platforms"
	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"build/internal/store"
)

// server is an in-process registry whose answers a test can bend.
type server struct {
	*httptest.Server
	host string

	mu    sync.Mutex
	seen  []string
	fault func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool // true: answered
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path)
		fault := s.fault
		s.mu.Unlock()
		if fault != nil && fault(w, r, inner) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *server) bend(f func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// requests returns what was asked for so far, and forgets it.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.seen = nil }()
	return s.seen
}

// lie lets requests whose path contains word get what the registry has, changed.
func lie(word string, change func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) bool {
	return func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, word) {
			return false
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		body := change(bytes.Clone(rec.Body.Bytes()))
		for k, v := range rec.Header() {
			if k != "Content-Length" {
				w.Header()[k] = v
			}
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
		return true
	}
}

func online(o *Options) { o.Store.Offline = false }

// seed pushes busybox and something of our own to the registry.
func (s *server) seed(t testing.TB) (ref string) {
	t.Helper()
	w := newWorld(t)
	ref = s.host + "/base:1"
	w.write("seed", "seed")
	w.ok(from("FROM base\nCOPY seed /seed\n"), tags(ref), online, func(o *Options) { o.Push = true })
	s.requests()
	return ref
}

// --push beside an output that is no image pushes the image, and it is in the store as well.
func TestPushBesideFiles(t *testing.T) {
	s := newServer(t)
	w := newWorld(t)
	ref := s.host + "/beside:1"
	res, _ := w.ok(from("FROM base\n"), tags(ref), online, output(Output{Type: OutputLocal, Dest: w.tmp + "/out"}), func(o *Options) { o.Push = true })
	if res.Digest == "" || !slices.ContainsFunc(s.requests(), func(r string) bool { return strings.Contains(r, "PUT") && strings.Contains(r, "/manifests/1") }) {
		t.Errorf("nothing was pushed: %q", res.Digest)
	}
	if images, err := Images(t.Context(), StoreOptions{Root: w.root}); err != nil || len(images) != 1 {
		t.Errorf("the store has %v, %v", images, err)
	}
}

// An image that is here is not the reason when --pull must not ask.
func TestPullOffline(t *testing.T) {
	s := newServer(t)
	ref := s.seed(t)
	w := newWorld(t)
	df := from("FROM " + ref + "\n")
	w.ok(df, online)
	w.fails(ExitNetwork, []string{"--pull asks", "--offline"}, df, func(o *Options) { o.Pull = PullAlways })
}

// A digest stands for an image in tag and rmi, and for all its names when they are removed.
func TestImagesByDigest(t *testing.T) {
	w := newWorld(t)
	at := StoreOptions{Root: w.root}
	res, _ := w.ok(from("FROM base\n"), tags("app:1", "app:2"))
	w.ok(from("FROM base\nLABEL a=b\n"), tags("other"))
	digits := strings.TrimPrefix(res.Digest, "sha256:")
	must(t, Tag(t.Context(), at, digits[:12], "new"))
	must(t, Tag(t.Context(), at, res.Digest, "new2"))
	if err := Tag(t.Context(), at, digits[:11], "new3"); err == nil {
		t.Error("too few digits stand for an image")
	}
	removed, err := Remove(t.Context(), at, []string{res.Digest})
	if want := []string{"app:1", "app:2", "new2:latest", "new:latest"}; err != nil || !slices.Equal(slices.Sorted(slices.Values(removed)), want) {
		t.Errorf("removed %q, %v; want %q", removed, err, want)
	}
	if images, err := Images(t.Context(), at); err != nil || len(images) != 1 {
		t.Errorf("left: %v, %v", images, err)
	}
}

// A name that is known for several platforms is removed with all of them.
func TestRemoveEveryPlatform(t *testing.T) {
	s := newServer(t)
	w := newWorld(t)
	w.write("f", "f")
	ref := s.host + "/several:1"
	both := platformsOfBuild(platforms.MustParse("linux/amd64"), platforms.MustParse("linux/arm64"))
	w.ok(from("FROM scratch\nCOPY f /\n"), tags(ref), online, both, func(o *Options) { o.Push = true })
	other := newWorld(t)
	at := StoreOptions{Root: other.root}
	other.write("g", "g")
	other.ok(from("FROM "+ref+"\nCOPY g /\n"), online, both)
	if images, err := Images(t.Context(), at); err != nil || len(images) != 2 {
		t.Fatalf("pulled: %v, %v", images, err)
	}
	removed, err := Remove(t.Context(), at, []string{ref})
	if err != nil || !slices.Equal(removed, []string{ref}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if images, err := Images(t.Context(), at); err != nil || len(images) != 0 {
		t.Errorf("left: %v, %v", images, err)
	}
}

// What is cached needs neither the registry nor the base's bytes.
func TestCachedWithoutTheRegistry(t *testing.T) {
	needIDs(t)
	s := newServer(t)
	ref := s.seed(t)
	w, y := newWorld(t), newTally(t)
	df := from(fmt.Sprintf("FROM %s\nRUN %s\n", ref, y.get("run")))
	none := output(Output{Type: OutputNone})
	w.ok(df, online, none)
	y.want(t, "pulled", map[string]int{"/run": 1})
	if n := len(s.requests()); n == 0 {
		t.Fatal("nothing was asked of the registry")
	}
	_, rec := w.ok(df, online, none)
	if got := s.requests(); len(got) > 0 {
		t.Errorf("a cached build asked for %q", got)
	}
	if !slices.ContainsFunc(rec.messages, func(m string) bool { return strings.Contains(m, "pulled") && strings.Contains(m, "--pull") }) {
		t.Errorf("nothing says where the base is from: %q", rec.messages)
	}
	// The bytes of the base are gone, and so is the registry: a hit still touches neither.
	w.loseLayers(t)
	s.Close()
	res, _ := w.ok(df, online, none)
	y.want(t, "everything above is gone", map[string]int{})
	if res.Ran != 0 || res.Cached == 0 {
		t.Errorf("%d ran, %d cached", res.Ran, res.Cached)
	}
	// Asked for an image with all its bytes, it says which registry is missing.
	w.fails(ExitNetwork, []string{s.host, "refused"}, df, online, tags("full:1"))
}

// loseLayers removes the bytes, indexes and directories of all layers that can be pulled again.
func (w *world) loseLayers(t testing.TB) {
	t.Helper()
	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	defer st.Close()
	n := 0
	for k, rec := range w.records(t) {
		_ = k
		for _, d := range rec.Layers[:rec.Base] {
			n++
			_ = os.Remove(st.IndexPath(d.String()))
			_ = os.Remove(st.BlobPath(d))
		}
	}
	blobs, err := os.ReadDir(w.root + "/blobs/sha256")
	must(t, err)
	for _, b := range blobs {
		if fi, err := b.Info(); err == nil && fi.Size() > 500<<10 {
			must(t, os.Remove(w.root+"/blobs/sha256/"+b.Name()))
			n++
		}
	}
	if n == 0 {
		t.Fatal("no layer was lost")
	}
	w.moveDirsAway(t)
}

// Only the platform's manifest and configuration are fetched when nothing needs the layers.
func TestNoLayerIsPulledForNothing(t *testing.T) {
	s := newServer(t)
	ref := s.seed(t)
	w := newWorld(t)
	w.ok(from("FROM "+ref+"\nLABEL a=b\n"), online, output(Output{Type: OutputNone}))
	blobs := 0
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "GET") && strings.Contains(r, "/blobs/") {
			blobs++
		}
	}
	if blobs != 1 {
		t.Errorf("%d blobs were fetched, want the configuration alone", blobs)
	}
	// Pushed to another name of the same registry, the layers are mounted there or found, not carried through here.
	w.ok(from("FROM "+ref+"\nLABEL a=b\n"), online, tags(s.host+"/copy:1"), func(o *Options) { o.Push = true })
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "GET") && strings.Contains(r, "/blobs/") {
			t.Errorf("a push within a registry fetched %s", r)
		}
	}
}

// Every way in which a registry can fail is said with its name and class, is no fault of the store, and is forgotten when
// the registry is well again.
func TestRegistryFaults(t *testing.T) {
	needIDs(t)
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	status := func(code int) func(http.ResponseWriter, *http.Request, http.Handler) bool {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if code == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			}
			http.Error(w, "no", code)
			return true
		}
	}
	s := newServer(t)
	ref := s.seed(t)
	cases := []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request, http.Handler) bool
		code  int
		words []string
	}{
		{"unauthorized", status(401), ExitAuth, []string{s.host, "build login"}},
		{"forbidden", status(403), ExitAuth, []string{s.host}},
		{"not found", status(404), ExitNetwork, []string{"base:1"}},
		{"manifest is no manifest", lie("/manifests/", func([]byte) []byte { return []byte("{}") }), ExitNetwork, []string{s.host}},
		{"every blob lies", lie("/blobs/", flip), ExitNetwork, []string{s.host, "sha256:"}},
		{"blobs are cut", lie("/blobs/", func(b []byte) []byte { return b[:len(b)/2] }), ExitNetwork, []string{s.host}},
		{"layers lie", func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool {
			return lie("/blobs/", func(b []byte) []byte {
				if len(b) > 100<<10 {
					return flip(b)
				}
				return b
			})(w, r, inner)
		}, ExitNetwork, []string{s.host, "sha256:"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			df := from("FROM " + ref + "\nRUN cat /seed > /copy\n")
			s.bend(c.fault)
			text := w.fails(c.code, append(c.words, "Dockerfile:1"), df, online, tags("app"))
			s.bend(nil)
			if c.code == ExitNetwork && strings.Contains(text, "report it") {
				t.Errorf("a registry's fault is called ours: %s", text)
			}
			w.sound()
			w.ok(df, online, tags("app"))
		})
	}
}

// A configuration that lies about what its layers hold is found out before a step stands on them.
func TestImageWhoseConfigLies(t *testing.T) {
	needIDs(t)
	for _, df := range []string{"RUN true", "COPY f /bin/", "LABEL a=b"} {
		t.Run(df, func(t *testing.T) {
			w := newWorld(t)
			w.write("f", "f")
			layout := w.lyingLayout(t)
			mods := []mod{from("FROM lying\n" + df + "\n"), tags("app:1"), func(o *Options) {
				o.NamedContexts = []KeyValue{{"lying", "oci-layout://" + layout}}
			}}
			if df == "LABEL a=b" { // nobody looks inside: the image goes on as it came
				w.ok(mods...)
				return
			}
			w.fails(ExitNetwork, []string{"FROM lying", "diffID"}, mods...)
		})
	}
}

func TestRegistryDownOrUnknown(t *testing.T) {
	w := newWorld(t)
	addr := freePort(t)
	w.fails(ExitNetwork, []string{"Dockerfile:1", addr, "refused"}, from("FROM "+addr+"/x:1\n"), online)
	w.fails(ExitNetwork, []string{"Dockerfile:2", "example.invalid/x:1", "--offline"}, from("# comment\nFROM example.invalid/x:1\n"))
	w.fails(ExitNetwork, []string{"example.invalid/x:1", "--pull=never"}, from("FROM example.invalid/x:1\n"), online, func(o *Options) { o.Pull = PullNever })
}

// A push that fails says so, and the image is still whole in the store.
func TestPushFails(t *testing.T) {
	s := newServer(t)
	w := newWorld(t)
	w.write("f", "f")
	s.bend(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return false
		}
		http.Error(w, `{"errors":[{"code":"DENIED","message":"read-only"}]}`, http.StatusForbidden)
		return true
	})
	push := func(o *Options) { o.Push = true }
	w.fails(ExitAuth, []string{s.host, "read-only"}, from("FROM base\nCOPY f /\n"), online, push, tags(s.host+"/app:1"))
	s.bend(nil)
	w.ok(from("FROM base\nCOPY f /\n"), online, push, tags(s.host+"/app:1"))
	// What was pushed can be built on from another store.
	o := newWorld(t)
	o.ok(from("FROM "+s.host+"/app:1\nCOPY --from="+s.host+"/app:1 /f /g\n"), online, tags("x"))
}
