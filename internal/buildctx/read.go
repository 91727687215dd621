package buildctx

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// ChangedError says that a file of the context changed while it was read.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string { return e.Path + " changed while it was read" }

var readBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// Digest returns the SHA-256 of a file's content, reading it only when neither this Dir nor the stat cache knows it. It
// may be called from many goroutines.
func (d *Dir) Digest(ctx context.Context, e *tree.Entry) ([32]byte, error) {
	if e.Digest != [32]byte{} {
		return e.Digest, nil
	}
	n, err := d.file(e.Path)
	if err != nil {
		return [32]byte{}, err
	}
	if sum, ok := n.digest(); ok {
		return sum, nil
	}
	if d.cache != nil && n.shared { // another name of it may have been read since
		if known, ok := d.cache.Get(n.key()); ok {
			n.setDigest(known.Digest)
			return known.Digest, nil
		}
	}
	r, err := d.openNode(ctx, e.Path, n)
	if err != nil {
		return [32]byte{}, err
	}
	defer r.Close()
	h := sha256.New()
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	if _, err := io.CopyBuffer(onlyWriter{h}, onlyReader{r}, *buf); err != nil {
		return [32]byte{}, err
	}
	var sum [32]byte
	h.Sum(sum[:0])
	r.Learn(sum)
	return sum, nil
}

// learn notes the digest of a file that was read from the given time on.
func (d *Dir) learn(n *node, sum [32]byte, began time.Time) {
	n.setDigest(sum)
	if d.cache != nil && settled(&n.stat, began) {
		d.cache.Put(n.key(), Stat{Digest: sum, Xattrs: n.rare != nil && len(n.rare.xattrs) > 0})
	}
}

// onlyReader and onlyWriter keep io.CopyBuffer from finding a shortcut around the buffer.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// file returns the node of a regular file.
func (d *Dir) file(path string) (*node, error) {
	n, err := d.lookup(path)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, d.root.error("open", path, unix.ENOENT)
	}
	if n.kind != tree.File {
		return nil, d.root.error("read", path, errNotRegular)
	}
	return n, nil
}

// Open opens a file for reading. Reading ends in a *ChangedError when the file is not, or at its end no longer, what it
// was when it was looked at.
func (d *Dir) Open(ctx context.Context, e *tree.Entry) (io.ReadCloser, error) {
	n, err := d.file(e.Path)
	if err != nil {
		return nil, err
	}
	return d.openNode(ctx, e.Path, n)
}

func (d *Dir) openNode(ctx context.Context, path string, n *node) (*reader, error) {
	began := time.Now()
	fd, err := d.root.open(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if absent(err) {
		d.forget(path)
		return nil, &ChangedError{Path: d.root.full(path)}
	}
	if err != nil {
		return nil, d.root.error("open", path, err)
	}
	r := &reader{ctx: ctx, d: d, path: path, node: n, began: began, fd: fd, left: n.stat.size}
	if err := r.check(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// reader reads a file and checks that it stays what it was. It has the bare descriptor: a context has many small files, and what
// the os package does for each (it asks whether the file can be polled) costs as much as reading it.
type reader struct {
	ctx  context.Context
	d    *Dir
	path string
	node *node
	fd   int // -1 once closed
	left int64
	end  error // what Read returns from now on

	began time.Time
}

// Learn notes the digest of what was read, when that was the whole file and it did not change: then it need not be read again to
// know it, neither by this Dir nor, with a stat cache, by the next.
func (r *reader) Learn(sum [32]byte) {
	if r.end == io.EOF {
		r.d.learn(r.node, sum, r.began)
	}
}

// check compares the file with what it was.
func (r *reader) check() error {
	var st unix.Stat_t
	if _, err := retry(func() (int, error) { return 0, unix.Fstat(r.fd, &st) }); err != nil {
		return r.d.root.error("stat", r.path, err)
	}
	if statOf(&st) != r.node.stat {
		return r.changed()
	}
	return nil
}

func (r *reader) changed() error {
	r.d.forget(r.path)
	return &ChangedError{Path: r.d.root.full(r.path)}
}

func (r *reader) Read(p []byte) (int, error) {
	if r.end != nil {
		return 0, r.end
	}
	if err := context.Cause(r.ctx); err != nil {
		return 0, fmt.Errorf("read %s: %w", r.d.root.full(r.path), err)
	}
	if r.left == 0 {
		if r.end = r.check(); r.end == nil {
			r.end = io.EOF
		}
		return 0, r.end
	}
	if len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), r.left, maxRead)]
	n, err := retry(func() (int, error) { return unix.Read(r.fd, p) })
	switch {
	case err != nil:
		n, r.end = 0, r.d.root.error("read", r.path, err)
	case n == 0:
		r.end = r.changed() // it became shorter
	}
	r.left -= int64(n)
	return n, r.end
}

// maxRead bounds one system call, so that a build that is told to stop does not wait for a gigabyte.
const maxRead = 1 << 20

func (r *reader) Close() error {
	if r.fd < 0 {
		return r.d.root.error("close", r.path, os.ErrClosed)
	}
	fd := r.fd
	r.fd = -1
	if err := unix.Close(fd); err != nil {
		return r.d.root.error("close", r.path, err)
	}
	return nil
}

const (
	fineGrain   = 20 * time.Millisecond // clocks of local file systems move in steps of up to 10 ms
	coarseGrain = 2 * time.Second       // others count seconds, or two
)

// settled reports whether a file that is read from the given time on can be known again by its times. One that was
// changed just before may change once more without them showing it.
func settled(s *stat, began time.Time) bool {
	grain := fineGrain
	if s.mtime.Nsec == 0 && s.ctime.Nsec == 0 {
		grain = coarseGrain
	}
	limit := began.Add(-grain)
	return time.Unix(s.mtime.Unix()).Before(limit) && time.Unix(s.ctime.Unix()).Before(limit)
}
