package buildctx

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"build/internal/tree"
)

// Stdin is what came in on standard input: a Dockerfile, or a whole context as a tar.
type Stdin struct {
	Dockerfile []byte // nil when it was a tar
	Dir        string // where the tar was unpacked
	facts      map[string]*tree.Entry
}

// Open opens the unpacked context. Owners, modes and times are those of the tar.
func (s *Stdin) Open(o DirOptions) (*Dir, error) {
	d, err := OpenDir(s.Dir, o)
	if err == nil && s.Dockerfile == nil {
		d.facts = s.facts
	}
	return d, err
}

// Newest is the time of the newest file of a tar, nil when there is none.
func (s *Stdin) Newest() *time.Time {
	var newest *time.Time
	for _, e := range s.facts {
		if e.Type == tree.File && (newest == nil || e.ModTime.After(*newest)) {
			newest = &e.ModTime
		}
	}
	return newest
}

// OpenStdin reads standard input. A tar, plain or compressed, is told by its first bytes and unpacked into tmp, an empty
// directory; anything else is taken for a Dockerfile, and tmp stays the empty context.
func OpenStdin(ctx context.Context, r io.Reader, tmp string) (*Stdin, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(tarBlock)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the context from standard input: %w", err)
	}
	if compression(head) != "" || isTar(head) {
		return OpenTar(ctx, br, tmp)
	}
	data, err := readLimited(br, "the Dockerfile on standard input")
	if err != nil {
		return nil, fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	if data == nil {
		data = []byte{}
	}
	return &Stdin{Dockerfile: data, Dir: tmp}, nil
}

// ArchiveError says that a context is not the archive it seemed to be: cut short, damaged, or with entries that lead out of it.
type ArchiveError struct{ Err error }

func (e *ArchiveError) Error() string { return "unpack the context: " + e.Err.Error() }
func (e *ArchiveError) Unwrap() error { return e.Err }

// archiveError makes an ArchiveError of what the archive is to blame for; a full disk or an end asked for is none.
func archiveError(ctx context.Context, err error) error {
	var local *fs.PathError
	var errno syscall.Errno
	if context.Cause(ctx) != nil || errors.As(err, &local) || errors.As(err, &errno) {
		return fmt.Errorf("unpack the context: %w", err)
	}
	return &ArchiveError{err}
}

// OpenTar unpacks a tar, plain or compressed with gzip, bzip2, xz or zstd, into tmp, an empty directory. Whatever the tar
// holds, nothing is written outside of tmp.
func OpenTar(ctx context.Context, r io.Reader, tmp string) (*Stdin, error) {
	plain, done, err := decompress(bufio.NewReaderSize(&ctxReader{ctx, r}, 64<<10))
	if err != nil {
		return nil, archiveError(ctx, err)
	}
	defer done()
	facts, err := unpack(ctx, plain, tmp)
	if err != nil {
		return nil, archiveError(ctx, err)
	}
	return &Stdin{Dir: tmp, facts: facts}, nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

const tarBlock = 512

// compression names the format that data begins with, "" for none that is known.
func compression(head []byte) string {
	for _, f := range []struct{ name, magic string }{
		{"gzip", "\x1f\x8b\x08"},
		{"bzip2", "BZh"},
		{"xz", "\xfd7zXZ\x00"},
		{"zstd", "\x28\xb5\x2f\xfd"},
	} {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}

// isTar reports whether a block is the header of a tar entry, or the end of an empty tar.
func isTar(head []byte) bool {
	if len(head) < tarBlock {
		return false
	}
	if bytes.Equal(head[:tarBlock], make([]byte, tarBlock)) {
		return true
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	// A long name or a PAX header is followed by more than the one block that is here.
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// maxWindow bounds the memory that a compressed context can ask for.
const maxWindow = 128 << 20

// decompress returns a reader of the plain data, and what releases it.
func decompress(br *bufio.Reader) (io.Reader, func(), error) {
	head, err := br.Peek(8)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	nothing := func() {}
	switch compression(head) {
	case "gzip":
		z, err := gzip.NewReader(br)
		return z, nothing, err
	case "bzip2":
		return bzip2.NewReader(br), nothing, nil
	case "xz":
		z, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(br)
		return z, nothing, err
	case "zstd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, nothing, nil
}

// NewestInArchive is the time of the newest file of a tar, plain or compressed; nil when there is none, or when it is no tar.
func NewestInArchive(ctx context.Context, r io.Reader) (*time.Time, error) {
	plain, done, err := decompress(bufio.NewReaderSize(&ctxReader{ctx, r}, 64<<10))
	if err != nil {
		return nil, context.Cause(ctx)
	}
	defer done()
	var newest *time.Time
	for tr := tar.NewReader(plain); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return newest, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, context.Cause(ctx)
		}
		if h.FileInfo().Mode().IsRegular() && (newest == nil || h.ModTime.After(*newest)) {
			newest = &h.ModTime
		}
	}
}
