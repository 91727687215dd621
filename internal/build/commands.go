package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	Origin   string // built or pulled
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
	key, n, err := findName(st, from)
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
	for key, n := range all {
		if strings.HasPrefix(key, ref+" ") {
			return key, n, nil
		}
	}
	return "", store.Name{}, &UsageError{Msg: fmt.Sprintf("no image %s in the store", familiar(ref)), Hint: "build images lists what there is"}
}

// Remove takes names out of the store. What nothing names any more is freed by the next collection.
func Remove(_ context.Context, o StoreOptions, names []string) ([]string, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	var removed []string
	for _, name := range names {
		key, _, err := findName(st, name)
		if err != nil {
			return removed, err
		}
		if err := st.RemoveName(key); err != nil {
			return removed, err
		}
		removed = append(removed, name)
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
