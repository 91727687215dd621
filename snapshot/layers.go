package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/owner"
	"build/internal/store"
	"build/internal/tree"
)

// Options say in which process Layers work.
type Options struct {
	// IDKind names the id map of this process ("root", or a digest of the map): directories are only exchanged between
	// processes that see the same owners in them.
	IDKind string
	// IDs are those that files can have in this process. The zero value is all.
	IDs owner.Map
	// Lease, when set, is told of every directory before it is looked for, so that collection lets it be.
	Lease *store.Lease
	// Inflate is who inflates large gzip blobs.
	Inflate Inflate
}

// Layers are the layers of one store, in all their forms. It is safe for concurrent use, also by several processes.
type Layers struct {
	st     *store.Store
	idKind string
	lease  *store.Lease
	owners *owners

	inflate inflater

	mu      sync.Mutex
	indexes map[digest.Digest]*tree.Index // open ones; they live as long as Layers
	flying  map[digest.Digest]*indexing
	ready   map[string]string // directories that the lease keeps: see readyDir
	idle    []*PrivateTree
	early   map[digest.Digest]*tempTree // see UnpackFollowing
}

// indexing is an index being made in this process.
type indexing struct {
	done chan struct{}
	x    *tree.Index
	err  error
	off  bool // whoever worked was called off; those who wait were not
}

// New returns the layers of a store.
func New(st *store.Store, o Options) *Layers {
	return &Layers{
		st: st, idKind: o.IDKind, lease: o.Lease, owners: &owners{ids: o.IDs, nodes: &owner.Nodes{}},
		indexes: map[digest.Digest]*tree.Index{}, flying: map[digest.Digest]*indexing{},
		ready: map[string]string{}, early: map[digest.Digest]*tempTree{}, inflate: inflater{Inflate: o.Inflate},
	}
}

// Nodes is the table of owners of files that cannot carry a record: whoever changes such an owner while a command runs writes it
// there.
func (l *Layers) Nodes() *owner.Nodes { return l.owners.nodes }

// Close closes the indexes that were opened. Nothing that was returned may be used afterwards.
func (l *Layers) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for d, x := range l.indexes {
		errs = append(errs, x.Close())
		delete(l.indexes, d)
	}
	return errors.Join(errs...)
}

// What a Blob is made by, besides the compressors.
const (
	MadePulled = "pulled" // it came from a registry or an image file, so it is what the layer's image says it is
	madePlain  = "plain"
)

// Blob is one blob that holds a layer: the plain tar or a compressed one.
type Blob struct {
	ocispec.Descriptor
	// Repos lists where it can be fetched: names of repositories.
	Repos []string `json:"repos,omitempty"`
	// Made says who made it: MadePulled or the identity of a compressor.
	Made string `json:"made"`
	// Local says whether it is in the store now.
	Local bool `json:"-"`
}

// layerMeta is what the store keeps of a layer beside its blobs and its index.
type layerMeta struct {
	Version int    `json:"version"`
	Blobs   []Blob `json:"blobs"`
	// Remarks are what others remember of the layer: see Layers.Remark.
	Remarks map[string]json.RawMessage `json:"remarks,omitempty"`
}

const metaVersion = 1

func indexKey(diffID digest.Digest) string { return diffID.String() }

// meta reads what is known of a layer. What cannot be read is as good as nothing: the blobs can be asked for again.
func (l *Layers) meta(diffID digest.Digest) (layerMeta, error) {
	m := layerMeta{Version: metaVersion}
	data, err := l.st.Read(store.KindLayer, diffID.String())
	var damaged *store.DamagedError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &damaged) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	var read layerMeta
	if json.Unmarshal(data, &read) != nil || read.Version != metaVersion {
		return m, nil
	}
	return read, nil
}

// update changes what is known of a layer, under its lock.
func (l *Layers) update(ctx context.Context, diffID digest.Digest, change func(*layerMeta) bool) error {
	unlock, err := l.st.Lock(ctx, "layer-"+diffID.Encoded(), nil)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := l.meta(diffID)
	if err != nil {
		return err
	}
	if !change(&m) {
		return nil
	}
	data, err := json.Marshal(&m)
	if err != nil {
		return err
	}
	return l.st.Write(store.KindLayer, diffID.String(), data)
}

// addBlob notes a blob of a layer, or what is new about one that is known.
func (l *Layers) addBlob(ctx context.Context, diffID digest.Digest, b Blob) error {
	return l.update(ctx, diffID, func(m *layerMeta) bool {
		i := slices.IndexFunc(m.Blobs, func(have Blob) bool { return have.Digest == b.Digest })
		if i < 0 {
			m.Blobs = append(m.Blobs, b)
			return true
		}
		changed := false
		for _, r := range b.Repos {
			if !slices.Contains(m.Blobs[i].Repos, r) {
				m.Blobs[i].Repos = append(m.Blobs[i].Repos, r)
				changed = true
			}
		}
		return changed
	})
}

