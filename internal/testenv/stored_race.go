//go:build race

package testenv

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// stored returns a copy of an OCI layout whose gzip streams are not compressed, which is made once. Nearly every test starts from
// such a base, and under the race detector inflating it took a third of their time. The other passes read the real one.
func stored(t testing.TB, layout string) string {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(layout), ".stored", digest.FromBytes(index).Encoded()[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return layout // somebody else's
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return layout
	}
	defer os.RemoveAll(tmp)
	c := copier{from: layout, to: tmp}
	if err := c.layout(index); err != nil {
		t.Fatalf("copy %s: %v", layout, err)
	}
	if err := os.Rename(tmp, dir); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return dir
}

type copier struct{ from, to string }

func (c copier) layout(index []byte) error {
	if err := os.MkdirAll(filepath.Join(c.to, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(c.to, 0o755); err != nil {
		return err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(index, &ix); err != nil {
		return err
	}
	for i := range ix.Manifests {
		if err := c.manifest(&ix.Manifests[i]); err != nil {
			return err
		}
	}
	if err := c.json("index.json", ix); err != nil {
		return err
	}
	return c.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

func (c copier) manifest(d *ocispec.Descriptor) error {
	var m ocispec.Manifest
	data, err := os.ReadFile(c.blob(c.from, d.Digest))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	config, err := os.ReadFile(c.blob(c.from, m.Config.Digest))
	if err != nil {
		return err
	}
	if err := c.put(&m.Config, config); err != nil {
		return err
	}
	for i := range m.Layers {
		if err := c.layer(&m.Layers[i]); err != nil {
			return err
		}
	}
	if data, err = json.Marshal(m); err != nil {
		return err
	}
	return c.put(d, data)
}

func (c copier) layer(d *ocispec.Descriptor) error {
	f, err := os.Open(c.blob(c.from, d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.put(d, out.Bytes())
}

// put writes a blob and makes d its descriptor.
func (c copier) put(d *ocispec.Descriptor, data []byte) error {
	d.Digest, d.Size = digest.FromBytes(data), int64(len(data))
	return os.WriteFile(c.blob(c.to, d.Digest), data, 0o644)
}

func (copier) blob(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", "sha256", d.Encoded())
}

func (c copier) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.to, name), data, 0o644)
}
