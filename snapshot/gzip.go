package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
)

// gzipBlock is how much input one worker deflates at a time. It is part of the compressor's identity: other blocks give
// other bytes. A block starts with the end of the one before it as dictionary, so cutting costs a fraction of a percent.
const (
	gzipBlock  = 1 << 20
	gzipWindow = 32 << 10
)

// gzipHeader has no name, no time and no operating system, so that nothing but the input decides the bytes.
var gzipHeader = [10]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// gzipSlots bounds the blocks that are deflated at the same time in this process, however many layers are compressed.
var gzipSlots = sync.OnceValue(func() chan struct{} { return make(chan struct{}, runtime.GOMAXPROCS(0)) })

// gzipWriter deflates blocks in parallel and writes them in order as one gzip member. Its output depends on the input and
// the level alone, neither on the number of processors nor on how the input is cut into writes.
type gzipWriter struct {
	ctx   context.Context
	level int
	crc   uint32
	size  uint32
	cur   *gzipJob                               // the block being filled
	tail  []byte                                 // the end of the one before
	count int                                    // blocks so far
	known func(i int, buf []byte) ([]byte, bool) // the i-th block, when it need not be compressed; nil: never
	sums  blockTable                             // of the blocks that were written; whole when Close has returned
	queue chan *gzipJob
	done  chan struct{}
	coder sync.Pool // *flate.Writer
	jobs  sync.Pool // *gzipJob

	mu  sync.Mutex
	err error
}

type gzipJob struct {
	in    []byte
	dict  []byte
	out   bytes.Buffer
	last  bool
	ready chan error
}

// newGzipWriter returns a writer that must be closed, also after an error: its goroutines end with Close. Close does not
// close w.
func newGzipWriter(ctx context.Context, w io.Writer, level int) *gzipWriter {
	z := &gzipWriter{
		ctx: ctx, level: level,
		queue: make(chan *gzipJob, runtime.GOMAXPROCS(0)+1),
		done:  make(chan struct{}),
	}
	go z.collect(w)
	return z
}

func (z *gzipWriter) failed() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

func (z *gzipWriter) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.err == nil {
		z.err = err
	}
}

func (z *gzipWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		j := z.block()
		n := copy(j.in[len(j.in):cap(j.in)], p)
		j.in = j.in[:len(j.in)+n]
		p = p[n:]
		if len(j.in) == cap(j.in) {
			if err := z.submit(false); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// block returns the block being filled.
func (z *gzipWriter) block() *gzipJob {
	if z.cur == nil {
		j, _ := z.jobs.Get().(*gzipJob)
		if j == nil {
			j = &gzipJob{in: make([]byte, 0, gzipBlock), ready: make(chan error, 1)}
		}
		j.in, j.dict = j.in[:0], append(j.dict[:0], z.tail...)
		j.out.Reset()
		z.cur = j
	}
	return z.cur
}

// submit hands the current block to a goroutine, as soon as a slot is free.
func (z *gzipWriter) submit(last bool) error {
	if err := z.failed(); err != nil {
		return err
	}
	j := z.block()
	z.cur, j.last = nil, last
	z.tail = append(z.tail[:0], j.in[max(0, len(j.in)-gzipWindow):]...)
	z.crc = crc32.Update(z.crc, crc32.IEEETable, j.in)
	z.size += uint32(len(j.in))
	z.count++
	if z.known != nil && !last {
		if out, ok := z.known(z.count-1, j.out.AvailableBuffer()); ok {
			j.out.Write(out)
			j.ready <- nil
			z.queue <- j
			return nil
		}
	}
	select {
	case gzipSlots() <- struct{}{}:
	case <-z.ctx.Done():
		z.fail(context.Cause(z.ctx))
		return z.failed()
	}
	go func() {
		defer func() { <-gzipSlots() }()
		j.ready <- z.deflate(j)
	}()
	z.queue <- j
	return nil
}

func (z *gzipWriter) deflate(j *gzipJob) error {
	w, _ := z.coder.Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriterDict(&j.out, z.level, j.dict); err != nil {
			return err
		}
	} else {
		w.ResetDict(&j.out, j.dict)
	}
	defer z.coder.Put(w)
	if _, err := w.Write(j.in); err != nil {
		return err
	}
	if j.last {
		return w.Close()
	}
	return w.Flush()
}

// collect writes the blocks in order. After a failure it only takes them off the queue.
func (z *gzipWriter) collect(w io.Writer) {
	defer close(z.done)
	if _, err := w.Write(gzipHeader[:]); err != nil {
		z.fail(err)
	}
	for j := range z.queue {
		if err := <-j.ready; err != nil {
			z.fail(err)
		}
		if z.failed() == nil {
			z.sums = append(z.sums, blockSum{uint32(j.out.Len()), crc32.Checksum(j.out.Bytes(), blockCRC)})
			if _, err := w.Write(j.out.Bytes()); err != nil {
				z.fail(err)
			}
		}
		if j.last && z.failed() == nil {
			if _, err := w.Write(z.trailer()); err != nil {
				z.fail(err)
			}
		}
		z.jobs.Put(j)
	}
}

// trailer returns the member's end; the last block is in the queue, so nobody changes the sums any more.
func (z *gzipWriter) trailer() []byte {
	var t [8]byte
	binary.LittleEndian.PutUint32(t[0:], z.crc)
	binary.LittleEndian.PutUint32(t[4:], z.size)
	return t[:]
}

// Close completes the member and ends the goroutines.
func (z *gzipWriter) Close() error {
	err := z.submit(true)
	close(z.queue)
	<-z.done
	if err == nil {
		err = z.failed()
	}
	return err
}
