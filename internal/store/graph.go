package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// References tells what a small file stands on: the layers of a record, the blobs of a layer. A nil result is a file
// that stands alone, or one that cannot be read. References lead down the deletion order; others are passed over.
// Names need no telling, the store follows those itself.
type References func(kind Kind, key string, data []byte) []Ref

// entity is one thing in the store as collection sees it.
type entity struct {
	ref    Ref
	path   string
	size   int64
	seen   time.Time // its own last use when it was listed
	used   time.Time // its last use, or the last of what stands on it
	refs   []Ref
	pinned bool

	name     *Name      // of a KindName
	idKind   string     // of a KindDir and a KindMount
	complete bool       // of a KindDir: it has a marker
	mount    *MountNote // of a KindMount
	measured int64      // of a KindMount: its size if that was measured since it was last used, else negative
}

// graph is what is in a store and what stands on what.
type graph struct {
	all   map[Ref]*entity
	order []*entity // by rank: what refers comes before what it refers to
	total int64     // of all entities, and fixed

	fixed int64 // what the store itself takes: directories, locks, marks
}

func (g *graph) add(e *entity) {
	g.all[e.ref] = e
	g.order = append(g.order, e)
	g.total += e.size
}

// list finds everything that is in the store, without reading any of it except the names and keys of names.
func (s *Store) list() (*graph, error) {
	g := &graph{all: make(map[Ref]*entity)}
	for _, k := range smallKinds {
		for it, err := range s.List(k) {
			if err != nil {
				return nil, fmt.Errorf("list %ss: %w", k, err)
			}
			g.add(&entity{ref: Ref{Kind: k, Key: it.Key}, path: it.path, size: it.Size, seen: it.Used, used: it.Used})
		}
	}
	if err := s.listBlobs(g); err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	if err := s.listDirs(g); err != nil {
		return nil, fmt.Errorf("list directories: %w", err)
	}
	if err := s.listMounts(g); err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	for _, k := range []Kind{KindContext, KindDownload, KindPartial, KindLog} {
		if err := s.listPlain(g, k); err != nil {
			return nil, fmt.Errorf("list %ss: %w", k, err)
		}
	}
	if err := s.listFixed(g); err != nil {
		return nil, fmt.Errorf("list the store: %w", err)
	}
	return g, nil
}

// plainDirs are the directories whose files nothing refers to and nobody needs: what is gone is made anew, or was for people.
var plainDirs = map[Kind]string{KindContext: contextDir, KindDownload: DownloadsDir, KindPartial: partialDir, KindLog: LogsDir}

const contextDir = "context"

// listPlain adds the files of a directory that need not be there. What is being written is passed over.
func (s *Store) listPlain(g *graph, kind Kind) error {
	entries, err := os.ReadDir(s.path(plainDirs[kind]))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || kind == KindDownload && strings.HasPrefix(e.Name(), downloadTemp) {
			continue
		}
		g.add(&entity{
			ref: Ref{Kind: kind, Key: e.Name()}, path: s.path(plainDirs[kind], e.Name()),
			size: diskSize(fi), seen: fi.ModTime(), used: fi.ModTime(),
		})
	}
	return err
}

// listFixed adds up what no collection can take: the store's own files and its directories.
func (s *Store) listFixed(g *graph) error {
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	dirs := []string{"", lockDir, tmpDir, trashDir, leaseDir, localDir, "blobs", blobDir, contextDir, DownloadsDir, partialDir, LogsDir, bootDir}
	for _, k := range smallKinds {
		dirs = append(dirs, string(k))
	}
	for _, k := range kinds {
		for _, d := range []string{"", "/" + localDirs, "/" + localTmp, "/" + localTrash, "/" + mountDir, "/" + mountNotes} {
			dirs = append(dirs, localDir+"/"+k+d)
		}
	}
	runs, err := os.ReadDir(s.path(bootDir))
	if err != nil {
		return err
	}
	for _, r := range runs {
		dirs = append(dirs, bootDir+"/"+r.Name())
	}
	for _, d := range dirs {
		if fi, err := os.Lstat(s.path(d)); err == nil {
			g.fixed += diskSize(fi)
		}
		if err := s.listFixedIn(g, d); err != nil {
			return err
		}
	}
	g.total += g.fixed
	return nil
}

// listFixedIn adds up the fans of a directory of small files, and the files of the others.
func (s *Store) listFixedIn(g *graph, dir string) error {
	fans := Kind(dir).small()
	files := dir == "" || dir == lockDir || dir == leaseDir || strings.HasPrefix(dir, bootDir+"/") || strings.HasSuffix(dir, "/"+mountNotes)
	if !fans && !files {
		return nil
	}
	entries, err := os.ReadDir(s.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.IsDir() == fans {
			g.fixed += diskSize(fi)
		}
	}
	return err
}

