package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// formatVersion is the only format this code reads and writes. See FORMAT.md before changing it.
const formatVersion = "build store 1\n"

const (
	versionFile   = "version"
	layoutFile    = "oci-layout"
	layoutContent = `{"imageLayoutVersion":"1.0.0"}`
	indexFile     = "index.json"
	emptyIndex    = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

	lockDir  = "lock"
	tmpDir   = "tmp"
	trashDir = "trash"
	leaseDir = "lease"
	bootDir  = "boot"
	localDir = "local"
	blobDir  = "blobs/sha256"
)

// Kind names a family of things in the store. The kinds of small files have a directory each.
type Kind string

// The kinds, in the order in which they are deleted: what refers comes before what it refers to.
const (
	KindName   Kind = "name"   // a reference of an image: see Name
	KindRecord Kind = "record" // what a step gave
	KindLink   Kind = "link"   // a small pointer from anything to anything, such as the last key of an instruction
	KindLayer  Kind = "layer"  // what is known of a layer
	KindIndex  Kind = "index"  // a layer's index; the only kind that is stored bare, because it is read in place
	KindText   Kind = "text"   // text shared by records
	KindBlob   Kind = "blob"   // in blobs/sha256, named by digest
	KindDir    Kind = "dir"    // a directory below local/, named "<id-kind>/<key>"
	// Nothing refers to these.
	KindMount    Kind = "mount"    // a cache mount, named "<id-kind>/<name>"
	KindContext  Kind = "context"  // what is known of the files of one context directory
	KindDownload Kind = "download" // a file that was fetched for ADD or a context, or a note about it
	KindPartial  Kind = "partial"  // what there is of a blob whose download ended early
	KindLog      Kind = "log"      // what a failed step printed
)

// deletionOrder is also the rank of a kind: references lead from a lower rank to a higher one.
var deletionOrder = []Kind{KindName, KindRecord, KindLink, KindLayer, KindIndex, KindText, KindBlob, KindDir, KindMount, KindContext, KindDownload, KindPartial, KindLog}

// smallKinds are the kinds that are plain files under a key.
var smallKinds = []Kind{KindName, KindRecord, KindLink, KindLayer, KindIndex, KindText}

func (k Kind) rank() int { return slices.Index(deletionOrder, k) }

func (k Kind) small() bool { return slices.Contains(smallKinds, k) }

// Ref names one thing in the store.
type Ref struct {
	Kind Kind
	Key  string
	Weak bool // the thing may be absent without making a liar of who refers to it
}

func (r Ref) String() string { return string(r.Kind) + " " + r.Key }

// strong is the reference as a map key.
func (r Ref) strong() Ref { return Ref{Kind: r.Kind, Key: r.Key} }

// Options are what may differ from one opening of a store to another. The zero value is right for a build.
type Options struct {
	// Now is the clock that ages are measured with; nil is time.Now.
	Now func() time.Time
	// Who says in a lock file who holds it; "" is this process's command line without values.
	Who string
	// Point, when set, is called with a name at each step of publishing. Tests end the process there.
	Point func(name string)
}

// Store is an open store. It is safe for concurrent use.
type Store struct {
	dir  string
	opts Options
	boot boot

	mu      sync.Mutex
	session *tempDir // holds what is being written; made when the first thing is
	serial  int

	noting sync.Mutex // held while a note of what was hashed is renewed: exports to several places note the same blob at once

	since atomic.Int64 // when the newest lease of this process was taken; 0: it took none
	idle  atomic.Bool  // see NoteNoUses
	grown atomic.Int64 // bytes that this process added and did not tell yet: see tell
}

// Open opens the store in dir and creates it when there is none.
//
// Any number of processes may share a store as long as they are one user's, which includes that user's own user
// namespaces, and see the same file system on the same machine. A directory that somebody else owns or may write to
// is refused, and so is a file system whose locks do not exclude. What opening costs does not depend on what is in it.
func Open(dir string, o Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{dir: abs, opts: o, boot: currentBoot()}
	if err := s.open(); err != nil {
		var se *Error
		if errors.As(err, &se) {
			return nil, err
		}
		return nil, fmt.Errorf("open store %s: %w", abs, err)
	}
	return s, nil
}

// Error is a store that cannot be used as it is, and what to do about it.
type Error struct {
	Dir string
	Msg string // what is wrong
	Fix string // what to do
}

func (e *Error) Error() string { return fmt.Sprintf("store %s: %s: %s", e.Dir, e.Msg, e.Fix) }

const useAnotherRoot = "choose another directory with --root or BUILD_ROOT"

func (s *Store) fail(msg, fix string) error { return &Error{Dir: s.dir, Msg: msg, Fix: fix} }

