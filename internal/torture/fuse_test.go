package torture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// The protocol of FUSE (include/uapi/linux/fuse.h), as much of it as a file system needs that is one file of fixed size. A loop
// device on that file makes a recorder a disk of this machine: with direct I/O, each request of the loop device's arrives at once,
// and a flush of the disk is an fsync of the file.

const (
	fuseGetattr = 3
	fuseOpen    = 14
	fuseRead    = 15
	fuseWrite   = 16
	fuseRelease = 18
	fuseFsync   = 20
	fuseFlush   = 25
	fuseInit    = 26
	fuseForget  = 2
	fuseIntr    = 36
	fuseForgets = 42

	fuseMaxWrite = 128 << 10
	fuseInHead   = 40 // struct fuse_in_header
	fuseDirectIO = 1  // FOPEN_DIRECT_IO
	fuseBigWrite = 1 << 5
)

// mount makes the recorder the content of a file until the returned function is called. The processes that use that file must not
// be this one, which would wait for itself.
func (d *recorder) mount(t testing.TB, path string) (unmount func()) {
	t.Helper()
	dev := int(testenv.Device(t, "/dev/fuse").Fd()) // which blocks, because its number was asked for
	must(t, os.WriteFile(path, nil, 0o600))
	// The root of the file system is not a directory but the file.
	err := unix.Mount("torture", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=100600,user_id=0,group_id=0", dev))
	if err != nil {
		testenv.Skip(t, "the right to mount a FUSE file system ("+err.Error()+")")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.err = d.serveFUSE(dev)
	}()
	return func() {
		must(t, unix.Unmount(path, 0))
		<-done
		must(t, d.err)
	}
}

// serveFUSE answers requests until the file system is unmounted.
func (d *recorder) serveFUSE(dev int) error {
	buf := make([]byte, fuseMaxWrite+4096)
	for {
		n, err := unix.Read(dev, buf)
		switch {
		case errors.Is(err, unix.ENODEV): // unmounted
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // the request was interrupted
			continue
		case err != nil:
			return fmt.Errorf("read a request: %w", err)
		}
		req := buf[:n]
		op := binary.NativeEndian.Uint32(req[4:])
		if op == fuseForget || op == fuseForgets || op == fuseIntr {
			continue
		}
		answer, errno := d.answer(op, req[fuseInHead:])
		head := binary.NativeEndian.AppendUint32(nil, uint32(16+len(answer)))
		head = binary.NativeEndian.AppendUint32(head, uint32(-int32(errno)))
		head = append(head, req[8:16]...) // which request it answers
		if _, err := unix.Write(dev, append(head, answer...)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("answer request %d: %w", op, err)
		}
	}
}

// answer carries out one request, whose operation's own part is given.
func (d *recorder) answer(op uint32, in []byte) ([]byte, unix.Errno) {
	ne := binary.NativeEndian
	switch op {
	case fuseInit: // struct fuse_init_out
		out := make([]byte, 64)
		ne.PutUint32(out[0:], 7)
		ne.PutUint32(out[4:], 31)
		ne.PutUint32(out[8:], ne.Uint32(in[8:])) // as much reading ahead as it likes
		ne.PutUint32(out[12:], fuseBigWrite)
		ne.PutUint32(out[20:], fuseMaxWrite)
		return out, 0
	case fuseGetattr: // struct fuse_attr_out, valid for an hour
		out := make([]byte, 104)
		ne.PutUint64(out[0:], 3600)
		attr := out[16:]
		ne.PutUint64(attr[0:], 1)
		ne.PutUint64(attr[8:], uint64(len(d.now)))
		ne.PutUint64(attr[16:], uint64(len(d.now)/512))
		ne.PutUint32(attr[60:], unix.S_IFREG|0o600)
		ne.PutUint32(attr[64:], 1)
		ne.PutUint32(attr[80:], sector)
		return out, 0
	case fuseOpen: // struct fuse_open_out
		out := make([]byte, 16)
		ne.PutUint32(out[8:], fuseDirectIO)
		return out, 0
	case fuseRead, fuseWrite: // struct fuse_read_in, struct fuse_write_in
		at, n := ne.Uint64(in[8:]), uint64(ne.Uint32(in[16:]))
		if at > uint64(len(d.now)) || op == fuseWrite && at+n > uint64(len(d.now)) {
			return nil, unix.EFBIG
		}
		if op == fuseRead {
			return d.now[at:min(at+n, uint64(len(d.now)))], 0
		}
		data := make([]byte, n)
		copy(data, in[40:])
		d.write(int64(at), data)
		out := make([]byte, 8)
		ne.PutUint32(out, uint32(n))
		return out, 0
	case fuseFsync:
		d.flush()
		return nil, 0
	case fuseRelease, fuseFlush:
		return nil, 0
	}
	return nil, unix.ENOSYS // setattr, fallocate and others: whoever asked does without
}
