package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"build/internal/store"
	"build/internal/tree"
)

// A directory form is not a function of its layer alone. A tar that names /tmp/x without naming /tmp leaves the mode of
// /tmp to whoever unpacks, and in an overlay the topmost directory's metadata counts: a default 0755 would mask the 1777 of
// the base. So the implied directories of a layer take the metadata the layers below it give them, these fix-ups are
// hashed, and a directory that has any is kept under a key of its own.

// fixups are the implied directories of a layer whose metadata below is not the default.
type fixups []tree.Entry

// fixups computes what the directory form of chain[i] has to differ in from what its tar says.
func (l *Layers) fixups(ctx context.Context, chain []digest.Digest, i int) (fixups, error) {
	x, err := l.Index(ctx, chain[i])
	if err != nil {
		return nil, err
	}
	if x.Summary().Implied == 0 {
		return nil, nil
	}
	below, err := l.Chain(ctx, chain[:i])
	if err != nil {
		return nil, err
	}
	var out fixups
	for e, err := range x.Subtree("") {
		if err != nil {
			return nil, err
		}
		if !e.Implied || e.Opaque || e.Path == "" {
			continue
		}
		b, ok, err := below.Lstat(e.Path)
		if err != nil {
			return nil, err
		}
		if !ok || b.Type != tree.Dir || b.Mode == e.Mode && b.UID == 0 && b.GID == 0 && len(b.Xattrs) == 0 {
			continue
		}
		out = append(out, tree.Entry{
			Path: e.Path, Type: tree.Dir, Mode: b.Mode, UID: b.UID, GID: b.GID, Xattrs: b.Xattrs,
		})
	}
	return out, nil
}

