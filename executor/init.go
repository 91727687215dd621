package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// init turns a process that was started as one of this package's helpers into that helper; it does not return then. It does
// not wait for main, because the initialization of what else is in the program takes longer than setting up a sandbox, and every
// RUN would pay for it. Go initializes packages by the order of their names as soon as what they import is initialized, so this
// package comes before most others while it imports little: neither net nor os/exec, for instance. TestStepsStartEarly in the
// module's root has the list.
func init() {
	if len(os.Args) != 1 {
		return
	}
	if strings.HasPrefix(os.Args[0], argMinder+" ") {
		minderInit(os.Args[0])
	}
	switch os.Args[0] {
	case argInit:
		stepInit()
	case argAhead:
		aheadInit()
	case argUnmapped:
		stepUnmapped()
	case argProbe, argProbeBound, argProbeChroot:
		probeInit(os.Args[0])
	case argKeeper:
		keeperInit()
	case argEnter:
		enterInit()
	case argProbeTable:
		probeTableInit()
	}
}

// stepInit is the first process of a step, alone in its new namespaces. Credentials, capabilities and filters belong to
// threads, and the thread that executes the command is the one whose count: the first, on which all initialization runs.
func stepInit() { giveUp(runInit()) }

// giveUp tells why this process could not become the command, and ends.
func giveUp(err error) {
	m := message{}
	var exit *ExitError
	if errors.As(err, &exit) {
		m.Exit = exit
	} else {
		errors.As(setupError("start the step", err), &m.Setup)
	}
	report(m)
	os.Exit(1)
}

// begin is what every first process of a step does first.
func begin() (*plan, error) {
	if err := unix.CloseRange(initSocket, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, setupError("protect inherited files", err)
	}
	p := &plan{}
	if err := readPlan(p); err != nil {
		return nil, setupError("read the plan", err)
	}
	unix.Umask(0o022)
	return p, nil
}

func runInit() error {
	p, err := begin()
	if err != nil {
		return err
	}
	if err := separate(); err != nil {
		return err
	}
	if err := prepareProcess(p); err != nil {
		return err
	}
	root := initRoot
	if err := buildTree(p, root); err != nil {
		return err
	}
	dir, err := enterRoot(p, root)
	if err != nil {
		return err
	}
	if err := become(p, dir); err != nil {
		return err
	}
	return execute(p)
}

// readPlan reads what writePlan wrote.
func readPlan(p any) error {
	var st unix.Stat_t
	if err := unix.Fstat(initPlan, &st); err != nil {
		return err
	}
	data := make([]byte, st.Size)
	if _, err := io.ReadFull(os.NewFile(initPlan, "plan"), data); err != nil {
		return err
	}
	return json.Unmarshal(data, p)
}

// report sends a message. Nobody can be told when that fails; the process ends then, and so the other side learns of it.
func report(m message, fds ...int) {
	data, err := json.Marshal(m)
	if err != nil {
		os.Exit(1)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(initSocket, data, oob, nil, 0); err != nil {
		os.Exit(1)
	}
}

// separate takes away what every first process has from its caller. It needs /proc, which staging hides.
func separate() error {
	if err := defaultOOMScore(); err != nil {
		return setupError("set oom_score_adj", err)
	}
	// A keyring of its own: the caller's may hold keys. Kernels without keyrings have nothing to hide.
	unix.KeyctlJoinSessionKeyring("step")
	return nil
}

// prepareProcess sets what belongs to the process and the namespaces other than the mount namespace.
func prepareProcess(p *plan) error {
	if err := enterGroups(p); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return setupError("set the hostname", err)
	}
	if p.Interface != nil {
		if err := privateNetwork(p.Interface); err != nil {
			return err
		}
	} else if p.Loopback {
		if err := loopbackUp(); err != nil {
			return setupError("bring up the loopback interface", err)
		}
	}
	for _, r := range p.Rlimits {
		if err := setRlimit(r); err != nil {
			return setupError(fmt.Sprintf("set resource limit %d", r.Resource), err)
		}
	}
	return nil
}

func setRlimit(r Rlimit) error {
	lim := unix.Rlimit{Cur: r.Soft, Max: r.Hard}
	return unix.Setrlimit(r.Resource, &lim)
}

// loopbackUp is `ip link set lo up`.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// defaultOOMScore makes a step at least as good a victim as any other process: a builder that is protected from the OOM killer
// must not protect what it runs.
func defaultOOMScore() error {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return errors.New("/proc is not the kernel's")
	}
	var b [16]byte
	if _, err := unix.Read(fd, b[:]); err != nil || b[0] != '-' {
		return err
	}
	_, err = unix.Pwrite(fd, []byte("0"), 0)
	return err
}

