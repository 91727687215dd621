package buildctx

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What would be left out is what OpenDir leaves out: the first file of a walk, exceptions and all.
func TestWouldIgnore(t *testing.T) {
	for _, c := range []struct{ rules, specific, file, by string }{
		{"", "", "", ""},
		{"none\n", "", "", ""},
		{"d\n!d/keep\n", "", "d/sub/x", ".dockerignore"},
		{"**/x\n", "", "d/sub/x", ".dockerignore"},
		{"*\n!d\nd/sub\n!d/sub/x\n", "", ".dockerignore", ".dockerignore"},
		{"z\n", "d/keep\n", "d/keep", "sub.df.dockerignore"},
		{"z\n", "none\n", "", ""},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"d/keep": "1", "d/sub/x": "2", "z": "3", ".dockerignore": c.rules, "sub.df.dockerignore": c.specific} {
			if text == "" {
				continue
			}
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d, err := OpenDir(dir, DirOptions{NoIgnore: true})
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.WouldIgnore(filepath.Join(dir, "sub.df.dockerignore"))
		if err != nil {
			t.Fatal(err)
		}
		if got == nil {
			got = &Unapplied{}
		}
		if got.File != c.file || got.Rules != c.by {
			t.Errorf("%q, %q: %+v, want %s by %s", c.rules, c.specific, got, c.file, c.by)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNewestInArchive(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for _, h := range []*tar.Header{
		{Name: "a", Typeflag: tar.TypeReg, ModTime: time.Unix(100, 0)}, {Name: "b", Typeflag: tar.TypeReg, ModTime: time.Unix(300, 0)},
		{Name: "dir", Typeflag: tar.TypeDir, ModTime: time.Unix(900, 0)}, {Name: "c", Typeflag: tar.TypeReg, ModTime: time.Unix(200, 0)},
	} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	tw.Close()
	z.Close()
	got, err := NewestInArchive(context.Background(), bytes.NewReader(b.Bytes()))
	if err != nil || got == nil || got.Unix() != 300 {
		t.Errorf("%v %v", got, err)
	}
	for _, text := range []string{"", "no archive", b.String()[:b.Len()/2]} {
		if got, err := NewestInArchive(context.Background(), bytes.NewReader([]byte(text))); got != nil || err != nil {
			t.Errorf("%.10q: %v %v", text, got, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewestInArchive(ctx, bytes.NewReader(b.Bytes())); err == nil {
		t.Error("not canceled")
	}
}
