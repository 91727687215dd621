package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// Below local/<id-kind>/ lies what only that mapping of ids can read, make and remove: unpacked layers, directories in
// the making, cache mounts. The directories themselves belong to the caller, so that collection, which runs outside,
// can rename what is in them.
const (
	localDirs  = "dir"
	localTmp   = "tmp"
	localTrash = "trash"

	markerFile = "marker"
	// ContentDir is the directory inside a published one that holds the content proper. Its marker lies beside it.
	ContentDir = "fs"
)

// Local is the directory that belongs to a kind of id mapping. MakeLocal makes it.
func (s *Store) Local(idKind string) string { return s.path(localDir, idKind) }

// MakeLocal makes the directory that belongs to a kind of id mapping, with its parts, when it is missing.
func (s *Store) MakeLocal(idKind string) (string, error) {
	if !plainKey(idKind) {
		return "", fmt.Errorf("local directory: %.80q is no kind of id mapping", idKind)
	}
	base := s.Local(idKind)
	if _, err := os.Lstat(base + "/" + localTrash); err == nil {
		return base, nil
	}
	for _, d := range []string{base, base + "/" + localDirs, base + "/" + localTmp, base + "/" + localTrash} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("local directory: %w", err)
		}
	}
	return base, nil
}

// LocalTemp is TempDir below local/<id-kind>. To be called by the process that owns the ids of what will be in it; what
// it leaves when it dies is moved to the trash by collection.
func (s *Store) LocalTemp(idKind string) (dir string, release func(), err error) {
	base, err := s.MakeLocal(idKind)
	if err != nil {
		return "", nil, err
	}
	return s.tempIn(base + "/" + localTmp)
}

// DirPath is where the directory under a key lies. The directory that has ContentDir and a valid marker is complete.
func (s *Store) DirPath(idKind, key string) string {
	return s.path(localDir, idKind, localDirs, key)
}

// DirKey is the key of a directory in leases and references.
func DirKey(idKind, key string) string { return idKind + "/" + key }

// marker says of which directory it is the marker, so that a copy of it does not count.
type marker struct {
	Stamp  string `json:"stamp"`
	IDKind string `json:"id-kind"`
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Size   int64  `json:"size"`
}

// MarkDir declares the directory under a key, made at DirPath/ContentDir while its lock was held, complete. size is
// what it takes on the disk, as far as known.
func (s *Store) MarkDir(idKind, key string, size int64) error {
	dir := s.DirPath(idKind, key)
	if err := s.markDir(dir, idKind, size); err != nil {
		return fmt.Errorf("mark directory %s: %w", s.rel(dir), err)
	}
	return nil
}

func (s *Store) markDir(dir, idKind string, size int64) error {
	st, err := lstat(dir + "/" + ContentDir)
	if err != nil {
		return err
	}
	stamp, err := s.Stamp()
	if err != nil {
		return err
	}
	b, err := json.Marshal(marker{Stamp: stamp, IDKind: idKind, Dev: st.Dev, Ino: st.Ino, Size: size})
	if err != nil {
		return err
	}
	s.point("dir.filled")
	temp := dir + "/" + markerFile + ".new" // one writer: the lock of this directory is held
	if err := os.WriteFile(temp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	if err := os.Rename(temp, dir+"/"+markerFile); err != nil {
		return err
	}
	s.grow(size)
	s.point("dir.published")
	return nil
}

// DirReady reports whether the directory under a key is complete, belongs to this store and this mapping, and was
// flushed if it is from before the last start of the system. It notes the use.
func (s *Store) DirReady(idKind, key string) bool {
	dir := s.DirPath(idKind, key)
	m, fi, err := readMarker(dir)
	if errors.Is(err, fs.ErrNotExist) && s.lookAgain(dir) {
		m, fi, err = readMarker(dir)
	}
	if err != nil || m.IDKind != idKind || !s.Trusts(m.Stamp) {
		return false
	}
	st, err := lstat(dir + "/" + ContentDir)
	if err != nil || st.Dev != m.Dev || st.Ino != m.Ino {
		return false
	}
	s.touch(dir+"/"+markerFile, fi)
	return s.decided(dir)
}

func readMarker(dir string) (marker, fs.FileInfo, error) {
	var m marker
	f, err := os.Open(dir + "/" + markerFile)
	if err != nil {
		return m, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return m, nil, err
	}
	if err := json.NewDecoder(f).Decode(&m); err != nil {
		return m, nil, fmt.Errorf("marker of %s: %w", dir, err)
	}
	return m, fi, nil
}

func lstat(path string) (*syscall.Stat_t, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("stat %s says nothing about the inode", path)
	}
	return st, nil
}

// diskSize is what a file takes on the disk.
func diskSize(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// idKinds lists the kinds of id mapping that have something in this store.
func (s *Store) idKinds() ([]string, error) {
	entries, err := os.ReadDir(s.path(localDir))
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			kinds = append(kinds, e.Name())
		}
	}
	return kinds, nil
}
