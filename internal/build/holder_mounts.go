package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/owner"
	"build/internal/store"
	"build/snapshot"
)

// attach adds trees and cache mounts to a step. What it made is given up by the function it returns. Log is the step's.
func (n *inside) attach(ctx context.Context, req *runRequest, log io.Writer) (release func(), err error) {
	var undo []func()
	giveUp := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	defer func() {
		if err != nil { // release is nil then
			giveUp()
		}
	}()
	for _, t := range req.Trees {
		s, err := n.begin(ctx, t.Chain)
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", t.Target, err)
		}
		var src executor.Source
		switch r := s.root.(type) {
		case executor.Overlay:
			src = executor.BindTree{Overlay: r, Sub: t.Sub, ReadOnly: t.ReadOnly}
		case executor.Tree:
			src = executor.BindPath{Path: r.Dir, Sub: t.Sub, ReadOnly: t.ReadOnly}
		}
		undo = append(undo, s.Discard)
		if p, ok := s.changeable.(*snapshot.PrivateTree); ok && t.ReadOnly {
			undo = append(undo, p.Leave)
		}
		req.Spec.Mounts = append(req.Spec.Mounts, executor.Mount{Target: t.Target, Source: src})
	}
	// Steps that lock several caches lock them in the same order.
	slices.SortStableFunc(req.Caches, func(a, b cacheMount) int { return strings.Compare(a.Key, b.Key) })
	held := map[string]string{} // by key: one step may show the same cache twice
	for _, c := range req.Caches {
		dir, ok := held[c.Key]
		if !ok {
			var unlock func()
			if dir, unlock, err = n.cacheMount(ctx, c, log); err != nil {
				return nil, fmt.Errorf("cache mount on %s: %w", c.Target, err)
			}
			undo, held[c.Key] = append(undo, unlock), dir
		}
		req.Spec.Mounts = append(req.Spec.Mounts, executor.Mount{Target: c.Target, Source: executor.BindPath{Path: dir, Sub: c.Sub, ReadOnly: c.ReadOnly}})
	}
	return giveUp, nil
}

// cacheMount returns the directory of a cache, made and filled when it is not there, and locked as its sharing says. In a chroot
// the cache is moved to where the step sees it, so that only one step at a time can have it.
func (n *inside) cacheMount(ctx context.Context, c cacheMount, log io.Writer) (dir string, unlock func(), err error) {
	sharing := c.Sharing
	if n.plain && sharing == "shared" {
		sharing = "locked"
	}
	switch sharing {
	case "locked":
		unlock, err = n.store.Lock(ctx, "cache-"+c.Key, func(holder string) {
			_, _ = fmt.Fprintf(log, "waiting for the cache mount on %s, which is locked by %s\n", c.Target, holder)
		})
		if err != nil {
			return "", nil, err
		}
		dir, err = n.fillCache(ctx, c, c.Key)
	case "private":
		// The first copy nobody uses now; one more is made when all are in use.
		for i := 0; unlock == nil; i++ {
			name := c.Key + "." + strconv.Itoa(i)
			release, ok, err := n.store.TryLock("cache-" + name)
			if err != nil {
				return "", nil, err
			}
			if ok {
				unlock = release
				dir, err = n.fillCache(ctx, c, name)
				if err != nil {
					unlock()
					return "", nil, err
				}
			}
		}
	default:
		unlock = func() {}
		dir, err = n.fillCache(ctx, c, c.Key)
	}
	if err != nil {
		unlock()
		return "", nil, err
	}
	note := func() {
		if err := n.store.NoteMount(n.kind, filepath.Base(dir), store.MountNote{ID: c.ID, Target: c.Target}); err != nil {
			_, _ = fmt.Fprintf(log, "the use of the cache mount on %s is not noted: %v\n", c.Target, err)
		}
	}
	note()
	free := unlock
	return dir, func() { // once more: what it takes changed until now
		note()
		free()
		n.sweeping.Go(func() { n.store.MeasureMount(n.kind, filepath.Base(dir)) })
	}, nil
}

