package store

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A file that this run of the system has hashed need not be hashed again while it is the same file and nobody changed it:
// what it is made of is in boot/<boot id>/<hex>.hashed, one line for each file that was found to hold the blob, here or
// where an image was exported to. The kernel gives a file another change time whenever its content, its times, its mode or
// its name change, and lets nobody choose it. What a disk loses without a write is not noticed by this; a check of the
// store and the next run of the system read every byte.

const (
	hashedSuffix = ".hashed"
	// leastNoted is the size of the smallest files worth a note: less is hashed as fast as a note is read and renewed.
	leastNoted = 1 << 20
	// mostNoted bounds the lines of a note.
	mostNoted = 8
	// tick is more than the step of the clock that files get their times from: 10 ms at CONFIG_HZ=100, before the finer times
	// of Linux 6.13. Two changes within one may leave the same change time.
	tick = 100 * time.Millisecond
)

// fileState is what of a file is another when its content is. Times are in ns since 1970.
type fileState struct {
	dev, ino            uint64
	size, mtime, change int64
}

func stateOf(fi fs.FileInfo) (fileState, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() || st.Size < leastNoted {
		return fileState{}, false
	}
	return fileState{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, true
}

func stateOfFile(f *os.File) (fileState, bool) {
	fi, err := f.Stat()
	if err != nil {
		return fileState{}, false
	}
	return stateOf(fi)
}

const stateForm = "%d %d %d %d %d\n"

func (b boot) hashedPath(s *Store, d digest.Digest) string {
	return b.dir(s) + "/" + d.Encoded() + hashedSuffix
}

// hashed lists the files that held a blob when they were hashed. What is no note reads as none.
func (b boot) hashed(s *Store, d digest.Digest) []fileState {
	if b.id == "" || !ValidDigest(d) {
		return nil
	}
	data, err := os.ReadFile(b.hashedPath(s, d))
	if err != nil {
		return nil
	}
	var out []fileState
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var f fileState
		if _, err := fmt.Sscanf(lines.Text()+"\n", stateForm, &f.dev, &f.ino, &f.size, &f.mtime, &f.change); err != nil {
			return nil
		}
		out = append(out, f)
	}
	return out
}

// noteHashed writes down that a file holds a blob. Without the note it is hashed again, so nothing is lost when it fails, or when
// another process notes the same blob in the same moment and one of the two notes stays.
func (b boot) noteHashed(s *Store, d digest.Digest, f fileState) {
	if b.id == "" || !ValidDigest(d) {
		return
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	files := slices.DeleteFunc(b.hashed(s, d), func(o fileState) bool { return o.dev == f.dev && o.ino == f.ino })
	files = append([]fileState{f}, files...)
	var out bytes.Buffer
	for _, f := range files[:min(len(files), mostNoted)] {
		fmt.Fprintf(&out, stateForm, f.dev, f.ino, f.size, f.mtime, f.change)
	}
	_ = s.publish(b.hashedPath(s, d), out.Bytes(), "hashed", false)
}

// Holds reports whether a file, in the store or elsewhere, is known to hold a blob without being read: this run of the
// system hashed it or made it of what was hashed, and it was not changed since.
func (s *Store) Holds(d digest.Digest, f *os.File) bool {
	now, ok := stateOfFile(f)
	return ok && slices.Contains(s.boot.hashed(s, d), now)
}

// Reading is called before a file is hashed. If it turns out to hold the blob, the function it returns is called, and Holds
// knows. A file that was changed a moment ago is not noted: a change that is yet to come could leave the same time. The
// store's own are given a new time instead: they were changed by noting that they are used.
func (s *Store) Reading(d digest.Digest, f *os.File) (whole func()) {
	began := time.Now()
	before, ok := stateOfFile(f)
	if age := began.UnixNano() - before.change; ok && age < int64(tick) {
		before, ok = fileState{}, false
		if s.isBlob(d, f) {
			before, ok = present(f)
		}
	}
	if !ok {
		return func() {}
	}
	return func() {
		if after, ok := stateOfFile(f); ok && after == before {
			s.boot.noteHashed(s, d, before)
		}
	}
}

// isBlob reports whether f is the store's own file of a blob.
func (s *Store) isBlob(d digest.Digest, f *os.File) bool {
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	own, err := os.Lstat(s.BlobPath(d))
	return err == nil && os.SameFile(fi, own)
}

// Wrote tells that a file of the caller's making was given its name, and that what was written to it is the blob.
func (s *Store) Wrote(d digest.Digest, f *os.File) {
	if st, ok := present(f); ok {
		s.boot.noteHashed(s, d, st)
	}
}

// present gives a file the present as its time, to the nanosecond: any later change gives it one of the coarser clock of
// files. It reports false where that cannot be had.
func present(f *os.File) (fileState, bool) {
	if _, ok := stateOfFile(f); !ok {
		return fileState{}, false
	}
	now := time.Now().UnixNano()
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(now)}
	if err := unix.UtimesNanoAt(int(f.Fd()), "", ts, unix.AT_EMPTY_PATH); err != nil {
		return fileState{}, false // before Linux 5.8, or not ours: it is hashed when it is read
	}
	st, ok := stateOfFile(f)
	return st, ok && st.mtime == now // else the file system keeps coarser times
}

// keepHashed changes the mode of a blob's file, or its time to one that is told, and lets a note about it live on. A write
// that comes between looking and changing would not be noticed; these are two system calls.
func (s *Store) keepHashed(d digest.Digest, was fs.FileInfo, path string, to *time.Time, change func() error) error {
	before, ok := stateOf(was)
	if !ok || !slices.Contains(s.boot.hashed(s, d), before) {
		return change()
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return change()
	}
	now, ok := stateOf(fi)
	if err := change(); err != nil || !ok || now != before {
		return err
	}
	if fi, err = os.Lstat(path); err != nil {
		return nil // the change was made; a file that went away since is nobody's concern here
	}
	if to != nil {
		before.mtime = to.UnixNano()
	}
	after, ok := stateOf(fi)
	if before.change = after.change; ok && after == before {
		s.boot.noteHashed(s, d, after)
	}
	return nil
}
