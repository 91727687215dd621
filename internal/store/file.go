package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"
)

// maxSmall bounds what is read of a small file. Nothing honest comes near it.
const maxSmall = 256 << 20

// touchInterval is how stale a last use may be that was noted without a lease.
const touchInterval = time.Hour

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// DamagedError is a file in the store that does not say what it was written to say.
type DamagedError struct {
	Ref    Ref
	Reason string
}

func (e *DamagedError) Error() string { return e.Ref.String() + " is damaged: " + e.Reason }

// Item is one entry of a listing.
type Item struct {
	Key  string
	Size int64     // as it lies on the disk
	Used time.Time // the last use
	path string
}

// filePath is where a small file lies. Keys that would make poor file names are hashed; the file itself has the key.
func (s *Store) filePath(kind Kind, key string) string {
	name := key
	if !plainKey(key) {
		sum := sha256.Sum256([]byte(key))
		name = "=" + hex.EncodeToString(sum[:])
	}
	const digits = "0123456789abcdef"
	b := crc32.Checksum([]byte(name), castagnoli)
	return s.path(string(kind), string([]byte{digits[b>>4&15], digits[b&15]}), name)
}

// plainKey reports whether a key can be a file name as it is.
func plainKey(key string) bool {
	if key == "" || len(key) > 120 || key[0] == '.' {
		return false
	}
	for i := range len(key) {
		c := key[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == ':' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// seal puts a line before data that tells, when read, whether both are whole and belong here.
func seal(kind Kind, key string, data []byte) []byte {
	head := fmt.Sprintf("build-store 1 %s %s %d %08x\n", kind, strconv.Quote(key), len(data), sealSum(kind, key, data))
	out := make([]byte, 0, len(head)+len(data))
	return append(append(out, head...), data...)
}

func sealSum(kind Kind, key string, data []byte) uint32 {
	sum := crc32.Checksum([]byte(string(kind)+"\x00"+key+"\x00"), castagnoli)
	return crc32.Update(sum, castagnoli, data)
}

// unseal is the inverse of seal. It accepts nothing that seal would not have written.
func unseal(kind Kind, b []byte) (key string, data []byte, err error) {
	head, data, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return "", nil, errors.New("its first line is cut off")
	}
	rest, ok := strings.CutPrefix(string(head), "build-store 1 "+string(kind)+" ")
	if !ok {
		return "", nil, errors.New("its first line is not one of a " + string(kind))
	}
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		return "", nil, errors.New("its key cannot be read")
	}
	if key, err = strconv.Unquote(quoted); err != nil {
		return "", nil, errors.New("its key cannot be read")
	}
	if want := fmt.Sprintf(" %d %08x", len(data), sealSum(kind, key, data)); rest[len(quoted):] != want {
		return "", nil, fmt.Errorf("length or checksum is not%s", want)
	}
	return key, data, nil
}

// Read returns what was written under a key and notes the use. What is not there is fs.ErrNotExist; what is there and
// damaged is a *DamagedError.
func (s *Store) Read(kind Kind, key string) ([]byte, error) {
	path := s.filePath(kind, key)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && s.lookAgain(path) {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, readError(kind, key, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, readError(kind, key, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, &DamagedError{Ref{Kind: kind, Key: key}, "it is no file"}
	}
	data, err := decode(kind, key, f, fi.Size())
	if err != nil {
		return nil, err
	}
	s.touch(f.Name(), fi)
	return data, nil
}

// Has reports whether there is something under a key, damaged or not. It is no use.
func (s *Store) Has(kind Kind, key string) bool {
	path := s.filePath(kind, key)
	_, err := os.Lstat(path)
	return err == nil || errors.Is(err, fs.ErrNotExist) && s.lookAgain(path)
}

func readError(kind Kind, key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fs.ErrNotExist // who asks knows the key; the path only confuses
	}
	return fmt.Errorf("read %s %s: %w", kind, key, err)
}

func decode(kind Kind, key string, r io.Reader, size int64) ([]byte, error) {
	ref := Ref{Kind: kind, Key: key}
	if size > maxSmall {
		return nil, &DamagedError{ref, fmt.Sprintf("it is %d bytes long", size)}
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, readError(kind, key, err)
	}
	if kind == KindIndex {
		return b, nil
	}
	got, data, err := unseal(kind, b)
	if err != nil {
		return nil, &DamagedError{ref, err.Error()}
	}
	if got != key {
		return nil, &DamagedError{ref, "it was written as " + strconv.Quote(got)}
	}
	return data, nil
}

// touch notes a use: once under each lease, because that is how a collection knows what a lease covers; without one at most
// hourly. A time in the future is a clock that was set back: it is corrected too.
func (s *Store) touch(path string, fi fs.FileInfo) {
	if now, due := s.touchDue(fi); due {
		_ = os.Chtimes(path, time.Time{}, now) // somebody else's turn when it fails: a use is no promise
	}
}

// NoteNoUses makes what is found from now on not count as used: for who only wants to know what is here.
func (s *Store) NoteNoUses() { s.idle.Store(true) }

// touchDue reports whether a use is to be noted, and when it is.
func (s *Store) touchDue(fi fs.FileInfo) (now time.Time, due bool) {
	now = s.opts.Now()
	if s.idle.Load() {
		return now, false
	}
	leased := fi.ModTime().UnixNano() < s.since.Load()
	age := now.Sub(fi.ModTime())
	return now, leased || age > touchInterval || age < -touchInterval
}

// Write publishes data under a key, in place of what was there.
func (s *Store) Write(kind Kind, key string, data []byte) error {
	if err := s.write(kind, key, data, false); err != nil {
		return fmt.Errorf("write %s %s: %w", kind, key, err)
	}
	return nil
}

func (s *Store) write(kind Kind, key string, data []byte, sync bool) error {
	if !kind.small() {
		return fmt.Errorf("a %s is no small file", kind)
	}
	if kind == KindIndex {
		if !plainKey(key) {
			return errors.New("the key of an index must be a plain one")
		}
	} else {
		data = seal(kind, key, data)
	}
	err := s.publish(s.filePath(kind, key), data, string(kind), sync)
	if err == nil {
		s.grow(inBlocks(int64(len(data)))) // what it replaces is small: the next counting sees that it is gone
	}
	return err
}

// publish makes a file appear at path, whole or not at all.
func (s *Store) publish(path string, data []byte, what string, sync bool) error {
	f, err := s.newTemp()
	if err != nil {
		return err
	}
	defer f.discard()
	s.point(what + ".temp")
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.close(sync); err != nil {
		return err
	}
	s.point(what + ".written")
	if err := f.rename(path); err != nil {
		return err
	}
	s.point(what + ".published")
	return nil
}

// Remove removes what is under a key, if anything is. It is for what turned out to be damaged or outdated; images are
// taken away with RemoveName.
func (s *Store) Remove(kind Kind, key string) error {
	if !kind.small() {
		return fmt.Errorf("remove %s %s: not a small file", kind, key)
	}
	if err := s.removeFile(s.filePath(kind, key)); err != nil {
		return fmt.Errorf("remove %s %s: %w", kind, key, err)
	}
	return nil
}

// removeFile removes a file, or a directory that somebody put in its place, if it is there, and notes what that frees.
func (s *Store) removeFile(path string) error {
	fi, err := os.Lstat(path)
	if err == nil && fi.IsDir() {
		err = removeAll(path)
	} else if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		s.grow(-diskSize(fi))
	}
	return err
}

// Touch notes a use of something that was not read through Read.
func (s *Store) Touch(kind Kind, key string) {
	path := s.filePath(kind, key)
	if fi, err := os.Stat(path); err == nil {
		s.touch(path, fi)
	}
}

// IndexPath is where the index under a key lies, to be opened in place.
func (s *Store) IndexPath(key string) string { return s.filePath(KindIndex, key) }

// List lists the keys of a kind, in no order. Damaged files have no key and are left out; Check finds them.
func (s *Store) List(kind Kind) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for it, err := range s.files(kind) {
			if err == nil && it.Key == "" {
				key, ok := s.keyOf(kind, it.path)
				if !ok {
					continue
				}
				it.Key = key
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}
}

// files lists the files of a kind. Those whose name is not their key have none yet.
func (s *Store) files(kind Kind) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		fans, err := os.ReadDir(s.path(string(kind)))
		if err != nil {
			yield(Item{}, err)
			return
		}
		for _, fan := range fans {
			entries, err := os.ReadDir(s.path(string(kind), fan.Name()))
			if err != nil {
				yield(Item{}, err)
				return
			}
			for _, e := range entries {
				fi, err := e.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue // gone since
				}
				if err != nil {
					yield(Item{}, err)
					return
				}
				it := Item{Size: diskSize(fi), Used: fi.ModTime(), path: s.path(string(kind), fan.Name(), e.Name())}
				if !strings.HasPrefix(e.Name(), "=") {
					it.Key = e.Name()
				}
				if !yield(it, nil) {
					return
				}
			}
		}
	}
}