func (n *inside) cachePath(name string) string {
	return n.store.MountPath(n.kind, name)
}

// renewed are the caches this build began anew.
type renewed struct {
	mu   sync.Mutex
	done map[string]bool
	old  []func() // remove what was moved out of the way
}

// drop removes what the caches held before.
func (r *renewed) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.old {
		f()
	}
	r.old = nil
}

// renew moves a cache out of the way, once in a build, so that its steps share what is made in its place. Another build's
// step that has it mounted goes on with the old one, which is removed when this build ends.
func (n *inside) renew(ctx context.Context, name string) error {
	n.renewed.mu.Lock()
	defer n.renewed.mu.Unlock()
	if n.renewed.done[name] {
		return nil
	}
	unlock, err := n.store.Lock(ctx, "cache-make-"+name, nil)
	if err != nil {
		return err
	}
	defer unlock()
	tmp, release, err := n.store.LocalTemp(n.kind)
	if err != nil {
		return err
	}
	n.renewed.old = append(n.renewed.old, release)
	if err := os.Rename(n.cachePath(name), filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if n.renewed.done == nil {
		n.renewed.done = map[string]bool{}
	}
	n.renewed.done[name] = true
	return nil
}

// fillCache makes the directory when it is missing: beside its place first, so that nobody sees a half-filled one.
func (n *inside) fillCache(ctx context.Context, c cacheMount, name string) (string, error) {
	dir := n.cachePath(name)
	if c.Fresh {
		if err := n.renew(ctx, name); err != nil {
			return "", fmt.Errorf("begin it anew: %w", err)
		}
	}
	if err := n.lease.Add(store.KindMount, store.DirKey(n.kind, name)); err != nil {
		return "", err
	}
	if n.store.MountReady(n.kind, name) {
		return dir, nil
	}
	done, err := n.store.Lock(ctx, "cache-make-"+name, nil)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := os.Lstat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	tmp, release, err := n.store.LocalTemp(n.kind)
	if err != nil {
		return "", err
	}
	defer release()
	fresh := filepath.Join(tmp, "fs")
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", err
	}
	if err := giveOwner(fresh, c.UID, c.GID); err != nil {
		return "", fmt.Errorf("owner %d:%d: %w", c.UID, c.GID, err)
	}
	if err := os.Chmod(fresh, os.FileMode(c.Mode&0o777)|sticky(c.Mode)); err != nil {
		return "", err
	}
	if c.Seed != "" {
		if err := n.seed(ctx, c, fresh); err != nil {
			return "", err
		}
	}
	err = os.Rename(fresh, dir)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		// A step in a chroot that was killed has put its cache back meanwhile.
		err = nil
	}
	return dir, err
}

// giveOwner gives a directory an owner that this user namespace need not have.
func giveOwner(dir string, uid, gid uint32) error {
	ids, err := owner.ReadMap()
	if err != nil {
		return err
	}
	diskUID, diskGID := ids.Disk(uid, gid)
	if err := unix.Fchownat(unix.AT_FDCWD, dir, int(diskUID), int(diskGID), unix.AT_SYMLINK_NOFOLLOW); err != nil || !ids.Needs(uid, gid) {
		return err
	}
	return owner.SetPath(dir, owner.Record{UID: uid, GID: gid})
}

func sticky(mode uint32) (m os.FileMode) {
	if mode&unix.S_ISVTX != 0 {
		m |= os.ModeSticky
	}
	if mode&unix.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	if mode&unix.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	return m
}

func (n *inside) seed(ctx context.Context, c cacheMount, into string) error {
	r, err := n.layers.OpenTar(ctx, c.Seed)
	if err != nil {
		return err
	}
	defer r.Close()
	d, err := os.Open(into)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err = n.layers.Apply(ctx, d, r); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(into, filepath.Clean("/"+c.Sub))); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the seed has no %s", c.Sub)
	}
	return nil
}
