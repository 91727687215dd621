package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ProblemKind says what sort of problem a check found.
type ProblemKind string

const (
	Damaged  ProblemKind = "damaged"  // a file does not say what it was written to say
	Dangling ProblemKind = "dangling" // something refers to what is not there
	Stale    ProblemKind = "stale"    // index.json is not what the names say
	Foreign  ProblemKind = "foreign"  // a file nothing of ours wrote
	Leftover ProblemKind = "leftover" // a dead process left it; harmless, and the next collection takes it
	Stuck    ProblemKind = "stuck"    // a lock is held although its holder is dead: a child of it must have it
	Owner    ProblemKind = "owner"    // it belongs to somebody else, so builds cannot read, replace or remove it
)

// Problem is one thing that is not as it should be.
type Problem struct {
	Kind     ProblemKind
	Ref      Ref    // what it is about, if that has a key
	Path     string // relative to the store
	Detail   string
	Repaired bool
}

func (p Problem) String() string {
	s := string(p.Kind) + ": " + p.Path + ": " + p.Detail
	if p.Repaired {
		s += " (repaired)"
	}
	return s
}

// Harmless reports whether nobody can be misled by the problem: traces of the dead, and an index.json that was not
// brought up to date.
func (p Problem) Harmless() bool { return p.Kind == Leftover || p.Kind == Stale || p.Kind == Foreign }

// CheckOptions say how a check goes about it.
type CheckOptions struct {
	// Repair removes what lies and what the dead left. What was removed is made or fetched again when it is needed.
	Repair bool
	// Quick does not read the blobs, only looks at them.
	Quick bool
	// References says what stands on what; Verify what is wrong with the data of a small file; VerifyIndex what is wrong
	// with the index at a path. Without them these things are not checked.
	References  References
	Verify      func(kind Kind, key string, data []byte) error
	VerifyIndex func(path string) error
	// Wait, unless nil, is told who collects or checks already.
	Wait func(holder string)
}

// Check reads the whole store and returns what is wrong with it. Builds may go on meanwhile; collections wait.
func (s *Store) Check(ctx context.Context, o CheckOptions) ([]Problem, error) {
	unlock, err := s.Lock(ctx, collectLock, o.Wait)
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	defer unlock()
	c := &check{s: s, o: o, ctx: ctx}
	// What is referred to comes first, so that after a repair what dangles is found in the same run.
	for _, step := range []func() error{c.trash, c.owners, c.blobs, c.dirs, c.files, c.names, c.index, c.downloads, c.notes, c.leftovers, c.locks} {
		if err := step(); err != nil {
			return c.found, fmt.Errorf("check: %w", err)
		}
	}
	return c.found, nil
}

type check struct {
	s     *Store
	o     CheckOptions
	ctx   context.Context
	found []Problem
}

// report notes a problem and, if that is wanted, repairs it.
func (c *check) report(p Problem, repair func() error) error {
	p.Path = strings.TrimPrefix(p.Path, c.s.dir+"/")
	if c.o.Repair && repair != nil {
		if err := repair(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("repair %s: %w", p.Path, err)
		}
		p.Repaired = true
	}
	c.found = append(c.found, p)
	return nil
}

