package main

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// A limit is measured like a builder, in turn with them, so that it meets the same machine.
const (
	floorName = "floor" // inflating the layers of the large base and creating their files, nothing else
	aloneName = "alone" // the longest chain of a workload's steps, without any builder
)

// probeCommand, as the first argument, makes this program the floor: bench probe DIR BLOB…
const probeCommand = "probe"

// floor is the least that unpacking an image can be: this program once more, which reads the registry's blobs.
type floor struct {
	self  string
	blobs []string
}

func (f *floor) name() string { return floorName }
func (f *floor) version(context.Context) string {
	return "inflate (klauspost/compress) and create files, 2 goroutines"
}
func (f *floor) programs() []string                                { return nil }
func (f *floor) open(_ context.Context, state string) (int, error) { return 0, makeState(state) }
func (f *floor) close(string) error                                { return nil }
func (f *floor) command(ctx context.Context, state string, _ build) invocation {
	args := append([]string{probeCommand, filepath.Join(state, "root")}, f.blobs...)
	return invocation{withTemp(exec.CommandContext(ctx, f.self, args...), state)}
}

// alone executes a command of the machine.
type alone struct{ argv func(dir string) []string }

func (a *alone) name() string                                      { return aloneName }
func (a *alone) version(context.Context) string                    { return "the longest chain of steps, no builder" }
func (a *alone) programs() []string                                { return nil }
func (a *alone) open(_ context.Context, state string) (int, error) { return 0, makeState(state) }
func (a *alone) close(string) error                                { return nil }
func (a *alone) command(ctx context.Context, state string, _ build) invocation {
	argv := a.argv(state)
	return invocation{exec.CommandContext(ctx, argv[0], argv[1:]...)}
}

// probe inflates layers and creates what is in them, each below a directory of its own, two at a time and large ones first.
// It computes no digest, sets no owner and no time, and looks at no whiteout.
func probe(dir string, blobs []string) error {
	sizes := map[string]int64{}
	for _, b := range blobs {
		st, err := os.Stat(b)
		if err != nil {
			return err
		}
		sizes[b] = st.Size()
	}
	blobs = slices.Clone(blobs)
	slices.SortFunc(blobs, func(a, b string) int { return cmp.Compare(sizes[b], sizes[a]) })
	todo := make(chan int, len(blobs))
	for i := range blobs {
		todo <- i
	}
	close(todo)
	const workers = 2
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range todo {
				if err := inflate(filepath.Join(dir, fmt.Sprint(i)), blobs[i]); err != nil {
					errs[w] = fmt.Errorf("%s: %w", blobs[i], err)
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func inflate(dir, blob string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReaderSize(f, 64<<10))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	c := &creator{root: dir, buf: make([]byte, 128<<10)}
	defer c.leave()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = c.create(h, r)
		}
		if err != nil {
			return err
		}
	}
}

// creator creates files the cheapest way: relative to the directory that the last one was in.
type creator struct {
	root string
	buf  []byte
	in   string // the directory that fd is
	fd   int
}

func (c *creator) leave() {
	if c.in != "" {
		_ = unix.Close(c.fd)
		c.in = ""
	}
}

func (c *creator) enter(dir string) error {
	if c.in == dir {
		return nil
	}
	c.leave()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	c.in, c.fd = dir, fd
	return nil
}

func (c *creator) create(h *tar.Header, r io.Reader) error {
	path := filepath.Join(c.root, filepath.Clean("/"+h.Name))
	if path == c.root {
		return nil
	}
	dir, name := filepath.Split(path)
	if err := c.enter(filepath.Clean(dir)); err != nil {
		return err
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = unix.Mkdirat(c.fd, name, 0o755); err == unix.EEXIST {
			err = nil
		}
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, c.fd, name)
	case tar.TypeLink:
		err = unix.Linkat(unix.AT_FDCWD, filepath.Join(c.root, filepath.Clean("/"+h.Linkname)), c.fd, name, 0)
	case tar.TypeReg:
		err = c.file(name, r)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

func (c *creator) file(name string, r io.Reader) error {
	fd, err := unix.Openat(c.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, c.buf)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
