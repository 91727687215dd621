package executor

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// defaultShm is the size of /dev/shm that nobody asked for, in bytes.
const defaultShm = 64 << 20

// fill puts everything a step sees besides its root into the root: what other rungs mount.
func (s *staging) fill(p *keeperPlan) error {
	if err := s.dev(); err != nil {
		return err
	}
	if _, err := s.cover("sys", 0o555); err != nil {
		return err
	}
	for _, f := range []struct {
		target string
		data   []byte
	}{{"/etc/resolv.conf", p.Resolv}, {"/etc/hosts", p.Hosts}} {
		if f.data == nil {
			continue
		}
		if err := s.file(f.target, File{Data: f.data, Mode: 0o644}); err != nil {
			return err
		}
	}
	if h := p.Step.Hostname; h != "" && h != DefaultHostname {
		s.note("the step's host is not called %s: a host's name cannot be set without a namespace", h)
	}
	if size := p.Step.ShmSize; size > 0 && size != defaultShm {
		s.note("/dev/shm is a directory on disk, and its size is not limited")
	}
	order := make([]int, len(p.Mounts))
	for i := range order {
		order[i] = i
	}
	// Parents come first, so that no mount hides another.
	slices.SortStableFunc(order, func(a, b int) int { return depth(p.Mounts[a].Target) - depth(p.Mounts[b].Target) })
	// Sources are opened before the first of them is moved: one can lie in another, or be it.
	sources := make([]int, len(p.Mounts))
	for i, m := range p.Mounts {
		b, ok := m.Source.(BindPath)
		if !ok {
			continue
		}
		fd, err := openSource(b)
		if err != nil {
			return setupError("mount "+m.Target, err)
		}
		sources[i] = fd
	}
	for _, i := range order {
		if s.stopped() {
			return errStopped
		}
		if err := s.mount(p.Mounts[i], sources[i], p.Hands[i]); err != nil {
			return setupError("mount "+p.Mounts[i].Target, err)
		}
	}
	return nil
}

func openSource(b BindPath) (int, error) {
	fd, err := unix.Open(b.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", b.Path, err)
	}
	if b.Sub == "" {
		return fd, nil
	}
	defer unix.Close(fd)
	sub, err := openInRoot(fd, b.Sub, unix.O_PATH)
	if err != nil {
		return -1, pathError("nothing to mount at source "+b.Sub, err)
	}
	return sub, nil
}

func (s *staging) mount(m Mount, source, hand int) error {
	switch src := m.Source.(type) {
	case BindPath:
		return s.bind(m.Target, src, source)
	case Tmpfs:
		return s.empty(m.Target, src)
	case File:
		if secret(src) {
			s.note("the secret on %s is, while the step runs, a file in a directory that only root can enter, and not just in memory; it is overwritten and removed afterwards", m.Target)
		}
		return s.file(m.Target, src)
	case Socket:
		return s.listener(m.Target, src, initFirst+hand)
	}
	return fmt.Errorf("unknown source %T", m.Source)
}

// empty is a directory in place of a memory file system.
func (s *staging) empty(target string, t Tmpfs) error {
	sl, err := s.free(target, true)
	if err != nil {
		return err
	}
	mode := t.Mode
	if mode == 0 {
		mode = 0o1777
	}
	fd, err := s.mkdir(sl, 0o700)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if t.Size > 0 {
		s.note("the memory file system on %s is a directory on disk, and its size is not limited", target)
	}
	return unix.Fchmod(fd, mode&0o7777)
}

// secret tells files that not everybody may read.
func secret(f File) bool { return f.Mode&0o044 == 0 }

