package torture

import (
	"bytes"
	"math/rand/v2"
	"os"
)

// recorder is a disk that remembers, in order, what was written to it and when it was told to flush. A loop device of this
// machine uses it as a file (fuse_test.go), or a virtual machine over a socket (nbd_test.go). It has a volatile cache and no
// FUA: a write counts as lasting only once a later flush is done.
type recorder struct {
	first []byte // as it was at the beginning
	now   []byte
	log   []written
	err   error
}

// written is one write, or, without data, a flush.
type written struct {
	at   int64
	data []byte
}

// sector is the unit in which a write can be torn: what ext4, loop devices and qemu's NVMe write whole.
const sector = 4096

func (d *recorder) write(at int64, data []byte) {
	copy(d.now[at:], data)
	d.log = append(d.log, written{at, data})
}

func (d *recorder) flush() { d.log = append(d.log, written{}) }

// flushes is how many of the log are flushes.
func (d *recorder) flushes() int {
	n := 0
	for _, w := range d.log {
		if w.data == nil {
			n++
		}
	}
	return n
}

// cut writes to a file what the disk may hold when the power goes after the first n entries of the log: everything that was
// flushed, and of the writes after the last flush any, in part or whole. Each gets lost with a probability that is itself
// chosen at random, so that the two ends, nothing and all, are met too.
func (d *recorder) cut(r *rand.Rand, n int, path string) error {
	image := make([]byte, len(d.first))
	copy(image, d.first)
	flushed := 0
	for i, w := range d.log[:n] {
		if w.data == nil {
			flushed = i
		}
	}
	lost := max(0, min(1, r.Float64()*1.5-0.25))
	for i, w := range d.log[:n] {
		for from := 0; from < len(w.data); from += sector {
			if i < flushed || r.Float64() >= lost {
				copy(image[w.at+int64(from):], w.data[from:min(from+sector, len(w.data))])
			}
		}
	}
	return writeSparse(path, image)
}

// writeSparse writes a file that takes no room where it is zero.
func writeSparse(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	empty := make([]byte, 16*sector)
	for at := 0; at < len(data); at += len(empty) {
		part := data[at:min(at+len(empty), len(data))]
		if bytes.Equal(part, empty[:len(part)]) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return f.Close()
}
