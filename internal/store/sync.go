package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// boot identifies the run of the system that this process is part of. What was written during it can be trusted while
// it lasts; what was written during another, only if that other flushed it to the disk afterwards.
//
// boot/<id>/ holds, for the run <id>, one empty file per blob that was published and not sealed yet, notes about files that
// were hashed (see hashed.go), and the file "synced" with the time since the start of the system before which everything
// is known to be on the disk.
type boot struct {
	id string // "" when the system does not say: nothing is trusted then without looking
}

const syncedFile = "synced"

var currentBoot = sync.OnceValue(func() boot {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return boot{}
	}
	id := strings.TrimSpace(string(b))
	if !plainKey(id) {
		return boot{}
	}
	return boot{id: id}
})

// sinceBoot is a clock that no setting of the time moves.
func sinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(ts.Nano()), nil
}

func (b boot) dir(s *Store) string { return s.path(bootDir, b.id) }

// mark notes that a blob was written by this run of the system.
func (b boot) mark(s *Store, d digest.Digest) error {
	if b.id == "" {
		return nil
	}
	path := b.dir(s) + "/" + d.Encoded()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(b.dir(s), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func (b boot) marked(s *Store, d digest.Digest) bool {
	if b.id == "" {
		return false
	}
	_, err := os.Lstat(b.dir(s) + "/" + d.Encoded())
	return err == nil
}

func (b boot) unmark(s *Store, d digest.Digest) {
	if b.id != "" {
		_ = os.Remove(b.dir(s) + "/" + d.Encoded())
		_ = os.Remove(b.hashedPath(s, d))
	}
}

// Stamp says when, in terms that outlive the system, something was written. It belongs into the marker of a directory,
// which is put there after the last byte; Trusts tells later whether the directory can be believed.
func (s *Store) Stamp() (string, error) {
	now, err := sinceBoot()
	if err != nil {
		return "", err
	}
	return s.boot.id + " " + strconv.FormatInt(int64(now), 10), nil
}

// Trusts reports whether what was written before the stamp was made is on the disk, or in the memory of a system that
// still runs.
func (s *Store) Trusts(stamp string) bool {
	id, at, ok := strings.Cut(stamp, " ")
	if !ok || !plainKey(id) {
		return false
	}
	written, err := strconv.ParseInt(at, 10, 64)
	if err != nil || written < 0 {
		return false
	}
	if id == s.boot.id {
		return true
	}
	return written < s.syncedBefore(id)
}

// syncedBefore is the time since the start of a run of the system before which everything was flushed during it.
func (s *Store) syncedBefore(id string) int64 {
	b, err := os.ReadFile(s.path(bootDir, id, syncedFile))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(string(b), "\n"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Sync flushes to the disk what is in the store, and notes that it did, so that it is trusted after a loss of power.
// Once per build is enough, and nothing needs to wait for it but the naming of an image.
//
// A mark in boot/ is set after the last byte of a blob was written, so the bytes of every blob that has a mark and a name
// now are flushed by what follows; only then is it sealed, if it is still that file.
func (s *Store) Sync() error {
	if err := s.sync(); err != nil {
		return fmt.Errorf("flush the store to the disk: %w", err)
	}
	return nil
}

func (s *Store) sync() error {
	began, err := sinceBoot()
	if err != nil {
		return err
	}
	open, err := s.unsealed()
	if err != nil {
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.point("sync.flushed")
	for _, u := range open {
		sealed, err := s.sealBlob(u)
		if err != nil {
			return err
		}
		if sealed {
			s.point("sync.sealed")
			_ = os.Remove(s.boot.dir(s) + "/" + u.name)
		}
	}
	return s.noteSynced(int64(began))
}

// unsealedBlob is the file of a blob as it was before flushing.
type unsealedBlob struct {
	name string
	was  *syscall.Stat_t
}

// unsealed lists the blobs of this run of the system that are published and not sealed.
func (s *Store) unsealed() ([]unsealedBlob, error) {
	if s.boot.id == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(s.boot.dir(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []unsealedBlob
	for _, e := range entries {
		fi, err := os.Lstat(s.path(blobDir, e.Name()))
		if err != nil {
			continue // not published yet, or gone, or no mark of a blob
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() {
			out = append(out, unsealedBlob{e.Name(), st})
		}
	}
	return out, err
}

// sealBlob seals a blob unless its file is not the one that was flushed.
func (s *Store) sealBlob(u unsealedBlob) (bool, error) {
	f, err := os.OpenFile(s.path(blobDir, u.name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Ino != u.was.Ino || st.Ctim != u.was.Ctim {
		return false, nil // the next Sync will
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, u.name)
	return true, s.keepHashed(d, fi, f.Name(), nil, func() error { return f.Chmod(sealedMode) })
}

// flush flushes the file system of the store, and those of directories in local/ that were mounted from elsewhere.
func (s *Store) flush() error {
	dirs := []string{s.dir}
	locals, err := os.ReadDir(s.path(localDir))
	if err != nil {
		return err
	}
	for _, e := range locals {
		dirs = append(dirs, s.path(localDir, e.Name()))
	}
	flushed := make(map[uint64]bool)
	for _, d := range dirs {
		if err := flushOnce(d, flushed); err != nil {
			return err
		}
	}
	return nil
}

func flushOnce(dir string, flushed map[uint64]bool) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if ok && flushed[st.Dev] {
		return nil
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	if ok {
		flushed[st.Dev] = true
	}
	return nil
}

// noteSynced writes down, durably, that everything written before a time is on the disk.
func (s *Store) noteSynced(before int64) error {
	if s.boot.id == "" || s.syncedBefore(s.boot.id) >= before {
		return nil
	}
	return s.publish(s.boot.dir(s)+"/"+syncedFile, []byte(strconv.FormatInt(before, 10)+"\n"), syncedFile, true)
}
