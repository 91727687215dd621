package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"build/internal/store"
	"build/internal/tree"
)

// Upper is a fresh layer for a command to write to: what an overlay needs, as paths. The package mounts nothing itself;
// the mount must use userxattr and index=off, and must be gone when Commit is called.
type Upper struct {
	Lower []string // bottom first, never empty
	Dir   string
	Work  string

	l       *Layers
	chain   *tree.Chain
	release func()
	ended   bool
	inspect Inspector
}

// Begin makes directories out of the layers of a chain, in parallel, and an upper directory on top of them.
func (l *Layers) Begin(ctx context.Context, chain []digest.Digest) (*Upper, error) {
	dirs := make([]string, len(chain))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i := range chain {
		g.Go(func() (err error) {
			dirs[i], err = l.Unpack(gctx, chain, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	merged, err := l.Chain(ctx, chain)
	if err != nil {
		return nil, err
	}
	u := &Upper{l: l, chain: merged}
	if u.Lower, err = lowerDirs(merged, dirs); err != nil {
		return nil, err
	}
	if err := u.prepare(); err != nil {
		u.Discard()
		return nil, fmt.Errorf("prepare an upper directory: %w", err)
	}
	return u, nil
}

// lowerDirs returns the directories an overlay of the chain stands on. Of a layer that occurs twice the upper one decides,
// and the kernel refuses the same directory twice; empty layers add nothing; a layer whose root is opaque ends the chain,
// because overlays do not honour the mark there.
func lowerDirs(chain *tree.Chain, dirs []string) ([]string, error) {
	var out []string
	for i, x := range slices.Backward(chain.Layers()) {
		if x.Summary().Entries > 0 && !slices.Contains(out, dirs[i]) {
			out = append(out, dirs[i])
		}
		root, ok, err := x.Lookup("")
		if err != nil {
			return nil, err
		}
		if ok && root.Opaque {
			break
		}
	}
	slices.Reverse(out)
	return out, nil
}

// prepare makes the directories of the upper; its root is what the chain's root is, because an overlay shows the upper's.
func (u *Upper) prepare() error {
	dir, release, err := u.l.st.LocalTemp(u.l.idKind)
	if err != nil {
		return err
	}
	u.release = release
	u.Dir, u.Work = dir+"/"+store.ContentDir, dir+"/work"
	for _, d := range []string{u.Dir, u.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if len(u.Lower) == 0 {
		u.Lower = []string{dir + "/empty"}
		if err := os.Mkdir(u.Lower[0], 0o755); err != nil {
			return err
		}
	}
	root, err := os.Open(u.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	e, _, err := u.chain.Lstat("")
	if err != nil {
		return err
	}
	a := newApplier(root, u.l.owners)
	if err := a.metadata(a.root, &e.Entry); err != nil {
		return err
	}
	return setTimes(a.root, ".", e.ModTime)
}

// Commit turns what was written to the upper directory into a layer: tar, index and digest in one walk over what changed.
// The directory becomes the layer's directory form. The overlay must be unmounted.
func (u *Upper) Commit(ctx context.Context) (Layer, error) {
	if u.ended {
		return Layer{}, errors.New("commit: the upper directory was given up before")
	}
	defer u.Discard()
	l, d, err := u.write(ctx)
	if err != nil {
		return Layer{}, fmt.Errorf("commit: %w", err)
	}
	t := &tempTree{dir: u.Dir[:len(u.Dir)-len("/"+store.ContentDir)], nodes: d.nodes, report: ApplyReport{Bytes: l.Size, Entries: l.Entries, Disk: d.disk}}
	if _, err := u.l.publishDir(ctx, dirKey(l.DiffID, nil), func() (*tempTree, error) { return t, nil }); err != nil {
		return Layer{}, fmt.Errorf("commit: %w", err)
	}
	return l, nil
}

// write writes the layer, and returns what came to light about the directory: the table of owners of what cannot carry them, and
// what it takes on the disk.
func (u *Upper) write(ctx context.Context) (Layer, *differ, error) {
	root, err := os.Open(u.Dir)
	if err != nil {
		return Layer{}, nil, err
	}
	defer root.Close()
	w, err := u.l.NewWriter(ctx)
	if err != nil {
		return Layer{}, nil, err
	}
	defer w.Abort()
	w.Inspect(u.inspect)
	d := &differ{ctx: ctx, base: u.chain, w: w, owners: u.l.owners, first: map[inode]firstName{}}
	for _, dir := range slices.Backward(u.Lower) {
		f, err := os.Open(dir)
		if err != nil {
			return Layer{}, nil, err
		}
		defer f.Close()
		d.lower = append(d.lower, f)
	}
	if err := d.diff(root, nil); err != nil {
		return Layer{}, nil, err
	}
	l, err := w.Commit()
	return l, d, err
}

// Discard gives the upper directory up. After Commit it does nothing; it may always be called.
func (u *Upper) Discard() {
	if u.ended {
		return
	}
	u.ended = true
	if u.release != nil {
		u.release()
	}
}
