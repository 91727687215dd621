package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Origin tells how an image came into the store.
type Origin string

const (
	Built  Origin = "built"
	Pulled Origin = "pulled"
	Tagged Origin = "tagged" // somebody gave a pulled image another name
)

// Name is what a reference stands for.
type Name struct {
	Descriptor ocispec.Descriptor `json:"descriptor"` // of the manifest
	Origin     Origin             `json:"origin"`
	Time       time.Time          `json:"time"`
	Platform   string             `json:"platform,omitempty"`
	// Complete says that manifest, configuration and every layer blob are in the store. Only complete images are listed
	// in index.json, where other tools look for them.
	Complete bool `json:"complete"`
}

// IncompleteError is an image that was to be named as complete and lacks a blob.
type IncompleteError struct {
	Missing digest.Digest
}

func (e *IncompleteError) Error() string { return "the image lacks blob " + e.Missing.String() }

// SetName gives an image a name, in place of what had it. A complete image appears in index.json under it; one that is
// called complete and is not gives an *IncompleteError.
func (s *Store) SetName(ref string, n Name) error {
	if err := s.setName(ref, n); err != nil {
		return fmt.Errorf("name %s: %w", ref, err)
	}
	return nil
}

func (s *Store) setName(ref string, n Name) error {
	if ref == "" {
		return errors.New("a name is empty")
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	unlock, err := s.Lock(context.Background(), namesLock, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if n.Complete { // under the lock, which keeps collection away from what was found
		if err := s.checkComplete(n.Descriptor); err != nil {
			return err
		}
	}
	if err := s.write(KindName, ref, data, true); err != nil {
		return err
	}
	return s.writeIndex(nil)
}

// RemoveName takes a name away, if it is there. What it stood for stays until a collection.
func (s *Store) RemoveName(ref string) error {
	unlock, err := s.Lock(context.Background(), namesLock, nil)
	if err != nil {
		return fmt.Errorf("remove name %s: %w", ref, err)
	}
	defer unlock()
	if err := s.writeIndex(func(r string) bool { return r != ref }); err != nil {
		return fmt.Errorf("remove name %s: %w", ref, err)
	}
	s.point("name.unlisted")
	return s.Remove(KindName, ref)
}

// Name looks a name up. A name that is damaged reads as one that is not there.
func (s *Store) Name(ref string) (Name, bool, error) {
	data, err := s.Read(KindName, ref)
	var damaged *DamagedError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &damaged) {
		return Name{}, false, nil
	}
	if err != nil {
		return Name{}, false, err
	}
	n, err := parseName(data)
	return n, err == nil, nil
}

func parseName(data []byte) (Name, error) {
	var n Name
	if err := json.Unmarshal(data, &n); err != nil {
		return n, err
	}
	if !ValidDigest(n.Descriptor.Digest) || n.Descriptor.Size < 0 {
		return n, fmt.Errorf("%.80q is no digest of a manifest", string(n.Descriptor.Digest))
	}
	return n, nil
}

// Names returns all names and what they stand for.
func (s *Store) Names() (map[string]Name, error) {
	names := make(map[string]Name)
	for it, err := range s.files(KindName) {
		if err != nil {
			return nil, fmt.Errorf("list names: %w", err)
		}
		b, err := os.ReadFile(it.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list names: %w", err)
		}
		ref, data, err := unseal(KindName, b)
		if err != nil || s.filePath(KindName, ref) != it.path {
			continue // damaged: not there
		}
		if n, err := parseName(data); err == nil {
			names[ref] = n
		}
	}
	return names, nil
}

// writeIndex derives index.json from the names that keep accepts; nil accepts all. The names lock is held.
func (s *Store) writeIndex(keep func(ref string) bool) error {
	want, err := s.deriveIndex(keep)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(s.path(indexFile)); err == nil && string(have) == string(want) {
		return nil
	}
	return s.publish(s.path(indexFile), want, indexFile, true)
}

func (s *Store) deriveIndex(keep func(ref string) bool) ([]byte, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	refs := make([]string, 0, len(names))
	for ref, n := range names {
		if n.Complete && (keep == nil || keep(ref)) {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	ix := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: make([]ocispec.Descriptor, 0, len(refs)),
	}
	for _, ref := range refs {
		d := names[ref].Descriptor
		a := make(map[string]string, len(d.Annotations)+1)
		for k, v := range d.Annotations {
			a[k] = v
		}
		a[ocispec.AnnotationRefName] = layoutName(ref)
		d.Annotations = a
		d.Data = nil
		ix.Manifests = append(ix.Manifests, d)
	}
	return json.Marshal(ix)
}

// layoutName makes a reference fit the grammar of names in an image layout, which has no room for most characters.
func layoutName(ref string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-._/:@+", r):
			return r
		}
		return '-'
	}, ref)
}

// Bounds of what is followed from a manifest.
const (
	maxManifest = 8 << 20
	maxNesting  = 4
)

// manifest is what image manifests and image indexes have in common, of any vendor.
type manifest struct {
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

// contents calls yield for every blob an image consists of, the one it is named by first, as far as its manifests are
// here. It is an error if one is here and cannot be understood.
func (s *Store) contents(d ocispec.Descriptor, depth int, yield func(ocispec.Descriptor)) error {
	yield(d)
	if d.Size > maxManifest || depth > maxNesting {
		return fmt.Errorf("%s is no manifest: too large or too deep", d.Digest)
	}
	f, err := s.OpenBlob(d.Digest, d.Size)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%s is no manifest: %w", d.Digest, err)
	}
	if m.Config != nil {
		yield(*m.Config)
	}
	for _, l := range m.Layers {
		yield(l)
	}
	for _, sub := range m.Manifests {
		if err := s.contents(sub, depth+1, yield); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) checkComplete(d ocispec.Descriptor) error {
	var missing []digest.Digest
	err := s.contents(d, 0, func(c ocispec.Descriptor) {
		if len(c.URLs) == 0 && !s.HasBlob(c.Digest, c.Size) {
			missing = append(missing, c.Digest)
		}
	})
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return &IncompleteError{cmp.Or(missing[0], "without a digest")}
	}
	return nil
}
