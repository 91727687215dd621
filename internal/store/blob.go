package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// A blob is a file named by its digest. Its mode says how far it can be trusted: 0400 is sealed, which is to say that
// its bytes were flushed to the disk before the mode was set. 0600 is open: it is whole as long as the system it was
// written under still runs, which a mark in boot/<boot id> says; after that it is hashed once before it is believed.
const (
	sealedMode = 0o400
	openMode   = 0o600
)

// BlobPath is where a blob lies if it is here, and "" for what is no sha256 digest.
func (s *Store) BlobPath(d digest.Digest) string {
	if !ValidDigest(d) {
		return ""
	}
	return s.path(blobDir, d.Encoded())
}

// ValidDigest reports whether d is a SHA-256 digest in its one form. It keeps what a hostile manifest calls a digest from becoming a
// path. It is asked for every layer of every record, which is why it is no regular expression.
func ValidDigest(d digest.Digest) bool {
	hex, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(hex) != 64 {
		return false
	}
	for _, c := range []byte(hex) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// HasBlob reports whether a blob is here and whole, and notes the use. A negative size is one that is not known.
func (s *Store) HasBlob(d digest.Digest, size int64) bool {
	path := s.BlobPath(d)
	if path == "" {
		return false
	}
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && s.lookAgain(path) {
		fi, err = os.Lstat(path)
	}
	return err == nil && s.trusted(d, path, fi, size)
}

// OpenBlob opens a blob for reading. What is not here, or not whole, is fs.ErrNotExist.
func (s *Store) OpenBlob(d digest.Digest, size int64) (*os.File, error) {
	path := s.BlobPath(d)
	if path == "" {
		return nil, fmt.Errorf("open blob: %.80q is no sha256 digest", string(d))
	}
	const flags = os.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) && s.lookAgain(path) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fs.ErrNotExist
		}
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	if !s.trusted(d, path, fi, size) {
		f.Close()
		return nil, fmt.Errorf("open blob %s: what is stored is not it: %w", d, fs.ErrNotExist)
	}
	return f, nil
}

// trusted decides whether the file of a blob may be believed.
func (s *Store) trusted(d digest.Digest, path string, fi fs.FileInfo, size int64) bool {
	if !fi.Mode().IsRegular() || size >= 0 && fi.Size() != size {
		return false
	}
	if fi.Mode().Perm()&0o200 != 0 && !s.boot.marked(s, d) {
		if !hashes(path, d) {
			return false
		}
		_ = s.boot.mark(s, d) // else it is hashed again next time
	}
	if now, due := s.touchDue(fi); due {
		// Somebody else's turn when it fails: a use is no promise.
		_ = s.keepHashed(d, fi, path, &now, func() error { return os.Chtimes(path, time.Time{}, now) })
	}
	return true
}

// hashes reads a file and reports whether it is what its name says.
func hashes(path string, d digest.Digest) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	v := d.Verifier()
	_, err = io.Copy(v, f)
	return err == nil && v.Verified()
}

// BlobWriter writes a blob and finds its digest on the way. Its methods are not for concurrent use.
type BlobWriter struct {
	s    *Store
	ctx  context.Context
	f    *tempFile
	hash hash.Hash
	buf  *bufio.Writer
	size int64
	hole int64 // zeros at the end of what was written so far that are not in the file yet

	holes int64 // all zeros that were left out
	have  int64 // of a partial download: how much of it is in the file before anything is written
	part  bool  // what is there stays when the writer is aborted
}

// bufferSize gathers the small pieces that tar writers write. Larger pieces pass it by.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, bufferSize) }}

// NewBlob begins a blob. Commit publishes it; until then it is nowhere.
func (s *Store) NewBlob(ctx context.Context) (*BlobWriter, error) {
	f, err := s.newTemp()
	if err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	s.point("blob.temp")
	w := &BlobWriter{s: s, ctx: ctx, f: f, hash: sha256.New()}
	w.buf = buffers.Get().(*bufio.Writer)
	w.buf.Reset((*blobSink)(w))
	return w, nil
}

// blobSink is the far side of a BlobWriter's buffer.
type blobSink BlobWriter

func (w *blobSink) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	there := int(min(int64(len(p)), max(0, w.have-w.size)))
	n, err := w.write(p[there:])
	n += there
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		w.part = false // perhaps the disk is full
	}
	return n, err
}

// holeSize is the least run of zeros that becomes a hole of the file instead of blocks of it.
const holeSize = 32 << 10

var zeros [holeSize]byte

