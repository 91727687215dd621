package exporter

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// OCIDir writes imgs into the OCI layout at dir, which is made if there is none. Images already there stay; one of the
// same name is replaced in the index. The index is written last and by rename, so that it never names what is missing.
func OCIDir(ctx context.Context, dir string, imgs []Image) error {
	parts, err := layoutParts(imgs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	last := len(parts) - 1
	if err := writeParts(ctx, root, parts[:last]); err != nil {
		return err
	}
	index := &parts[last]
	if index.data, err = mergeIndex(root, index.data); err != nil {
		return err
	}
	return writeFile(ctx, root, index, nil)
}

// writeParts puts the parts in place that are not there, as many at a time as there are processors: on a file system in memory a
// copy keeps one of them busy, and on any other what is hashed does. The largest come first, so that none is left for the end.
func writeParts(ctx context.Context, root *os.Root, parts []part) error {
	parts = slices.SortedStableFunc(slices.Values(parts), func(a, b part) int { return cmp.Compare(b.size(), a.size()) })
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(parts)) {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for i := next.Add(1) - 1; i < int64(len(parts)); i = next.Add(1) - 1 {
				if p := &parts[i]; !intact(ctx, root, p, buf) {
					if err := writeFile(ctx, root, p, buf); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// intact reports whether a part is there already, whole.
func intact(ctx context.Context, root *os.Root, p *part, buf []byte) bool {
	fi, err := root.Lstat(p.name)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != p.size() || p.open == nil {
		return false
	}
	there := part{desc: p.desc, mem: p.mem, open: func(context.Context) (io.ReadCloser, error) { return root.Open(p.name) }}
	return copyBlob(ctx, io.Discard, &there, buf) == nil
}

// writeFile puts a part in place by rename.
func writeFile(ctx context.Context, root *os.Root, p *part, buf []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", path.Join(root.Name(), p.name), err)
		}
	}()
	dir := path.Dir(p.name)
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp := path.Join(dir, ".tmp-"+rand.Text())
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = root.Remove(tmp)
		}
	}()
	if p.open == nil {
		_, err = f.Write(p.data)
	} else {
		err = copyBlob(ctx, f, p, buf)
	}
	if err != nil {
		return err
	}
	if err = root.Rename(tmp, p.name); err != nil {
		return err
	}
	if p.open != nil {
		p.mem.Wrote(p.desc.Digest, f)
	}
	return f.Close()
}

// mergeIndex adds the entries of the index in raw to the one the directory has.
func mergeIndex(root *os.Root, raw []byte) ([]byte, error) {
	old, err := root.ReadFile(ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return raw, nil
	}
	if err != nil {
		return nil, err
	}
	var have, add ocispec.Index
	if err := json.Unmarshal(old, &have); err != nil {
		return nil, fmt.Errorf("the directory has an index.json that is not valid: %w", err)
	}
	if err := json.Unmarshal(raw, &add); err != nil {
		return nil, err
	}
	have.Manifests = slices.DeleteFunc(have.Manifests, func(d ocispec.Descriptor) bool {
		return slices.ContainsFunc(add.Manifests, func(n ocispec.Descriptor) bool { return replaces(n, d) })
	})
	have.Manifests = append(have.Manifests, add.Manifests...)
	have.SchemaVersion, have.MediaType = add.SchemaVersion, add.MediaType
	return json.Marshal(have)
}

// replaces reports whether an old index entry gives way to a new one: the same full name, the same tag in an index
// whose entries have no full names, or the same unnamed image.
func replaces(n, old ocispec.Descriptor) bool {
	newName, oldName := n.Annotations[annotationFullName], old.Annotations[annotationFullName]
	newRef, oldRef := n.Annotations[ocispec.AnnotationRefName], old.Annotations[ocispec.AnnotationRefName]
	switch {
	case newName != "" && oldName != "":
		return newName == oldName
	case newRef != "" || oldRef != "":
		return newRef == oldRef
	}
	return n.Digest == old.Digest
}
