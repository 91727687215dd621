package registry

import (
	"context"
	"io"
	"sync"
)

// Far registries give a connection a fraction of what the line could carry, so large blobs are asked for in parts over
// several connections. The parts are handed on in order, and the digest of all of them together decides, as ever.
const (
	manySize      = 32 << 20 // blobs from this size on come in parts
	segmentSize   = 8 << 20
	connections   = 3 // of one blob, at most
	segmentsAhead = 6 // of all blobs of a registry together: what bounds the memory
)

// segments is a blob in parts. The first is read as it comes, because its answer shows whether the registry does ranges at
// all; the others are read ahead.
type segments struct {
	first  *stream
	ctx    context.Context
	cancel context.CancelCauseFunc
	queue  chan *segment // in order
	cur    *segment
	all    sync.WaitGroup
}

type segment struct {
	data []byte // from the host's buffers, to which it goes back
	off  int    // what of data was handed on
	err  error
	done chan struct{}
}

func newSegments(ctx context.Context, first *stream) *segments {
	s := &segments{first: first, queue: make(chan *segment, connections-1)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.all.Go(s.ask)
	return s
}

// ask starts one part after the other, as far ahead as there is room.
func (s *segments) ask() {
	defer close(s.queue)
	h, d := s.first.h, s.first.d
	for off := s.first.end; off < d.Size; off += h.c.segment {
		var buf []byte
		select {
		case buf = <-h.ahead:
		case <-s.ctx.Done():
			return
		}
		if buf == nil {
			buf = make([]byte, h.c.segment)
		}
		part := &segment{data: buf[:min(h.c.segment, d.Size-off)], done: make(chan struct{})}
		s.all.Go(func() { s.fetch(part, off) })
		select {
		case s.queue <- part:
		case <-s.ctx.Done():
			s.giveBack(part)
			return
		}
	}
}

func (s *segments) fetch(part *segment, off int64) {
	defer close(part.done)
	r := s.first.h.newStream(s.ctx, s.first.path, s.first.d, off, off+int64(len(part.data)))
	if part.err = r.connect(); part.err == nil {
		_, part.err = io.ReadFull(r, part.data)
		r.complete = part.err == nil && !r.whole
	}
	r.Close()
}

func (s *segments) Read(p []byte) (int, error) {
	if s.first.off < s.first.end {
		n, err := s.first.Read(p)
		if err == io.EOF && s.first.off == s.first.end {
			err = nil
		}
		return n, err
	}
	s.first.complete = true
	for s.cur == nil || s.cur.off == len(s.cur.data) {
		if s.cur != nil {
			s.giveBack(s.cur)
			s.cur = nil
		}
		next, ok := <-s.queue
		if !ok {
			if s.ctx.Err() != nil {
				return 0, context.Cause(s.ctx)
			}
			return 0, io.EOF
		}
		s.cur = next
		<-next.done
		if next.err != nil {
			return 0, next.err
		}
	}
	n := copy(p, s.cur.data[s.cur.off:])
	s.cur.off += n
	return n, nil
}

// giveBack waits for a part and makes room for another.
func (s *segments) giveBack(part *segment) {
	<-part.done
	s.first.h.ahead <- part.data[:cap(part.data)]
}

func (s *segments) Close() error {
	s.cancel(context.Canceled)
	err := s.first.Close()
	if s.cur != nil {
		s.giveBack(s.cur)
		s.cur = nil
	}
	for part := range s.queue {
		s.giveBack(part)
	}
	s.all.Wait()
	return err
}

// suspicious is a blob in parts. When it turns out to be a wrong one, a cache on the way may have mixed up the parts: then
// the blobs of this registry come in one piece from now on, and this one is worth another try.
type suspicious struct {
	io.ReadCloser
	h *host
}

func (s *suspicious) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if IsClass(err, Digest) && !s.h.single.Swap(true) {
		err = &MixedUpError{err}
	}
	return n, err
}

// OnePiece makes the blobs of a repository's registry come in one piece from now on, and reports whether they came in
// parts before.
func (c *Client) OnePiece(repo string) bool {
	t, err := parseRef(repo)
	if err != nil {
		return false
	}
	h, err := c.host(t.domain)
	return err == nil && !h.single.Swap(true)
}

// MixedUpError is a blob that came in parts over several connections and turned out to be a wrong one. Asked for again, it
// comes in one piece.
type MixedUpError struct{ Err error }

func (e *MixedUpError) Error() string { return e.Err.Error() }
func (e *MixedUpError) Unwrap() error { return e.Err }
