package buildctx

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// root is a directory below which paths are opened. No symlink is ever followed on the way.
type root struct {
	dir      string // for messages
	fd       int
	slow     atomic.Bool // openat2 cannot be had: go component by component
	noListAt atomic.Bool // listxattrat cannot be had
	procs    string      // /proc/self/fd when it works, for calls that know no directory descriptor
}

func openRoot(dir string) (*root, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	r := &root{dir: dir, fd: fd}
	if fi, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && fi.IsDir() {
		r.procs = "/proc/self/fd/"
	}
	return r, nil
}

func (r *root) close() error { return unix.Close(r.fd) }

// full is the path of an entry as messages show it.
func (r *root) full(path string) string { return filepath.Join(r.dir, path) }

func (r *root) error(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: r.full(path), Err: err}
}

// retry repeats a system call that a signal interrupted.
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// open opens an entry. A symlink anywhere in path, also as its last component, is an ELOOP or ENOTDIR.
func (r *root) open(path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if !r.slow.Load() {
		how := unix.OpenHow{
			Flags:   uint64(flags),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		}
		for {
			fd, err := unix.Openat2(r.fd, path, &how)
			switch err {
			case unix.EINTR, unix.EAGAIN: // EAGAIN: something was renamed meanwhile
				continue
			case unix.ENOSYS:
				r.slow.Store(true)
			case unix.EPERM: // a seccomp filter that does not know the call; or the file's own EPERM, which comes again
				if fd, err := r.openSlowly(path, flags); err == nil {
					r.slow.Store(true)
					return fd, nil
				}
				return -1, err
			default:
				return fd, err
			}
			break
		}
	}
	return r.openSlowly(path, flags)
}

// openSlowly is open for kernels before 5.6.
func (r *root) openSlowly(path string, flags int) (int, error) {
	at := r.fd
	for {
		name, rest, more := strings.Cut(path, "/")
		if name == ".." || name == "" {
			return -1, unix.EXDEV
		}
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := retry(func() (int, error) { return unix.Openat(at, name, f, 0) })
		if at != r.fd {
			unix.Close(at)
		}
		if err != nil || !more {
			return fd, err
		}
		at, path = fd, rest
	}
}

// absent reports whether an error of open means that the path leads nowhere: a component is missing, is a symlink, or
// is not a directory.
func absent(err error) bool {
	return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP || err == unix.ENAMETOOLONG
}

// EscapeError says that a file that is read for the build itself (Dockerfile, .dockerignore) is a symlink that leads out
// of the context.
type EscapeError struct {
	Path   string
	Target string
}

func (e *EscapeError) Error() string {
	return fmt.Sprintf("%s is a symbolic link that leads out of the build context, to %s: refused", e.Path, e.Target)
}

const maxControlFile = 16 << 20 // of a Dockerfile or an ignore file

// TooLargeError says that a Dockerfile or an ignore file has more than 16 MiB and so is none.
type TooLargeError struct{ Name string }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s is larger than %d MiB", e.Name, maxControlFile>>20)
}

// readConfined reads a small regular file named by a path relative to dir. Symlinks are followed as long as they lead to
// something in dir.
func readConfined(dir, path string) ([]byte, error) {
	full := filepath.Join(dir, path)
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return nil, err
	}
	top, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, err
	}
	if top, err = filepath.Abs(top); err != nil {
		return nil, err
	}
	rel, ok := within(top, real)
	if !ok {
		return nil, &EscapeError{Path: full, Target: real}
	}
	r, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer r.close()
	// Whoever changes a link between the look and this call gets an error, not a file from elsewhere.
	fd, err := r.open(rel, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: full, Err: err}
	}
	return readSmall(os.NewFile(uintptr(fd), full))
}

// readHost reads a small regular file that the user named, wherever it is.
func readHost(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return readSmall(f)
}

var errNotRegular = errors.New("not a regular file")

func readSmall(f *os.File) ([]byte, error) {
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: unix.EISDIR}
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: errNotRegular}
	}
	return readLimited(f, f.Name())
}

// readLimited reads all of a small input.
func readLimited(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxControlFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxControlFile {
		return nil, &TooLargeError{Name: name}
	}
	return b, nil
}

// within returns path relative to dir when it lies in it. Both are absolute and clean.
func within(dir, path string) (string, bool) {
	if path == dir {
		return "", true
	}
	rel, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	return rel, ok
}
