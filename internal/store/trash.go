package store

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"
)

// rubbish reports whether what is pending in the trash is not wanted any more, even if who was removing it is dead.
func (s *Store) rubbish() bool {
	id, err := os.Readlink(s.path(trashDir, decidedFile))
	return err == nil && s.boot.id != "" && id == s.boot.id
}

// decided waits until no collection has anything in its hands, and reports whether a directory that was leased and found before
// is still there. What is opened by path a moment later must not be missing just then.
func (s *Store) decided(path string) bool {
	deciding := s.path(trashDir, decidingFile)
	if _, err := os.Lstat(deciding); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	delay := firstRetry
	for end := time.Now().Add(decisionTime); time.Now().Before(end); time.Sleep(delay) {
		if _, err := os.Lstat(deciding); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if unlock, ok, err := s.TryLock(collectLock); err == nil && ok { // who decides is dead
			err := s.recoverTrash()
			unlock()
			if err != nil {
				return false
			}
		}
		delay = min(2*delay, lastRetry)
	}
	_, err := os.Lstat(path)
	return err == nil
}

// toTrash moves one thing. A download that somebody goes on with stays: that would be published under a name that is another
// file's by then. Who locks it next sees that it is no longer there.
func (s *Store) toTrash(e *entity) error {
	if e.ref.Kind == KindPartial {
		f, free, err := lockExisting(e.path)
		if err != nil {
			return err
		}
		if !free {
			return fs.ErrNotExist
		}
		defer f.Close()
	}
	return os.Rename(e.path, s.trashPath(e))
}

// trashPath is where something waits for the decision. The name says where it came from, so that the next collection
// can put it back if this one is killed.
func (s *Store) trashPath(e *entity) string { return s.pendingPath(e.path) }

func (s *Store) pendingPath(path string) string {
	rel := s.rel(path)
	if idKind, ok := strings.CutPrefix(rel, localDir+"/"); ok {
		idKind, _, _ = strings.Cut(idKind, "/")
		return s.path(localDir, idKind, localTrash, pendingMark+url.PathEscape(rel))
	}
	return s.path(trashDir, pendingMark+url.PathEscape(rel))
}

// lookAgain is called by who found nothing at a path. It reports whether looking again is worth it, because a collection
// had the thing in its hands: what is leased is in the trash for a moment while the collection finds out that it is, and
// for longer when the collection is killed just then.
func (s *Store) lookAgain(path string) bool {
	trash := s.pendingPath(path)
	delay := firstRetry
	for end := time.Now().Add(decisionTime); ; {
		if _, err := os.Lstat(trash); err != nil || s.rubbish() {
			_, err = os.Lstat(path) // put back just now, or gone for good
			return err == nil
		}
		unlock, ok, err := s.TryLock(collectLock)
		if err != nil {
			return false
		}
		if ok { // who put it there is dead
			err := s.recoverTrash()
			unlock()
			return err == nil
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(delay)
		delay = min(2*delay, lastRetry)
	}
}

// trashedUse is the last use of something in the trash: later than when it was listed, if somebody was faster.
func (s *Store) trashedUse(e *entity) time.Time {
	path := s.trashPath(e)
	switch {
	case e.ref.Kind == KindDir && e.complete:
		path += "/" + markerFile
	case e.ref.Kind == KindMount: // its note stays where it is
		_, used, err := s.readMountNote(s.path(localDir, e.idKind, mountNotes, baseName(e.path)))
		if err != nil {
			return e.seen
		}
		return used
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return e.seen
	}
	return fi.ModTime()
}

// restore puts something back unless there is a new one in its place. It never replaces anything.
func restore(from, to string) error {
	fi, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		err := os.Link(from, to)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return os.Remove(from)
		}
		if !noHardLinks(err) {
			return err
		}
	}
	if _, err := os.Lstat(to); err == nil {
		if fi.IsDir() { // the new one stays; this one is rubbish now
			return os.Rename(from, from[:len(from)-len(baseName(from))]+randomName())
		}
		return os.Remove(from)
	}
	return os.Rename(from, to)
}

func baseName(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}
