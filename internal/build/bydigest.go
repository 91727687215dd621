package build

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
	"build/internal/store"
)

// localByDigest finds an image that a reference names by digest under whatever name the store has it: alone, or as a part of a
// named index. A digest stands for the same image everywhere. nil when there is none.
func (s *session) localByDigest(ref string, want ocispec.Platform) (*localImage, error) {
	d := digestOf(ref)
	if d == "" {
		return nil, nil
	}
	names, err := s.store.Names()
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(names)) {
		n := names[key]
		if n.Descriptor, err = s.within(n.Descriptor, d); err != nil {
			continue // not that one, or its manifest is gone or damaged
		}
		known, _, _ := strings.Cut(key, " ") // the rest is the platform: see nameKey
		img, err := readLocalImage(s.store, known, n, want)
		if err != nil {
			continue
		}
		if err := s.lease.Add(store.KindName, key); err != nil {
			return nil, err
		}
		img.Ref = ref
		return &localImage{n, img}, nil
	}
	return nil, nil
}

var errOtherImage = errors.New("it is another image")

// within returns the descriptor of d if have is that, or an index that lists it.
func (s *session) within(have ocispec.Descriptor, d digest.Digest) (ocispec.Descriptor, error) {
	if have.Digest == d {
		return have, nil
	}
	if !isIndex(have.MediaType) {
		return have, errOtherImage
	}
	raw, err := readBlob(s.store, have.Digest, have.Size)
	if err != nil {
		return have, err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(raw, &ix); err != nil {
		return have, err
	}
	for _, m := range ix.Manifests {
		if m.Digest == d {
			return m, nil
		}
	}
	return have, errOtherImage
}

// digestOf returns the digest a reference has, "" if it has none.
func digestOf(ref string) digest.Digest {
	named, err := reference.Parse(ref)
	if err != nil {
		return ""
	}
	return named.Digest
}
