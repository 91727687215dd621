package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/progress"
	"build/internal/registry"
	"build/internal/store"
	"build/snapshot"
)

// ImageRow is one line of `build images`.
type ImageRow struct {
	Name     string
	Digest   string
	Platform string
	Origin   string // built, pulled or tagged
	Complete bool   // every blob is here
	Created  time.Time
	Size     int64 // of the layers, compressed
}

// Images lists the names in the store, sorted.
func Images(_ context.Context, o StoreOptions) ([]ImageRow, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	names, err := st.Names()
	if err != nil {
		return nil, err
	}
	var rows []ImageRow
	for key, n := range names {
		ref, _, _ := strings.Cut(key, " ")
		row := ImageRow{
			Name: familiar(ref), Digest: n.Descriptor.Digest.String(), Platform: n.Platform,
			Origin: string(n.Origin), Complete: n.Complete, Created: n.Time,
		}
		if img, err := readLocalImage(st, ref, n, hostPlatform()); err == nil {
			for _, l := range img.Manifest.Layers {
				row.Size += l.Size
			}
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b ImageRow) int { return strings.Compare(a.Name+a.Platform, b.Name+b.Platform) })
	return rows, nil
}

// Tag gives an image in the store another name.
func Tag(_ context.Context, o StoreOptions, from, to string) error {
	st, err := openStore(o)
	if err != nil {
		return err
	}
	defer st.Close()
	key, n, err := findImage(st, from)
	if err != nil {
		return err
	}
	ref, err := normalizeName(to)
	if err != nil {
		return err
	}
	if _, platform, ok := strings.Cut(key, " "); ok {
		ref += " " + platform
	}
	if n.Origin == store.Pulled {
		n.Origin = store.Tagged // a name that was given stays when what was pulled goes
	}
	return st.SetName(ref, n)
}

// findName finds a name as typed among the names of the store.
func findName(st *store.Store, name string) (string, store.Name, error) {
	ref, err := normalizeName(name)
	if err != nil {
		return "", store.Name{}, err
	}
	n, ok, err := st.Name(ref)
	if err != nil {
		return "", store.Name{}, err
	}
	if ok {
		return ref, n, nil
	}
	all, err := st.Names()
	if err != nil {
		return "", store.Name{}, err
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(key, ref+" ") {
			return key, all[key], nil
		}
	}
	return "", store.Name{}, &UsageError{Msg: fmt.Sprintf("no image %s in the store", familiar(ref)), Hint: "build images lists what there is"}
}

// findImage finds an image by its name or its digest.
func findImage(st *store.Store, name string) (string, store.Name, error) {
	key, n, err := findName(st, name)
	if err == nil {
		return key, n, nil
	}
	keys, derr := keysOf(st, name)
	if derr != nil {
		return "", store.Name{}, derr
	}
	if len(keys) == 0 {
		return "", store.Name{}, err
	}
	n, _, err = st.Name(keys[0])
	return keys[0], n, err
}

// shortestDigest is how many digits of a digest stand for an image; `build images` shows so many.
const shortestDigest = 12

// keysOf lists the names of the image that a digest, or its first digits, stands for; none when it stands for no image.
func keysOf(st *store.Store, s string) ([]string, error) {
	digits := strings.TrimPrefix(s, "sha256:")
	if len(digits) < shortestDigest || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, nil
	}
	all, err := st.Names()
	if err != nil {
		return nil, err
	}
	var keys []string
	var found digest.Digest
	for key, n := range all {
		d := n.Descriptor.Digest
		if !strings.HasPrefix(d.Encoded(), digits) {
			continue
		}
		if found != "" && d != found {
			return nil, &UsageError{Msg: fmt.Sprintf("%s stands for more than one image", s), Hint: "use more digits"}
		}
		found, keys = d, append(keys, key)
	}
	slices.Sort(keys)
	return keys, nil
}

// namesToRemove are the name, for all platforms it is known for, or all names of the image that a digest stands for.
func namesToRemove(st *store.Store, name string) ([]string, error) {
	found, _, err := findName(st, name)
	if err == nil {
		all, err := st.Names()
		if err != nil {
			return nil, err
		}
		ref, _, _ := strings.Cut(found, " ")
		var keys []string
		for _, key := range slices.Sorted(maps.Keys(all)) {
			if key == ref || strings.HasPrefix(key, ref+" ") {
				keys = append(keys, key)
			}
		}
		return keys, nil
	}
	keys, derr := keysOf(st, name)
	if derr != nil || len(keys) > 0 {
		return keys, derr
	}
	return nil, err
}

