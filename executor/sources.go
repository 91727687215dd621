package executor

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/fakeroot"
)

// preparedMount is a Mount whose source is a descriptor of a detached mount, or a file of the step's memory file system.
type preparedMount struct {
	Target string
	FD     int    // index in the files passed on, -1 for Memory
	Memory string // name in the memory file system
	Dir    bool
	Attrs  uint64 // for Memory
}

// sources prepares the sources of a step's mounts in the process that runs it. Everything it opens is in files.
type sources struct {
	files   []*os.File // the first is the memory file system
	memory  int        // its descriptor
	count   int
	mounts  []preparedMount
	records *fakeroot.Records // of whose the files are
}

// Directories of the memory file system, whose other entries are the contents of File mounts.
const (
	memoryEmpty = "empty" // masks directories
	memoryRoot  = "root"  // where the root is attached before it becomes the root
)

func (s *sources) close() {
	for _, f := range s.files {
		f.Close()
	}
}

func (s *sources) keep(fd int, name string) int {
	s.files = append(s.files, os.NewFile(uintptr(fd), name))
	return len(s.files) - 1
}

func prepareSources(spec *Spec, records *fakeroot.Records) (s *sources, err error) {
	s = &sources{records: records}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.openMemory(); err != nil {
		return s, setupError("make a memory file system", err)
	}
	for _, f := range []struct {
		target string
		data   []byte
	}{{"/etc/resolv.conf", spec.Resolv}, {"/etc/hosts", spec.Hosts}} {
		if f.data == nil {
			continue
		}
		if err := s.file(f.target, File{Data: f.data, Mode: 0o644}, unix.MOUNT_ATTR_NOEXEC); err != nil {
			return s, setupError("prepare "+f.target, err)
		}
	}
	// Parents come first, so that no mount hides another.
	mounts := slices.Clone(spec.Mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int { return depth(a.Target) - depth(b.Target) })
	for _, m := range mounts {
		if err := s.add(m, spec.Security); err != nil {
			return s, setupError("prepare the mount on "+m.Target, err)
		}
	}
	return s, nil
}

func depth(target string) int { return strings.Count(path.Clean(target), "/") }

func (s *sources) add(m Mount, sec Security) error {
	switch src := m.Source.(type) {
	case BindPath:
		return s.bind(m.Target, src, sec)
	case BindTree:
		return s.bindTree(m.Target, src, sec)
	case Tmpfs:
		mode := src.Mode
		if mode == 0 {
			mode = 0o1777
		}
		opts := []string{"mode=" + strconv.FormatUint(uint64(mode), 8)}
		if src.Size > 0 {
			opts = append(opts, "size="+strconv.FormatInt(src.Size, 10))
		}
		attrs := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
		if src.ReadOnly {
			attrs |= unix.MOUNT_ATTR_RDONLY
		}
		fd, err := newMount("tmpfs", attrs, opts...)
		if err != nil {
			return err
		}
		s.mounts = append(s.mounts, preparedMount{Target: m.Target, FD: s.keep(fd, m.Target), Dir: true})
		return nil
	case File:
		return s.file(m.Target, src, 0)
	case Socket:
		return s.socket(m.Target, src)
	}
	return fmt.Errorf("unknown source %T", m.Source)
}

// openMemory makes the file system that the step's files in memory are on. It is out of the step's sight.
func (s *sources) openMemory() error {
	fd, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=0700")
	if err != nil {
		return err
	}
	s.memory = fd
	s.keep(fd, "memory")
	for _, dir := range []string{memoryEmpty, memoryRoot} {
		if err := unix.Mkdirat(fd, dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// bind resolves a host path once and copies the mount that it is on.
func (s *sources) bind(target string, b BindPath, sec Security) error {
	fd, err := unix.Open(b.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", b.Path, err)
	}
	if b.Sub != "" {
		sub, err := openInRoot(fd, b.Sub, unix.O_PATH)
		unix.Close(fd)
		if err != nil {
			return pathError("nothing to mount at source "+b.Sub, err)
		}
		fd = sub
	}
	defer unix.Close(fd)
	if err := s.bindFD(target, fd, b.ReadOnly, sec); err != nil {
		return fmt.Errorf("%s: %w", b.Path, err)
	}
	return nil
}

// bindFD copies the mount that an open path is on.
func (s *sources) bindFD(target string, fd int, readOnly bool, sec Security) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	attrs := rootAttrs(sec)
	if readOnly {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := cloneFD(fd, unix.AT_RECURSIVE, attrs)
	if err != nil {
		return fmt.Errorf("copy the mount: %w", err)
	}
	s.mounts = append(s.mounts, preparedMount{
		Target: target, FD: s.keep(mnt, target), Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR,
	})
	return nil
}

// file writes a file to the step's memory file system. It is mounted from there by the step itself, once that file system is
// attached in its namespace.
func (s *sources) file(target string, f File, attrs uint64) error {
	name := strconv.Itoa(s.count)
	s.count++
	fd, err := unix.Openat(s.memory, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	w := os.NewFile(uintptr(fd), target)
	defer w.Close()
	if _, err := w.Write(f.Data); err != nil {
		return err
	}
	if err := s.records.Give(fd, f.UID, f.GID); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, f.Mode&0o7777); err != nil {
		return err
	}
	s.mounts = append(s.mounts, preparedMount{
		Target: target, FD: -1, Memory: name,
		Attrs: attrs | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
	})
	return nil
}