// file is a file that is there only while the step runs. It is overwritten by descriptor, so that neither moving it nor another
// name for it keeps its content.
func (s *staging) file(target string, f File) error {
	sl, err := s.free(target, false)
	if err != nil {
		return err
	}
	restore := times(sl.parent)
	fd, err := unix.Openat(sl.parent, sl.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	restore()
	size := 0
	if secret(f) {
		size = len(f.Data)
	}
	s.undo = append(s.undo, func() { s.wipe(fd, target, size) })
	for data := f.Data; len(data) > 0; {
		n, err := eintr(func() (int, error) { return unix.Write(fd, data) })
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if err := unix.Fchown(fd, int(f.UID), int(f.GID)); err != nil {
		return fmt.Errorf("owner %d:%d: %w", f.UID, f.GID, err)
	}
	return unix.Fchmod(fd, f.Mode&0o7777)
}

// wipe overwrites the first bytes of a file and empties it.
func (s *staging) wipe(fd int, target string, size int) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Nlink > 1 {
		s.note("the step gave the file mounted on %s another name; the file of that name is empty now", target)
	}
	zeros := make([]byte, 4096)
	for at := 0; at < size; at += len(zeros) {
		if _, err := unix.Pwrite(fd, zeros[:min(len(zeros), size-at)], int64(at)); err != nil {
			break
		}
	}
	if size > 0 {
		unix.Fdatasync(fd)
	}
	unix.Ftruncate(fd, 0)
}

// listener is a socket of which the listening end goes to whoever listens.
func (s *staging) listener(target string, k Socket, hand int) error {
	sl, err := s.free(target, false)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	restore := times(sl.parent)
	// bind(2) knows no directory descriptor, and paths of sockets are short.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", sl.parent, sl.name)}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	restore()
	if err := unix.Fchownat(sl.parent, sl.name, int(k.UID), int(k.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", k.UID, k.GID, err)
	}
	if err := unix.Fchmodat(sl.parent, sl.name, k.Mode&0o777, 0); err != nil {
		return err
	}
	if err := unix.Listen(fd, socketBacklog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := unix.Sendmsg(hand, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand over the listening end: %w", err)
	}
	return nil
}

// bind shows a file or directory of the host. A directory that the step may write, on the root's file system, is moved into the
// root and back, which is what makes a cache a cache; anything else is copied, and what is written to the copy is not kept.
func (s *staging) bind(target string, b BindPath, src int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		unix.Close(src)
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && !b.ReadOnly {
		err := s.moveIn(src, target, &st)
		if !errors.Is(err, unix.EXDEV) {
			return err
		}
		s.note("what the step writes to %s is not kept: %s is on another file system than the root", target, b.Path)
	}
	defer unix.Close(src)
	sl, err := s.free(target, isDir)
	if err != nil {
		return err
	}
	return s.copyInto(src, sl)
}

// movedDir is a directory of the host that is in the root while the step runs.
type movedDir struct {
	fd     int // the directory, O_PATH
	parent int // where it belongs
	name   string
	was    unix.Stat_t
	slot   slot
}

// moveIn moves the directory open as src, which it takes over unless it fails with EXDEV, to the target.
//
// A keeper that is killed leaves it in the root: the cache is then missing in its place, where the next step makes it anew, and
// what it held goes with the root. At no time can a part of it be seen anywhere.
func (s *staging) moveIn(src int, target string, st *unix.Stat_t) error {
	var root unix.Stat_t
	if err := unix.Fstat(s.root, &root); err != nil {
		return err
	}
	if root.Dev != st.Dev {
		return unix.EXDEV
	}
	if at, err := s.path(src); err == nil {
		unix.Close(src)
		return s.again(at, target)
	}
	from, err := s.rawPath(src)
	if err != nil {
		return err
	}
	m := movedDir{fd: src, name: path.Base(from), was: *st}
	if m.parent, err = unix.Open(path.Dir(from), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if m.slot, err = s.free(target, true); err != nil {
		return err
	}
	restore := times(m.slot.parent)
	if err := unix.Renameat(m.parent, m.name, m.slot.parent, m.slot.name); err != nil {
		return fmt.Errorf("move %s into the root: %w", from, err)
	}
	restore()
	s.undo = append(s.undo, func() { s.moveOut(&m) })
	return nil
}

// again shows a directory that is in the root already in a second place.
func (s *staging) again(at, target string) error {
	sl, err := s.free(target, true)
	if err != nil {
		return err
	}
	defer times(sl.parent)()
	return unix.Symlinkat("/"+at, sl.parent, sl.name)
}

// moveOut takes a directory back from wherever the step moved it. Who made a new one in its place meanwhile, because the build
// that ran this step is gone, keeps that: there is always one, and it is whole.
func (s *staging) moveOut(m *movedDir) {
	defer unix.Close(m.fd)
	defer unix.Close(m.parent)
	dir, name, err := s.whereIs(m)
	if err != nil {
		// It was removed, which mounts do not allow: what is left of one then is an empty directory.
		if unix.Mkdirat(m.parent, m.name, 0o700) == nil {
			unix.Fchownat(m.parent, m.name, int(m.was.Uid), int(m.was.Gid), unix.AT_SYMLINK_NOFOLLOW)
			unix.Fchmodat(m.parent, m.name, m.was.Mode&0o7777, 0)
		}
		return
	}
	restore := times(dir)
	if err := unix.Renameat2(dir, name, m.parent, m.name, unix.RENAME_NOREPLACE); err != nil && err != unix.EEXIST {
		s.note("the directory that was mounted on /%s could not be moved back, and what it held is lost: %v", m.slot.path, err)
	}
	restore()
	if dir != m.slot.parent {
		unix.Close(dir)
	}
}

// whereIs returns the directory and the name in it that a moved directory has now.
func (s *staging) whereIs(m *movedDir) (dir int, name string, err error) {
	var st unix.Stat_t
	if unix.Fstatat(m.slot.parent, m.slot.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == m.was.Ino && st.Dev == m.was.Dev {
		return m.slot.parent, m.slot.name, nil
	}
	at, err := s.path(m.fd)
	if err != nil {
		return -1, "", err
	}
	dir, err = unix.Openat2(s.root, "./"+path.Dir(at), &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, "", err
	}
	if err := unix.Fstatat(dir, path.Base(at), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Ino != m.was.Ino || st.Dev != m.was.Dev {
		unix.Close(dir)
		return -1, "", unix.ENOENT
	}
	return dir, path.Base(at), nil
}

// dev puts a small /dev of its own over the root's.
func (s *staging) dev() error {
	dev, err := s.cover("dev", 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	for _, d := range devices {
		if err := s.device(dev, d.name, d.major, d.minor); err != nil {
			return setupError("make /dev/"+d.name, err)
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil {
			return setupError("make /dev/"+l[0], err)
		}
	}
	for _, d := range []struct {
		name string
		mode uint32
	}{{"pts", 0o755}, {"shm", 0o1777}, {"mqueue", 0o1777}} {
		if err := unix.Mkdirat(dev, d.name, d.mode); err != nil {
			return setupError("make /dev/"+d.name, err)
		}
	}
	return nil
}

// device makes a node and tries to open it: a file system mounted with nodev, or a container's rules, make of it a name only.
func (s *staging) device(dev int, name string, major, minor uint32) error {
	if err := unix.Mknodat(dev, name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return err
	}
	if name == "tty" { // there is none to open
		return nil
	}
	fd, err := unix.Openat(dev, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("made, but it cannot be opened (is the store on a file system that is mounted with nodev?): %w", err)
	}
	unix.Close(fd)
	return nil
}

// guarded reports whether something keeps devices that a step makes from being opened: a container's rules, or nodev. The
// device that is tried is none.
func (s *staging) guarded() (bool, error) {
	if err := s.openAside(); err != nil {
		return false, err
	}
	if err := unix.Mknodat(s.aside, "device", unix.S_IFBLK|0o600, int(unix.Mkdev(0, 1))); err != nil {
		return true, nil // whoever may not make any
	}
	defer unix.Unlinkat(s.aside, "device", 0)
	fd, err := unix.Openat(s.aside, "device", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.EPERM || err == unix.EACCES, nil
}

// raisers are the programs that steps of ordinary users use to become root.
var raisers = []string{"usr/bin/sudo", "usr/bin/doas", "bin/su"}

// explainRaisers says, of a step that failed, what may have failed in it.
func (s *staging) explainRaisers(p *plan) {
	if p.Insecure || p.UID == 0 {
		return
	}
	for _, name := range raisers {
		fd, err := openInRoot(s.root, name, unix.O_PATH)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err == nil && st.Mode&unix.S_ISUID != 0 {
			s.note("/%s does not make root of another user here: a sandbox without namespaces needs no_new_privs (RUN --security=insecure does without it, or give the command to a RUN before USER)", name)
			return
		}
	}
}