// enterRoot makes root the root of the namespace, takes everything else away, and returns the working directory.
func enterRoot(p *plan, root int) (dir int, err error) {
	if err := pivot(root); err != nil {
		return -1, setupError("pivot_root", err)
	}
	m, err := newMaker(root)
	if err != nil {
		return -1, setupError("open the root", err)
	}
	where := p.Dir
	if where == "" {
		where = "/"
	}
	dir, err = m.directory(where, madeBy{p.UID, p.GID, p.Recorded})
	if err != nil {
		return -1, pathError("working directory "+where, err)
	}
	return dir, nil
}

func pivot(root int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	err = unix.PivotRoot(".", ".")
	if err == unix.EINVAL {
		// The old root is an initramfs, which cannot be put aside. On top of it the new one cannot be climbed out of: the way
		// up from its root leads back to the top.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return err
		}
		if err := unix.Chroot("."); err != nil {
			return err
		}
		return unix.Chdir("/")
	}
	if err != nil {
		return err
	}
	if err := unix.Fchdir(old); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// become takes on the user and gives up what a step may not have. The filter comes first, while CAP_SYS_ADMIN still allows to
// install it without no_new_privs, which would break setuid programs; it lets pass what follows. So does, before the capabilities
// go, the second filter, whose calls another process answers from then on.
func become(p *plan, dir int) error {
	if err := unix.Fchdir(dir); err != nil {
		return setupError("enter the working directory", err)
	}
	if wd, err := os.Getwd(); err != nil || !strings.HasPrefix(wd, "/") {
		return &SetupError{Op: "enter the working directory", Msg: "it is outside of the root"}
	}
	giveStdio(p.UID)
	if !p.Insecure {
		if err := dropBounding(p.KeepCaps); err != nil {
			return setupError("drop capabilities", err)
		}
		if _, err := bpf.Install(p.Filter, 0); err != nil {
			return setupError("install the seccomp filter", err)
		}
	}
	if err := installSupervised(p); err != nil {
		return err
	}
	if !p.Recorded { // else the supervisor says who this is
		if err := setIDs(p); err != nil {
			return err
		}
	}
	if err := limitCaps(p.KeepCaps); err != nil {
		return setupError("drop capabilities", err)
	}
	return nil
}

// giveStdio makes pipes that are standard files the user's, so that programs can open /dev/stdout. Refusals are no harm.
func giveStdio(uid uint32) {
	for fd := 0; fd < 3; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		// A writer that gets EAGAIN from its standard output is lost.
		unix.SetNonblock(fd, false)
		if st.Mode&unix.S_IFMT == unix.S_IFIFO && st.Uid != uid {
			unix.Fchown(fd, int(uid), -1)
		}
	}
}

// setIDs changes the calling thread only; package syscall would change threads that are about to end, one by one.
func setIDs(p *plan) error {
	groups := append([]uint32{p.GID}, p.Groups...)
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
	runtime.KeepAlive(groups)
	if errno != 0 {
		return idError("groups", fmt.Sprint(groups), errno)
	}
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return idError("group", fmt.Sprint(p.GID), errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return idError("user", fmt.Sprint(p.UID), errno)
	}
	return nil
}

func idError(what, id string, errno unix.Errno) error {
	e := &SetupError{Op: "become " + what + " " + id, Errno: errno}
	switch setgroups, _ := os.ReadFile("/proc/self/setgroups"); {
	case errno == unix.EINVAL:
		e.Blocker = "the id is outside of the range of this user namespace"
		e.Fix = "a larger range in /etc/subuid and /etc/subgid"
	case errno == unix.EPERM && strings.HasPrefix(string(setgroups), "deny"):
		e.Blocker = "the user namespace that build runs in does not allow setgroups (/proc/self/setgroups is deny)"
		e.Fix = "run build outside of it, or make it with newgidmap and a range of ids: unshare --map-root-user --map-auto"
	}
	return e
}

// defaultPath is where commands are looked for when Env has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute replaces the process by the command. It returns only errors, as a shell would report them.
func execute(p *plan) error {
	path, err := lookup(p.Args[0], p.Env)
	if err != nil {
		return err
	}
	resetSignals()
	err = execve(path, p.Args, p.Env)
	code := cannotExecute
	if err == unix.ENOENT {
		code = 127
	}
	return &ExitError{Code: code, Msg: fmt.Sprintf("exec %s: %v", path, err)}
}

// lookup finds the command as the user, in the root.
func lookup(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }); i >= 0 {
		path = env[i][len("PATH="):]
	}
	denied := false
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = "."
		}
		full := dir + "/" + name
		var st unix.Stat_t
		if unix.Stat(full, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if unix.Faccessat(unix.AT_FDCWD, full, unix.X_OK, unix.AT_EACCESS) != nil {
			denied = true
			continue
		}
		return full, nil
	}
	if denied {
		return "", &ExitError{Code: cannotExecute, Msg: fmt.Sprintf("exec: %q: permission denied", name)}
	}
	return "", &ExitError{Code: 127, Msg: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}
