package store

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

var oddKeys = []string{"a", "sha256:0123", "docker.io/library/debian:12 linux/arm64", "..", ".", "../../etc/passwd", "A", "new\nline", "\x00\xff", "=x", strings.Repeat("k", 300), "a..", ".hidden"}

func TestSmallFiles(t *testing.T) {
	s := openTest(t, Options{})
	for _, kind := range []Kind{KindRecord, KindLink, KindLayer, KindText} {
		for i, key := range oddKeys {
			if _, err := s.Read(kind, key); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s %q before it was written: %v", kind, key, err)
			}
			for _, data := range [][]byte{nil, []byte("first\n"), randomBytes(uint64(i), 5000)} {
				must(t, s.Write(kind, key, data))
				if got, err := s.Read(kind, key); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%s %q: got %d bytes, %v", kind, key, len(got), err)
				}
			}
		}
		var keys []string
		for it, err := range s.List(kind) {
			must(t, err)
			keys = append(keys, it.Key)
		}
		want := slices.Clone(oddKeys)
		slices.Sort(want)
		slices.Sort(keys)
		if !slices.Equal(keys, want) {
			t.Errorf("list of %s: %q", kind, keys)
		}
		for _, key := range oddKeys {
			must(t, s.Remove(kind, key))
			must(t, s.Remove(kind, key))
		}
	}
	// Nothing may have been written outside the directories of the kinds.
	_ = filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if rel := s.rel(path); err == nil && path != s.dir && strings.Count(rel, "/") > 2 && !strings.HasPrefix(rel, tmpDir) {
			t.Errorf("stray file %s", rel)
		}
		return nil
	})
	if err := s.Write(KindIndex, "../x", nil); err == nil {
		t.Error("an index was written outside its place")
	}
	if err := s.Write(KindBlob, "x", nil); err == nil {
		t.Error("a blob was written as a small file")
	}
}