// plainBlob is the plain tar of a layer made here.
func plainBlob(diffID digest.Digest, size int64) Blob {
	return Blob{
		Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: size},
		Made:       madePlain,
	}
}

// Blobs lists the blobs known to hold a layer. A blob whose size on disk is not what was recorded is not local.
func (l *Layers) Blobs(diffID digest.Digest) ([]Blob, error) {
	if !store.ValidDigest(diffID) {
		return nil, fmt.Errorf("layer %.80q: that is no SHA-256 digest", string(diffID))
	}
	m, err := l.meta(diffID)
	if err != nil {
		return nil, err
	}
	plain := false
	for i := range m.Blobs {
		b := &m.Blobs[i]
		b.Local = l.st.HasBlob(b.Digest, b.Size)
		plain = plain || b.Digest == diffID
	}
	if !plain && l.st.HasBlob(diffID, -1) { // made by somebody who needed to read it at random
		size, err := l.blobSize(diffID)
		if err == nil {
			b := plainBlob(diffID, size)
			b.Local = true
			m.Blobs = append(m.Blobs, b)
		}
	}
	return m.Blobs, nil
}

func (l *Layers) blobSize(d digest.Digest) (int64, error) {
	fi, err := os.Stat(l.st.BlobPath(d))
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// AddRemote notes that a layer's blob is in a repository. Nothing is fetched.
func (l *Layers) AddRemote(diffID digest.Digest, desc ocispec.Descriptor, repo string) error {
	m, err := l.meta(diffID)
	if err != nil {
		return err
	}
	for _, b := range m.Blobs {
		if b.Digest == desc.Digest && slices.Contains(b.Repos, repo) {
			return nil // known: no lock, no write
		}
	}
	desc = ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return l.addBlob(context.Background(), diffID, Blob{Descriptor: desc, Repos: []string{repo}, Made: MadePulled})
}

// Know notes which blob of a layer an image names, if nothing is known of the layer: a collection takes the notes of a layer that no
// record stands on, also when the layer's blob stays because of an image. An empty repo is none.
func (l *Layers) Know(diffID digest.Digest, desc ocispec.Descriptor, repo string) error {
	if l.st.Has(store.KindLayer, diffID.String()) {
		return nil
	}
	b := Blob{Descriptor: ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}, Made: MadePulled}
	if repo != "" {
		b.Repos = []string{repo}
	}
	return l.addBlob(context.Background(), diffID, b)
}

// Here reports whether a blob of the layer is in the store.
func (l *Layers) Here(diffID digest.Digest) bool {
	if !store.ValidDigest(diffID) {
		return false
	}
	blobs, err := l.Blobs(diffID) // not a mere look for the plain one: its size is compared with what was noted
	return err == nil && slices.ContainsFunc(blobs, func(b Blob) bool { return b.Local })
}

