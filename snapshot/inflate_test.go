package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// gzipOf is plain in two members, as pigz and others write.
func gzipOf(t *testing.T, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, part := range [][]byte{plain[:len(plain)/3], plain[len(plain)/3:]} {
		w := gzip.NewWriter(&b)
		_, err := w.Write(part)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// inflateBoth inflates a blob from its file, and while it is written, and returns what came.
func inflateBoth(t *testing.T, f *inflater, blob []byte, open func(rereader, int64) (*stream, error)) map[string]result {
	t.Helper()
	path := t.TempDir() + "/blob"
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	out := map[string]result{}
	for _, way := range []string{"whole", "growing"} {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var src rereader = &wholeBlob{File: file}
		if way == "growing" {
			marks, w := io.Pipe()
			go func() {
				grown := TellGrowth(w)
				for n := int64(0); n < int64(len(blob)); n += 1 << 20 {
					grown(n)
				}
				grown(int64(len(blob)))
			}()
			src = &growing{f: file, marks: marks, size: int64(len(blob))}
		}
		s, err := open(src, int64(len(blob)))
		var plain []byte
		if err == nil {
			plain, err = io.ReadAll(s)
			_ = s.Close()
		}
		out[way] = result{plain, err}
		file.Close()
	}
	return out
}

type result struct {
	plain []byte
	err   error
}

// Whatever a program does, a blob that can be inflated is, and the user is told once that the program was of no use.
func TestInflateByProgram(t *testing.T) {
	plain := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(plain)
	blob := gzipOf(t, plain)
	dir := t.TempDir()
	programs := map[string]struct {
		path  string
		fails string // a part of the warning
	}{}
	for _, name := range []string{"igzip", "unpigz"} {
		if path, err := exec.LookPath(name); err == nil {
			programs[name] = struct{ path, fails string }{path, ""}
		} else {
			t.Logf("%s is not installed: not tried", name)
		}
	}
	for name, s := range map[string]struct{ script, fails string }{
		"refuses":      {"echo no such option >&2; exit 2", "no such option"},
		"ends early":   {"/bin/gzip -dc 2>/dev/null | head -c 3000000", "stopped after"},
		"killed":       {"/bin/kill -9 $$", "killed"},
		"half, killed": {"/bin/gzip -dc | head -c 3000000; kill -9 $$", "killed"},
	} {
		path := dir + "/" + strings.ReplaceAll(name, " ", "-")
		if err := os.WriteFile(path, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+s.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		programs[name] = struct{ path, fails string }{path, s.fails}
	}
	programs["absent"] = struct{ path, fails string }{dir + "/absent", "no such file"}
	for name, p := range programs {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var warned []string
			f := &inflater{Inflate: Inflate{Program: p.path, Warn: func(text string) {
				mu.Lock()
				defer mu.Unlock()
				warned = append(warned, text)
			}}}
			var seen bytes.Buffer
			for way, got := range inflateBoth(t, f, blob, func(r rereader, size int64) (*stream, error) {
				seen.Reset()
				return f.plainOf(t.Context(), r, size, func(b []byte) error { seen.Write(b); return nil })
			}) {
				if got.err != nil || !bytes.Equal(got.plain, plain) {
					t.Errorf("%s: %d bytes, %v", way, len(got.plain), got.err)
				}
			}
			if !bytes.Equal(seen.Bytes(), plain) {
				t.Errorf("a stage saw %d other bytes", seen.Len())
			}
			if p.fails == "" && len(warned) > 0 || p.fails != "" && (len(warned) != 1 || !strings.Contains(warned[0], p.fails)) {
				t.Errorf("warnings %q, want one of %q", warned, p.fails)
			}
		})
	}
}

// A blob that nobody can inflate is not blamed on the program, and the error is the one that it always was.
func TestInflateBrokenBlob(t *testing.T) {
	program, err := exec.LookPath("igzip")
	if err != nil {
		t.Skip("igzip is not installed (package isal)")
	}
	plain := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(plain)
	blob := gzipOf(t, plain)
	for name, broken := range map[string][]byte{
		"truncated": blob[:len(blob)-1000],
		"checksum":  append(bytes.Clone(blob[:len(blob)-8]), 1, 2, 3, 4, 5, 6, 7, 8),
	} {
		f := &inflater{Inflate: Inflate{Program: program, Warn: func(text string) { t.Errorf("%s: warned: %s", name, text) }}}
		want := inflateBoth(t, f, broken, func(r rereader, _ int64) (*stream, error) { return plainStream(t.Context(), r) })
		got := inflateBoth(t, f, broken, func(r rereader, size int64) (*stream, error) { return f.plainOf(t.Context(), r, size) })
		for way := range want {
			if w, g := want[way].err, got[way].err; w == nil || g == nil || w.Error() != g.Error() {
				t.Errorf("%s, %s: %v, want %v", name, way, g, w)
			}
		}
	}
}

// A build that ends takes the program with it.
func TestInflateCanceled(t *testing.T) {
	dir := t.TempDir()
	program := dir + "/sleeper"
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec /bin/sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	f := &inflater{Inflate: Inflate{Program: program, Warn: func(text string) { t.Errorf("warned: %s", text) }}}
	ctx, cancel := context.WithCancelCause(t.Context())
	off := errors.New("called off")
	for way, got := range inflateBoth(t, f, gzipOf(t, make([]byte, 64<<20))[:60000], func(r rereader, size int64) (*stream, error) {
		s, err := f.plainOf(ctx, r, leastInflated)
		cancel(off)
		return s, err
	}) {
		if !errors.Is(got.err, off) {
			t.Errorf("%s: %v", way, got.err)
		}
	}
}
