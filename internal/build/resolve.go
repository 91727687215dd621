package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"build/dag"
	"build/internal/progress"
	"build/internal/reference"
	"build/internal/registry"
	"build/internal/store"
)

// resolveAll looks up what the graph needs to know of images, in parallel: manifests and configurations, no layers.
func (s *session) resolveAll(ctx context.Context, needs []dag.Need, have map[dag.NeedKey]dag.Resolved) error {
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range needs {
		g.Go(func() error {
			r, err := s.resolve(gctx, n)
			if err != nil {
				return &SourceError{Pos: n.Pos, Err: mayMean(n.Like, err), source: s.dockerfile}
			}
			mu.Lock()
			defer mu.Unlock()
			have[n.Key()] = r
			return nil
		})
	}
	return g.Wait()
}

// mayMean adds the stage that may have been meant to what a registry said about an image: it is asked for every name that is
// no stage's, and what it answers says nothing about a misspelt one.
func mayMean(stage string, err error) error {
	var re *registry.Error
	if stage == "" || !errors.As(err, &re) {
		return err
	}
	said := *re
	said.Hint = "did you mean the stage " + stage + "?"
	if re.Hint != "" {
		said.Hint += " Otherwise: " + re.Hint
	}
	return &said
}

func (s *session) resolve(ctx context.Context, n dag.Need) (dag.Resolved, error) {
	name := n.Name
	if n.Time {
		t, err := s.sourceTime(ctx, n)
		return dag.Resolved{Time: t}, err
	}
	if n.Context {
		value := n.Value
		if ok, err := s.fetchNamed(ctx, n.Name, value); ok || err != nil {
			return dag.Resolved{Dir: ok}, err
		}
		if ref, ok := strings.CutPrefix(value, imageScheme); ok {
			name = ref
		} else if img, open, err := s.openLocalImage(ctx, value, n); img != nil || err != nil {
			if err != nil {
				return dag.Resolved{}, err
			}
			return s.offerImage(img, open)
		} else {
			return dag.Resolved{Dir: true}, nil
		}
	}
	ref, err := normalizeName(name)
	if err != nil {
		return dag.Resolved{}, err
	}
	return s.resolveImage(ctx, ref, n)
}

func wantPlatform(n dag.Need) ocispec.Platform {
	if n.Platform == "" {
		return hostPlatform()
	}
	p, err := platforms.Parse(n.Platform)
	if err != nil {
		return hostPlatform()
	}
	return p
}

// resolveImage finds an image by name: in the local store, or in its registry when the pull policy says so.
func (s *session) resolveImage(ctx context.Context, ref string, n dag.Need) (dag.Resolved, error) {
	want := wantPlatform(n)
	var out dag.Resolved
	ref, err := s.policyImage(ref)
	if err != nil {
		return out, err
	}
	err = s.task("[internal] load metadata for "+ref+platformSuffix(want), func(id progress.ID) error {
		local, err := s.localImage(ref, want)
		if err != nil {
			return err
		}
		if local != nil && s.opts.Pull != PullAlways {
			s.sayLocal(id, ref, local)
			out, err = s.offerLocal(local)
			return err
		}
		if local != nil && s.opts.Store.Offline {
			return &registry.Error{
				Class: registry.Offline, Ref: ref,
				Err:  fmt.Errorf("--pull asks the registry, and --offline forbids it"),
				Hint: "leave out --pull to use the image in the local store",
			}
		}
		if s.opts.Pull == PullNever || s.opts.Store.Offline {
			return &registry.Error{
				Class: registry.Offline, Ref: ref,
				Err:  fmt.Errorf("no image %s for %s in the local store, and %s forbids pulling it", familiar(ref), platformString(want), s.whyNoPull()),
				Hint: "build or pull it once while a registry can be reached, or give it with --build-context",
			}
		}
		img, err := s.pull(ctx, ref, &want)
		if err != nil {
			return err
		}
		if err := s.keepImage(ref, img, want); err != nil {
			return err
		}
		out, err = s.offerImage(img, s.registrySource(img.Repo))
		return err
	})
	return out, err
}