// write leaves long runs of zeros out of the file: a layer with a large sparse file takes as little room as that.
func (w *blobSink) write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		rest := p[written:]
		n := 0
		for len(rest)-n >= holeSize && bytes.Equal(rest[n:n+holeSize], zeros[:]) {
			n += holeSize
		}
		if n > 0 {
			w.hole += int64(n)
			w.holes += int64(n)
			written += n
			continue
		}
		for n = min(holeSize, len(rest)); len(rest)-n >= holeSize && !bytes.Equal(rest[n:n+holeSize], zeros[:]); {
			n += holeSize
		}
		if len(rest)-n < holeSize {
			n = len(rest)
		}
		if err := w.fillHole(); err != nil {
			return written, err
		}
		m, err := w.f.Write(rest[:n])
		written += m
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// fillHole moves on to where the next bytes go.
func (w *blobSink) fillHole() error {
	if w.hole == 0 {
		return nil
	}
	_, err := w.f.Seek(w.hole, io.SeekCurrent)
	w.hole = 0
	return err
}

// end makes the file as long as the blob, which may end in a hole, or be shorter than what was there.
func (w *blobSink) end() error {
	if w.hole == 0 && w.have <= w.size {
		return nil
	}
	return w.f.Truncate(w.size)
}

func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.buf == nil {
		return 0, fmt.Errorf("write blob: %w", fs.ErrClosed)
	}
	return w.buf.Write(p)
}

// Follow opens the file for somebody who reads the blob while it is written. Up to Written it is as it will be.
func (w *BlobWriter) Follow() (*os.File, error) {
	f, err := os.Open(w.f.path)
	if err != nil {
		return nil, fmt.Errorf("read a blob while it is written: %w", err)
	}
	return f, nil
}

// Written is how much of the blob is in the file.
func (w *BlobWriter) Written() int64 { return max(w.have, w.size-w.hole) }

// ReadFrom keeps io.Copy from allocating a buffer of its own.
func (w *BlobWriter) ReadFrom(r io.Reader) (int64, error) {
	if w.buf == nil {
		return 0, fmt.Errorf("write blob: %w", fs.ErrClosed)
	}
	return w.buf.ReadFrom(r)
}

// WrongDigestError is a blob whose bytes are not those that were announced.
type WrongDigestError struct{ Want, Got digest.Digest }

func (e *WrongDigestError) Error() string {
	return fmt.Sprintf("the bytes have digest %s instead of %s", e.Got, e.Want)
}

// Commit publishes the blob and returns its digest and size. Unless want is "", a blob with another digest is given up
// with a *WrongDigestError. Either way the writer is done.
func (w *BlobWriter) Commit(want digest.Digest) (digest.Digest, int64, error) {
	defer w.Abort()
	d, err := w.commit(want)
	if err != nil {
		return "", 0, fmt.Errorf("write blob: %w", err)
	}
	return d, w.size, nil
}

func (w *BlobWriter) commit(want digest.Digest) (digest.Digest, error) {
	if w.buf == nil {
		return "", fs.ErrClosed
	}
	if err := w.buf.Flush(); err != nil {
		return "", err
	}
	if err := (*blobSink)(w).end(); err != nil {
		return "", err
	}
	got := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(w.hash.Sum(nil)))
	if want != "" && got != want {
		w.part = false // nobody is to go on with this
		return "", &WrongDigestError{Want: want, Got: got}
	}
	if err := w.f.close(false); err != nil {
		return "", err
	}
	if w.s.HasBlob(got, w.size) {
		return got, nil // somebody else was faster; who opened that file keeps it
	}
	w.s.point("blob.written")
	// The mark comes between the last byte and the name: see Sync, which relies on it.
	if err := w.s.boot.mark(w.s, got); err != nil {
		return "", err
	}
	w.s.point("blob.marked")
	if err := w.f.rename(w.s.BlobPath(got)); err != nil {
		return "", err
	}
	w.s.grow(inBlocks(w.size - w.holes))
	w.s.point("blob.published")
	w.noteHashed(got)
	return got, nil
}

// noteHashed spares those who read the blob next to hash it again.
func (w *BlobWriter) noteHashed(d digest.Digest) {
	if w.size < leastNoted {
		return
	}
	if f, err := os.Open(w.s.BlobPath(d)); err == nil {
		w.s.Wrote(d, f)
		f.Close()
	}
}

// Abort gives the blob up. After Commit it does nothing.
func (w *BlobWriter) Abort() {
	if w.part && w.buf != nil {
		_ = w.buf.Flush() // what cannot be written is downloaded again
		w.f.done = true
	}
	if w.buf != nil {
		w.buf.Reset(nil)
		buffers.Put(w.buf)
		w.buf = nil
	}
	w.f.discard()
}

// Discard is Abort for a download that nobody is to go on with.
func (w *BlobWriter) Discard() {
	w.part = false
	w.Abort()
}

// RemoveBlob removes a blob that turned out to be damaged.
func (s *Store) RemoveBlob(d digest.Digest) error {
	path := s.BlobPath(d)
	if path == "" {
		return nil
	}
	if err := s.removeFile(path); err != nil {
		return fmt.Errorf("remove blob %s: %w", d, err)
	}
	s.boot.unmark(s, d)
	return nil
}