func (s *Store) open() error {
	if err := s.ownDir(); err != nil {
		return err
	}
	v, err := os.ReadFile(s.path(versionFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.create(); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(v) != formatVersion:
		return s.fail(fmt.Sprintf("its format %.40q, in %s, is not one this version of build knows", strings.TrimSpace(string(v)), s.path(versionFile)),
			"use the version of build that made it, or "+useAnotherRoot)
	}
	if err := s.private(); err != nil {
		return err
	}
	return s.probeLocks()
}

// private refuses a store whose unpacked layers or blobs others can reach. The directory above them may be open to be read, as
// one is that somebody made beforehand; but in here are programs of any owner with any mode, setuid included.
func (s *Store) private() error {
	for _, d := range []string{localDir, "blobs"} {
		fi, err := os.Lstat(s.path(d))
		if err != nil {
			return err
		}
		if !fi.IsDir() || fi.Mode().Perm()&0o077 != 0 {
			return s.fail(fmt.Sprintf("%s in it is open to others (mode %04o), with setuid programs of any image", d, fi.Mode().Perm()),
				"run chmod go= "+s.path(d)+", or "+useAnotherRoot)
		}
	}
	return nil
}

// ownDir makes the store's directory when it is missing and refuses one that others could write to.
func (s *Store) ownDir() error {
	fi, err := os.Stat(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return s.cannotCreate(err)
		}
		fi, err = os.Stat(s.dir)
	}
	if err != nil {
		return s.cannotCreate(err)
	}
	if !fi.IsDir() {
		return s.fail("it is not a directory", useAnotherRoot)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("stat says nothing about the owner")
	}
	if int(st.Uid) != os.Geteuid() {
		return s.fail(fmt.Sprintf("it belongs to uid %d and this is uid %d", st.Uid, os.Geteuid()),
			"run build as its owner, or "+useAnotherRoot+" (a subdirectory will do)")
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return s.fail(fmt.Sprintf("others may write to it (mode %04o), so what is in it cannot be trusted", fi.Mode().Perm()),
			"run chmod go-w "+s.dir+" if nobody did, or "+useAnotherRoot+" (a subdirectory will do)")
	}
	return nil
}

func (s *Store) cannotCreate(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return s.fail("it cannot be made: "+err.Error(), useAnotherRoot)
	}
	return err
}

// layout lists the directories of a store. The lock directory comes first: what has it and nothing foreign is a store
// whose making was interrupted.
func layout() []string {
	dirs := []string{lockDir, tmpDir, trashDir, leaseDir, bootDir, localDir, "blobs", blobDir}
	for _, k := range smallKinds {
		dirs = append(dirs, string(k))
	}
	return dirs
}

// create lays out a new store. Several processes may do so at once; the version file comes last and says that all is there.
func (s *Store) create() error {
	if err := s.refuseForeign(); err != nil {
		return err
	}
	for _, d := range layout() {
		if err := os.Mkdir(s.path(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	s.point("create.dirs")
	for _, f := range [][2]string{{layoutFile, layoutContent}, {indexFile, emptyIndex}, {usageFile, s.emptyUsage()}, {versionFile, formatVersion}} {
		if err := s.createFile(f[0], f[1]); err != nil {
			return err
		}
		s.point("create." + f[0])
	}
	return nil
}

// createFile makes a file appear complete, unless another process made it first.
func (s *Store) createFile(name, content string) error {
	f, err := s.newTemp()
	if err != nil {
		return err
	}
	defer f.discard()
	if _, err := f.Write([]byte(content)); err != nil {
		return err
	}
	// Flushed: a store whose version was lost with the power, and the directory entry was not, could never be opened again.
	if err := f.close(true); err != nil {
		return err
	}
	if err := os.Link(f.path, s.path(name)); err != nil && !errors.Is(err, fs.ErrExist) {
		if !noHardLinks(err) {
			return err
		}
		return os.Rename(f.path, s.path(name))
	}
	return nil
}

// refuseForeign keeps a store from being laid into a directory that holds something else.
func (s *Store) refuseForeign() error {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	known := append(layout(), layoutFile, indexFile, usageFile, trimFile, versionFile, secretKeyFile)
	known = append(known, slices.Sorted(maps.Values(plainDirs))...)
	begun := len(names) == 0
	for _, e := range names {
		if e.Name() == lockDir {
			begun = true
		}
		if !slices.Contains(known, e.Name()) {
			return s.fail("it is not empty and not a store (it holds "+e.Name()+")", useAnotherRoot)
		}
	}
	if !begun {
		return s.fail("it is not empty and not a store", useAnotherRoot)
	}
	return nil
}

// probeLocks finds out by doing whether locks exclude here. A lock that somebody else is just probing excludes too.
func (s *Store) probeLocks() error {
	path := s.path(lockDir, "probe")
	a, err := openLock(path)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := openLock(path)
	if err != nil {
		return err
	}
	defer b.Close()
	first, err := flock(a)
	if err != nil {
		return s.fail("file locks do not work on its file system ("+err.Error()+")", "put it on a local one with --root or BUILD_ROOT")
	}
	if !first {
		return nil
	}
	if second, err := flock(b); err != nil || second {
		return s.fail("file locks do not exclude on its file system", "put it on a local one with --root or BUILD_ROOT")
	}
	return nil
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// Close gives up what this process holds in the store, and tells what it added to it. It need not be called: a process that
// ends leaves an empty directory that the next collection takes away, and the next counting finds what it added.
func (s *Store) Close() error {
	s.tell()
	s.mu.Lock()
	t := s.session
	s.session = nil
	s.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.release()
}

func (s *Store) path(elem ...string) string {
	return s.dir + "/" + strings.Join(elem, "/")
}

// rel is the inverse of path.
func (s *Store) rel(path string) string { return strings.TrimPrefix(path, s.dir+"/") }

func (s *Store) point(name string) {
	if s.opts.Point != nil {
		s.opts.Point(name)
	}
}

// noHardLinks reports whether an error of link(2) says that the file system has none.
func noHardLinks(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EMLINK)
}