// trash looks for a collection that was killed.
func (c *check) trash() error {
	entries, err := os.ReadDir(c.s.path(trashDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := Problem{Kind: Leftover, Path: c.s.path(trashDir, e.Name()), Detail: "of a collection that was interrupted"}
		if err := c.report(p, func() error { return nil }); err != nil {
			return err
		}
	}
	if c.o.Repair {
		return c.s.recoverTrash()
	}
	return nil
}

func (c *check) blobs() error {
	entries, err := os.ReadDir(c.s.path(blobDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		path := c.s.path(blobDir, e.Name())
		switch {
		case d.Validate() != nil:
			err = c.report(Problem{Kind: Foreign, Path: path, Detail: "no blob"}, nil)
		case !e.Type().IsRegular():
			err = c.report(Problem{Kind: Damaged, Ref: Ref{Kind: KindBlob, Key: d.String()}, Path: path, Detail: "it is no file"},
				func() error { return c.s.RemoveBlob(d) })
		case !c.o.Quick:
			err = c.blob(d, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *check) blob(d digest.Digest, path string) error {
	if hashes(path, d) {
		return nil
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // gone since
	}
	p := Problem{Kind: Damaged, Ref: Ref{Kind: KindBlob, Key: d.String()}, Path: path, Detail: "its digest is not its name"}
	return c.report(p, func() error { return c.s.RemoveBlob(d) })
}

// dirs looks at directories in local/ whose marker does not fit them. They are passed over by builds; only those who
// own what is in them can remove them, so repair hands them to the trash.
func (c *check) dirs() error {
	g := &graph{all: make(map[Ref]*entity)}
	if err := c.s.listDirs(g); err != nil {
		return err
	}
	for _, e := range g.order {
		if !e.complete {
			if err := c.unmarked(e); err != nil {
				return err
			}
			continue
		}
		m, _, err := readMarker(e.path)
		if err != nil {
			continue
		}
		st, err := lstat(e.path + "/" + ContentDir)
		switch {
		case errors.Is(err, fs.ErrPermission):
			continue
		case err == nil && st.Ino == m.Ino && st.Dev == m.Dev && m.IDKind == e.idKind:
			continue
		}
		p := Problem{Kind: Leftover, Ref: e.ref, Path: e.path, Detail: "its marker is that of another directory"}
		err = c.report(p, func() error {
			return os.Rename(e.path, c.s.path(localDir, e.idKind, localTrash, randomName()))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// markTime is how long a directory may be on its way from its place to its marker.
const markTime = time.Minute

// unmarked reports a directory that was never finished, or whose marker is damaged. Who wants it makes it anew.
func (c *check) unmarked(e *entity) error {
	if c.s.opts.Now().Sub(e.seen) < markTime {
		return nil
	}
	ls, err := c.s.readLeases(false)
	if err != nil || ls.refs[e.ref] {
		return err
	}
	p := Problem{Kind: Leftover, Ref: e.ref, Path: e.path, Detail: "it has no marker that can be read, so it was never finished"}
	return c.report(p, func() error {
		return os.Rename(e.path, c.s.path(localDir, e.idKind, localTrash, randomName()))
	})
}

// owners looks for what belongs to another user, as after a build with sudo: it cannot be read, or not be replaced.
func (c *check) owners() error {
	var dirs []string
	for _, d := range append(layout(), slices.Sorted(maps.Values(plainDirs))...) {
		dirs = append(dirs, d)
		entries, err := os.ReadDir(c.s.path(d))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		for _, e := range entries {
			if e.IsDir() && d != trashDir && d != tmpDir {
				dirs = append(dirs, d+"/"+e.Name())
			}
		}
	}
	for _, d := range dirs {
		if err := c.ownersIn(d); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) ownersIn(dir string) error {
	entries, err := os.ReadDir(c.s.path(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // what is above says why
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue // gone since
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || int(st.Uid) == os.Geteuid() {
			continue
		}
		path := c.s.path(dir, e.Name())
		p := Problem{Kind: Owner, Path: path, Detail: fmt.Sprintf("it belongs to uid %d and the store to uid %d", st.Uid, os.Geteuid())}
		repair := func() error { return os.Remove(path) }
		if fi.IsDir() {
			p.Detail += fmt.Sprintf("; root can mend that: chown -R %d %s", os.Geteuid(), path)
			repair = nil
		}
		if err := c.report(p, repair); err != nil {
			return err
		}
	}
	return err
}

// files reads the small files, what is referred to before what refers to it.
func (c *check) files() error {
	for i := len(smallKinds) - 1; i >= 0; i-- {
		kind := smallKinds[i]
		for it, err := range c.s.files(kind) {
			if err != nil {
				return err
			}
			if c.ctx.Err() != nil {
				return context.Cause(c.ctx)
			}
			if err := c.file(kind, it.path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *check) file(kind Kind, path string) error {
	remove := func() error { return removeAll(path) }
	key, data, err := c.readFile(kind, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ref := Ref{Kind: kind, Key: key}
	if err != nil {
		return c.report(Problem{Kind: Damaged, Ref: ref, Path: path, Detail: err.Error()}, remove)
	}
	if kind == KindName || kind == KindIndex || c.o.References == nil {
		return nil
	}
	for _, r := range c.o.References(kind, key, data) {
		if !r.Weak && !c.s.exists(r) {
			return c.report(Problem{Kind: Dangling, Ref: ref, Path: path, Detail: "it stands on " + r.String() + ", which is not here"}, remove)
		}
	}
	return nil
}

func (c *check) readFile(kind Kind, path string) (key string, data []byte, err error) {
	if kind == KindIndex {
		if c.o.VerifyIndex == nil {
			return baseName(path), nil, nil
		}
		return baseName(path), nil, c.o.VerifyIndex(path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	if key, data, err = unseal(kind, b); err != nil {
		return "", nil, err
	}
	if want := c.s.filePath(kind, key); want != path {
		return key, nil, fmt.Errorf("it belongs at %s", c.s.rel(want))
	}
	if kind == KindName {
		_, err = parseName(data)
	} else if c.o.Verify != nil {
		err = c.o.Verify(kind, key, data)
	}
	return key, data, err
}

// exists reports whether what a reference leads to is there.
func (s *Store) exists(r Ref) bool {
	var path string
	switch {
	case r.Kind == KindBlob:
		path = s.BlobPath(digest.Digest(r.Key))
	case r.Kind == KindDir:
		idKind, key, _ := strings.Cut(r.Key, "/")
		path = s.DirPath(idKind, key) + "/" + markerFile
	case r.Kind == KindMount:
		idKind, name, _ := strings.Cut(r.Key, "/")
		path = s.MountPath(idKind, name)
	case plainDirs[r.Kind] != "":
		path = s.path(plainDirs[r.Kind], r.Key)
	case r.Kind.small():
		path = s.filePath(r.Kind, r.Key)
	}
	_, err := os.Lstat(path)
	return err == nil
}

// names checks what names stand for.
func (c *check) names() error {
	names, err := c.s.Names()
	if err != nil {
		return err
	}
	for ref, n := range names {
		if err := c.name(ref, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) name(ref string, n Name) error {
	missing, err := c.s.missing(n.Descriptor)
	p := Problem{Kind: Dangling, Ref: Ref{Kind: KindName, Key: ref}, Path: c.s.filePath(KindName, ref)}
	switch {
	case err != nil:
		p.Detail = err.Error()
	case len(missing) == 0:
		return nil
	case missing[0] == n.Descriptor.Digest:
		p.Detail = "manifest " + missing[0].String() + " is not here"
	case n.Complete:
		p.Detail = "it is called complete and lacks " + missing[0].String()
		return c.report(p, func() error { return c.s.demote(c.ctx, ref, n, false) })
	default:
		return nil
	}
	return c.report(p, func() error { return c.s.demote(c.ctx, ref, n, true) })
}

// demote takes a name away, or calls it incomplete, unless it stands for something else by now.
func (s *Store) demote(ctx context.Context, ref string, was Name, remove bool) error {
	unlock, err := s.Lock(ctx, namesLock, nil)
	if err != nil {
		return err
	}
	defer unlock()
	n, ok, err := s.Name(ref)
	if err != nil || !ok || n.Descriptor.Digest != was.Descriptor.Digest {
		return err
	}
	if err := s.writeIndex(func(r string) bool { return r != ref }); err != nil {
		return err
	}
	if remove {
		return s.Remove(KindName, ref)
	}
	n.Complete = false
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return s.write(KindName, ref, data, true)
}

// missing lists the blobs of an image that are not here, the manifest first. It believes what HasBlob would after
// having looked, and changes nothing.
func (s *Store) missing(d ocispec.Descriptor) ([]digest.Digest, error) {
	var out []digest.Digest
	err := s.contents(d, 0, func(c ocispec.Descriptor) {
		fi, err := os.Lstat(s.BlobPath(c.Digest))
		if len(c.URLs) == 0 && (err != nil || fi.Size() != c.Size) {
			out = append(out, c.Digest)
		}
	})
	return out, err
}

// index checks that index.json is what the names say.
func (c *check) index() error {
	unlock, err := c.s.Lock(c.ctx, namesLock, nil)
	if err != nil {
		return err
	}
	defer unlock()
	repair := func() error { return c.s.writeIndex(nil) }
	p := Problem{Path: c.s.path(indexFile)}
	listed, err := c.s.listedImages()
	if err != nil {
		p.Kind, p.Detail = Damaged, err.Error()
		return c.report(p, repair)
	}
	for _, r := range listed {
		if !c.s.exists(r) {
			p.Kind, p.Detail = Dangling, "it lists an image that lacks "+r.Key
			return c.report(p, repair)
		}
	}
	want, err := c.s.deriveIndex(nil)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(c.s.path(indexFile)); err != nil || string(have) != string(want) {
		p.Kind, p.Detail = Stale, "it is not what the names say"
		return c.report(p, repair)
	}
	return nil
}
