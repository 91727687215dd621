package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Measure returns what directories in local/<idKind> take on the disk, in their order. Only the process that owns the ids of
// what is in them can look.
type Measure func(ctx context.Context, idKind string, paths []string) ([]int64, error)

// Entry is one thing in the store, for people.
type Entry struct {
	Ref   Ref
	Size  int64      // on the disk
	Used  time.Time  // of itself or of what stands on it, whichever is later
	InUse bool       // a running build uses it
	Refs  []Ref      // what it stands on
	Name  *Name      // of a KindName, nil of others
	Mount *MountNote // of a KindMount, nil of others
}

// Survey is everything in a store. The sizes add up to what du(1) says of its directory.
type Survey struct {
	Entries []Entry
	Fixed   int64 // the store itself: directories, locks, marks
	Temp    int64 // being written, or left by the dead: the next collection takes that
	Trash   int64 // on its way out
}

// Total is the sum.
func (v *Survey) Total() int64 {
	n := v.Fixed + v.Temp + v.Trash
	for i := range v.Entries {
		n += v.Entries[i].Size
	}
	return n
}

// Survey walks the whole store. Nothing is changed, except that the sizes of cache mounts are remembered.
func (s *Store) Survey(ctx context.Context, refs References, measure Measure) (*Survey, error) {
	g, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	v := &Survey{Fixed: g.fixed}
	if err := s.measureAll(ctx, g, v, measure); err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	if err := s.resolve(g, refs); err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	ls, err := s.readLeases(false)
	if err != nil {
		return nil, fmt.Errorf("survey: %w", err)
	}
	for r := range ls.refs {
		g.pin(r)
	}
	g.settle()
	v.Entries = make([]Entry, 0, len(g.order))
	for _, e := range g.order {
		v.Entries = append(v.Entries, Entry{
			Ref: e.ref, Size: e.size, Used: e.used, InUse: e.pinned, Refs: e.refs, Name: e.name, Mount: e.mount,
		})
	}
	return v, nil
}

// measureAll replaces what is known of directories by what they take, and adds up what is in no place of its own.
func (s *Store) measureAll(ctx context.Context, g *graph, v *Survey, measure Measure) error {
	for _, d := range []string{tmpDir, trashDir} {
		n, err := s.measureIn(d)
		if err != nil {
			return err
		}
		if d == tmpDir {
			v.Temp += n
		} else {
			v.Trash += n
		}
	}
	if err := s.measureOthers(v); err != nil {
		return err
	}
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		if err := s.measureLocal(ctx, g, v, k, measure); err != nil {
			return err
		}
	}
	return nil
}

// measureLocal measures all that lies in local/<idKind>.
func (s *Store) measureLocal(ctx context.Context, g *graph, v *Survey, idKind string, measure Measure) error {
	var paths []string
	var to []*int64
	for _, e := range g.order {
		if e.idKind == idKind {
			paths, to = append(paths, e.path), append(to, &e.size)
		}
	}
	for _, d := range []struct {
		name string
		to   *int64
	}{{localTmp, &v.Temp}, {localTrash, &v.Trash}} {
		entries, err := os.ReadDir(s.path(localDir, idKind, d.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			paths, to = append(paths, s.path(localDir, idKind, d.name, e.Name())), append(to, d.to)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	sizes, err := measure(ctx, idKind, paths)
	if err != nil {
		return fmt.Errorf("measure the directories of %s: %w", idKind, err)
	}
	for _, e := range g.order {
		if e.idKind == idKind {
			e.size = 0
		}
	}
	for i, n := range sizes {
		*to[i] += n
	}
	for _, e := range g.order {
		if e.ref.Kind == KindMount && e.idKind == idKind {
			s.noteMountSize(idKind, baseName(e.path), e.size)
		}
	}
	return nil
}

// measureIn measures what is in a directory of the caller's own.
func (s *Store) measureIn(dir string) (int64, error) {
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range entries {
		n, err := MeasureTree(s.path(dir, e.Name()))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// measureOthers adds up what is in the store and in none of its lists: downloads that are on their way, and what a later version
// may have put there.
func (s *Store) measureOthers(v *Survey) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || slices.Contains(layout(), e.Name()) || e.Name() == contextDir || e.Name() == DownloadsDir {
			continue
		}
		n, err := MeasureTree(s.path(e.Name()))
		if err != nil {
			return err
		}
		v.Fixed += n
	}
	downloads, err := os.ReadDir(s.path(DownloadsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range downloads {
		if fi, err := e.Info(); err == nil && strings.HasPrefix(e.Name(), downloadTemp) {
			v.Temp += diskSize(fi)
		}
	}
	return nil
}