// Remove takes names out of the store and returns them; a digest stands for all names of its image. What nothing names any more is freed by the next collection.
func Remove(_ context.Context, o StoreOptions, names []string) ([]string, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	var removed []string
	for _, name := range names {
		keys, err := namesToRemove(st, name)
		if err != nil {
			return removed, err
		}
		for _, key := range keys {
			if err := st.RemoveName(key); err != nil {
				return removed, err
			}
			ref, _, _ := strings.Cut(key, " ")
			if short := familiar(ref); !slices.Contains(removed, short) {
				removed = append(removed, short)
			}
		}
	}
	return removed, nil
}

// Login checks credentials with a registry and keeps them where docker does.
func Login(ctx context.Context, o StoreOptions, host, user, password string) error {
	_, err := newClient(o, nil).Login(ctx, host, user, password)
	return err
}

// Push sends an image of the store to the registry its name says, and returns the manifest's digest.
func Push(ctx context.Context, o StoreOptions, name string, sink progress.Sink) (string, error) {
	st, err := openStore(o)
	if err != nil {
		return "", err
	}
	defer st.Close()
	key, n, err := findName(st, name)
	if err != nil {
		return "", err
	}
	ref, _, _ := strings.Cut(key, " ")
	p := &pusher{st: st, client: newClient(o, nil), layers: snapshot.New(st, snapshot.Options{}), sink: sink, id: 1}
	sink.Emit(progress.Started{ID: p.id, Name: "pushing " + familiar(ref), Time: time.Now()})
	err = p.push(ctx, ref, n.Descriptor)
	done := progress.Done{ID: p.id, Time: time.Now()}
	if err != nil {
		done.Err = err.Error()
	}
	sink.Emit(done)
	return n.Descriptor.Digest.String(), err
}

// pusher sends an image out of the store.
type pusher struct {
	st     *store.Store
	client *registry.Client
	layers *snapshot.Layers
	sink   progress.Sink
	id     progress.ID
}

// push sends the image, or every image of an index and then the index, to ref.
func (p *pusher) push(ctx context.Context, ref string, d ocispec.Descriptor) error {
	if !isIndex(d.MediaType) {
		return p.pushImage(ctx, ref, d)
	}
	raw, err := readBlob(p.st, d.Digest, d.Size)
	if err != nil {
		return fmt.Errorf("image %s: %w", familiar(ref), err)
	}
	var ix ocispec.Index
	if err := json.Unmarshal(raw, &ix); err != nil {
		return fmt.Errorf("image %s: %w", familiar(ref), err)
	}
	for _, m := range ix.Manifests {
		if err := p.push(ctx, repoOf(ref)+"@"+m.Digest.String(), m); err != nil {
			return err
		}
	}
	return p.client.PushManifest(ctx, ref, d.MediaType, raw)
}

func (p *pusher) pushImage(ctx context.Context, ref string, d ocispec.Descriptor) error {
	img, err := readLocalImage(p.st, ref, store.Name{Descriptor: d}, hostPlatform())
	if err != nil {
		return fmt.Errorf("image %s: %w", familiar(ref), err)
	}
	out := registry.PushImage{
		ManifestRaw: img.ManifestRaw, MediaType: img.MediaType, Config: img.ConfigRaw,
		Progress: func(d digest.Digest, n, total int64) {
			p.sink.Emit(progress.Transfer{ID: p.id, Key: d.String(), Label: "pushing " + d.String(), Current: n, Total: total, Done: n == total, Time: time.Now()})
		},
	}
	for i, l := range img.Manifest.Layers {
		from, err := reposOf(p.layers, img.DiffIDs[i], l.Digest)
		if err != nil {
			return err
		}
		out.Layers = append(out.Layers, registry.PushLayer{Desc: l, MountFrom: from, Open: storedOrRemote(p.st, p.client, l, from)})
	}
	return p.client.Push(ctx, ref, out)
}

// reposOf lists the repositories that are known to have a blob of a layer.
func reposOf(layers *snapshot.Layers, diffID, blob digest.Digest) ([]string, error) {
	blobs, err := layers.Blobs(diffID)
	if err != nil {
		return nil, err
	}
	var repos []string
	for _, b := range blobs {
		if b.Digest == blob {
			repos = append(repos, b.Repos...)
		}
	}
	return repos, nil
}

// storedOrRemote opens a blob from the store, else from where it came.
func storedOrRemote(st *store.Store, c *registry.Client, d ocispec.Descriptor, repos []string) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		if st.HasBlob(d.Digest, d.Size) || len(repos) == 0 {
			return st.OpenBlob(d.Digest, d.Size)
		}
		return c.Blob(ctx, repos[0], d)
	}
}

// VersionInfo is what `build version` prints.
type VersionInfo struct {
	Version, Commit, Go, Platform string
}

func (v VersionInfo) JSON() ([]byte, error) { return json.MarshalIndent(v, "", "  ") }
