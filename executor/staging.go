package executor

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// staging puts things into a root that no mount can be made on, and takes them out again: what is in the way is moved aside by
// rename, into a directory beside the root, and moved back. All of it goes by descriptor of the directory and one name, so
// that whatever the step put in their place or above them is not followed. Undoing is in the reverse order of doing.
type staging struct {
	proc   int    // the kernel's /proc, for the names of open files
	root   int    // the tree
	base   string // what the kernel calls it
	parent int    // the directory it lies in, which is ours
	aside  int    // a directory in it, made for this step; -1 until something is in the way
	count  int    // of names in it
	make   *maker
	undo   []func()

	touched map[string]bool
	notes   []string
	moved   []movedDir
	stopped func() bool // the step is not wanted any more
}

// asidePrefix begins the names of directories for what was in the way. One is left by nobody but a keeper that was killed.
const asidePrefix = ".aside-"

func newStaging(proc, root int, tree string, stopped func() bool) (*staging, error) {
	s := &staging{proc: proc, root: root, aside: -1, touched: map[string]bool{}, stopped: stopped}
	parent, err := unix.Open(path.Dir(path.Clean(tree)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s.parent = parent
	if s.base, err = s.rawPath(root); err != nil {
		return nil, err
	}
	s.make, err = newMaker(root)
	return s, err
}

func (s *staging) rawPath(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(s.proc, "self/fd/"+strconv.Itoa(fd), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// path returns where in the root an open file is now, without leading slash; "" is the root.
func (s *staging) path(fd int) (string, error) {
	p, err := s.rawPath(fd)
	if err != nil {
		return "", err
	}
	if p == s.base {
		return "", nil
	}
	rest, ok := strings.CutPrefix(p, strings.TrimSuffix(s.base, "/")+"/")
	if !ok {
		return "", fmt.Errorf("%s is not in the root", p)
	}
	return rest, nil
}

// chroot makes the root this process's own, so that what it resolves afterwards is resolved as the step would.
func (s *staging) chroot() error {
	if err := unix.Fchdir(s.root); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	s.base = "/"
	return nil
}

func (s *staging) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// restore undoes everything.
func (s *staging) restore() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	s.undo = nil
	if s.aside >= 0 {
		unix.Close(s.aside)
		s.aside = -1
	}
	unix.Close(s.parent)
}

// slot is a free name in a directory of the root.
type slot struct {
	parent int // stays open until restore
	name   string
	path   string // in the root
}

// times remembers a directory's, and returns what gives them back. A step that does not change a directory leaves no trace on
// it, and neither may we.
func times(dir int) func() {
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil {
		return func() {}
	}
	return func() { restoreTime(dir, &st) }
}

// free makes room for a mount target, which is resolved in the root like any path of it, and made where missing. What was there
// comes back afterwards, what was not is gone again.
func (s *staging) free(target string, dir bool) (slot, error) {
	before := len(s.make.stubs)
	fd, err := s.make.target(target, dir)
	made := s.make.stubs[before:]
	for i := range made {
		s.keepStub(&made[i])
	}
	if err != nil {
		return slot{}, pathError("mount "+target, err)
	}
	defer unix.Close(fd)
	at, err := s.path(fd)
	if err != nil {
		return slot{}, setupError("mount "+target, err)
	}
	if top, _, _ := strings.Cut(at, "/"); top == "proc" || top == "sys" {
		return slot{}, pathError("mount "+target, errKernelFS)
	}
	return s.take(fd, at)
}

// keepStub notes what the maker made on the way.
func (s *staging) keepStub(st *stub) {
	s.touch(st.parent, "")
	s.undo = append(s.undo, func() {
		removeStub(st)
		unix.Close(st.parent)
		unix.Close(st.fd)
	})
}

func (s *staging) touch(parent int, name string) {
	if p, err := s.path(parent); err == nil {
		s.touched[p] = true
		if name != "" {
			s.touched[path.Join(p, name)] = true
		}
	}
}

// take moves what is open as fd, at a path of the root, aside.
func (s *staging) take(fd int, at string) (slot, error) {
	parent, err := unix.Openat2(s.root, "./"+path.Dir(at), &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return slot{}, setupError("open the directory of /"+at, err)
	}
	sl := slot{parent: parent, name: path.Base(at), path: at}
	var want, have unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return slot{}, setupError("look at /"+at, err)
	}
	if err := unix.Fstatat(parent, sl.name, &have, unix.AT_SYMLINK_NOFOLLOW); err != nil || have.Ino != want.Ino || have.Dev != want.Dev {
		return slot{}, &SetupError{Op: "move /" + at + " aside", Msg: "somebody is changing the root"}
	}
	if err := s.openAside(); err != nil {
		return slot{}, setupError("make a directory beside the root", err)
	}
	s.count++
	hidden := strconv.Itoa(s.count)
	restore := times(parent)
	if err := unix.Renameat(parent, sl.name, s.aside, hidden); err != nil {
		return slot{}, setupError("move /"+at+" aside", err)
	}
	restore()
	s.touch(parent, sl.name)
	s.undo = append(s.undo, func() { s.putBack(sl, hidden, &have) })
	return sl, nil
}

// putBack gives the name to what had it. Whatever has it now was a mount elsewhere, and what is written to one is not kept.
func (s *staging) putBack(sl slot, hidden string, was *unix.Stat_t) {
	defer unix.Close(sl.parent)
	restore := times(sl.parent)
	// Out of the way first: a directory can be so deep that it takes longer to remove than anybody waits, or cannot be.
	ours := hidden + ".out"
	if unix.Renameat(sl.parent, sl.name, s.aside, ours) == nil {
		defer removeAt(s.aside, ours)
	}
	if unix.Renameat(s.aside, hidden, sl.parent, sl.name) != nil {
		removeAt(s.aside, hidden) // the step removed the directory it was in
		return
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, was.Mtim}
	unix.UtimesNanoAt(sl.parent, sl.name, ts, unix.AT_SYMLINK_NOFOLLOW)
	restore()
}

func (s *staging) openAside() error {
	if s.aside >= 0 {
		return nil
	}
	for i := 0; ; i++ {
		name := asidePrefix + strconv.Itoa(unix.Getpid()) + "-" + strconv.Itoa(i)
		err := unix.Mkdirat(s.parent, name, 0o700)
		if errors.Is(err, unix.EEXIST) && i < 1000 {
			continue
		}
		if err != nil {
			return err
		}
		s.aside, err = unix.Openat(s.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		// First done, last undone: it is empty then.
		s.undo = append([]func(){func() { unix.Unlinkat(s.parent, name, unix.AT_REMOVEDIR) }}, s.undo...)
		return err
	}
}

// cover puts an empty directory over one of the directories that every root has, and returns it open. As on other rungs one that
// is missing is made and stays, and a symbolic link there is refused.
func (s *staging) cover(name string, mode uint32) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(s.root, name, flags, 0)
	if err == unix.ENOENT {
		restore := times(s.root)
		if err := unix.Mkdirat(s.root, name, 0o755); err != nil {
			return -1, setupError("make /"+name, err)
		}
		restore()
		fd, err = unix.Openat(s.root, name, flags, 0)
	}
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return -1, &ExitError{Code: cannotExecute, Msg: "mount /" + name + ": /" + name + " of the image is not a directory"}
	}
	if err != nil {
		return -1, setupError("open /"+name, err)
	}
	defer unix.Close(fd)
	sl, err := s.take(fd, name)
	if err != nil {
		return -1, err
	}
	return s.mkdir(sl, mode)
}

// mkdir makes a directory in a slot and returns it open.
func (s *staging) mkdir(sl slot, mode uint32) (int, error) {
	restore := times(sl.parent)
	if err := unix.Mkdirat(sl.parent, sl.name, mode); err != nil {
		return -1, setupError("make /"+sl.path, err)
	}
	restore()
	return unix.Openat(sl.parent, sl.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
