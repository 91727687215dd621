package executor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Emulator executes programs for another machine in one step and nowhere else.
//
// The kernel (6.7 or later) keeps a table of such handlers, binfmt_misc, for every user namespace that mounts one, and looks in the
// nearest. A step with emulators therefore has a user namespace of its own, with all ids of the caller's, and a table in it that is
// attached nowhere: neither the machine's table nor another step's is changed or even seen, and the table ends with the step. This
// is the same whether the caller is real root or in a user namespace already. As in any user namespace, a step that is emulated
// makes no device nodes.
//
// Handlers are registered with the kernel's flags F, the emulator is opened at once and need not be in the step's root; C, which
// implies O, so that setuid programs have the identity they would have on their machine, and so that programs which may be
// executed but not read work; and, with KeepArgv0, P. Debian's package leaves C out because its table is that of the
// whole machine, where it would make any setuid file for another machine a privileged program. In a step there is nobody else.
type Emulator struct {
	Path string // of a statically linked program
	Name string // its argument zero, under which it is seen in /proc: no path of the host
	// Magic are the first bytes of the programs it is for, as far as the bits of Mask are set.
	Magic, Mask []byte
	// KeepArgv0 passes the program's argument zero, behind its path. An emulator that does not expect that (QEMU before 6.0)
	// takes it for the first argument; without it argument zero is the path.
	KeepArgv0 bool
}

// argUnmapped is argument zero of a helper in a user namespace whose ids are not mapped yet. It is told what to become.
const argUnmapped = "build-step-unmapped"

// preparedEmulator is an Emulator whose file is a descriptor of a detached, read-only mount.
type preparedEmulator struct {
	FD      int // index in the files passed on
	Name    string
	Handler string // what is written to register
}

func (e *Emulator) check() error {
	switch {
	case !strings.HasPrefix(e.Path, "/"):
		return fmt.Errorf("emulator %q: not an absolute path", e.Path)
	case e.Name == "" || e.Name[0] == '.' || strings.ContainsAny(e.Name, "/:\n") || e.Name == memoryEmpty || e.Name == memoryRoot:
		return fmt.Errorf("emulator %s: %q cannot be its name", e.Path, e.Name)
	case len(e.Magic) == 0 || len(e.Magic) != len(e.Mask):
		return fmt.Errorf("emulator %s: %d bytes of magic and %d of mask", e.Path, len(e.Magic), len(e.Mask))
	}
	return nil
}