func (s *Store) listBlobs(g *graph) error {
	entries, err := os.ReadDir(s.path(blobDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || d.Validate() != nil {
			continue
		}
		if err != nil {
			return err
		}
		g.add(&entity{
			ref: Ref{Kind: KindBlob, Key: d.String()}, path: s.path(blobDir, e.Name()),
			size: diskSize(fi), seen: fi.ModTime(), used: fi.ModTime(),
		})
	}
	return nil
}

func (s *Store) listDirs(g *graph) error {
	kinds, err := s.idKinds()
	if err != nil {
		return err
	}
	for _, k := range kinds {
		entries, err := os.ReadDir(s.path(localDir, k, localDirs))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := s.listDir(g, k, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// listDir adds a directory by its marker, whose size and time are the directory's.
func (s *Store) listDir(g *graph, idKind string, d fs.DirEntry) error {
	path := s.path(localDir, idKind, localDirs, d.Name())
	e := &entity{ref: Ref{Kind: KindDir, Key: DirKey(idKind, d.Name())}, path: path, idKind: idKind}
	m, fi, err := readMarker(path)
	if err == nil {
		e.size, e.complete = max(m.Size, 0), true
	} else if fi, err = d.Info(); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	e.seen, e.used = fi.ModTime(), fi.ModTime()
	g.add(e)
	return nil
}

// resolve reads what stands on what.
func (s *Store) resolve(g *graph, refs References) error {
	for _, e := range g.order {
		switch {
		case e.ref.Kind == KindName:
			if err := s.resolveName(e); err != nil {
				return err
			}
		case refs != nil && e.ref.Kind.small() && e.ref.Kind != KindIndex && e.ref.Kind != KindText:
			data, err := s.peek(e.ref.Kind, e.ref.Key)
			var damaged *DamagedError
			if errors.Is(err, fs.ErrNotExist) || errors.As(err, &damaged) {
				continue
			}
			if err != nil {
				return err
			}
			e.refs = refs(e.ref.Kind, e.ref.Key, data)
		}
	}
	return nil
}

// relist reads the names again, because they may have come and gone since the graph was made.
func (s *Store) relist(g *graph) error {
	old := g.order
	g.order, g.total = nil, g.fixed
	for it, err := range s.List(KindName) {
		if err != nil {
			return fmt.Errorf("list names: %w", err)
		}
		e := &entity{ref: Ref{Kind: KindName, Key: it.Key}, path: it.path, size: it.Size, seen: it.Used, used: it.Used}
		if err := s.resolveName(e); err != nil {
			return err
		}
		g.add(e)
	}
	for _, e := range old {
		if e.ref.Kind != KindName {
			g.add(e)
		} else if now := g.all[e.ref]; now == e {
			delete(g.all, e.ref)
		}
	}
	return nil
}

func (s *Store) resolveName(e *entity) error {
	e.name = &Name{}
	data, err := s.peek(KindName, e.ref.Key)
	var damaged *DamagedError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &damaged) {
		return nil
	}
	if err != nil {
		return err
	}
	name, err := parseName(data)
	e.name = &name
	if err != nil {
		return nil // reads as no name
	}
	e.refs = s.imageRefs(e.name.Descriptor)
	return nil
}

// imageRefs lists the blobs of an image. What is no image has none but itself.
func (s *Store) imageRefs(d ocispec.Descriptor) []Ref {
	var refs []Ref
	_ = s.contents(d, 0, func(c ocispec.Descriptor) {
		refs = append(refs, Ref{Kind: KindBlob, Key: c.Digest.String()})
	})
	return refs
}

// listedImages lists the blobs of the images that index.json names right now.
func (s *Store) listedImages() ([]Ref, error) {
	b, err := os.ReadFile(s.path(indexFile))
	if err != nil {
		return nil, err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	var refs []Ref
	for _, d := range ix.Manifests {
		refs = append(refs, s.imageRefs(d)...)
	}
	return refs, nil
}

// peek reads a small file without noting a use.
func (s *Store) peek(kind Kind, key string) ([]byte, error) {
	f, err := os.Open(s.filePath(kind, key))
	if err != nil {
		return nil, readError(kind, key, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, readError(kind, key, err)
	}
	return decode(kind, key, f, fi.Size())
}

// pin keeps a thing, if it is there.
func (g *graph) pin(r Ref) {
	if e := g.all[r.strong()]; e != nil {
		e.pinned = true
	}
}

// settle hands uses and pins down from what refers to what it refers to. One pass is enough because references lead
// down the order.
func (g *graph) settle() {
	for _, e := range g.order {
		for _, r := range e.refs {
			t := g.all[r.strong()]
			if t == nil || t.ref.Kind.rank() <= e.ref.Kind.rank() {
				continue
			}
			if t.used.Before(e.used) {
				t.used = e.used
			}
			t.pinned = t.pinned || e.pinned
		}
	}
}

// oldest returns what is not pinned, the longest unused first. Because a thing's use is never before that of what
// stands on it, and ties go by rank, every beginning of the list can be removed without leaving a reference to nothing.
func (g *graph) oldest() []*entity {
	var out []*entity
	for _, e := range g.order {
		if !e.pinned {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b *entity) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		return a.ref.Kind.rank() - b.ref.Kind.rank()
	})
	return out
}

// inDeletionOrder sorts what is to be removed.
func inDeletionOrder(v []*entity) {
	slices.SortStableFunc(v, func(a, b *entity) int { return a.ref.Kind.rank() - b.ref.Kind.rank() })
}