// pull asks the mirrors of a registry and then the registry itself for an image. The image keeps the name it was asked
// for; its layers come from where it was found.
func (s *session) pull(ctx context.Context, ref string, want *ocispec.Platform) (*registry.Image, error) {
	named, err := reference.Parse(ref)
	if err != nil {
		return nil, err
	}
	for _, m := range s.opts.Store.Mirrors {
		if m.Host != named.Domain {
			continue
		}
		img, err := s.client.Resolve(ctx, m.Prefix+strings.TrimPrefix(ref, m.Host), want)
		if err == nil {
			img.Ref = ref
			return img, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s.warn("mirror %s: %v; asking the next", m.Prefix, err)
	}
	return s.client.Resolve(ctx, ref, want)
}

func (s *session) whyNoPull() string {
	if s.opts.Store.Offline {
		return "--offline"
	}
	return "--pull=never"
}

func platformSuffix(p ocispec.Platform) string {
	if platforms.Only(hostPlatform()).Match(p) {
		return ""
	}
	return " (" + platformString(p) + ")"
}

// localImage is what the store knows under a name for a platform.
type localImage struct {
	name store.Name
	img  *registry.Image
}

func (s *session) localImage(ref string, want ocispec.Platform) (*localImage, error) {
	for _, key := range []string{nameKey(ref, want), ref} {
		n, ok, err := s.store.Name(key)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		img, err := readLocalImage(s.store, ref, n, want)
		if err != nil {
			continue // a manifest that is gone or damaged reads as an image that is not here
		}
		if !platforms.Only(want).Match(img.Platform) {
			continue
		}
		if err := s.lease.Add(store.KindName, key); err != nil {
			return nil, err
		}
		return &localImage{n, img}, nil
	}
	return s.localByDigest(ref, want)
}

// nameKey is the name an image for one platform is kept under: the host's platform has the plain one, and so has an index.
func nameKey(ref string, p ocispec.Platform) string {
	if p.OS == "" || platforms.Only(hostPlatform()).Match(p) {
		return ref
	}
	return ref + " " + platformString(p)
}

// readLocalImage reads manifest and configuration of a named image out of the store.
func readLocalImage(st *store.Store, ref string, n store.Name, want ocispec.Platform) (*registry.Image, error) {
	raw, err := readBlob(st, n.Descriptor.Digest, n.Descriptor.Size)
	if err != nil {
		return nil, err
	}
	if isIndex(n.Descriptor.MediaType) {
		if n.Descriptor, err = pickFrom(raw, want); err != nil {
			return nil, err
		}
		return readLocalImage(st, ref, n, want)
	}
	img := &registry.Image{Ref: ref, Repo: repoOf(ref), Digest: n.Descriptor.Digest, ManifestRaw: raw, MediaType: n.Descriptor.MediaType}
	if err := json.Unmarshal(raw, &img.Manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", n.Descriptor.Digest, err)
	}
	if img.ConfigRaw, err = readBlob(st, img.Manifest.Config.Digest, img.Manifest.Config.Size); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.ConfigRaw, &img.Config); err != nil {
		return nil, fmt.Errorf("config %s: %w", img.Manifest.Config.Digest, err)
	}
	img.Platform, img.DiffIDs = platforms.Normalize(img.Config.Platform), img.Config.RootFS.DiffIDs
	if len(img.DiffIDs) != len(img.Manifest.Layers) {
		return nil, fmt.Errorf("%s: the manifest lists %d layers and the configuration %d", ref, len(img.Manifest.Layers), len(img.DiffIDs))
	}
	return img, nil
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// pickFrom chooses the manifest for a platform from an index made here, whose entries are manifests.
func pickFrom(raw []byte, want ocispec.Platform) (ocispec.Descriptor, error) {
	var ix ocispec.Index
	if err := json.Unmarshal(raw, &ix); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("index: %w", err)
	}
	match := platforms.Only(want)
	var best *ocispec.Descriptor
	for i := range ix.Manifests {
		d := &ix.Manifests[i]
		if d.Platform == nil || isIndex(d.MediaType) || !match.Match(*d.Platform) {
			continue
		}
		if best == nil || match.Less(*d.Platform, *best.Platform) {
			best = d
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, fmt.Errorf("the index has no image for %s", platformString(want))
	}
	return *best, nil
}

func (s *session) offerLocal(l *localImage) (dag.Resolved, error) {
	if l.name.Origin == store.Pulled {
		return s.offerImage(l.img, s.registrySource(l.img.Repo))
	}
	return s.offerImage(l.img, nil)
}

// sayLocal tells that a name was answered from the store, how old the answer is, and when it may surprise.
func (s *session) sayLocal(id progress.ID, ref string, l *localImage) {
	how := "built here"
	if l.name.Origin == store.Pulled {
		how = "pulled"
	}
	s.emit(progress.Message{ID: id, Text: fmt.Sprintf("%s → %s (%s %s ago; --pull to refresh)", familiar(ref), l.img.Digest, how, age(time.Since(l.name.Time)))})
	if l.name.Origin == store.Pulled || digestOf(ref) != "" { // a digest hides nothing
		return
	}
	named, err := reference.Parse(ref)
	if err != nil {
		return
	}
	path := named.Path
	if named.Domain != "docker.io" || strings.HasPrefix(path, "library/") {
		s.warn("%s was built here and hides the image of that name in %s; --pull asks the registry", familiar(ref), named.Domain)
	}
}

// keepImage stores manifest and configuration of a pulled image and its name, so that the next build needs no request.
func (s *session) keepImage(ref string, img *registry.Image, want ocispec.Platform) error {
	if s.dry {
		return nil
	}
	for _, b := range [][]byte{img.ManifestRaw, img.ConfigRaw} {
		if err := putBlob(s.store, b); err != nil {
			return err
		}
	}
	for i, d := range img.DiffIDs {
		if err := s.layers.AddRemote(d, img.Manifest.Layers[i], img.Repo); err != nil {
			return err
		}
	}
	return s.store.SetName(nameKey(ref, want), store.Name{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.ManifestRaw))},
		Origin:     store.Pulled, Time: time.Now(), Platform: platformString(img.Platform),
	})
}

// offerImage hands an image to the graph and tells the fetcher where its layers are, if they are anywhere but here.
func (s *session) offerImage(img *registry.Image, open blobSource) (dag.Resolved, error) {
	for i, d := range img.DiffIDs {
		if err := s.leaseLayer(d); err != nil {
			return dag.Resolved{}, err
		}
		repo := ""
		if open != nil {
			repo = img.Repo
		}
		if err := s.layers.Know(d, img.Manifest.Layers[i], repo); err != nil {
			return dag.Resolved{}, err
		}
		if open != nil {
			s.fetches.offer(d, img.Manifest.Layers[i], img.Repo, open)
		}
	}
	return dag.Resolved{Image: &dag.ImageInfo{
		Ref: img.Ref, Digest: img.Digest, Platform: img.Platform, Config: img.ConfigRaw, DiffIDs: img.DiffIDs,
	}}, nil
}

func repoOf(ref string) string {
	named, err := reference.Parse(ref)
	if err != nil {
		return ""
	}
	return named.Name()
}

// age says how long ago something was, the way one would.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "seconds"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

var errNoBlob = errors.New("blob is not in the store")
