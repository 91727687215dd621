package build

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// incompressible is content that is as large in a blob as it is.
func incompressible(n int) string {
	r := rand.New(rand.NewPCG(9, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// seedLarge pushes an image whose own layer is of 3 MB, and says which blob of the registry that is.
func (s *server) seedLarge(t testing.TB) (ref, blob string) {
	t.Helper()
	w := newWorld(t)
	ref = s.host + "/large:1"
	w.write("large", incompressible(3<<20))
	w.ok(from("FROM base\nCOPY large /large\n"), tags(ref), online, func(o *Options) { o.Push = true })
	s.requests()
	blobs, err := os.ReadDir(w.root + "/blobs/sha256")
	must(t, err)
	for _, b := range blobs {
		if fi, err := b.Info(); err == nil && fi.Size() > 3<<20 && fi.Size() < 3<<20+100<<10 {
			blob = b.Name()
		}
	}
	if blob == "" {
		t.Fatal("the layer was not found")
	}
	return ref, blob
}

// layersFetched lists the blobs of more than a configuration's size that were asked for.
func (s *server) layersFetched(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, r := range s.requests() {
		if strings.HasPrefix(r, "GET") && strings.Contains(r, "/blobs/") {
			out = append(out, r)
		}
	}
	return out
}

func noDirectories(t testing.TB, w *world) {
	t.Helper()
	if dirs, _ := filepath.Glob(w.root + "/local/*/dir/*"); len(dirs) > 0 {
		t.Errorf("layers were unpacked: %q", dirs)
	}
}

// A build that only changes the configuration, or links its files in, needs nothing of the layers of a base that go back
// to where they came from.
func TestLinkedCopyFetchesNoBase(t *testing.T) {
	s := newServer(t)
	ref, _ := s.seedLarge(t)
	w := newWorld(t)
	for i, text := range []string{"LABEL a=b", "ENV A=b\nCMD [\"x\"]", "COPY --link f /f", "COPY --link f /deep/er/\nADD --link f /g\nLABEL x=y"} {
		w.write("f", fmt.Sprint(i))
		s.requests()
		w.ok(from("FROM "+ref+"\n"+text+"\n"), online, tags(fmt.Sprintf("%s/copy%d:1", s.host, i)), func(o *Options) { o.Push = true })
		if got := s.layersFetched(t); len(got) > 1 || i > 0 && len(got) > 0 { // the configuration, once
			t.Errorf("%q fetched %q", text, got)
		}
	}
	noDirectories(t, w)
}

// A plain COPY reads each layer of the base once, for its index; with that, the layer is not needed again, even when it is
// no longer here.
func TestPlainCopyFetchesTheBaseOnce(t *testing.T) {
	s := newServer(t)
	ref, large := s.seedLarge(t)
	w := newWorld(t)
	push := func(name string) []mod {
		return []mod{from("FROM " + ref + "\nCOPY f /f\nWORKDIR /new\nADD f /g\n"), online, tags(s.host + "/" + name), func(o *Options) { o.Push = true }}
	}
	w.write("f", "1")
	w.ok(push("one:1")...)
	if got := s.layersFetched(t); !slices.ContainsFunc(got, func(r string) bool { return strings.Contains(r, large) }) {
		t.Errorf("fetched %q; the index of the base comes out of its blobs", got)
	}
	must(t, os.Remove(w.root+"/blobs/sha256/"+large))
	w.write("f", "2")
	w.ok(push("two:1")...)
	if got := s.layersFetched(t); len(got) > 0 {
		t.Errorf("with every index here, %q was fetched", got)
	}
	noDirectories(t, w)
}

// A build whose download ends early leaves what it got to the next, which asks for the rest alone.
func TestNextBuildGoesOnWithADownload(t *testing.T) {
	for _, text := range []string{"COPY f /f", "RUN cat /large >/dev/null"} {
		t.Run(text, func(t *testing.T) {
			if strings.HasPrefix(text, "RUN") {
				needIDs(t)
			}
			s := newServer(t)
			ref, large := s.seedLarge(t)
			w := newWorld(t)
			w.write("f", "f")
			df := from("FROM " + ref + "\n" + text + "\n")
			first := true
			var mu sync.Mutex
			var asked []string
			s.bend(func(w http.ResponseWriter, r *http.Request, inner http.Handler) bool {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, large) {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, r.Header.Get("Range"))
				if !first {
					http.Error(w, "gone", http.StatusNotFound)
					return true
				}
				first = false
				inner.ServeHTTP(&cutOff{w, 2 << 20}, r)
				return true
			})
			w.fails(ExitNetwork, []string{s.host}, df, online, tags("app"))
			s.bend(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				if strings.Contains(r.URL.Path, large) {
					mu.Lock()
					defer mu.Unlock()
					asked = append(asked, r.Header.Get("Range"))
				}
				return false
			})
			mu.Lock()
			asked = nil
			mu.Unlock()
			w.ok(df, online, tags("app"))
			var at int
			if len(asked) != 1 {
				t.Fatalf("the second build asked for %q", asked)
			}
			if _, err := fmt.Sscanf(asked[0], "bytes=%d-", &at); err != nil || at < 1<<20 {
				t.Errorf("the second build asked for %q; 2 MiB had come", asked)
			}
			w.sound()
		})
	}
}

// A layer that takes longer to unpack than to arrive is unpacked once all the same: the end of the download ends nothing else.
func TestLayerIsUnpackedOnce(t *testing.T) {
	needIDs(t)
	s := newServer(t)
	ref, _ := s.seedLarge(t)
	w := newWorld(t)
	must(t, os.WriteFile(killFile(w.root), []byte("late-holder index.temp 300"), 0o600)) // all is unpacked, the index is to be written
	w.ok(from("FROM "+ref+"\nRUN cat /large >/dev/null\n"), online, tags("app"))
	late, err := os.ReadFile(lateFile(w.root))
	must(t, err)
	dirs, err := filepath.Glob(w.root + "/local/*/dir/*")
	must(t, err)
	if indexes := strings.Count(string(late), "\n"); indexes != len(dirs) || len(dirs) < 2 {
		t.Errorf("the holder began %d indexes for the %d layers that it has as directories", indexes, len(dirs))
	}
}

// cutOff passes on the beginning of an answer and breaks the connection.
type cutOff struct {
	http.ResponseWriter
	left int
}

func (c *cutOff) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	c.ResponseWriter.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// What is left of a download may be wrong, after a loss of power for one: then it is downloaded again, which is told.
func TestWrongBeginningOfADownload(t *testing.T) {
	s := newServer(t)
	ref, large := s.seedLarge(t)
	w := newWorld(t)
	w.write("f", "f")
	w.ok(from("FROM scratch\nCOPY f /f\n")) // makes the store
	must(t, os.MkdirAll(w.root+"/partial", 0o700))
	must(t, os.WriteFile(w.root+"/partial/"+large, make([]byte, 1<<20), 0o600))
	_, rec := w.ok(from("FROM "+ref+"\nCOPY f /f\n"), online, tags("app"))
	if !slices.ContainsFunc(rec.warnings, func(text string) bool { return strings.Contains(text, "downloaded once more") }) {
		t.Errorf("warnings: %q", rec.warnings)
	}
	w.sound()
}
