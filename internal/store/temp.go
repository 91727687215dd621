package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// A temporary directory is a directory NAME and beside it a locked file NAME.lock, made before it and removed after
// it. Whoever can lock the file knows that its owner is dead.
type tempDir struct {
	dir  string
	lock *os.File
	once sync.Once
	err  error
}

const lockSuffix = ".lock"

// newTempDir makes a temporary directory in parent.
func newTempDir(parent string) (*tempDir, error) {
	for {
		base := parent + "/" + randomName()
		f, err := createLocked(base + lockSuffix)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue // taken for rubbish before it could be locked
		}
		if err := os.Mkdir(base, 0o700); err != nil {
			os.Remove(base + lockSuffix)
			f.Close()
			return nil, err
		}
		return &tempDir{dir: base, lock: f}, nil
	}
}

func (t *tempDir) release() error {
	t.once.Do(func() {
		t.err = removeAll(t.dir)
		if t.err == nil {
			t.err = os.Remove(t.lock.Name())
		}
		t.lock.Close()
	})
	return t.err
}

// createLocked makes a new file and locks it. It returns nil when a collector locked and removed it in between.
func createLocked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	ok, err := flock(f)
	if err == nil && ok {
		ok, err = leadsTo(path, f)
	}
	if err != nil || !ok {
		f.Close()
		return nil, err
	}
	return f, nil
}

func randomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// TempDir makes a directory that lives until release is called or this process ends. What is left of it then is taken
// away by collection.
func (s *Store) TempDir() (dir string, release func(), err error) {
	return s.tempIn(s.path(tmpDir))
}

func (s *Store) tempIn(parent string) (string, func(), error) {
	t, err := newTempDir(parent)
	if err != nil {
		return "", nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	return t.dir, func() { _ = t.release() }, nil
}

// tempFile is a file on its way into the store.
type tempFile struct {
	*os.File
	s    *Store
	path string
	done bool // renamed or removed
	shut bool
}

// newTemp makes a file in this process's own temporary directory.
func (s *Store) newTemp() (*tempFile, error) {
	for range 3 {
		dir, serial, err := s.sessionDir()
		if err != nil {
			return nil, err
		}
		path := dir + "/" + strconv.Itoa(serial)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC, 0o600)
		if errors.Is(err, fs.ErrNotExist) { // somebody removed the directory by hand
			s.dropSession(dir)
			continue
		}
		if err != nil {
			return nil, err
		}
		return &tempFile{File: f, s: s, path: path}, nil
	}
	return nil, fmt.Errorf("%s disappears as soon as it is made", s.path(tmpDir))
}

func (s *Store) sessionDir() (string, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil {
		t, err := newTempDir(s.path(tmpDir))
		if err != nil {
			return "", 0, err
		}
		s.session = t
	}
	s.serial++
	return s.session.dir, s.serial, nil
}

func (s *Store) dropSession(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil && s.session.dir == dir {
		s.session.lock.Close()
		s.session = nil
	}
}

// close ends writing. Errors of a full disk may come only now.
func (f *tempFile) close(sync bool) error {
	if f.shut {
		return nil
	}
	f.shut = true
	if sync {
		if err := f.Sync(); err != nil {
			f.File.Close()
			return err
		}
	}
	return f.File.Close()
}

// rename publishes a closed file.
func (f *tempFile) rename(to string) error {
	err := os.Rename(f.path, to)
	if errors.Is(err, fs.ErrNotExist) {
		// The first file of its directory.
		mkErr := os.Mkdir(to[:strings.LastIndexByte(to, '/')], 0o700)
		if mkErr != nil && !errors.Is(mkErr, fs.ErrExist) {
			return mkErr
		}
		if mkErr == nil {
			f.s.grow(block)
		}
		err = os.Rename(f.path, to)
	}
	if errors.Is(err, fs.ErrExist) { // a directory: nothing of ours, and no build would ever get past it
		if rmErr := removeAll(to); rmErr != nil {
			return rmErr
		}
		err = os.Rename(f.path, to)
	}
	if err == nil {
		f.done = true
	}
	return err
}

// discard gives the file up unless it was published. It may always be called.
func (f *tempFile) discard() {
	if !f.shut {
		f.shut = true
		f.File.Close()
	}
	if !f.done {
		f.done = true
		os.Remove(f.path)
	}
}
