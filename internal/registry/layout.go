package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
)

// Layout is an image store in files: an OCI layout directory, the same as a tar (oci-archive), or what docker save
// writes (docker-archive). It gives images and blobs like a Client does.
type Layout struct {
	path  string
	ref   string
	files files
	root  ocispec.Descriptor // what ref names
	made  map[digest.Digest]blobAt
}

// blobAt is a blob that is known by another name than blobs/ALGORITHM/HEX, or made in memory.
type blobAt struct {
	file string
	data []byte
}

// files gives read access to the members of a directory or tar by slash-separated name.
type files interface {
	open(name string) (io.ReadCloser, int64, error) // fs.ErrNotExist when missing
	close() error
}

// OpenLayout opens the image that ref names in the layout or archive at path. ref may be a digest, a tag, a full
// reference, or empty if there is just one image. Close it after use.
func OpenLayout(path, ref string) (*Layout, error) {
	l, err := openLayout(path, ref)
	if err != nil {
		name := path
		if ref != "" {
			name += ":" + ref
		}
		return nil, classifyLocal(name, err)
	}
	return l, nil
}

func openLayout(path, ref string) (*Layout, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	l := &Layout{path: path, ref: ref, made: map[digest.Digest]blobAt{}}
	if fi.IsDir() {
		l.files = dirFiles(path)
	} else if l.files, err = openArchive(path); err != nil {
		return nil, err
	}
	if err := l.find(); err != nil {
		l.files.close()
		return nil, err
	}
	return l, nil
}

// Close releases the archive.
func (l *Layout) Close() error { return l.files.close() }

// Resolve returns the image for platform p, as Client.Resolve does.
func (l *Layout) Resolve(ctx context.Context, p *ocispec.Platform) (*Image, error) {
	im, err := resolve(ctx, l, l.root, p)
	if err != nil {
		return nil, classifyLocal(l.path, err)
	}
	im.Ref = l.path
	if l.ref != "" {
		im.Ref += ":" + l.ref
	}
	return im, nil
}

// Blob streams a verified blob, as Client.Blob does; the repository is of no interest here.
func (l *Layout) Blob(ctx context.Context, _ string, d ocispec.Descriptor) (io.ReadCloser, error) {
	if err := checkDescriptor("blob", d); err != nil {
		return nil, classifyLocal(l.path, err)
	}
	r, err := l.open(ctx, d)
	if err != nil {
		return nil, classifyLocal(l.path, err)
	}
	return r, nil
}

func classifyLocal(name string, err error) error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return about(name, err)
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Class: NotFound, Ref: name, Err: err}
	}
	return &Error{Class: Invalid, Ref: name, Err: err}
}

// open is part of source.
func (l *Layout) open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, size, err := l.raw(d.Digest)
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		r.Close()
		return nil, errorf(Digest, "blob %s has %d bytes, not %d", d.Digest, size, d.Size)
	}
	return newVerifier(r, d, nil), nil
}

// manifest is part of source.
func (l *Layout) manifest(_ context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	r, size, err := l.raw(d.Digest)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	if size > maxManifest {
		return nil, "", errorf(Unsupported, "manifest is larger than %d MiB", maxManifest>>20)
	}
	raw, err := readAll(r, maxManifest, "manifest")
	if err != nil {
		return nil, "", err
	}
	said, err := checkBody(raw, d, "", "")
	return raw, said, err
}

func (l *Layout) raw(d digest.Digest) (io.ReadCloser, int64, error) {
	if at, ok := l.made[d]; ok {
		if at.file == "" {
			return io.NopCloser(bytes.NewReader(at.data)), int64(len(at.data)), nil
		}
		return l.files.open(at.file)
	}
	r, size, err := l.files.open("blobs/" + d.Algorithm().String() + "/" + d.Encoded())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, errorf(NotFound, "the layout has no blob %s", d)
	}
	return r, size, err
}

