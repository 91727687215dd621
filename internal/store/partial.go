package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// What a build that fails or is killed has downloaded of a blob stays in partial/<hex>, and the next build goes on there. The
// file is locked while it is written. Its content is not trusted: whoever goes on reads it again, and the digest of all
// decides.
const (
	partialDir = "partial"

	// What nobody went on with for so long is removed.
	partialAge = 24 * time.Hour
)

func (s *Store) partialPath(d digest.Digest) string { return s.path(partialDir, d.Encoded()) }

// Partial opens what there is of a blob that was downloaded in part; nil when there is nothing.
func (s *Store) Partial(d digest.Digest) (f *os.File, size int64) {
	if !ValidDigest(d) {
		return nil, 0
	}
	f, err := os.OpenFile(s.partialPath(d), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 || !fi.Mode().IsRegular() {
		f.Close()
		return nil, 0
	}
	return f, fi.Size()
}

// NewDownload is NewBlob for a blob that comes from far: what was written stays when the writer is aborted, or its process
// killed. All of the blob must be written, also what Partial gave; that much is not written to the disk a second time.
func (s *Store) NewDownload(ctx context.Context, d digest.Digest) (*BlobWriter, error) {
	if !ValidDigest(d) {
		return s.NewBlob(ctx)
	}
	f, err := s.lockPartial(s.partialPath(d))
	if err != nil {
		return nil, fmt.Errorf("write blob %s: %w", d, err)
	}
	if f == nil { // somebody downloads the same
		return s.NewBlob(ctx)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write blob %s: %w", d, err)
	}
	w := &BlobWriter{s: s, ctx: ctx, f: &tempFile{File: f, path: f.Name()}, hash: sha256.New(), have: size, part: true}
	w.buf = buffers.Get().(*bufio.Writer)
	w.buf.Reset((*blobSink)(w))
	return w, nil
}

// lockPartial opens and locks a file that stays. It returns nil when somebody else has it.
func (s *Store) lockPartial(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			if err := os.Mkdir(s.path(partialDir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		ok, err := flock(f)
		if err == nil && ok {
			same := false
			if same, err = leadsTo(path, f); err == nil && same {
				return f, nil
			}
			f.Close()
			if err != nil {
				return nil, err
			}
			continue // finished, or removed, before it could be locked
		}
		f.Close()
		return nil, err
	}
}

// sweepPartial removes partial downloads that nobody went on with.
func (s *Store) sweepPartial() (int, error) {
	entries, err := os.ReadDir(s.path(partialDir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	n := 0
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || s.opts.Now().Sub(fi.ModTime()) < partialAge {
			continue
		}
		f, free, err := lockExisting(s.path(partialDir, e.Name()))
		if err != nil {
			return n, err
		}
		if !free {
			continue
		}
		err = os.Remove(f.Name())
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
		n++
	}
	return n, err
}
