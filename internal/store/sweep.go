package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// A lock file nobody used for this long is removed.
	idleLock = 24 * time.Hour
	// A directory without a marker, or a mark without a blob, is rubbish when it is this old and no lease covers it.
	abandoned = 24 * time.Hour
	// Of so many runs of the system it is remembered when they flushed.
	rememberedBoots = 64
)

// recoverTrash puts back what a collection that was killed had not decided upon, and goes on removing what it had. The collect
// lock is held.
func (s *Store) recoverTrash() error {
	recover := func(from, to string) error { return restore(from, to) }
	if s.rubbish() {
		recover = func(from, _ string) error { return discard(from) }
	}
	dirs := []string{s.path(trashDir)}
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		dirs = append(dirs, s.path(localDir, k, localTrash))
	}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Blobs sort first, so what is referred to mostly comes back first; what is read in between reads as a miss.
		for _, e := range entries {
			escaped, ok := strings.CutPrefix(e.Name(), pendingMark)
			if !ok {
				continue
			}
			rel, err := url.PathUnescape(escaped)
			if err != nil || !filepath.IsLocal(rel) {
				continue
			}
			if err := recover(d+"/"+e.Name(), s.path(rel)); err != nil {
				return fmt.Errorf("finish an interrupted collection: %w", err)
			}
		}
	}
	for _, f := range []string{decidingFile, decidedFile} { // last: who waits for it finds everything in its place
		if err := os.Remove(s.path(trashDir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// discard removes what is pending in a trash, or makes it rubbish for who can.
func discard(path string) error {
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		err = os.Rename(path, path[:len(path)-len(baseName(path))]+randomName())
	} else if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sweep takes away what dead processes left, and returns how many traces there were. The collect lock is held.
func (s *Store) sweep() (int, error) {
	ls, err := s.readLeases(true)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, f := range []func() (int, error){
		s.sweepTemp,
		s.sweepPartial,
		s.sweepLocal,
		func() (int, error) { return s.sweepUnmarked(ls) },
		s.sweepLocks,
		s.sweepBoots,
	} {
		n, err := f()
		total += n
		if err != nil {
			return total, fmt.Errorf("take away what dead processes left: %w", err)
		}
	}
	return total, nil
}

// deadTemps calls remove for each temporary directory in parent whose owner is dead, while its lock is held.
func deadTemps(parent string, remove func(dir string) error) (int, error) {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	n := 0
	for _, e := range entries {
		dir, isLock := strings.CutSuffix(parent+"/"+e.Name(), lockSuffix)
		if !isLock {
			if _, err := os.Lstat(dir + lockSuffix); err == nil {
				continue // comes or came with its lock
			}
			if err := remove(dir); err != nil {
				return n, err
			}
			n++
			continue
		}
		f, dead, err := lockExisting(dir + lockSuffix)
		if err != nil {
			return n, err
		}
		if !dead {
			continue
		}
		if err = remove(dir); err == nil {
			err = os.Remove(dir + lockSuffix)
		}
		f.Close()
		if err != nil {
			return n, err
		}
		n++
	}
	return n, err
}

func (s *Store) sweepTemp() (int, error) {
	return deadTemps(s.path(tmpDir), removeAll)
}

// sweepLocal moves the temporary directories of dead namespaces to the trash beside them.
func (s *Store) sweepLocal() (int, error) {
	kinds, err := s.idKinds()
	if err != nil {
		return 0, err
	}
	total := 0
	for _, k := range kinds {
		n, err := deadTemps(s.path(localDir, k, localTmp), func(dir string) error {
			err := os.Rename(dir, s.path(localDir, k, localTrash, randomName()))
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// sweepUnmarked moves directories that were never finished to the trash.
func (s *Store) sweepUnmarked(ls *leases) (int, error) {
	g := &graph{all: make(map[Ref]*entity)}
	if err := s.listDirs(g); err != nil {
		return 0, err
	}
	n := 0
	for _, e := range g.order {
		if e.complete || ls.refs[e.ref] || ls.covers(e.seen) || s.opts.Now().Sub(e.seen) < abandoned {
			continue
		}
		err := os.Rename(e.path, s.path(localDir, e.idKind, localTrash, randomName()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
		n++
	}
	return n, nil
}

// sweepLocks removes lock files that were idle for long. They are removed under their own lock, and who locks checks
// that what was locked is still there.
func (s *Store) sweepLocks() (int, error) {
	entries, err := os.ReadDir(s.path(lockDir))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || s.opts.Now().Sub(fi.ModTime()) < idleLock {
			continue
		}
		path := s.path(lockDir, e.Name())
		f, free, err := lockExisting(path)
		if err != nil {
			return 0, err
		}
		if free {
			err = os.Remove(path)
			f.Close()
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, nil // they are no trace of the dead
}

// sweepBoots forgets the marks and notes of runs of the system that are over, and those that have no blob.
func (s *Store) sweepBoots() (int, error) {
	entries, err := os.ReadDir(s.path(bootDir))
	if err != nil {
		return 0, err
	}
	ages := make(map[string]time.Time)
	var old []string
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && e.Name() != s.boot.id {
			ages[e.Name()] = fi.ModTime()
			old = append(old, e.Name())
		}
	}
	slices.SortFunc(old, func(a, b string) int { return ages[b].Compare(ages[a]) })
	for i, id := range old {
		if i >= rememberedBoots {
			if err := os.RemoveAll(s.path(bootDir, id)); err != nil {
				return 0, err
			}
		} else if err := s.sweepMarks(id, func(string, fs.DirEntry) bool { return true }); err != nil {
			return 0, err
		}
	}
	if s.boot.id == "" {
		return 0, nil
	}
	return 0, s.sweepMarks(s.boot.id, func(name string, e fs.DirEntry) bool {
		fi, err := e.Info()
		if err != nil || s.opts.Now().Sub(fi.ModTime()) < abandoned {
			return false
		}
		_, err = os.Lstat(s.path(blobDir, strings.TrimSuffix(name, hashedSuffix)))
		return errors.Is(err, fs.ErrNotExist)
	})
}

func (s *Store) sweepMarks(id string, old func(name string, e fs.DirEntry) bool) error {
	entries, err := os.ReadDir(s.path(bootDir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() == syncedFile || !old(e.Name(), e) {
			continue
		}
		if err := os.Remove(s.path(bootDir, id, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// emptyLocalTrash has what is finally in the trashes of local/ removed by whoever can.
func (s *Store) emptyLocalTrash(ctx context.Context, remove func(context.Context, string, []string) error) error {
	if remove == nil {
		return nil
	}
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		trash := s.path(localDir, k, localTrash)
		entries, err := os.ReadDir(trash)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var paths []string
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), pendingMark) {
				paths = append(paths, trash+"/"+e.Name())
			}
		}
		if len(paths) == 0 {
			continue
		}
		if err := remove(ctx, k, paths); err != nil {
			return fmt.Errorf("empty the trash of %s: %w", k, err)
		}
	}
	return nil
}

// removeAll removes a tree of the caller's own. Most have nothing that needs more than the library does.
func removeAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	return RemoveTree(dir)
}
