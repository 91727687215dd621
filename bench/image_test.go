package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// layerOf makes a layer: "name" is a file with that content, "name/" a directory, "name -> to" a symbolic link and
// "name => to" a hard link.
func layerOf(t *testing.T, entries ...string) (blob []byte, diffID string) {
	t.Helper()
	var plain, small bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e, Mode: 0o644, Size: int64(len(e))}
		if name, to, ok := strings.Cut(e, " -> "); ok {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
		} else if name, to, ok := strings.Cut(e, " => "); ok {
			h = &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
		} else if strings.HasSuffix(e, "/") {
			h = &tar.Header{Typeflag: tar.TypeDir, Name: e, Mode: 0o755}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&small)
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return small.Bytes(), fmt.Sprintf("sha256:%x", sha256.Sum256(plain.Bytes()))
}

// imageOf writes an image as skopeo's "dir:" does.
func imageOf(t *testing.T, layers ...[]string) *image {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var blobs, diffIDs []string
	for _, entries := range layers {
		blob, id := layerOf(t, entries...)
		name := fmt.Sprintf("%x", sha256.Sum256(blob))
		write(name, blob)
		blobs, diffIDs = append(blobs, `{"digest":"sha256:`+name+`"}`), append(diffIDs, `"`+id+`"`)
	}
	write("config", []byte(`{"rootfs":{"diff_ids":[`+strings.Join(diffIDs, ",")+`]}}`))
	write("manifest.json", []byte(`{"config":{"digest":"sha256:config"},"layers":[`+strings.Join(blobs, ",")+`]}`))
	im, err := readImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestFlatten(t *testing.T) {
	fs, err := imageOf(t,
		[]string{"a/", "a/one", "a/two", "b/", "b/x", "b/sub/", "b/sub/y", "c", "l -> a/one", "gone/", "gone/deep"},
		[]string{"a/", "a/.wh.one", "b/", "b/.wh..wh..opq", "b/new", "h => b/new", "h2 => c", ".wh.gone", "a/two"},
	).flatten()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range fs {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"a", "a/two", "b", "b/new", "c", "h", "h2", "l"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if fs["h"] != fs["b/new"] || fs["h2"] != fs["c"] || fs["c"] == fs["b/new"] {
		t.Errorf("hard links: %v", fs)
	}
}

func TestFlattenRefusesAnotherDiffID(t *testing.T) {
	im := imageOf(t, []string{"a"})
	im.diffIDs[0] = "sha256:00"
	if _, err := im.flatten(); err == nil || !strings.Contains(err.Error(), "diff ID") {
		t.Errorf("error %v", err)
	}
}

func TestDifferences(t *testing.T) {
	of := func(entries ...string) rootfs {
		fs, err := imageOf(t, entries).flatten()
		if err != nil {
			t.Fatal(err)
		}
		return fs
	}
	a := of("same", "only", "etc/hosts", "l -> x")
	if diff := differences(a, of("same", "l -> y", "run/x", "more"), false); len(diff) != 3 {
		t.Errorf("differences %q, want those of only, l and more", diff)
	}
	b := rootfs{"same": strings.Replace(a["same"], " 4 ", " 4 00", 1), "only": a["only"], "l": a["l"]}
	if len(differences(a, b, false)) != 1 || len(differences(a, b, true)) != 0 {
		t.Errorf("contents: %q, at random %q", differences(a, b, false), differences(a, b, true))
	}
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	blob, _ := layerOf(t, "a/", "a/file", "b/implied/file", "l -> a/file", "h => a/file", "../escape")
	file := filepath.Join(dir, "blob")
	if err := os.WriteFile(file, blob, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := probe(filepath.Join(dir, "out"), []string{file, file, file}); err != nil {
		t.Fatal(err)
	}
	for _, layer := range []string{"0", "1", "2"} {
		for name, want := range map[string]string{"a/file": "a/file", "b/implied/file": "b/implied/file", "l": "a/file", "h": "a/file", "escape": "../escape"} {
			if got, err := os.ReadFile(filepath.Join(dir, "out", layer, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	if err := probe(filepath.Join(dir, "again"), []string{filepath.Join(dir, "none")}); err == nil {
		t.Error("no error for a blob that is not there")
	}
}
