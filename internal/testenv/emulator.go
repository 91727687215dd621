package testenv

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Emulators returns the directory of the emulators that testdata/setup/emulators.sh brought. They are registered nowhere.
func Emulators(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(CacheDir(), "emulators")
	if _, err := os.Stat(dir); err != nil {
		Skip(t, "emulators in "+dir)
	}
	return dir
}

// FileOf returns the content of a file of a prepared base image, by its path without a slash before it.
func FileOf(t testing.TB, base, path string) []byte {
	t.Helper()
	layers, err := layersOf(Base(t, base))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		data, err := fileIn(l, path)
		if err == nil {
			return data
		}
		if !errors.Is(err, io.EOF) {
			t.Fatalf("%s: %v", l, err)
		}
	}
	t.Fatalf("base image %s has no file %s", base, path)
	return nil
}

// fileIn reads a file of a compressed layer; io.EOF when it is not there.
func fileIn(layer, path string) ([]byte, error) {
	f, err := os.Open(layer)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err != nil {
			return nil, err
		}
		if filepath.Clean(h.Name) == path && h.Typeflag == tar.TypeReg {
			return io.ReadAll(r)
		}
	}
}