// Whatever happens to one byte of a small file, or to its end, it never reads as something else.
func TestSmallFileDamage(t *testing.T) {
	s := openTest(t, Options{})
	const key = "k"
	data := []byte("what it says\nand more\n")
	must(t, s.Write(KindRecord, key, data))
	path := s.filePath(KindRecord, key)
	whole, err := os.ReadFile(path)
	must(t, err)
	try := func(b []byte, what string) {
		t.Helper()
		must(t, os.WriteFile(path, b, 0o600))
		got, err := s.Read(KindRecord, key)
		var damaged *DamagedError
		if !errors.As(err, &damaged) {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
	}
	for i := range whole {
		for _, x := range []byte{1, 0x20, 0x80} {
			b := bytes.Clone(whole)
			b[i] ^= x
			try(b, "changed byte")
		}
		try(whole[:i], "cut off")
	}
	try(append(bytes.Clone(whole), 0), "longer")
	try(make([]byte, len(whole)), "zeros")

	must(t, s.Write(KindRecord, "other", data))
	b, err := os.ReadFile(s.filePath(KindRecord, "other"))
	must(t, err)
	try(b, "another's file")
	must(t, s.Remove(KindRecord, key))
}

func TestTouchAtMostHourly(t *testing.T) {
	s := openTest(t, Options{})
	must(t, s.Write(KindRecord, "k", []byte("x")))
	path := s.filePath(KindRecord, "k")
	for ago, touched := range map[time.Duration]bool{30 * time.Minute: false, 2 * time.Hour: true, -2 * time.Hour: true, -time.Minute: false} {
		age(t, path, ago)
		before, _ := os.Stat(path)
		_, err := s.Read(KindRecord, "k")
		must(t, err)
		after, _ := os.Stat(path)
		if got := !after.ModTime().Equal(before.ModTime()); got != touched {
			t.Errorf("last used %v ago: touched is %v", ago, got)
		}
	}
}

func TestCreateIndex(t *testing.T) {
	s := openTest(t, Options{})
	w, err := s.Create(context.Background(), KindIndex)
	must(t, err)
	for range 3 {
		_, err = w.Write([]byte("part"))
		must(t, err)
	}
	must(t, w.Commit("sha256:ab"))
	w.Abort()
	if b, err := os.ReadFile(s.IndexPath("sha256:ab")); err != nil || string(b) != "partpartpart" {
		t.Errorf("got %q, %v", b, err)
	}
	if b, err := s.Read(KindIndex, "sha256:ab"); err != nil || string(b) != "partpartpart" {
		t.Errorf("got %q, %v", b, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w, err = s.Create(ctx, KindIndex)
	must(t, err)
	cancel()
	if _, err := w.Write([]byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("write after the end: %v", err)
	}
	w.Abort()
	if err := w.Commit("sha256:cd"); err == nil {
		t.Error("committed after Abort")
	}
}

func FuzzUnseal(f *testing.F) {
	f.Add([]byte("build-store 1 record \"k\" 0 00000000\n"))
	f.Add(seal(KindRecord, "k", []byte("data")))
	f.Add(seal(KindRecord, "odd\nkey\xff", nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, data, err := unseal(KindRecord, b)
		if err == nil && !bytes.Equal(seal(KindRecord, key, data), b) {
			t.Errorf("%q was read as %q %q", b, key, data)
		}
	})
}

func TestBlob(t *testing.T) {
	s := openTest(t, Options{})
	ctx := context.Background()
	data := randomBytes(1, 200_000)
	w, err := s.NewBlob(ctx)
	must(t, err)
	for rest := data; len(rest) > 0; {
		n := min(1+rand.IntN(3000), len(rest))
		_, err := w.Write(rest[:n])
		must(t, err)
		rest = rest[n:]
	}
	want := digest.FromBytes(data)
	if s.HasBlob(want, -1) {
		t.Error("there before it was committed")
	}
	d, size, err := w.Commit("")
	must(t, err)
	if d != want || size != int64(len(data)) {
		t.Errorf("got %s, %d", d, size)
	}
	if got, err := readBlob(s, d); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if !s.HasBlob(d, size) || !s.HasBlob(d, -1) || s.HasBlob(d, size-1) {
		t.Error("HasBlob")
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after Commit: %v", err)
	}

	w, err = s.NewBlob(ctx)
	must(t, err)
	_, err = w.Write([]byte("other"))
	must(t, err)
	_, _, err = w.Commit(want)
	var wrong *WrongDigestError
	if !errors.As(err, &wrong) || wrong.Got != digest.FromString("other") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []digest.Digest{"", "x", "sha256:../../../etc/passwd", "sha256:" + digest.Digest(strings.Repeat("A", 64)), "sha512:" + digest.Digest(strings.Repeat("a", 128))} {
		if _, err := s.OpenBlob(bad, -1); err == nil || s.HasBlob(bad, -1) || s.BlobPath(bad) != "" {
			t.Errorf("%q passed for a digest", bad)
		}
	}
	must(t, s.Close())
	if left, _ := os.ReadDir(s.path(tmpDir)); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// What was written before the system stopped, and not flushed, is hashed before it is believed.
func TestBlobAfterAnotherBoot(t *testing.T) {
	s := openTest(t, Options{})
	good, bad, flushed := mustBlob(t, s, []byte("good")), mustBlob(t, s, []byte("bad!")), mustBlob(t, s, []byte("flushed"))
	next := func() *Store {
		c := &Store{dir: s.dir, opts: s.opts, boot: boot{id: "another-" + randomName()}}
		t.Cleanup(func() { c.Close() })
		return c
	}
	must(t, os.WriteFile(s.BlobPath(bad), []byte("BAD!"), 0o600))
	if !s.HasBlob(bad, 4) {
		t.Error("hashed although this system wrote it: that is what the mark is for")
	}
	n := next()
	if !n.HasBlob(good, 4) || n.HasBlob(bad, 4) {
		t.Error("after another start: the good one should be believed and the bad one not")
	}
	if _, err := n.OpenBlob(bad, 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	// It is made again in its place.
	mustBlob(t, n, []byte("bad!"))
	if !n.HasBlob(bad, 4) {
		t.Error("made again and not believed")
	}
	must(t, s.Sync())
	if fi, _ := os.Stat(s.BlobPath(flushed)); fi.Mode().Perm() != sealedMode {
		t.Errorf("not sealed: %v", fi.Mode())
	}
	must(t, os.WriteFile(s.BlobPath(good)+".x", nil, 0o600)) // a name that is no digest must not disturb
	must(t, os.Remove(s.BlobPath(good)+".x"))
	must(t, next().Sync())
	if !next().HasBlob(flushed, 7) {
		t.Error("sealed and not believed")
	}
	mustBlob(t, s, []byte("flushed")) // again: stays sealed
	if fi, _ := os.Stat(s.BlobPath(flushed)); fi.Mode().Perm() != sealedMode {
		t.Errorf("unsealed: %v", fi.Mode())
	}
}

func TestStamp(t *testing.T) {
	s := openTest(t, Options{})
	before, err := s.Stamp()
	must(t, err)
	must(t, s.Sync())
	after, err := s.Stamp()
	must(t, err)
	other := &Store{dir: s.dir, opts: s.opts, boot: boot{id: "another"}}
	for _, tc := range []struct {
		s     *Store
		stamp string
		want  bool
	}{
		{s, before, true}, {s, after, true},
		{other, before, true}, {other, after, false},
		{s, "", false}, {s, "x", false}, {s, "../.. 5", false}, {s, "elsewhere 5", false}, {other, strings.Fields(before)[0] + " -5", false},
	} {
		if got := tc.s.Trusts(tc.stamp); got != tc.want {
			t.Errorf("boot %s trusts %q: %v", tc.s.boot.id, tc.stamp, got)
		}
	}
}

func TestDirMarker(t *testing.T) {
	s := openTest(t, Options{})
	_, err := s.MakeLocal("root")
	must(t, err)
	dir := s.DirPath("root", "k")
	must(t, os.MkdirAll(dir+"/"+ContentDir, 0o700))
	if s.DirReady("root", "k") {
		t.Error("ready without a marker")
	}
	must(t, s.MarkDir("root", "k", 1000))
	if !s.DirReady("root", "k") {
		t.Error("not ready")
	}
	if s.DirReady("other", "k") {
		t.Error("ready under another mapping")
	}
	must(t, os.Rename(dir+"/"+ContentDir, dir+"/old"))
	must(t, os.Mkdir(dir+"/"+ContentDir, 0o700))
	if s.DirReady("root", "k") {
		t.Error("ready although it is a copy")
	}
	must(t, os.RemoveAll(dir))
	for _, bad := range []string{"", "..", "a/b"} {
		if _, err := s.MakeLocal(bad); err == nil {
			t.Errorf("made local/%s", bad)
		}
	}
}