// Index returns the index of a layer. When it is missing or damaged, it is made by reading a local blob once; without one
// the error is ErrNotHere. The index is shared and stays open: callers do not close it.
func (l *Layers) Index(ctx context.Context, diffID digest.Digest) (*tree.Index, error) {
	x, err := l.index(ctx, diffID, func() error {
		_, err := l.readLayer(ctx, diffID, nil, func(stages ...func([]byte) error) (*stream, error) {
			return l.openTar(ctx, diffID, stages...)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("index of layer %s: %w", diffID, err)
	}
	return x, nil
}

// index returns the index of a layer and calls fill to publish it when there is none. However many goroutines and
// processes ask, one fills.
func (l *Layers) index(ctx context.Context, diffID digest.Digest, fill func() error) (*tree.Index, error) {
	if !store.ValidDigest(diffID) {
		return nil, fmt.Errorf("%.80q is no SHA-256 digest", string(diffID))
	}
	for {
		l.mu.Lock()
		if x := l.indexes[diffID]; x != nil {
			l.mu.Unlock()
			return x, nil
		}
		f := l.flying[diffID]
		if f == nil {
			f = &indexing{done: make(chan struct{})}
			l.flying[diffID] = f
			l.mu.Unlock()
			l.carryOut(ctx, diffID, f, fill)
			return f.x, f.err
		}
		l.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !f.off {
			return f.x, f.err
		}
	}
}

// carryOut makes an index on behalf of everybody who waits for f.
func (l *Layers) carryOut(ctx context.Context, diffID digest.Digest, f *indexing, fill func() error) {
	f.x, f.err = l.openOrMakeIndex(ctx, diffID, fill)
	f.off = f.err != nil && ctx.Err() != nil
	l.mu.Lock()
	delete(l.flying, diffID)
	if have := l.indexes[diffID]; f.err == nil && have != nil { // KnownIndex was faster
		_ = f.x.Close() // it was only read
		f.x = have
	}
	if f.err == nil {
		l.indexes[diffID] = f.x
	}
	l.mu.Unlock()
	close(f.done)
}

func (l *Layers) openOrMakeIndex(ctx context.Context, diffID digest.Digest, fill func() error) (*tree.Index, error) {
	if x, err := l.openIndex(diffID); err == nil {
		return x, nil
	}
	unlock, err := l.st.Lock(ctx, "index-"+diffID.Encoded(), nil)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if x, err := l.openIndex(diffID); err == nil { // another process was faster
		return x, nil
	}
	if err := fill(); err != nil {
		return nil, err
	}
	return l.openIndex(diffID)
}

func (l *Layers) openIndex(diffID digest.Digest) (*tree.Index, error) {
	x, err := openSigned(l.st.IndexPath(indexKey(diffID)), diffID)
	if err != nil {
		return nil, err
	}
	l.st.Touch(store.KindIndex, indexKey(diffID))
	return x, nil
}

// Unopened returns the layers whose indexes were not used yet.
func (l *Layers) Unopened(layers []digest.Digest) (out []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range layers {
		if l.indexes[d] == nil {
			out = append(out, d)
		}
	}
	return out
}

// KnownIndex returns the index of a layer if it is there, and makes none: nothing is read, fetched or written for it. Like that of
// Index it is shared and stays open.
func (l *Layers) KnownIndex(diffID digest.Digest) (*tree.Index, bool) {
	if diffID.Validate() != nil {
		return nil, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.indexes[diffID]; x != nil {
		return x, true
	}
	x, err := l.openIndex(diffID)
	if err != nil {
		return nil, false
	}
	l.indexes[diffID] = x
	return x, true
}

// hasIndex reports whether an index can be had without reading the layer.
func (l *Layers) hasIndex(diffID digest.Digest) bool {
	l.mu.Lock()
	open := l.indexes[diffID] != nil
	l.mu.Unlock()
	if open {
		return true
	}
	x, err := l.openIndex(diffID)
	if err != nil {
		return false
	}
	x.Close()
	return true
}

// opener opens the plain tar of a layer; each stage sees its bytes before the reader does.
type opener func(stages ...func([]byte) error) (*stream, error)

// readLayer reads a layer once, publishes its index, and gives every entry to a as well when a is not nil.
// The plain bytes are checked against diffID.
func (l *Layers) readLayer(ctx context.Context, diffID digest.Digest, a *applier, open opener) (ApplyReport, error) {
	sum := digest.SHA256.Digester()
	r, err := open(func(b []byte) error { _, err := sum.Hash().Write(b); return err })
	if err != nil {
		return ApplyReport{}, err
	}
	defer r.Close()
	x := newIndexer()
	report, err := scanLayer(ctx, r, a, x)
	if err != nil {
		return report, err
	}
	if got := sum.Digest(); got != diffID {
		return report, &DigestError{What: "diffID", Want: diffID, Got: got}
	}
	return report, l.publishIndex(ctx, diffID, x)
}

func (l *Layers) publishIndex(ctx context.Context, diffID digest.Digest, x *indexer) error {
	f, err := l.st.Create(ctx, store.KindIndex)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := x.write(f, diffID); err != nil {
		return err
	}
	return f.Commit(indexKey(diffID))
}

// Chain returns the merged view of layers, bottom first.
func (l *Layers) Chain(ctx context.Context, layers []digest.Digest) (*tree.Chain, error) {
	indexes := make([]*tree.Index, len(layers))
	for i, d := range layers {
		x, err := l.Index(ctx, d)
		if err != nil {
			return nil, err
		}
		indexes[i] = x
	}
	return tree.NewChain(indexes), nil
}

// OpenTar returns the plain tar of a layer, from whichever blob is here.
func (l *Layers) OpenTar(ctx context.Context, diffID digest.Digest) (io.ReadCloser, error) {
	return l.openTar(ctx, diffID)
}

func (l *Layers) openTar(ctx context.Context, diffID digest.Digest, stages ...func([]byte) error) (*stream, error) {
	f, err := l.openLocal(diffID)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open layer %s: %w", diffID, err)
	}
	s, err := l.inflate.plainOf(ctx, &wholeBlob{File: f}, fi.Size(), stages...)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open layer %s: %w", diffID, err)
	}
	s.file = f
	return s, nil
}

// openLocal opens the blob of a layer that is cheapest to read. A blob may go while we look: then the next one is tried.
func (l *Layers) openLocal(diffID digest.Digest) (*os.File, error) {
	blobs, err := l.Blobs(diffID)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(blobs, func(a, b Blob) int { return readCost(a.MediaType) - readCost(b.MediaType) })
	for range 2 {
		for _, b := range blobs {
			if !b.Local {
				continue
			}
			if f, err := l.st.OpenBlob(b.Digest, b.Size); err == nil {
				return f, nil
			}
		}
		if blobs, err = l.Blobs(diffID); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("layer %s: %w", diffID, ErrNotHere)
}
