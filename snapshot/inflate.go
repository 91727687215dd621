package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Inflate says who inflates gzip blobs. Assembly does it twice as fast as Go, so a program of the machine is worth a process
// for a large blob. Nothing rests on it: what it gives is hashed like everything else, and whatever goes wrong with it, this
// process inflates the blob from the beginning.
type Inflate struct {
	// Program is the absolute path of one that is called with -d -c, reads standard input and writes standard output, such as
	// igzip or unpigz. "" is this process.
	Program string
	// Warn is told once that the program failed where this process did not. It may be nil.
	Warn func(string)
}

// leastInflated is the size of the smallest blobs that are given to a program, in bytes: this process inflates less than that
// in about the time that a program needs to start twice over.
const leastInflated = 4 << 20

// inflater is an Inflate and what became of it.
type inflater struct {
	Inflate
	failed atomic.Bool
}

// fails notes that the program is of no use.
func (f *inflater) fails(err error) {
	if !f.failed.Swap(true) && f.Warn != nil {
		f.Warn(fmt.Sprintf("%s did not inflate a layer: %v; this and others are inflated in-process: --inflate=builtin does so from the start", f.Program, err))
	}
}

// rereader is a blob that can be read once more.
type rereader interface {
	io.Reader
	// head is how the blob begins: at most n bytes of it, without consuming them.
	head(n int) []byte
	// again goes back to the beginning.
	again() error
	// failure is what hindered reading, if anything did.
	failure() error
}

// wholeBlob is the file of a blob.
type wholeBlob struct {
	*os.File
	err error
}

func (w *wholeBlob) Read(p []byte) (int, error) {
	n, err := w.File.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

func (w *wholeBlob) head(n int) []byte {
	b := make([]byte, n)
	n, _ = w.ReadAt(b, 0) // who reads it next meets the error
	return b[:n]
}

func (w *wholeBlob) again() error {
	_, err := w.Seek(0, io.SeekStart)
	return err
}

func (w *wholeBlob) failure() error { return w.err }

// plainOf is plainStream for a blob of size bytes that can be read again.
func (f *inflater) plainOf(ctx context.Context, r rereader, size int64, stages ...func([]byte) error) (*stream, error) {
	if f.Program == "" || size < leastInflated || f.failed.Load() || !bytes.Equal(r.head(len(gzipMagic)), gzipMagic) {
		return plainStream(ctx, r, stages...)
	}
	z, err := f.start(ctx, r, size)
	if ctx.Err() != nil && err != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		f.fails(err)
		return plainStream(ctx, r, stages...)
	}
	return &stream{readAhead: newReadAhead(ctx, z, stages...), z: z}, nil
}

// inflating reads what a program makes of a blob.
type inflating struct {
	f    *inflater
	ctx  context.Context
	src  rereader
	size int64
	fed  int64 // bytes of the blob that the program was given; to be read when it has ended

	cmd    *exec.Cmd
	out    *os.File
	stderr limited
	done   int64 // plain bytes so far
	ended  bool  // it was waited for

	ours  io.ReadCloser // in its place, once it failed
	cause error         // why
}

func (f *inflater) start(ctx context.Context, src rereader, size int64) (*inflating, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4*pipeBuffer) // a smaller one only means more switches
	z := &inflating{f: f, ctx: ctx, src: src, size: size, out: r}
	z.cmd = exec.CommandContext(ctx, f.Program, "-d", "-c")
	z.cmd.Env, z.cmd.Dir = []string{}, "/"
	z.cmd.Stdin, z.cmd.Stdout, z.cmd.Stderr = feed{z}, w, &z.stderr
	err = z.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	return z, nil
}

// feed counts what the program reads.
type feed struct{ z *inflating }

func (f feed) Read(p []byte) (int, error) {
	n, err := f.z.src.Read(p)
	f.z.fed += int64(n)
	return n, err
}

func (z *inflating) Read(p []byte) (int, error) {
	if z.ours == nil {
		n, err := z.out.Read(p)
		z.done += int64(n)
		if n > 0 || err == nil {
			return n, nil
		}
		if z.cause = z.wait(); z.cause == nil {
			return 0, io.EOF
		}
		if err := z.takeOver(); err != nil {
			return 0, err
		}
	}
	n, err := z.ours.Read(p)
	if err == io.EOF {
		z.f.fails(z.cause) // and only now: a blob that nobody can inflate is no fault of the program
	}
	return n, err
}

// wait waits for the program and reports whether it inflated the blob to its end.
func (z *inflating) wait() error {
	if z.ended {
		return nil
	}
	z.ended = true
	err := z.cmd.Wait()
	if text := strings.TrimSpace(string(z.stderr)); err != nil && text != "" {
		err = fmt.Errorf("%w: %.200q", err, text)
	}
	if err == nil && z.fed != z.size {
		err = fmt.Errorf("it stopped after %d of %d bytes", z.fed, z.size)
	}
	return err
}

// takeOver inflates the blob here, up to where the program came.
func (z *inflating) takeOver() error {
	if z.ctx.Err() != nil {
		return context.Cause(z.ctx)
	}
	if err := z.src.failure(); err != nil {
		return err
	}
	if err := z.src.again(); err != nil {
		return err
	}
	ours, err := decompress(z.src)
	if err != nil {
		return err
	}
	z.ours = ours
	if _, err := io.CopyN(io.Discard, ours, z.done); err == io.EOF {
		return fmt.Errorf("%s made more of the blob than is in it", filepath.Base(z.f.Program))
	} else if err != nil {
		return err
	}
	return nil
}

// Close kills the program if it still runs.
func (z *inflating) Close() error {
	_ = z.cmd.Process.Kill() // it has ended, or does now
	z.out.Close()
	_ = z.wait() // who closes before the end does not want to know
	if z.ours != nil {
		return z.ours.Close()
	}
	return nil
}

// limited keeps the beginning of what is written to it.
type limited []byte

var _ io.Writer = (*limited)(nil)

func (l *limited) Write(p []byte) (int, error) {
	const most = 1000
	*l = append(*l, p[:min(len(p), max(0, most-len(*l)))]...)
	return len(p), nil
}
