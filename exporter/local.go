package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// Local writes the merged file system of chain into the directory dest, which is made if there is none. What is there
// already stays unless the image has something at the same path. Everything belongs to the caller; modes, times, hard
// links and, as far as the caller may set them, extended attributes are kept. Devices are made only by root.
//
// Nothing in dest is ever followed: every step goes from an open directory to a name in it, so that a symlink, whether
// left by an earlier export or put there meanwhile, cannot lead the writing elsewhere.
func Local(ctx context.Context, dest string, chain *tree.Chain, open Open, o RootfsOptions) (err error) {
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(dest, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dest, Err: err}
	}
	w := &localWriter{ctx: ctx, dest: dest, open: open, o: o, links: newLinks(chain), buf: make([]byte, 256<<10), root: os.Geteuid() == 0}
	w.stack = []openDir{{fd: fd}}
	defer func() {
		for _, d := range w.stack {
			unix.Close(d.fd)
		}
	}()
	for e, err := range chain.Walk("") {
		if err != nil {
			return fmt.Errorf("reading the file system: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.Path == "" {
			continue // the directory itself is the caller's
		}
		if err := w.entry(&e); err != nil {
			return pathError("writing", dest+"/"+e.Path, err)
		}
	}
	if err := w.leave(""); err != nil {
		return err
	}
	w.warn()
	return nil
}

// pathError says at which path err happened. What the kernel refused becomes an *fs.PathError, as package os would have
// made it, so that it is told from mistakes of this program.
func pathError(op, path string, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return fmt.Errorf("%s %s: %w", op, path, err)
}

// openDir is a directory being filled. Mode and time are set when it is left, because filling needs permission and
// changes the time.
type openDir struct {
	fd    int
	path  string
	mode  uint32
	mtime time.Time
}

type localWriter struct {
	ctx   context.Context
	dest  string
	open  Open
	o     RootfsOptions
	links *links
	buf   []byte
	root  bool
	stack []openDir // from dest down to the directory being filled

	devices []string
	xattrs  []string
}

func (w *localWriter) entry(e *tree.Located) error {
	if err := tree.CheckPath(e.Path); err != nil {
		return err
	}
	parent := tree.Parent(e.Path)
	if err := w.leave(parent); err != nil {
		return err
	}
	top := w.stack[len(w.stack)-1]
	if top.path != parent {
		return errors.New("its directory is missing from the index")
	}
	name := tree.Base(e.Path)
	if e.Type == tree.Dir {
		return w.enter(top.fd, name, e)
	}
	if err := w.clear(top.fd, name); err != nil {
		return err
	}
	target, err := w.links.target(e)
	if err != nil {
		return err
	}
	if target != "" {
		if w.link(target, top.fd, name) == nil {
			return nil
		}
		// Not every file system has hard links, and a directory without search permission hides its names.
	}
	switch e.Type {
	case tree.File:
		return w.file(top.fd, name, e)
	case tree.Symlink:
		if err := unix.Symlinkat(e.Link, top.fd, name); err != nil {
			return err
		}
	case tree.Fifo:
		if err := unix.Mknodat(top.fd, name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	case tree.Char, tree.Block:
		if made, err := w.device(top.fd, name, e); !made {
			return err
		}
	default:
		return fmt.Errorf("unexpected type %d", e.Type)
	}
	return w.finish(top.fd, name, e)
}

// leave closes directories until the one at path is on top.
func (w *localWriter) leave(path string) error {
	for len(w.stack) > 1 {
		top := w.stack[len(w.stack)-1]
		if top.path == path || tree.Below(path, top.path) {
			return nil
		}
		w.stack = w.stack[:len(w.stack)-1]
		err := unix.Fchmod(top.fd, top.mode)
		if err == nil {
			err = unix.Futimes(top.fd, timevals(w.o.time(top.mtime)))
		}
		unix.Close(top.fd)
		if err != nil {
			return pathError("setting mode and time of", w.dest+"/"+top.path, err)
		}
	}
	return nil
}

func timevals(t time.Time) []unix.Timeval {
	tv := unix.NsecToTimeval(t.Truncate(time.Microsecond).UnixNano())
	return []unix.Timeval{tv, tv}
}

// enter makes or opens a directory and puts it on top.
func (w *localWriter) enter(dir int, name string, e *tree.Located) error {
	err := unix.Mkdirat(dir, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			if err = unix.Unlinkat(dir, name, 0); err == nil {
				err = unix.Mkdirat(dir, name, 0o700)
			}
		case st.Mode&0o700 != 0o700:
			err = chmodDir(dir, name, st.Mode|0o700)
		}
	}
	if err != nil {
		return err
	}
	fd, err := openDirAt(dir, name)
	if err != nil {
		return err
	}
	w.setXattrs(fd, e)
	w.stack = append(w.stack, openDir{fd: fd, path: strings.Clone(e.Path), mode: e.Mode & 0o7777, mtime: e.ModTime})
	return nil
}

