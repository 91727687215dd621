package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// A cache mount is a directory at local/<id-kind>/cache/<name> that steps change in place. Beside it, in
// local/<id-kind>/cache-info, lie a note (what it is; its time is the last use) and its size when it was last measured (the
// file's time is when). It is measured by collections and du only, and only if it was used since.
const (
	mountDir   = "cache"
	mountNotes = "cache-info"
	sizeSuffix = ".size"
)

// MountNote says what a cache mount is, for people.
type MountNote struct {
	ID     string `json:"id"`
	Target string `json:"target"`
}

// MountPath is where the cache mount of a name lies.
func (s *Store) MountPath(idKind, name string) string {
	return s.path(localDir, idKind, mountDir, name)
}

// MountReady reports whether a cache mount is there. It is to be leased before.
func (s *Store) MountReady(idKind, name string) bool {
	path := s.MountPath(idKind, name)
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && s.lookAgain(path) {
		_, err = os.Lstat(path)
	}
	return err == nil && s.decided(path)
}

// NoteMount notes a use of a cache mount, and what it is.
func (s *Store) NoteMount(idKind, name string, n MountNote) error {
	path := s.path(localDir, idKind, mountNotes, name)
	if have, _, err := s.readMountNote(path); err == nil && have == n {
		now := s.opts.Now()
		return os.Chtimes(path, time.Time{}, now)
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return s.publish(path, append(data, '\n'), mountNotes, false)
}

func (s *Store) readMountNote(path string) (MountNote, time.Time, error) {
	var n MountNote
	f, err := os.Open(path)
	if err != nil {
		return n, time.Time{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return n, time.Time{}, err
	}
	return n, fi.ModTime(), json.NewDecoder(f).Decode(&n)
}

// listMounts adds the cache mounts to a graph, with their sizes as far as they were measured since they were last used.
func (s *Store) listMounts(g *graph) error {
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		entries, err := os.ReadDir(s.path(localDir, k, mountDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, d := range entries {
			if err := s.listMount(g, k, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) listMount(g *graph, idKind string, d fs.DirEntry) error {
	e := &entity{
		ref: Ref{Kind: KindMount, Key: DirKey(idKind, d.Name())}, path: s.MountPath(idKind, d.Name()), idKind: idKind,
		complete: true, measured: -1,
	}
	var note MountNote
	var err error
	e.mount = &note
	if note, e.seen, err = s.readMountNote(s.path(localDir, idKind, mountNotes, d.Name())); err != nil { // of an older version, or damaged
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		e.seen = fi.ModTime()
	}
	e.used = e.seen
	if f, err := os.Open(s.path(localDir, idKind, mountNotes, d.Name()) + sizeSuffix); err == nil {
		e.size = readSize(f)
		if fi, err := f.Stat(); err == nil && fi.ModTime().After(e.seen) {
			e.measured = e.size
		}
		f.Close()
	}
	g.add(e)
	return nil
}

func readSize(f *os.File) int64 {
	var b [32]byte
	n, _ := f.Read(b[:])
	size, err := strconv.ParseInt(strings.TrimSpace(string(b[:n])), 10, 64)
	if err != nil {
		return 0
	}
	return max(size, 0)
}

// noteMountSize remembers what a cache mount takes. When it cannot, it is measured again next time.
func (s *Store) noteMountSize(idKind, name string, size int64) {
	dir := s.path(localDir, idKind, mountNotes)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return
	}
	_ = s.publish(dir+"/"+name+sizeSuffix, []byte(strconv.FormatInt(size, 10)+"\n"), mountNotes, false)
}

// fewFiles is how many files of a cache mount are looked at beside a build: some hundredths of a second.
const fewFiles = 20_000

// MeasureMount lets the running sum follow a cache mount that a step changed, if it has not too many files for that: those are
// measured when all is counted. It is to be called in the process that owns the mount.
func (s *Store) MeasureMount(idKind, name string) {
	n, err := measureTree(s.MountPath(idKind, name), fewFiles)
	if err != nil {
		return
	}
	var before int64
	if f, err := os.Open(s.path(localDir, idKind, mountNotes, name) + sizeSuffix); err == nil {
		before = readSize(f)
		f.Close()
	}
	s.grow(n - before)
	s.noteMountSize(idKind, name, n)
}

// forgetMount removes what was noted of a cache mount that is gone.
func (s *Store) forgetMount(idKind, name string) {
	note := s.path(localDir, idKind, mountNotes, name)
	_ = os.Remove(note)
	_ = os.Remove(note + sizeSuffix)
}

// measureMounts finds out the sizes of cache mounts that were used since they were last measured.
func (s *Store) measureMounts(ctx context.Context, g *graph, measure Measure, note bool) error {
	if measure == nil { // they count as they were
		return nil
	}
	byKind := make(map[string][]*entity)
	for _, e := range g.order {
		if e.ref.Kind == KindMount && e.measured < 0 {
			byKind[e.idKind] = append(byKind[e.idKind], e)
		}
	}
	for kind, mounts := range byKind {
		paths := make([]string, len(mounts))
		for i, e := range mounts {
			paths[i] = e.path
		}
		sizes, err := measure(ctx, kind, paths)
		if err != nil {
			return fmt.Errorf("measure the cache mounts of %s: %w", kind, err)
		}
		for i, e := range mounts {
			g.total += sizes[i] - e.size
			e.size, e.measured = sizes[i], sizes[i]
			if note {
				s.noteMountSize(kind, baseName(e.path), e.size)
			}
		}
	}
	return nil
}
