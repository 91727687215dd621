package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Memory knows files that held a blob when they were hashed, and whether they are unchanged. Its methods take files, not
// paths, so that what is asked about is what is read.
type Memory interface {
	// Holds reports whether f is known to hold the blob without being read.
	Holds(d digest.Digest, f *os.File) bool
	// Reading is called before f is hashed, and what it returns once f turned out to hold the blob.
	Reading(d digest.Digest, f *os.File) (whole func())
	// Wrote says that f was made here, has its name, and holds the blob.
	Wrote(d digest.Digest, f *os.File)
}

// memoryOf is the memory of a layer, or one that knows nothing.
func memoryOf(l Layer) Memory {
	if l.Memory == nil {
		return noMemory{}
	}
	return l.Memory
}

type noMemory struct{}

func (noMemory) Holds(digest.Digest, *os.File) bool             { return false }
func (noMemory) Reading(digest.Digest, *os.File) (whole func()) { return func() {} }
func (noMemory) Wrote(digest.Digest, *os.File)                  {}

// copyBlob streams a blob to w and makes sure that it is the one meant: by hashing it on the way, unless it is a file that is
// known to hold it before and after. Such a file is copied by the kernel where w is a file or a pipe.
func copyBlob(ctx context.Context, w io.Writer, p *part, buf []byte) error {
	r, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	src, ok := r.(*os.File)
	if !ok {
		return copyHashed(ctx, w, p, r, buf)
	}
	if fi, err := src.Stat(); err != nil || fi.Size() != p.desc.Size || !p.mem.Holds(p.desc.Digest, src) {
		whole := p.mem.Reading(p.desc.Digest, src)
		if err := copyHashed(ctx, w, p, src, buf); err != nil {
			return err
		}
		whole()
		return nil
	}
	if w == io.Discard {
		return nil
	}
	if err := copyKnown(ctx, w, src, p, buf); err != nil {
		return err
	}
	if p.mem.Holds(p.desc.Digest, src) {
		return nil
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil { // it was changed meanwhile, or forgotten
		return err
	}
	return copyHashed(ctx, io.Discard, p, src, buf)
}

// copyHashed copies through the hash.
func copyHashed(ctx context.Context, w io.Writer, p *part, r io.Reader, buf []byte) error {
	h := p.desc.Digest.Algorithm().Digester()
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(w, h.Hash())}, io.LimitReader(contextReader{ctx, r}, p.desc.Size+1), buf)
	if err != nil {
		return err
	}
	if n != p.desc.Size {
		return wrongSize(p)
	}
	if got := h.Digest(); got != p.desc.Digest {
		return fmt.Errorf("blob %s turned out to have the digest %s", p.desc.Digest, got)
	}
	return nil
}

func wrongSize(p *part) error {
	return fmt.Errorf("blob %s does not have the %d bytes it should", p.desc.Digest, p.desc.Size)
}

// copyStep is how much is copied between two looks at the context, in bytes. It is a multiple of any file system's block: those
// that can share blocks do so.
const copyStep = 16 << 20

// copyKnown copies src to w, by the cheapest way that works: copy_file_range shares blocks where the file system can, sendfile
// moves pages into pipes and across file systems, and reading and writing always works.
func copyKnown(ctx context.Context, w io.Writer, src *os.File, p *part, buf []byte) error {
	off := int64(0)
	if dst, ok := w.(*os.File); ok {
		for _, way := range []kernelCopy{copyRange, sendFile} {
			var err error
			if off, err = copyBy(ctx, way, dst, src, off, p.desc.Size); err != nil {
				return err
			}
		}
	}
	rest := io.NewSectionReader(src, off, p.desc.Size-off)
	n, err := io.CopyBuffer(onlyWriter{w}, struct{ io.Reader }{contextReader{ctx, rest}}, buf)
	if err != nil {
		return err
	}
	if off+n != p.desc.Size {
		return wrongSize(p)
	}
	return nil
}

// kernelCopy copies up to n bytes of src from off to where dst stands, and moves off.
type kernelCopy func(dst, src int, off *int64, n int) (int, error)

func copyRange(dst, src int, off *int64, n int) (int, error) {
	return unix.CopyFileRange(src, off, dst, nil, n, 0)
}

func sendFile(dst, src int, off *int64, n int) (int, error) { return unix.Sendfile(dst, src, off, n) }

// notThisWay are the answers of kernels and file systems to copies that they do not make between these two files. When there
// was something else wrong, writing says so.
var notThisWay = []error{unix.ENOSYS, unix.EXDEV, unix.EINVAL, unix.EOPNOTSUPP, unix.EPERM, unix.EBADF, unix.EIO, unix.ENOENT}

// copyBy copies from off to size and returns how far it came: less than size when this way is not open here.
func copyBy(ctx context.Context, way kernelCopy, dst, src *os.File, off, size int64) (int64, error) {
	from := int(src.Fd())
	to, err := dst.SyscallConn()
	if err != nil {
		return off, err
	}
	for off < size {
		if ctx.Err() != nil {
			return off, context.Cause(ctx)
		}
		var n int
		var failed error
		err := to.Write(func(fd uintptr) bool {
			for {
				n, failed = way(int(fd), from, &off, int(min(size-off, copyStep)))
				if failed != unix.EINTR {
					return failed != unix.EAGAIN
				}
			}
		})
		if err != nil {
			return off, err
		}
		if failed != nil && !slices.ContainsFunc(notThisWay, func(e error) bool { return errors.Is(failed, e) }) {
			return off, fmt.Errorf("copy to %s: %w", dst.Name(), failed)
		}
		if failed != nil || n == 0 {
			return off, nil
		}
	}
	return off, nil
}

// onlyWriter hides ReadFrom, which would bypass the buffer.
type onlyWriter struct{ io.Writer }

// contextReader ends a copy when the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