// handler is the line that registers it, as a program at path. All bytes are escaped: the kernel reads the line as a string, which a zero would end,
// and a magic cut short after \x7fELF matches every program there is.
func (e *Emulator) handler(path string) string {
	escape := func(b []byte) string {
		var s strings.Builder
		for _, c := range b {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
		return s.String()
	}
	flags := "FC"
	if e.KeepArgv0 {
		flags += "P"
	}
	return fmt.Sprintf(":%s:M:0:%s:%s:%s:%s", e.Name, escape(e.Magic), escape(e.Mask), path, flags)
}

// prepareEmulators opens the emulators as detached mounts. They are read-only because the step can reach the file through
// /proc/PID/exe, and its root may be the owner (CVE-2019-5736).
func (s *sources) prepareEmulators(emulators []Emulator) ([]preparedEmulator, error) {
	var out []preparedEmulator
	for _, e := range emulators {
		place, err := unix.Openat(s.memory, e.Name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
		if err != nil {
			return nil, setupError("prepare the emulator "+e.Path, err)
		}
		unix.Close(place)
		fd, err := cloneMount(e.Path, unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return nil, setupError("open the emulator "+e.Path, err)
		}
		out = append(out, preparedEmulator{FD: s.keep(fd, e.Name), Name: e.Name, Handler: e.handler(e.Name)})
	}
	return out, nil
}

// emulators registers the plan's in the step's own user namespace, and hands the table to the process that started the step,
// which keeps it: the last descriptor that is closed takes the handlers with it.
//
// The interpreter is a path in the current directory, so that no path of the host becomes an argument zero. The file lies, for
// the moment, on the memory file system, which vanishes with the old root; the handler has opened it by then.
func (t *tree) emulators() error {
	if len(t.plan.Emulators) == 0 {
		return nil
	}
	defer unix.Close(t.table)
	if err := unix.Fchdir(t.source(0)); err != nil {
		return setupError("register an emulator", err)
	}
	for _, e := range t.plan.Emulators {
		if err := unix.MoveMount(t.source(e.FD), "", t.source(0), e.Name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return setupError("attach the emulator "+e.Name, err)
		}
		if err := register(t.table, e.Handler); err != nil {
			return setupError("register the emulator "+e.Name, err)
		}
	}
	report(message{Table: true}, t.table)
	return setupError("register an emulator", unix.Chdir("/"))
}

// initialUserNS is the initial user namespace: its number is fixed (USER_NS_INIT_INO of linux/nsfs.h).
const initialUserNS = "user:[4026531837]"

// newHandlerTable makes the table of the calling process's user namespace. It refuses the initial one, whose table is the machine's.
func newHandlerTable() (int, error) {
	if ns, err := os.Readlink("/proc/self/ns/user"); err != nil || ns == initialUserNS {
		return -1, &SetupError{Op: "mount binfmt_misc", Msg: "this is not a user namespace of its own"}
	}
	table, err := newMount("binfmt_misc", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err == nil {
		return table, nil
	}
	e := &SetupError{Op: "mount binfmt_misc in a user namespace", Msg: err.Error()}
	errors.As(err, &e.Errno)
	switch e.Errno {
	case unix.EPERM:
		e.Blocker, e.Fix = "this kernel keeps one table of emulators for the whole machine", "Linux 6.7 or later"
	case unix.ENODEV:
		e.Blocker, e.Fix = "this kernel was made without binfmt_misc, or its module cannot be loaded", "sudo modprobe binfmt_misc"
	}
	return -1, e
}

func register(table int, handler string) error {
	fd, err := unix.Openat(table, "register", unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(handler))
	if err == nil && n != len(handler) {
		err = fmt.Errorf("%d of %d bytes taken", n, len(handler))
	}
	return err
}

// stepUnmapped waits until the ids of its user namespace are mapped and executes the program again, as the helper it is told to be:
// only an execution as user 0 gives back the capabilities that the first one took.
func stepUnmapped() {
	buf := make([]byte, 64)
	n, err := eintr(func() (int, error) { return unix.Read(initSocket, buf) })
	if err != nil || n == 0 {
		os.Exit(1) // whoever started it gave up
	}
	err = syscall.Exec(initExePath, []string{string(buf[:n])}, initEnv)
	report(message{Setup: &SetupError{Op: "start the step again", Msg: err.Error()}})
	os.Exit(1)
}

// mapIDs gives a process that was started as argUnmapped the caller's own ids and limits, and tells it to go on as become.
func mapIDs(p *os.Process, limits []Rlimit, socket *os.File, become string) error {
	proc, err := procOf(p)
	if err != nil {
		return err
	}
	for _, name := range []string{"gid_map", "uid_map"} {
		m, err := identityMap(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(proc+"/"+name, m, 0); err != nil {
			return err
		}
	}
	for _, l := range limits { // raising a hard limit takes a capability that no user namespace gives
		if err := unix.Prlimit(p.Pid, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.Resource, err)
		}
	}
	_, err = unix.Write(int(socket.Fd()), []byte(become))
	return err
}

// procOf is the directory of a child in /proc. That may belong to another pid namespace than the one we have numbers in, and
// the kernel translates the number in the description of a pidfd.
func procOf(p *os.Process) (string, error) {
	var info []byte
	var err error
	if herr := p.WithHandle(func(pidfd uintptr) {
		info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	}); herr != nil {
		return "", herr
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(info)) {
		if pid, ok := strings.CutPrefix(line, "Pid:"); ok {
			if pid = strings.TrimSpace(pid); pid == "0" || pid[0] == '-' {
				break
			}
			return "/proc/" + pid, nil
		}
	}
	return "", errors.New("/proc does not show the step's process")
}

// identityMap is the map of a user namespace in which every id of ours is what it is here.
func identityMap(name string) ([]byte, error) {
	own, err := os.ReadFile("/proc/self/" + name)
	if err != nil {
		return nil, err
	}
	var m []byte
	for line := range strings.Lines(string(own)) {
		var inside, outside, count uint32
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return nil, fmt.Errorf("/proc/self/%s: %w", name, err)
		}
		m = fmt.Appendf(m, "%d %d %d\n", inside, inside, count)
	}
	return m, nil
}
