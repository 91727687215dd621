package registry

import (
	"bytes"
	"context"
	_ "crypto/sha512" // digests of this algorithm occur in the wild
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob streams a blob of a repository (as in Image.Repo). Size and digest are verified while it is read: the reader
// returns io.EOF only after both turned out right, so nobody may use the content before having seen that. A connection
// that is cut or goes silent is resumed where it stopped.
func (c *Client) Blob(ctx context.Context, repo string, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := c.BlobFrom(ctx, repo, d, 0)
	if err != nil {
		return nil, err
	}
	t, err := parseRef(repo)
	if err != nil {
		r.Close()
		return nil, err
	}
	h, err := c.host(t.domain)
	if err != nil {
		r.Close()
		return nil, err
	}
	if s, ok := r.(*stream); ok {
		return newVerifier(r, d, &s.complete), nil
	}
	return &suspicious{newVerifier(r, d, nil), h}, nil
}

// BlobFrom is Blob for callers that have the beginning of the blob, the first from bytes, and hash all of it themselves:
// nothing is verified here. When the digest turns out to be wrong, they ask OnePiece whether to try once more.
func (c *Client) BlobFrom(ctx context.Context, repo string, d ocispec.Descriptor, from int64) (io.ReadCloser, error) {
	t, err := parseRef(repo)
	if err != nil {
		return nil, err
	}
	name := t.name + "@" + d.Digest.String()
	if err := checkDescriptor("blob", d); err != nil {
		return nil, about(name, err)
	}
	if from < 0 || from > d.Size {
		return nil, about(name, errorf(Invalid, "%d bytes of a blob of %d", from, d.Size))
	}
	if data := embedded(d); data != nil {
		return io.NopCloser(bytes.NewReader(data[from:])), nil
	}
	if from == d.Size {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	h, err := c.host(t.domain)
	if err != nil {
		return nil, about(name, err)
	}
	r, err := h.blob(ctx, t.path, d, from)
	if err != nil {
		return nil, about(name, err)
	}
	return r, nil
}

// embedded returns the content a descriptor carries in its data field, if it is what the descriptor says.
func embedded(d ocispec.Descriptor) []byte {
	if len(d.Data) == 0 || int64(len(d.Data)) != d.Size || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
		return nil
	}
	return d.Data
}

func (h *host) blob(ctx context.Context, path string, d ocispec.Descriptor, from int64) (io.ReadCloser, error) {
	s := h.newStream(ctx, path, d, from, d.Size)
	several := d.Size-from >= h.c.many && !h.single.Load()
	if several {
		s.end = from + h.c.segment
	}
	if err := s.connect(); err != nil {
		s.cancel(nil)
		if IsClass(err, NotFound) && IsForeign(d.MediaType) {
			return nil, errorf(Unsupported, "layer %s is a foreign layer that is not kept in this registry", d.Digest)
		}
		return nil, err
	}
	if !several {
		return s, nil
	}
	if s.whole { // the registry does not do ranges
		h.single.Store(true)
		s.end = d.Size
		return s, nil
	}
	return newSegments(ctx, s), nil
}

func (h *host) newStream(ctx context.Context, path string, d ocispec.Descriptor, from, end int64) *stream {
	s := &stream{h: h, path: path, d: d, off: from, end: end, resumed: from, retry: retryState{c: h.c, host: h.name}}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

var errStalled = errors.New("the connection has gone silent")

// stallAfter is how long a connection may be silent while we wait for it.
const stallAfter = time.Minute

// stream is the content of a blob, or of a part of it, over as many connections as it takes, one after the other.
type stream struct {
	h    *host
	path string
	d    ocispec.Descriptor

	ctx    context.Context
	cancel context.CancelCauseFunc

	body     io.ReadCloser
	off      int64
	end      int64       // of the part
	whole    bool        // the last answer was all of the blob, whatever was asked for
	watch    *time.Timer // closes a silent connection
	stalled  atomic.Bool
	retry    retryState
	resumed  int64 // offset of the last resumption; progress since then earns new attempts
	complete bool  // everything was read and is right, so the connection can be used again
}

// connect opens the blob at the current offset.
func (s *stream) connect() error {
	r := &request{method: http.MethodGet, path: s.path + "/blobs/" + s.d.Digest.String(), access: pullAccess(s.path), header: http.Header{}}
	if s.off > 0 || s.end < s.d.Size {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.end-1))
	}
	resp, err := s.h.do(s.ctx, r, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	skip, err := s.startsAt(resp)
	if err == nil && skip > 0 {
		_, err = io.CopyN(io.Discard, resp.Body, skip)
	}
	if err != nil {
		resp.Body.Close()
		return err
	}
	s.body = resp.Body
	s.stalled.Store(false)
	body := resp.Body
	s.watch = time.AfterFunc(s.h.c.stall, func() {
		s.stalled.Store(true)
		body.Close()
	})
	s.watch.Stop()
	return nil
}

// startsAt checks that a response is the part of the blob we asked for and returns how many bytes of it to skip: a
// registry that ignores Range sends everything again.
func (s *stream) startsAt(resp *http.Response) (int64, error) {
	s.whole = resp.StatusCode == http.StatusOK
	if s.whole {
		if resp.ContentLength >= 0 && resp.ContentLength != s.d.Size {
			return 0, errorf(Digest, "blob %s has %d bytes, not %d as the manifest says", s.d.Digest, resp.ContentLength, s.d.Size)
		}
		return s.off, nil
	}
	want := fmt.Sprintf("bytes %d-", s.off)
	if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
		return 0, errorf(Network, "asked for %s of blob %s, got %q", want, s.d.Digest, got)
	}
	return 0, nil
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.body == nil {
			if err := s.connect(); err != nil {
				return 0, err
			}
		}
		s.watch.Reset(s.h.c.stall) // runs while we wait for the network, not while the reader is busy elsewhere
		n, err := s.body.Read(p[:min(int64(len(p)), max(1, s.end-s.off))])
		s.watch.Stop()
		s.off += int64(n)
		switch {
		case err == nil:
			return n, nil
		case s.off >= s.end:
			return n, io.EOF // complete; how the connection ended does not matter
		}
		if err := s.interrupted(err); err != nil {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// interrupted decides whether a broken connection is worth resuming, and waits before.
func (s *stream) interrupted(err error) error {
	s.watch.Stop()
	s.body.Close()
	s.body = nil
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if s.stalled.Load() {
		err = errStalled
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if s.off > s.resumed {
		s.retry.attempt, s.retry.refused = 0, 0
	}
	s.resumed = s.off
	err = s.h.networkError(s.h.addr, fmt.Errorf("blob %s after %d of %d bytes: %w", s.d.Digest, s.off, s.d.Size, err))
	return s.retry.next(s.ctx, err)
}

func (s *stream) Close() error {
	s.cancel(nil)
	if s.watch != nil {
		s.watch.Stop()
	}
	if s.body != nil {
		if s.complete {
			discard(s.body)
		} else {
			s.body.Close()
		}
	}
	return nil
}

// verifier passes on what it reads and turns the end of it into an error unless size and digest are right.
type verifier struct {
	r    io.ReadCloser
	d    ocispec.Descriptor
	hash digest.Digester
	left int64
	ok   *bool
}

// newVerifier wraps r, the content of d. ok, if not nil, is set when everything was read and is right.
func newVerifier(r io.ReadCloser, d ocispec.Descriptor, ok *bool) io.ReadCloser {
	return &verifier{r: r, d: d, hash: d.Digest.Algorithm().Digester(), left: d.Size, ok: ok}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, v.finish()
	}
	if int64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.hash.Hash().Write(p[:n])
	v.left -= int64(n)
	if err == io.EOF && v.left > 0 {
		return n, errorf(Digest, "blob %s ends after %d of %d bytes", v.d.Digest, v.d.Size-v.left, v.d.Size)
	}
	if err == io.EOF {
		err = nil // decided by finish on the next call
	}
	return n, err
}

// finish is reached when as many bytes as promised were read.
func (v *verifier) finish() error {
	var more [1]byte
	if n, _ := v.r.Read(more[:]); n > 0 {
		return errorf(Digest, "blob %s is longer than the %d bytes the manifest says", v.d.Digest, v.d.Size)
	}
	if got := v.hash.Digest(); got != v.d.Digest {
		return errorf(Digest, "blob %s turned out to have the digest %s", v.d.Digest, got)
	}
	if v.ok != nil {
		*v.ok = true
	}
	return io.EOF
}

func (v *verifier) Close() error { return v.r.Close() }
