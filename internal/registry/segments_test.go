package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// segmented is a client for which blobs of the samples are large, and a server that logs which parts were asked for.
func segmented(t *testing.T, fault func(w http.ResponseWriter, r *http.Request, data []byte) bool) (*Client, *server, *sample, func() []string) {
	s := newServer(t, false)
	img := newSample(t, "linux/amd64", 1, 1_000_000)
	seed(t, s.host+"/a:1", img)
	var mu sync.Mutex
	var asked []string
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, img.descs[0].Digest.String()) {
			return false
		}
		mu.Lock()
		asked = append(asked, r.Header.Get("Range"))
		mu.Unlock()
		return fault != nil && fault(w, r, img.layers[0])
	})
	c := testClient(t, Options{})
	c.many, c.segment = 500_000, 150_000
	return c, s, img, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
}

// part parses a Range header.
func part(t *testing.T, header string) (from, to int) {
	a, b, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	from, err1 := strconv.Atoi(a)
	to, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil {
		t.Errorf("a request for the range %q", header)
	}
	return from, to + 1
}

func TestLargeBlobComesInParts(t *testing.T) {
	c, s, img, asked := segmented(t, nil)
	got, err := readBlob(t, c, s.host+"/a", img.descs[0])
	if err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(img.layers[0]), err)
	}
	covered := make([]int, len(img.layers[0]))
	for _, r := range asked() {
		from, to := part(t, r)
		for i := from; i < to; i++ {
			covered[i]++
		}
	}
	if want := (len(got) + 149_999) / 150_000; len(asked()) != want || slices.Min(covered) != 1 || slices.Max(covered) != 1 {
		t.Errorf("parts asked for: %q; want %d that cover the blob once", asked(), want)
	}
}

func TestPartIsResumed(t *testing.T) {
	var once sync.Once
	c, s, img, asked := segmented(t, func(w http.ResponseWriter, r *http.Request, data []byte) (cutHere bool) {
		from, to := part(t, r.Header.Get("Range"))
		if from == 300_000 {
			once.Do(func() {
				cut(w, data[from:], "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(to-1)+"/"+strconv.Itoa(len(data))+
					"\r\nContent-Length: "+strconv.Itoa(to-from)+"\r\n\r\n", 70_000)
				cutHere = true
			})
		}
		return cutHere
	})
	got, err := readBlob(t, c, s.host+"/a", img.descs[0])
	if err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(img.layers[0]), err)
	}
	if !slices.Contains(asked(), "bytes=370000-449999") {
		t.Errorf("parts asked for: %q; the one that was cut should go on where it was", asked())
	}
}

func TestRegistryWithoutRanges(t *testing.T) {
	c, s, img, asked := segmented(t, func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		r.Header.Del("Range")
		return false
	})
	for range 2 {
		got, err := readBlob(t, c, s.host+"/a", img.descs[0])
		if err != nil || !bytes.Equal(got, img.layers[0]) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(img.layers[0]), err)
		}
	}
	if len(asked()) != 2 || asked()[1] != "" {
		t.Errorf("parts asked for: %q; want two requests, the second for everything", asked())
	}
}

// TestWrongPart is about a cache on the way that gives the bytes of another place: the blob is refused, and comes in one
// piece when it is asked for again.
func TestWrongPart(t *testing.T) {
	c, s, img, _ := segmented(t, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if r.Header.Get("Range") == "" {
			return false
		}
		from, to := part(t, r.Header.Get("Range"))
		if from != 450_000 {
			return false
		}
		w.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(to-1)+"/"+strconv.Itoa(len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[:to-from])
		return true
	})
	_, err := readBlob(t, c, s.host+"/a", img.descs[0])
	var mixed *MixedUpError
	if wantClass(t, err, Digest); !errors.As(err, &mixed) {
		t.Errorf("the error %v does not say that another try is worth it", err)
	}
	got, err := readBlob(t, c, s.host+"/a", img.descs[0])
	if err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Errorf("asked for again: %d bytes of %d, %v", len(got), len(img.layers[0]), err)
	}
}

func TestPartFromAnotherPlace(t *testing.T) {
	c, s, img, _ := segmented(t, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		from, to := part(t, r.Header.Get("Range"))
		if from == 0 {
			return false
		}
		w.Header().Set("Content-Range", "bytes 0-"+strconv.Itoa(to-from-1)+"/"+strconv.Itoa(len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[:to-from])
		return true
	})
	_, err := readBlob(t, c, s.host+"/a", img.descs[0])
	wantClass(t, err, Network)
}

// TestPartsGivenUp closes a blob in the middle: nothing may hang, and the buffers are there for the next.
func TestPartsGivenUp(t *testing.T) {
	c, s, img, _ := segmented(t, nil)
	for range 2 * segmentsAhead {
		r, err := c.Blob(t.Context(), s.host+"/a", img.descs[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 200_000); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	h, err := c.host(s.host)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(h.ahead); n != segmentsAhead {
		t.Errorf("%d of %d buffers came back", n, segmentsAhead)
	}
}