// keyOf reads the key of a file whose name is a hash.
func (s *Store) keyOf(kind Kind, path string) (string, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	key, _, err := unseal(kind, b)
	return key, err == nil && s.filePath(kind, key) == path
}

// FileWriter writes a large file of a kind that is stored bare.
type FileWriter struct {
	s    *Store
	ctx  context.Context
	kind Kind
	f    *tempFile
	size int64
}

// Create begins an index. Its key may be found out while it is written.
func (s *Store) Create(ctx context.Context, kind Kind) (*FileWriter, error) {
	if kind != KindIndex {
		return nil, fmt.Errorf("write %s: only an index is written piecemeal", kind)
	}
	f, err := s.newTemp()
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", kind, err)
	}
	s.point(string(kind) + ".temp")
	return &FileWriter{s: s, ctx: ctx, kind: kind, f: f}, nil
}

func (w *FileWriter) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	n, err := w.f.Write(p)
	w.size += int64(n)
	return n, err
}

// Commit publishes the file under its key.
func (w *FileWriter) Commit(key string) error {
	defer w.f.discard()
	err := w.commit(key)
	if err != nil {
		return fmt.Errorf("write %s %s: %w", w.kind, key, err)
	}
	return nil
}

func (w *FileWriter) commit(key string) error {
	if !plainKey(key) {
		return errors.New("the key of an index must be a plain one")
	}
	if err := w.f.close(false); err != nil {
		return err
	}
	w.s.point(string(w.kind) + ".written")
	if err := w.f.rename(w.s.filePath(w.kind, key)); err != nil {
		return err
	}
	w.s.grow(inBlocks(w.size))
	w.s.point(string(w.kind) + ".published")
	return nil
}

// Abort gives the file up. After Commit it does nothing.
func (w *FileWriter) Abort() { w.f.discard() }
