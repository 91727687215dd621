package executor

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxLowers is how many lower directories the kernel takes. Whoever builds the Spec merges deeper chains.
const MaxLowers = 500

// mountRoot returns a descriptor of the root filesystem as a detached mount: it is attached nowhere, and gone when the last
// descriptor is.
func mountRoot(r Root, s Security) (int, error) {
	switch r := r.(type) {
	case Overlay:
		fd, _, err := mountOverlay(r, int(rootAttrs(s)))
		return fd, setupError("mount overlay", err)
	case Tree:
		fd, err := cloneMount(r.Dir, rootAttrs(s))
		return fd, setupError("mount "+r.Dir, err)
	}
	return -1, &SetupError{Op: "mount root", Msg: fmt.Sprintf("unknown kind %T", r)}
}

// rootAttrs keeps device nodes in a sandbox's root from working: a step that is root on the host may make them (they belong in
// layers), and no cgroup of ours would stop it from reading the disk with one.
func rootAttrs(s Security) uint64 {
	if s == Insecure {
		return 0
	}
	return unix.MOUNT_ATTR_NODEV
}

// cloneMount returns a detached copy of the mount tree at path with attributes set on all of it.
func cloneMount(path string, set uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, err
	}
	return fd, setAttrs(fd, set)
}

// cloneFD is cloneMount of an open path. flags is AT_RECURSIVE or 0, which leaves out what is mounted below.
func cloneFD(path int, flags uint, set uint64) (int, error) {
	fd, err := unix.OpenTree(path, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|flags)
	if err != nil {
		return -1, err
	}
	return fd, setAttrs(fd, set)
}

// setAttrs closes fd when it fails.
func setAttrs(fd int, set uint64) error {
	if set == 0 {
		return nil
	}
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: set})
	if err != nil {
		unix.Close(fd)
	}
	return err
}

