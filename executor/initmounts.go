package executor

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// maskedPaths and readonlyPaths are Docker's: what the kernel shows there tells about or changes the host.
var (
	maskedPaths = []string{
		"proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list",
		"proc/timer_stats", "proc/sched_debug", "proc/scsi", "sys/firmware", "sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"}
)

// tree builds what a step sees. Until enterRoot the host's mounts are there too: devices and sources come from them.
type tree struct {
	plan  *plan
	make  *maker
	root  int
	table int // of emulators, when the plan has some
	empty int // an empty directory: masks directories
	outer int // a copy of the /proc we came from, when the step gets no other

	scratch int   // a memory file system of ours, for nodes
	sources []int // the descriptors of sources.files; nil: they follow each other from initFirst on
}

// source returns the descriptor of one of sources.files. The first, number 0, is the step's memory file system.
func (t *tree) source(number int) int {
	if t.sources == nil {
		return initFirst + number
	}
	return t.sources[number]
}

// buildTree attaches the root, all mounts on it, and reports the mount points it had to make.
func buildTree(p *plan, root int) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return setupError("make mounts private", err)
	}
	t := &tree{plan: p, root: root, scratch: initFirst}
	var err error
	if len(p.Emulators) > 0 {
		if t.table, err = newHandlerTable(); err != nil {
			return err
		}
	}
	if p.BoundProc {
		if t.outer, err = cloneMount("/proc", strictAttrs); err != nil {
			return setupError("copy /proc", err)
		}
	}
	if err := t.stage(); err != nil {
		return setupError("attach the root", err)
	}
	if t.make, err = newMaker(root); err != nil {
		return setupError("open the root", err)
	}
	for _, step := range []func() error{t.emulators, t.proc, t.dev, t.ownFiles, t.sys, t.mask, t.mounts} {
		if err := step(); err != nil {
			t.reportStubs()
			return err
		}
	}
	t.reportStubs()
	return nil
}