func openDirAt(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// chmodDir changes the mode of a directory that cannot be opened for lack of permission, without following a symlink
// that may have taken its place.
func chmodDir(dir int, name string, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), os.FileMode(mode&0o777))
}

// clear removes whatever is in the way of an entry that is not a directory.
func (w *localWriter) clear(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
		return removeTree(dir, name)
	}
	return err
}

// removeTree removes a directory with all that is in it.
func removeTree(dir int, name string) error {
	fd, err := openDirAt(dir, name)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			err = removeTree(fd, e.Name())
		} else {
			err = unix.Unlinkat(fd, e.Name(), 0)
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// link makes name a hard link to what was written at target before.
func (w *localWriter) link(target string, dir int, name string) error {
	from := w.stack[0].fd
	parts := strings.Split(target, "/")
	for i, part := range parts[:len(parts)-1] {
		fd, err := openDirAt(from, part)
		if i > 0 {
			unix.Close(from)
		}
		if err != nil {
			return err
		}
		from = fd
	}
	if len(parts) > 1 {
		defer unix.Close(from)
	}
	return unix.Linkat(from, parts[len(parts)-1], dir, name, 0)
}

func (w *localWriter) file(dir int, name string, e *tree.Located) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if e.Size > 0 {
		if err := copyFile(w.ctx, f, e, w.open, w.buf); err != nil {
			return err
		}
	}
	w.setXattrs(fd, e)
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return err
	}
	if err := unix.Futimes(fd, timevals(w.o.time(e.ModTime))); err != nil {
		return err
	}
	return f.Close()
}

// device makes a device node if the caller is root and may; else it is noted and left out.
func (w *localWriter) device(dir int, name string, e *tree.Located) (made bool, err error) {
	if w.root {
		kind := uint32(unix.S_IFCHR)
		if e.Type == tree.Block {
			kind = unix.S_IFBLK
		}
		err := unix.Mknodat(dir, name, kind|0o600, int(unix.Mkdev(e.Major, e.Minor)))
		if err == nil || !errors.Is(err, unix.EPERM) {
			return err == nil, err
		}
	}
	w.devices = append(w.devices, strings.Clone(e.Path))
	return false, nil
}

// finish sets mode and time of an entry that has no descriptor of its own. Symlinks have no mode.
func (w *localWriter) finish(dir int, name string, e *tree.Located) error {
	if e.Type != tree.Symlink {
		// The name was made a moment ago and is not a symlink unless somebody else writes here too; then only the
		// caller's own files can be hit, as with any program the caller runs.
		if err := unix.Fchmodat(dir, name, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	ts := unix.NsecToTimespec(w.o.time(e.ModTime).UnixNano())
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setXattrs keeps the attributes the caller is allowed to set.
func (w *localWriter) setXattrs(fd int, e *tree.Located) {
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			w.xattrs = append(w.xattrs, strings.Clone(e.Path))
			return
		}
	}
}

// warn says what was left out.
func (w *localWriter) warn() {
	if w.o.Warn == nil {
		return
	}
	if n := len(w.devices); n > 0 {
		w.o.Warn(fmt.Sprintf("%d device nodes were left out because only root can make them: %s", n, some(w.devices)))
	}
	if n := len(w.xattrs); n > 0 {
		w.o.Warn(fmt.Sprintf("%d files lost extended attributes (such as capabilities) that %s or your privileges do not allow: %s", n, w.dest, some(w.xattrs)))
	}
}

func some(list []string) string {
	const most = 3
	if len(list) > most {
		return strings.Join(list[:most], ", ") + ", …"
	}
	return strings.Join(list, ", ")
}
