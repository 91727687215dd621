package store

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func someBytes(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	copy(b[n/3:], make([]byte, 100<<10)) // a hole
	return b
}

func TestDownloadGoesOn(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := someBytes(1 << 20)
	d := digest.FromBytes(data)
	for _, upto := range []int{400 << 10, 900 << 10} {
		w, err := s.NewDownload(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data[:upto]); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		f, n := s.Partial(d)
		if f == nil || n > int64(upto) || n < int64(upto)-bufferSize {
			t.Fatalf("%d bytes are kept of %d", n, upto)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || !bytes.Equal(got, data[:n]) {
			t.Fatalf("what is kept is something else (%v)", err)
		}
	}
	w, err := s.NewDownload(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := s.NewDownload(t.Context(), d); err != nil || other.part {
		t.Errorf("a second download of the same blob: %v, or it writes to the same file", err)
	} else {
		other.Abort()
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Commit(d); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.BlobPath(d)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the blob is something else (%v)", err)
	}
	if f, _ := s.Partial(d); f != nil {
		t.Error("the partial download is still there")
	}
}

// A partial download whose bytes are wrong must not be gone on with for ever.
func TestWrongDownloadIsNotKept(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := someBytes(1 << 20)
	d := digest.FromBytes(data)
	for _, n := range []int{500 << 10, 2 << 20} { // shorter than the blob, and longer
		w, err := s.NewDownload(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), n)); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if w, err = s.NewDownload(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		f, have := s.Partial(d)
		if f == nil {
			t.Fatal("nothing was kept")
		}
		rest := io.Reader(bytes.NewReader(data[min(int(have), len(data)):]))
		if _, err := io.Copy(w, io.MultiReader(f, rest)); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, _, err := w.Commit(d); err == nil {
			t.Fatal("a wrong blob was published")
		}
		if f, _ := s.Partial(d); f != nil {
			t.Fatal("what is wrong was kept")
		}
	}
}

func TestOldDownloadIsSwept(t *testing.T) {
	now := time.Now()
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := digest.FromString("far away")
	w, err := s.NewDownload(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(someBytes(1 << 20)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(partialAge + time.Hour)
	if n, err := s.sweepPartial(); n != 0 || err != nil {
		t.Errorf("%d removed that are being written, %v", n, err)
	}
	w.Abort()
	if n, err := s.sweepPartial(); n != 1 || err != nil {
		t.Errorf("%d removed, %v", n, err)
	}
	if f, _ := s.Partial(d); f != nil {
		t.Error("it is still there")
	}
}

// Partial downloads and logs are counted and collected, except for a download that somebody is at.
func TestCollectPartialDownloadsAndLogs(t *testing.T) {
	now := time.Now()
	s := openTest(t, Options{Now: func() time.Time { return now }})
	old := now.Add(-time.Hour)
	var blobs [][]byte
	for _, n := range []int{200 << 10, 300 << 10} {
		data := someBytes(n)
		blobs = append(blobs, data)
		w, err := s.NewDownload(t.Context(), digest.FromBytes(data))
		must(t, err)
		_, err = w.Write(data[:n/2])
		must(t, err)
		w.Abort()
		must(t, os.Chtimes(s.partialPath(digest.FromBytes(data)), old, old))
	}
	l, err := s.NewLog()
	must(t, err)
	_, err = l.Write(someBytes(10 << 10))
	must(t, err)
	log, err := l.Keep(now)
	must(t, err)
	must(t, os.Chtimes(log, old, old))

	v, err := s.Survey(t.Context(), nil, nil)
	must(t, err)
	kinds := map[Kind]int{}
	for _, e := range v.Entries {
		if e.Size > 0 {
			kinds[e.Ref.Kind]++
		}
	}
	if kinds[KindPartial] != 2 || kinds[KindLog] != 1 {
		t.Errorf("counted: %v", kinds)
	}

	busy := digest.FromBytes(blobs[1])
	w, err := s.NewDownload(t.Context(), busy)
	must(t, err)
	_, err = s.Collect(t.Context(), CollectOptions{Limited: true})
	must(t, err)
	if f, _ := s.Partial(digest.FromBytes(blobs[0])); f != nil {
		t.Error("the download that nobody is at is still there")
	}
	if _, err := os.Lstat(log); err == nil {
		t.Error("the log is still there")
	}
	_, err = w.Write(blobs[1])
	must(t, err)
	if _, _, err := w.Commit(busy); err != nil {
		t.Errorf("the download during which was collected: %v", err)
	}
	got, err := os.ReadFile(s.BlobPath(busy))
	if err != nil || !bytes.Equal(got, blobs[1]) {
		t.Errorf("its blob is something else (%v)", err)
	}
}