// dirKey names the directory form of a layer with these fix-ups.
func dirKey(diffID digest.Digest, f fixups) string {
	if len(f) == 0 {
		return diffID.Encoded()
	}
	h := sha256.New()
	for i := range f {
		tree.HashEntry(h, f[i].Path, &f[i])
	}
	return diffID.Encoded() + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// apply gives the implied directories of an unpacked layer their metadata.
func (f fixups) apply(root *os.File, o *owners) (ApplyReport, error) {
	a := newApplier(root, o)
	for i := range f {
		fd, err := openBeneath(a.root, f[i].Path)
		if err == nil {
			err = a.metadata(fd, &f[i])
			unix.Close(fd)
		}
		if err != nil {
			return a.report, &entryError{f[i].Path, err}
		}
	}
	return a.report, nil
}

// HasDir reports whether the directory form of chain[i] is here, for a kind of id map that need not be this process's. It reads
// indexes that exist and makes none.
func (l *Layers) HasDir(idKind string, chain []digest.Digest, i int) bool {
	if i < 0 || i >= len(chain) || !l.hasIndex(chain[i]) {
		return false
	}
	x, err := l.Index(context.Background(), chain[i])
	if err != nil {
		return false
	}
	if x.Summary().Implied > 0 {
		for _, d := range chain[:i] {
			if !l.hasIndex(d) {
				return false
			}
		}
	}
	f, err := l.fixups(context.Background(), chain, i)
	return err == nil && l.st.DirReady(idKind, dirKey(chain[i], f))
}

// Unpack returns the directory form of chain[i], made if it is not here. However many processes ask for it, one unpacks.
// It is to be called in the process that owns the ids of IDKind.
func (l *Layers) Unpack(ctx context.Context, chain []digest.Digest, i int) (string, error) {
	if i < 0 || i >= len(chain) {
		return "", fmt.Errorf("unpack layer %d of %d", i, len(chain))
	}
	dir, err := l.unpack(ctx, chain, i)
	if err != nil {
		return "", fmt.Errorf("unpack layer %s: %w", chain[i], err)
	}
	return dir, nil
}

func (l *Layers) unpack(ctx context.Context, chain []digest.Digest, i int) (string, error) {
	made, err := l.unpackNew(ctx, chain[i], func(stages ...func([]byte) error) (*stream, error) {
		return l.openTar(ctx, chain[i], stages...)
	})
	if err != nil {
		return "", err
	}
	if made == nil {
		made = l.takeEarly(chain[i])
	}
	defer made.drop()
	return l.readyDir(ctx, chain, i, func() (string, error) {
		return l.makeDir(ctx, chain, i, made)
	})
}

// readyDir returns what make returned for the same layer on the same layers before, if the lease keeps it. Every RUN of a
// Dockerfile asks for the directories of all layers below it, and fix-ups take reading the whole index of a layer.
func (l *Layers) readyDir(ctx context.Context, chain []digest.Digest, i int, make func() (string, error)) (string, error) {
	if l.lease == nil {
		return make()
	}
	x, err := l.Index(ctx, chain[i])
	if err != nil {
		return "", err
	}
	place := chain[i].String()
	if x.Summary().Implied > 0 { // what is below matters
		for _, d := range chain[:i] {
			place += " " + d.String()
		}
	}
	l.mu.Lock()
	dir, ok := l.ready[place]
	l.mu.Unlock()
	if ok {
		return dir, nil
	}
	if dir, err = make(); err != nil {
		return "", err
	}
	l.mu.Lock()
	l.ready[place] = dir
	l.mu.Unlock()
	return dir, nil
}

// makeDir publishes the directory form of chain[i], from made if that is not nil.
func (l *Layers) makeDir(ctx context.Context, chain []digest.Digest, i int, made *tempTree) (string, error) {
	f, err := l.fixups(ctx, chain, i)
	if err != nil {
		return "", err
	}
	return l.publishDir(ctx, dirKey(chain[i], f), func() (*tempTree, error) {
		t := made
		if t == nil {
			var err error
			if t, err = l.newTempTree(); err != nil {
				return nil, err
			}
			if err := l.fillTree(ctx, chain[i], t); err != nil {
				t.drop()
				return nil, err
			}
		}
		if _, err := f.apply(t.root, l.owners); err != nil {
			t.drop()
			return nil, err
		}
		return t, nil
	})
}

// unpackNew unpacks a layer that nobody has read yet: its index and its directory come out of one pass over what open gives. It
// returns nil when the index exists already, and the directory, not yet in its place, otherwise.
func (l *Layers) unpackNew(ctx context.Context, diffID digest.Digest, open opener) (made *tempTree, err error) {
	_, err = l.index(ctx, diffID, func() error {
		t, err := l.newTempTree()
		if err != nil {
			return err
		}
		a := newApplier(t.root, l.owners)
		report, err := l.readLayer(ctx, diffID, a, open)
		if err != nil {
			t.drop()
			return err
		}
		t.report, t.nodes, made = report, a.nodes, t
		return nil
	})
	if err != nil {
		made.drop()
		return nil, err
	}
	return made, nil
}

// fillTree unpacks a layer whose index is known.
func (l *Layers) fillTree(ctx context.Context, diffID digest.Digest, t *tempTree) error {
	r, err := l.openTar(ctx, diffID)
	if err != nil {
		return err
	}
	defer r.Close()
	a := newApplier(t.root, l.owners)
	t.report, err = scanLayer(ctx, r, a, nil)
	t.nodes = a.nodes
	return err
}

// publishDir returns the directory under key, made with fill when there is none.
func (l *Layers) publishDir(ctx context.Context, key string, fill func() (*tempTree, error)) (string, error) {
	if l.lease != nil {
		if err := l.lease.Add(store.KindDir, store.DirKey(l.idKind, key)); err != nil {
			return "", err
		}
	}
	path := l.st.DirPath(l.idKind, key)
	content := path + "/" + store.ContentDir
	if l.st.DirReady(l.idKind, key) {
		return content, l.owners.load(path)
	}
	unlock, err := l.st.Lock(ctx, "dir-"+l.idKind+"-"+key, nil)
	if err != nil {
		return "", err
	}
	defer unlock()
	if l.st.DirReady(l.idKind, key) {
		return content, l.owners.load(path)
	}
	t, err := fill()
	if err != nil {
		return "", err
	}
	defer t.drop()
	if err := os.RemoveAll(path); err != nil { // of somebody who died, or not to be trusted
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if err := l.owners.save(path, t.nodes); err != nil {
		return "", err
	}
	if err := os.Rename(t.path(), content); err != nil {
		return "", err
	}
	return content, l.st.MarkDir(l.idKind, key, t.report.Disk+3*dirCost) // with its marker, itself and fs
}

// tempTree is a directory form in the making.
type tempTree struct {
	dir     string
	root    *os.File
	release func()
	report  ApplyReport
	nodes   []byte // the table of owners of what cannot carry them
}

func (l *Layers) newTempTree() (*tempTree, error) {
	dir, release, err := l.st.LocalTemp(l.idKind)
	if err != nil {
		return nil, err
	}
	t := &tempTree{dir: dir, release: release}
	if err := os.Mkdir(t.path(), 0o755); err != nil {
		release()
		return nil, err
	}
	if t.root, err = os.Open(t.path()); err == nil {
		err = t.root.Chmod(0o755) // whatever the umask is
	}
	if err != nil {
		t.drop()
		return nil, err
	}
	return t, nil
}

func (t *tempTree) path() string { return t.dir + "/" + store.ContentDir }

// drop removes what is left of the temporary directory; a tree that was moved away stays. It may be called on nil and twice.
func (t *tempTree) drop() {
	if t == nil || t.release == nil {
		return
	}
	if t.root != nil {
		t.root.Close()
	}
	t.release()
	t.release = nil
}