// newMount makes a detached mount of a file system that takes plain string options ("key=value" or "key").
func newMount(fstype string, attrs int, options ...string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range options {
		if err := setOption(fs, o); err != nil {
			return -1, fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, withLog(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
}

func setOption(fs int, o string) error {
	key, value, ok := strings.Cut(o, "=")
	if !ok {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// withLog adds what the kernel has to say about a failed mount; it says more than an error number here.
func withLog(fs int, err error) error {
	buf := make([]byte, 1024)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n == 0 {
		return err
	}
	return fmt.Errorf("%w (kernel: %s)", err, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
}

// layerFDs are the opened directories of an overlay.
type layerFDs struct {
	lower       []int // top first, as the kernel wants them
	upper, work int
}

func (l *layerFDs) close() {
	for _, fd := range append(l.lower, l.upper, l.work) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func openLayers(o Overlay) (*layerFDs, error) {
	l := &layerFDs{upper: -1, work: -1}
	if err := l.open(o); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *layerFDs) open(o Overlay) error {
	if len(o.Lower) > MaxLowers {
		return fmt.Errorf("%d lower layers, the kernel takes %d", len(o.Lower), MaxLowers)
	}
	open := func(path string) (int, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
		return fd, nil
	}
	for i := len(o.Lower) - 1; i >= 0; i-- {
		fd, err := open(o.Lower[i])
		if err != nil {
			return err
		}
		l.lower = append(l.lower, fd)
	}
	if len(l.lower) == 0 { // an overlay needs a lower
		fd, err := newMount("tmpfs", unix.MOUNT_ATTR_RDONLY, "mode=0755")
		if err != nil {
			return fmt.Errorf("mount an empty layer: %w", err)
		}
		l.lower = append(l.lower, fd)
	}
	var err error
	if l.upper, err = open(o.Upper); err != nil {
		return err
	}
	l.work, err = open(o.Work)
	return err
}

// overlayOptions hold for every overlay, whoever makes it. Without userxattr an overlay made in a user namespace mounts but
// cannot remove directories; the kernel's module parameters could turn on forms of a layer that nobody else can read; syncing
// a directory that is thrown away after a crash is wasted.
var overlayOptions = []string{"userxattr", "index=off", "volatile"}

// overlayWays are the ways of naming layers: by name one at a time, by descriptor, by name in one mount(2). Names are those of
// our own descriptors, so they are short whatever the layers are called. They come first because the kernel shows a step what
// the layers of its root were called: of a descriptor it shows the path on the host.
var overlayWays = []struct {
	name  string
	mount func(Overlay, int) (int, error)
}{
	{"layers by name", overlayByName},
	{"layers by descriptor", overlayByFD},
	{"layers by mount(2)", overlayByMount},
}

// optionError is about the interface: the kernel does not know an option, or not in that form. The next way may work.
type optionError struct {
	option string
	err    error
}

func (e *optionError) Error() string { return "option " + e.option + ": " + e.err.Error() }
func (e *optionError) Unwrap() error { return e.err }

// mountOverlay returns the mount and the name of the way that worked. Of several failures the first that is not about the
// interface is the one to know.
func mountOverlay(o Overlay, attrs int) (fd int, way string, err error) {
	for _, w := range overlayWays {
		fd, werr := w.mount(o, attrs)
		if werr == nil {
			return fd, w.name, nil
		}
		var oe *optionError
		if err == nil || errors.As(err, &oe) {
			err = werr
		}
		// EOPNOTSUPP is what a file system of the old interface (overlay before 6.5) says of a descriptor as an option.
		if !errors.Is(werr, unix.EINVAL) && !errors.Is(werr, unix.ENOSYS) && !errors.Is(werr, unix.EOPNOTSUPP) {
			break
		}
	}
	return -1, "", err
}

func overlayByFD(o Overlay, attrs int) (int, error) {
	return overlayWith(o, attrs, unix.FsconfigSetFd)
}

func overlayByName(o Overlay, attrs int) (int, error) {
	return overlayWith(o, attrs, func(fs int, key string, fd int) error {
		return unix.FsconfigSetString(fs, key, "/proc/self/fd/"+strconv.Itoa(fd))
	})
}

func overlayWith(o Overlay, attrs int, set func(fs int, key string, fd int) error) (int, error) {
	l, err := openLayers(o)
	if err != nil {
		return -1, err
	}
	defer l.close()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range overlayOptions {
		if err := setOption(fs, o); err != nil {
			return -1, &optionError{o, withLog(fs, err)}
		}
	}
	for _, fd := range l.lower {
		if err := set(fs, "lowerdir+", fd); err != nil {
			return -1, &optionError{"lowerdir+", withLog(fs, err)}
		}
	}
	for key, fd := range map[string]int{"upperdir": l.upper, "workdir": l.work} {
		if err := set(fs, key, fd); err != nil {
			return -1, &optionError{key, withLog(fs, err)}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, withLog(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
}

// overlayByMount is for kernels before 6.5. mount(2) can only attach, so it happens in a mount namespace of a thread that ends
// with this function, from which a detached copy is taken. All options must fit in one page: the thread's working directory is
// its table of descriptors, in which a layer's name is a number.
func overlayByMount(o Overlay, attrs int) (fd int, err error) {
	fd = -1
	err = inMountNamespace(func() (err error) {
		fd, err = overlayOnThread(o, uint64(attrs))
		return err
	})
	return fd, err
}

// inMountNamespace calls f on a thread that has a mount namespace of its own and ends with it: what f attaches nobody else sees,
// and of it only detached copies stay.
func inMountNamespace(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("new mount namespace: %w", err)
		} else if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			done <- fmt.Errorf("make mounts private: %w", err)
		} else {
			done <- f()
		}
	}()
	return <-done
}

func overlayOnThread(o Overlay, attrs uint64) (int, error) {
	// Directories to mount on that exist, and in which no layer is.
	const empty, at = "/sys", "/proc"
	if len(o.Lower) == 0 {
		if err := unix.Mount("tmpfs", empty, "tmpfs", unix.MS_RDONLY, "mode=0755"); err != nil {
			return -1, fmt.Errorf("mount an empty layer: %w", err)
		}
		o.Lower = []string{empty}
	}
	l, err := openLayers(o) // here, because mounts of another namespace cannot be layers
	if err != nil {
		return -1, err
	}
	defer l.close()
	if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
		return -1, err
	}
	lower := make([]string, len(l.lower))
	for i, fd := range l.lower {
		lower[i] = strconv.Itoa(fd)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%d,workdir=%d,%s",
		strings.Join(lower, ":"), l.upper, l.work, strings.Join(overlayOptions, ","))
	if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	return fd, setAttrs(fd, attrs)
}
