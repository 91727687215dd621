package testenv

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unpackedDir is where, below CacheDir, base images lie as directories.
const unpackedDir = ".unpacked"

// Unpacked returns the directory of a prepared base image, unpacked with its owners. It is shared by all tests, now and later:
// nobody may change it.
func Unpacked(t testing.TB, name string) string {
	t.Helper()
	Root(t)
	return unpacked(t, name)
}

func unpacked(t testing.TB, name string) string {
	t.Helper()
	layout := Base(t, name)
	layers, err := layersOf(layout)
	if err != nil {
		t.Fatalf("read %s: %v", layout, err)
	}
	// Named by its uppermost layer: the base made anew is another one.
	parent := filepath.Join(CacheDir(), unpackedDir)
	dir := filepath.Join(parent, name+"-"+filepath.Base(layers[len(layers)-1])[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(parent, ".tmp-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		out, err := exec.Command(Tool(t, "tar"), "-C", tmp, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-xpf", l).CombinedOutput()
		if err != nil {
			t.Fatalf("unpack %s: %v: %s", l, err, out)
		}
	}
	// Whoever comes first wins; the directories are the same.
	if err := os.Rename(tmp, dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// layersOf returns the files of a layout's layers, lowest first. The prepared bases delete nothing of what they stand on, so
// that unpacking is all there is to do.
func layersOf(layout string) ([]string, error) {
	type descriptor struct {
		Digest string `json:"digest"`
	}
	var index struct{ Manifests []descriptor }
	var manifest struct{ Layers []descriptor }
	blob := func(digest string) string {
		return filepath.Join(layout, "blobs", strings.Replace(digest, ":", string(filepath.Separator), 1))
	}
	read := func(file string, v any) error {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, v)
	}
	if err := read(filepath.Join(layout, "index.json"), &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%d images, want 1", len(index.Manifests))
	}
	if err := read(blob(index.Manifests[0].Digest), &manifest); err != nil {
		return nil, err
	}
	if len(manifest.Layers) == 0 {
		return nil, fmt.Errorf("an image without layers")
	}
	var out []string
	for _, l := range manifest.Layers {
		out = append(out, blob(l.Digest))
	}
	return out, nil
}
