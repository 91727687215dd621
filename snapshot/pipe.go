package snapshot

import (
	"context"
	"io"
	"sync"
)

// The pipes of this package move whole buffers between goroutines, so that hashing, inflating, parsing and writing overlap
// while memory stays bounded by buffers × size.
const (
	pipeBuffer  = 256 << 10
	pipeBuffers = 6
)

// asyncWriter hands what is written to it to a goroutine that writes it on. The first error of that goroutine is returned
// by the next Write, Buffer or Close.
type asyncWriter struct {
	free chan []byte
	full chan []byte
	cur  []byte // being filled; its length is what is filled
	done chan struct{}

	mu     sync.Mutex
	err    error
	closed bool
}

func newAsyncWriter(w io.Writer) *asyncWriter {
	a := &asyncWriter{
		free: make(chan []byte, pipeBuffers),
		full: make(chan []byte, pipeBuffers),
		done: make(chan struct{}),
	}
	for range pipeBuffers {
		a.free <- nil // allocated when first needed: most layers are small
	}
	go a.run(w)
	return a
}

func (a *asyncWriter) run(w io.Writer) {
	defer close(a.done)
	for b := range a.full {
		if a.failed() == nil {
			if _, err := w.Write(b); err != nil {
				a.mu.Lock()
				a.err = err
				a.mu.Unlock()
			}
		}
		a.free <- b
	}
}

func (a *asyncWriter) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Buffer returns the unfilled part of the current buffer, never empty. What the caller puts there counts after Filled.
func (a *asyncWriter) Buffer() ([]byte, error) {
	if a.cur != nil && len(a.cur) == cap(a.cur) {
		a.full <- a.cur
		a.cur = nil
	}
	if a.cur == nil {
		if err := a.failed(); err != nil {
			return nil, err
		}
		b := <-a.free
		if b == nil {
			b = make([]byte, 0, pipeBuffer)
		}
		a.cur = b[:0]
	}
	return a.cur[len(a.cur):cap(a.cur)], nil
}

// Filled adds the first n bytes of what Buffer returned to the stream.
func (a *asyncWriter) Filled(n int) { a.cur = a.cur[:len(a.cur)+n] }

func (a *asyncWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		b, err := a.Buffer()
		if err != nil {
			return total - len(p), err
		}
		n := copy(b, p)
		a.Filled(n)
		p = p[n:]
	}
	return total, nil
}

// Close waits until everything is written and returns the first error. It may be called twice.
func (a *asyncWriter) Close() error {
	if !a.closed {
		a.closed = true
		if len(a.cur) > 0 {
			a.full <- a.cur
			a.cur = nil
		}
		close(a.full)
	}
	<-a.done
	return a.failed()
}

// readAhead is a reader whose source is read by a goroutine of its own. Each further stage sees every buffer in order, in
// its own goroutine, before the consumer does: a chain of goroutines handing the same buffers on, without copying.
type readAhead struct {
	free chan []byte
	last chan chunk
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	cur  chunk
	rest []byte
}

type chunk struct {
	buf []byte
	err error // after buf
}

// newReadAhead starts reading r. A stage's error ends the stream like a read error. When ctx ends, so does the stream.
func newReadAhead(ctx context.Context, r io.Reader, stages ...func([]byte) error) *readAhead {
	p := &readAhead{free: make(chan []byte, pipeBuffers), quit: make(chan struct{})}
	for range pipeBuffers {
		p.free <- nil
	}
	p.last = make(chan chunk, pipeBuffers)
	first := p.last
	p.wg.Go(func() { p.read(ctx, r, first) })
	for _, stage := range stages {
		in, out := p.last, make(chan chunk, pipeBuffers)
		p.last = out
		p.wg.Go(func() { p.stage(stage, in, out) })
	}
	return p
}

func (p *readAhead) read(ctx context.Context, r io.Reader, out chan<- chunk) {
	defer close(out)
	for {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.quit:
			return
		case <-ctx.Done():
			out <- chunk{err: context.Cause(ctx)}
			return
		}
		if b == nil {
			b = make([]byte, pipeBuffer)
		}
		n, err := fill(r, b[:pipeBuffer])
		out <- chunk{b[:n], err}
		if err != nil {
			return
		}
	}
}

// fill reads until b is full or r ends. Unlike io.ReadFull it keeps io.EOF and io.ErrUnexpectedEOF apart: the second one
// is how a decompressor reports a truncated stream.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

func (p *readAhead) stage(do func([]byte) error, in <-chan chunk, out chan<- chunk) {
	defer close(out)
	for c := range in {
		if err := do(c.buf); err != nil {
			out <- chunk{err: err}
			for range in { // the reader ends by itself when it finds no free buffer and quit is closed
			}
			return
		}
		out <- c
	}
}

// next makes rest the next buffer.
func (p *readAhead) next() error {
	if p.cur.err != nil {
		return p.cur.err
	}
	if p.cur.buf != nil {
		p.free <- p.cur.buf
		p.cur.buf = nil
	}
	c, ok := <-p.last
	if !ok {
		c = chunk{err: io.ErrClosedPipe}
	}
	p.cur, p.rest = c, c.buf
	return nil
}

func (p *readAhead) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if err := p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: whole buffers, no copy.
func (p *readAhead) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if len(p.rest) > 0 {
			n, err := w.Write(p.rest)
			total += int64(n)
			p.rest = p.rest[n:]
			if err != nil {
				return total, err
			}
		}
		if err := p.next(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

// Close stops reading and waits for the goroutines. The source itself must return from a Read that is under way.
func (p *readAhead) Close() error {
	p.once.Do(func() { close(p.quit) })
	for range p.last { // whoever is sending gets through
	}
	p.wg.Wait()
	return nil
}
