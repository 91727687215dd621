package store

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func holds(t *testing.T, s *Store, d digest.Digest, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	return s.Holds(d, f)
}

// needNotes skips where a file cannot get the time that it is given: nothing is remembered there.
func needNotes(t *testing.T) {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/f")
	must(t, err)
	defer f.Close()
	err = unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1, Nsec: 1}}, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("the kernel is older than 5.8: no utimensat with AT_EMPTY_PATH")
	}
	must(t, err)
}

// A blob that was written here holds what it should until its file changes in any way; what the store does to it is no change.
func TestHolds(t *testing.T) {
	needNotes(t)
	harms := map[string]func(path string) error{
		"bytes": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("x"), 100)
			return errors.Join(err, f.Close())
		},
		"bytes, time restored": func(p string) error {
			fi, err := os.Stat(p)
			if err != nil {
				return err
			}
			b := randomBytes(9, leastNoted)
			return errors.Join(os.WriteFile(p, b, 0), os.Chtimes(p, fi.ModTime(), fi.ModTime()))
		},
		"another file": func(p string) error {
			return errors.Join(os.WriteFile(p+"~", randomBytes(9, leastNoted), 0o600), os.Rename(p+"~", p))
		},
		"size": func(p string) error { return os.Truncate(p, leastNoted+1) },
		"name": func(p string) error { return errors.Join(os.Rename(p, p+"~"), os.Rename(p+"~", p)) },
	}
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, Options{})
			d := mustBlob(t, s, randomBytes(1, leastNoted))
			path := s.BlobPath(d)
			if !holds(t, s, d, path) {
				t.Fatal("a blob that was just written is not known")
			}
			must(t, s.Sync()) // seals
			if !holds(t, s, d, path) {
				t.Error("sealing made the blob unknown")
			}
			l, err := s.Lease()
			must(t, err)
			defer l.Close()
			before, err := os.Stat(path)
			must(t, err)
			if !s.HasBlob(d, leastNoted) { // notes the use
				t.Fatal("the blob is not here")
			}
			if after, err := os.Stat(path); err != nil || after.ModTime().Equal(before.ModTime()) {
				t.Fatalf("no use was noted: %v", err)
			}
			if !holds(t, s, d, path) {
				t.Error("a use made the blob unknown")
			}
			if other := digest.FromString("other"); holds(t, s, other, path) {
				t.Error("the file holds another blob as well")
			}
			must(t, os.Chmod(path, 0o600))
			must(t, harm(path))
			if holds(t, s, d, path) {
				t.Error("changed, and still believed")
			}
			_ = s.HasBlob(d, -1) // a use must not launder it
			if holds(t, s, d, path) {
				t.Error("changed, used, and believed again")
			}
			must(t, s.RemoveBlob(d))
		})
	}
}

// What was read to its end is known afterwards, unless it had only just been changed or was changed meanwhile.
func TestReading(t *testing.T) {
	needNotes(t)
	s := openTest(t, Options{})
	path := t.TempDir() + "/copy"
	content := randomBytes(1, leastNoted)
	d := digest.FromBytes(content)
	must(t, os.WriteFile(path, content, 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	s.Reading(d, f)()
	if s.Holds(d, f) {
		t.Error("a file that was changed just now is believed")
	}
	time.Sleep(2 * tick)
	whole := s.Reading(d, f)
	must(t, os.Chmod(path, 0o640))
	if whole(); s.Holds(d, f) {
		t.Error("a file that was changed while it was read is believed")
	}
	time.Sleep(2 * tick)
	if s.Reading(d, f)(); !s.Holds(d, f) {
		t.Error("a file that was read is not known")
	}
	if mustBlob(t, s, content) != d {
		t.Fatal("another digest")
	}
	must(t, os.Remove(s.boot.hashedPath(s, d))) // as after a new start of the system
	must(t, os.Chtimes(s.BlobPath(d), time.Time{}, time.Now()))
	own, err := os.Open(s.BlobPath(d))
	must(t, err)
	defer own.Close()
	if s.Reading(d, own)(); !s.Holds(d, own) {
		t.Error("a blob that was used and read is not known")
	}
}

// A note of another run of the system, a damaged one, and one of a blob that is gone say nothing; the last does not stay.
func TestNotesOfHashes(t *testing.T) {
	needNotes(t)
	clock := time.Now()
	s := openTest(t, Options{Now: func() time.Time { return clock }})
	d := mustBlob(t, s, randomBytes(1, leastNoted))
	note := s.boot.hashedPath(s, d)
	data, err := os.ReadFile(note)
	must(t, err)
	for _, bad := range []string{"", "\n", "1 2 3", string(data[:len(data)-5]), "x" + string(data)} {
		must(t, os.WriteFile(note, []byte(bad), 0o600))
		if holds(t, s, d, s.BlobPath(d)) {
			t.Errorf("a note %q is believed", bad)
		}
	}
	must(t, os.WriteFile(note, data, 0o600))
	if !holds(t, s, d, s.BlobPath(d)) {
		t.Error("the note, restored, is not believed")
	}
	this := s.boot
	s.boot.id = "another-run"
	if holds(t, s, d, s.BlobPath(d)) {
		t.Error("a note of another run of the system is believed")
	}
	s.boot = this
	must(t, os.Remove(s.BlobPath(d)))
	clock = clock.Add(2 * abandoned)
	_, err = s.sweepBoots()
	must(t, err)
	if _, err := os.Stat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note of a blob that is gone stays: %v", err)
	}
}

// An image goes to several places at once; each copy is known afterwards.
func TestWroteSideBySide(t *testing.T) {
	needNotes(t)
	s := openTest(t, Options{})
	content := randomBytes(1, leastNoted)
	d := mustBlob(t, s, content)
	dir := t.TempDir()
	var files []*os.File
	for i := range mostNoted - 1 {
		f, err := os.Create(fmt.Sprint(dir, "/", i))
		must(t, err)
		defer f.Close()
		_, err = f.Write(content)
		must(t, err)
		files = append(files, f)
	}
	var wg sync.WaitGroup
	for _, f := range files {
		wg.Go(func() { s.Wrote(d, f) })
	}
	wg.Wait()
	for _, f := range files {
		if !s.Holds(d, f) {
			t.Errorf("%s is not known", f.Name())
		}
	}
}