// stage attaches the memory file system in the old root, and the step's root in that. Only what is attached can be copied, and
// all of it but the root vanishes with the old root. The place is /proc because we could not be here without it; nothing is put
// on top of / itself, where it would come to lie on top of the new root and be found behind "/..".
func (t *tree) stage() error {
	err := t.stageOn(unix.AT_FDCWD, "/proc")
	if err != nil {
		return err
	}
	t.empty, err = unix.Openat(t.source(0), memoryEmpty, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return err
}

func (t *tree) stageOn(dir int, name string) error {
	if err := unix.MoveMount(t.source(0), "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return unix.MoveMount(t.root, "", t.source(0), memoryRoot, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// attach puts a detached mount on an open target and closes both.
func attach(mount, target int) error {
	defer unix.Close(mount)
	defer unix.Close(target)
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// reportStubs hands over what was made for mounts, in messages that fit.
func (t *tree) reportStubs() {
	const perMessage = 100
	stubs := t.make.stubs
	for first := true; first || len(stubs) > 0; first = false {
		m := message{}
		if first {
			m.Touched = t.make.touched
		}
		var fds []int
		for len(stubs) > 0 && len(m.Stubs) < perMessage {
			s := stubs[0]
			stubs = stubs[1:]
			m.Stubs = append(m.Stubs, stubName{Name: s.name, Dir: s.dir})
			fds = append(fds, s.parent, s.fd)
		}
		if len(m.Stubs) > 0 {
			report(m, fds...)
		}
	}
}

// base returns an O_PATH descriptor of one of the directories that every root has. As with other runtimes one that is missing
// is made and stays. A symbolic link there is an attack or a mistake; following it would put the mount elsewhere.
func (t *tree) base(name string) (int, error) {
	flags := unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(t.root, name, flags, 0)
	if err == unix.ENOENT {
		var before unix.Stat_t
		if err := unix.Fstat(t.root, &before); err != nil {
			return -1, err
		}
		if err := unix.Mkdirat(t.root, name, 0o755); err != nil {
			return -1, err
		}
		restoreTime(t.root, &before)
		fd, err = unix.Openat(t.root, name, flags, 0)
	}
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return -1, &ExitError{Code: cannotExecute, Msg: "mount /" + name + ": /" + name + " of the image is not a directory"}
	}
	return fd, err
}

func (t *tree) mountBase(name string, mount func() (int, error)) error {
	target, err := t.base(name)
	if err != nil {
		return setupError("make /"+name, err)
	}
	m, err := mount()
	if err != nil {
		return setupError("mount /"+name, err)
	}
	return setupError("attach /"+name, attach(m, target))
}

const strictAttrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

func (t *tree) proc() error {
	return t.mountBase("proc", func() (int, error) {
		if t.plan.BoundProc {
			return t.outer, nil
		}
		return newMount("proc", strictAttrs)
	})
}

// sys mounts a fresh sysfs where the network namespace is ours; else the kernel allows it to real root only, and the host's is
// bound. Either is read-only in a sandbox.
func (t *tree) sys() error {
	attrs := strictAttrs
	if !t.plan.Insecure {
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	err := t.mountBase("sys", func() (int, error) {
		fd, err := newMount("sysfs", attrs)
		if errors.Is(err, unix.EPERM) {
			fd, err = cloneMount("/sys", uint64(attrs))
		}
		return fd, err
	})
	if err != nil || !t.plan.CgroupView {
		return err
	}
	return t.cgroupView(attrs)
}

// dev mounts a small /dev of its own.
func (t *tree) dev() error {
	err := t.mountBase("dev", func() (int, error) {
		return newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_STRICTATIME, "mode=0755", "size=65536k")
	})
	if err != nil {
		return err
	}
	dev, err := unix.Openat(t.root, "dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return setupError("open /dev", err)
	}
	defer unix.Close(dev)
	for _, d := range devices {
		if err := t.bindDevice(dev, d.name, d.major, d.minor); err != nil {
			return setupError("make /dev/"+d.name, err)
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[1], dev, l[0]); err != nil {
			return setupError("make /dev/"+l[0], err)
		}
	}
	shm := t.plan.ShmSize
	for _, fs := range []struct {
		name  string
		mount func() (int, error)
	}{
		{"pts", mountPts},
		{"shm", func() (int, error) {
			return newMount("tmpfs", strictAttrs, "mode=1777", "size="+strconv.FormatInt(shm, 10))
		}},
		{"mqueue", func() (int, error) { return newMount("mqueue", strictAttrs) }},
	} {
		if fs.name == "shm" && t.plan.replacesShm() {
			continue
		}
		if err := mountUnder(dev, fs.name, fs.mount); err != nil {
			return setupError("mount /dev/"+fs.name, err)
		}
	}
	return nil
}

// ownFiles has the standard files come from the step's own /dev where they came from the host's.
func (t *tree) ownFiles() error {
	dev, err := unix.Openat(t.root, "dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return setupError("open /dev", err)
	}
	defer unix.Close(dev)
	return setupError("replace standard files", ownNull(dev))
}

func mountUnder(dir int, name string, mount func() (int, error)) error {
	m, err := mount()
	if errors.Is(err, unix.ENODEV) { // a kernel without that file system, e.g. mqueue
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return err
	}
	target, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return attach(m, target)
}

// mountPts makes a private devpts. Group 5 is tty everywhere; where it is not mapped the default must do.
func mountPts() (int, error) {
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	fd, err := newMount("devpts", attrs, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
	if errors.Is(err, unix.EINVAL) {
		fd, err = newMount("devpts", attrs, "newinstance", "ptmxmode=0666", "mode=0620")
	}
	return fd, err
}

// mask hides and protects parts of /proc and /sys. Paths that this kernel does not have are fine.
func (t *tree) mask() error {
	if t.plan.Insecure {
		return nil
	}
	for _, path := range readonlyPaths {
		if err := t.overlayPath(path, func(target int, _ bool) (int, error) {
			return cloneFD(target, 0, unix.MOUNT_ATTR_RDONLY|strictAttrs)
		}); err != nil {
			return setupError("mask: make /"+path+" read-only", err)
		}
	}
	for _, path := range maskedPaths {
		if err := t.overlayPath(path, func(_ int, dir bool) (int, error) {
			if dir {
				return cloneFD(t.empty, 0, unix.MOUNT_ATTR_RDONLY)
			}
			return t.device("null", 1, 3)
		}); err != nil {
			return setupError("mask /"+path, err)
		}
	}
	return nil
}

func (t *tree) overlayPath(path string, source func(target int, dir bool) (int, error)) error {
	target, err := openInRoot(t.root, path, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		unix.Close(target)
		return err
	}
	m, err := source(target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		unix.Close(target)
		return err
	}
	return attach(m, target)
}

// mounts attaches the Spec's mounts.
func (t *tree) mounts() error {
	for _, m := range t.plan.Mounts {
		if err := t.mountOne(m); err != nil {
			return setupError("mount "+m.Target, err)
		}
	}
	return nil
}

func (t *tree) mountOne(m preparedMount) error {
	target, err := t.make.target(m.Target, m.Dir)
	if err != nil {
		return pathError("mount "+m.Target, err)
	}
	source := -1
	if m.FD >= 0 {
		source = t.source(m.FD)
	} else {
		fd, err := unix.Openat(t.source(0), m.Memory, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			unix.Close(target)
			return err
		}
		source, err = cloneFD(fd, 0, m.Attrs)
		unix.Close(fd)
		if err != nil {
			unix.Close(target)
			return err
		}
	}
	return attach(source, target)
}