// find reads the table of contents and settles what ref names.
func (l *Layout) find() error {
	raw, err := l.small("index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return l.findDocker()
	}
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return errorf(Unsupported, "index.json is not valid: %w", err)
	}
	if index.SchemaVersion != 2 {
		return errorf(Unsupported, "index.json has schema version %d", index.SchemaVersion)
	}
	d, err := l.pick(index.Manifests)
	if err != nil {
		return err
	}
	if err := checkDescriptor("index.json", d); err != nil {
		return err
	}
	l.root = d
	return nil
}

// small reads a whole member that must be small.
func (l *Layout) small(name string) ([]byte, error) {
	r, _, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readAll(r, maxManifest, name)
}

// pick chooses the entry of index.json that ref names. Several entries for one digest are one image with many names.
func (l *Layout) pick(ms []ocispec.Descriptor) (ocispec.Descriptor, error) {
	if d := digest.Digest(strings.TrimPrefix(l.ref, "@")); l.ref != "" && d.Validate() == nil {
		for _, m := range ms {
			if m.Digest == d {
				return m, nil
			}
		}
		// Not listed, but the blob may be there: a platform's manifest below a listed index.
		r, size, err := l.raw(d)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		r.Close()
		return ocispec.Descriptor{Digest: d, Size: size}, nil
	}
	var names []string
	distinct := map[digest.Digest]ocispec.Descriptor{}
	for _, m := range ms {
		for _, n := range entryNames(m) {
			names = append(names, n)
			if sameName(n, l.ref) {
				return m, nil
			}
		}
		if !isAttachment(m) {
			distinct[m.Digest] = m
		}
	}
	if l.ref == "" {
		return l.only(ms, distinct, names)
	}
	e := errorf(NotFound, "there is no image %q", l.ref)
	if len(names) > 0 {
		e = errorf(NotFound, "there is no image %q; there are: %s", l.ref, strings.Join(names, ", "))
	}
	return ocispec.Descriptor{}, e
}

// only is the choice when no name was given: the one image there is, or the one called latest.
func (l *Layout) only(ms []ocispec.Descriptor, distinct map[digest.Digest]ocispec.Descriptor, names []string) (ocispec.Descriptor, error) {
	if len(distinct) == 1 {
		for _, m := range ms {
			if _, ok := distinct[m.Digest]; ok {
				return m, nil
			}
		}
	}
	for _, m := range ms {
		if m.Annotations[ocispec.AnnotationRefName] == "latest" {
			return m, nil
		}
	}
	if len(distinct) == 0 {
		return ocispec.Descriptor{}, errorf(NotFound, "the layout is empty")
	}
	e := errorf(Invalid, "the layout holds %d images; name one: %s", len(distinct), strings.Join(names, ", "))
	return ocispec.Descriptor{}, e
}

func entryNames(m ocispec.Descriptor) []string {
	var names []string
	for _, key := range []string{"io.containerd.image.name", ocispec.AnnotationRefName} {
		if n := m.Annotations[key]; n != "" {
			names = append(names, n)
		}
	}
	return names
}

// sameName compares a stored name with the one asked for, allowing for what references leave out.
func sameName(have, want string) bool {
	if want == "" {
		return false
	}
	if have == want {
		return true
	}
	a, err1 := reference.Parse(have)
	b, err2 := reference.Parse(want)
	// A bare tag parses as a repository name; it must not match a repository of that name.
	return err1 == nil && err2 == nil && strings.ContainsAny(have, "/:") && strings.ContainsAny(want, "/:") && exact(a) == exact(b)
}

// exact is a reference without what its digest makes superfluous.
func exact(r reference.Reference) string {
	if r.Digest != "" {
		r.Tag = ""
	}
	return r.Tagged().String()
}

// dirFiles is a layout directory. Its files are the user's own, so links in it are followed (build systems make such
// trees); what matters is verified by digest.
type dirFiles string

func (d dirFiles) close() error { return nil }

func (d dirFiles) open(name string) (io.ReadCloser, int64, error) {
	f, err := os.OpenFile(filepath.Join(string(d), filepath.FromSlash(name)), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
