package registry

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tarFiles is an uncompressed tar whose members are read in place: only their positions are kept.
type tarFiles struct {
	f       *os.File
	members map[string]member
}

type member struct {
	off, size int64
	link      string // symbolic or hard link to another member
}

// maxMembers bounds the table of an archive; an image has a few dozen members.
const maxMembers = 100_000

func openArchive(name string) (*tarFiles, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	t := &tarFiles{f: f, members: map[string]member{}}
	if err := t.scan(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

func (t *tarFiles) close() error { return t.f.Close() }

// scan notes where every member's content is. The reader below counts what the tar package consumes; contents are
// skipped by seeking.
func (t *tarFiles) scan() error {
	fi, err := t.f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a directory nor a regular file", t.f.Name())
	}
	if err := refuseCompressed(t.f); err != nil {
		return err
	}
	tr := tar.NewReader(t.f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errorf(Unsupported, "reading the archive: %w", err)
		}
		if len(t.members) >= maxMembers {
			return errorf(Unsupported, "the archive has more than %d members", maxMembers)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.Size < 0 || off+h.Size > fi.Size() {
				return errorf(Digest, "the archive is cut short in %s", name)
			}
			t.members[name] = member{off: off, size: h.Size}
		case tar.TypeSymlink:
			t.members[name] = member{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			t.members[name] = member{link: path.Clean(h.Linkname)}
		}
	}
}

func refuseCompressed(f *os.File) error {
	magic := make([]byte, 6)
	n, err := f.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return err
	}
	for kind, m := range map[string]string{"gzip": "\x1f\x8b", "zstd": "\x28\xb5\x2f\xfd", "bzip2": "BZh", "xz": "\xfd7zXZ\x00"} {
		if strings.HasPrefix(string(magic[:n]), m) {
			e := errorf(Unsupported, "the archive is compressed with %s", kind)
			e.Hint = "unpack it once: its blobs have to be read in any order"
			return e
		}
	}
	return nil
}

func (t *tarFiles) open(name string) (io.ReadCloser, int64, error) {
	const maxLinks = 8
	for range maxLinks {
		m, ok := t.members[name]
		if !ok {
			return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if m.link == "" {
			return io.NopCloser(io.NewSectionReader(t.f, m.off, m.size)), m.size, nil
		}
		name = m.link
	}
	return nil, 0, errorf(Unsupported, "too many links at %s", name)
}

// dockerEntry is one image in the manifest.json of a docker archive.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// findDocker reads a docker archive without an OCI index and makes up the manifest it never had: the config and layers
// are there, so an OCI manifest that names them is all that is missing.
func (l *Layout) findDocker() error {
	raw, err := l.small("manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return errorf(Unsupported, "this is neither an OCI layout (index.json) nor a docker archive (manifest.json)")
	}
	if err != nil {
		return err
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return errorf(Unsupported, "manifest.json is not valid: %w", err)
	}
	e, err := l.pickDocker(entries)
	if err != nil {
		return err
	}
	m, err := l.describe(e)
	if err != nil {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	d := digest.FromBytes(data)
	l.made[d] = blobAt{data: data}
	l.root = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(data))}
	return nil
}

func (l *Layout) pickDocker(entries []dockerEntry) (dockerEntry, error) {
	var names []string
	for _, e := range entries {
		for _, tag := range e.RepoTags {
			names = append(names, tag)
			if sameName(tag, l.ref) || l.ref != "" && strings.HasSuffix(tag, ":"+l.ref) {
				return e, nil
			}
		}
	}
	switch {
	case l.ref == "" && len(entries) == 1:
		return entries[0], nil
	case len(entries) == 0:
		return dockerEntry{}, errorf(NotFound, "the archive is empty")
	case l.ref == "":
		return dockerEntry{}, errorf(Invalid, "the archive holds %d images; name one: %s", len(entries), strings.Join(names, ", "))
	}
	return dockerEntry{}, errorf(NotFound, "there is no image %q; there are: %s", l.ref, strings.Join(names, ", "))
}

// describe makes descriptors for the files of e.
func (l *Layout) describe(e dockerEntry) (*ocispec.Manifest, error) {
	config, err := l.small(path.Clean(e.Config))
	if err != nil {
		return nil, fmt.Errorf("config of the image: %w", err)
	}
	var parsed struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, errorf(Unsupported, "the image config is not valid: %w", err)
	}
	if len(parsed.RootFS.DiffIDs) != len(e.Layers) {
		return nil, errorf(Unsupported, "the archive has %d layers but the config lists %d", len(e.Layers), len(parsed.RootFS.DiffIDs))
	}
	m := &ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	l.made[m.Config.Digest] = blobAt{data: config}
	for i, name := range e.Layers {
		d, err := l.describeLayer(path.Clean(name), parsed.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		l.made[d.Digest] = blobAt{file: path.Clean(name)}
		m.Layers = append(m.Layers, d)
	}
	return m, nil
}

// describeLayer tells plain layers, whose digest is their diffID, from compressed ones, which have to be read once.
func (l *Layout) describeLayer(name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	if err := checkDigest(diffID); err != nil {
		return ocispec.Descriptor{}, err
	}
	r, size, err := l.files.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	br := bufio.NewReaderSize(r, 256<<10)
	magic, _ := br.Peek(4)
	mt := ocispec.MediaTypeImageLayer
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		mt = ocispec.MediaTypeImageLayerGzip
	case string(magic) == "\x28\xb5\x2f\xfd":
		mt = ocispec.MediaTypeImageLayerZstd
	default:
		return ocispec.Descriptor{MediaType: mt, Digest: diffID, Size: size}, nil
	}
	h := digest.Canonical.Digester()
	if _, err := io.Copy(h.Hash(), br); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: mt, Digest: h.Digest(), Size: size}, nil
}

// SplitLayout takes apart the path[:tag][@digest] that follows oci-layout:// and the like. A colon inside the path is
// part of it.
func SplitLayout(value string) (file, ref string) {
	file = value
	if base, d, ok := cutLast(value, "@"); ok && digest.Digest(d).Validate() == nil {
		file, ref = base, d
		if base, _, ok := cutLast(file, ":"); ok && !exists(file) {
			file = base // the digest says more than the tag beside it
		}
		return file, ref
	}
	if base, tag, ok := cutLast(file, ":"); ok && !strings.Contains(tag, "/") && !exists(file) {
		return base, tag
	}
	return file, ""
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

var (
	_ source = (*Layout)(nil)
	_ source = (*repository)(nil)
)
