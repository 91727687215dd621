package executor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run runs the command of spec and waits until it and every process it started are gone. Success is nil; anything the command
// or its root filesystem is to blame for is an *ExitError, anything else that kept the sandbox from being made a *SetupError.
// When ctx ends all processes are killed at once, whoever they have become, and the cause of ctx is returned. Nil files are
// /dev/null.
//
// The calling process must have CAP_SYS_ADMIN in the user namespace whose ids the root's files have. It should be process 1 of
// a pid namespace (see internal/userns), so that its own death takes the step with it. With Means.Chroot it has to be root with
// CAP_SYS_CHROOT, CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_FOWNER, CAP_DAC_OVERRIDE and CAP_MKNOD instead, and no other process
// changes the root, the directory it lies in, and the directories that are mounted.
func Run(ctx context.Context, spec *Spec, stdin, stdout, stderr *os.File) error {
	if err := spec.check(); err != nil {
		return &SetupError{Op: "check the step", Msg: err.Error()}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if spec.Means.Chroot {
		return runChroot(ctx, spec, stdin, stdout, stderr)
	}
	upper := openUpper(spec.Root)
	defer upper.close()
	s, err := prepare(spec)
	if err != nil {
		return err
	}
	err = s.run(ctx, spec, stdin, stdout, stderr)
	// The root's mount is gone, and the upper directory free to be changed, when the last of our descriptors on it is.
	s.removeStubs()
	s.close()
	upper.prune(s.touched)
	return err
}

// step is one run, seen from the process that started it.
type step struct {
	root    *os.File
	cgroups *Cgroups
	sources *sources
	plan    *plan
	stubs   []stub
	touched []touched
	own     *ownership
	attach  func(*os.File) error
	failed  error // what the first process said before it could become the command
	// table is that of the emulators, kept as long as the step lasts.
	table *os.File
}

func (s *step) close() {
	for _, st := range s.stubs {
		unix.Close(st.parent)
		unix.Close(st.fd)
	}
	s.table.Close()
	s.sources.close()
	s.root.Close()
	if s.own != nil {
		s.own.close()
	}
}

// prepare makes everything that does not need the step's own namespaces.
func prepare(spec *Spec) (s *step, err error) {
	fd, err := mountRoot(spec.Root, spec.Security)
	if err != nil {
		return nil, err
	}
	s = &step{root: os.NewFile(uintptr(fd), "root"), cgroups: spec.Cgroups, sources: &sources{}}
	defer func(made *step) { // a failure returns nil in place of s
		if err != nil {
			made.close()
		}
	}(s)
	id, err := resolveUser(fd, spec.User)
	if err != nil {
		return nil, &ExitError{Code: cannotExecute, Msg: err.Error()}
	}
	if s.own, err = prepareOwnership(spec, id); err != nil {
		return nil, err
	}
	src, err := prepareSources(spec, s.own.records)
	if err != nil {
		return nil, err
	}
	s.sources = src
	s.plan = &plan{
		Args: spec.Args, Env: environment(spec.Env, id.home), Dir: spec.Dir,
		UID: id.uid, GID: id.gid, Groups: id.groups,
		Hostname: spec.Hostname, Loopback: spec.Network == NetworkNone, ShmSize: spec.ShmSize, Rlimits: spec.Rlimits, CPUs: spec.CPUs,
		Mounts: s.sources.mounts, CgroupView: true, Recorded: spec.Means.Recorded, BoundProc: spec.Means.BoundProc, OwnersFilter: s.own.filter,
	}
	if spec.Network == NetworkPrivate {
		s.plan.Interface, s.attach = spec.Interface, spec.Attach
	}
	if s.plan.Emulators, err = src.prepareEmulators(spec.Emulators); err != nil {
		return nil, err
	}
	if s.plan.Hostname == "" {
		s.plan.Hostname = DefaultHostname
	}
	if s.plan.ShmSize == 0 {
		s.plan.ShmSize = defaultShmSize
	}
	switch spec.Security {
	case Insecure:
		s.plan.Insecure, s.plan.KeepCaps = true, ^uint64(0)
	default:
		s.plan.KeepCaps = dockerCaps
		if s.plan.Filter, err = sandboxFilter(); err != nil {
			return nil, setupError("compile the seccomp filter", err)
		}
	}
	return s, nil
}

// environment drops all but the last of equal names and adds HOME where it is missing or empty.
func environment(env []string, home string) []string {
	last := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		last[name] = i
	}
	out := make([]string, 0, len(env)+1)
	hasHome := false
	for i, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || last[name] != i || (name == "HOME" && value == "") {
			continue
		}
		hasHome = hasHome || name == "HOME"
		out = append(out, e)
	}
	if !hasHome {
		out = append(out, "HOME="+home)
	}
	return out
}

// defaultShmSize is that of /dev/shm in bytes, as in other runtimes.
const defaultShmSize = 64 << 20

// stepNamespaces are those that every step has of its own.
const stepNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// start makes the step's first process.
func (s *step) start(stdin, stdout, stderr, sock, planFile *os.File) (*firstProcess, error) {
	exe, err := protectedExe()
	if err != nil {
		return nil, setupError("start the step", err)
	}
	flags := uintptr(stepNamespaces)
	if s.plan.Loopback || s.plan.Interface != nil {
		flags |= unix.CLONE_NEWNET
	}
	become := argInit
	if s.ownUser() {
		flags |= unix.CLONE_NEWUSER
		become = argUnmapped
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, setupError("start the step", err)
	}
	defer null.Close()
	files := []*os.File{stdin, stdout, stderr, sock, planFile, s.root, exe}
	for i := range initSocket {
		if files[i] == nil {
			files[i] = null
		}
	}
	files = append(files, s.sources.files...)
	if s.plan.BoundProc {
		return s.startMinder(become, files, flags&^unix.CLONE_NEWPID)
	}
	p, err := s.startProcess(become, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		return nil, startError(err)
	}
	return &firstProcess{p: p, first: p}, nil
}

func (s *step) run(ctx context.Context, spec *Spec, stdin, stdout, stderr *os.File) error {
	planFile, err := writePlan(s.plan)
	if err != nil {
		return setupError("write the plan", err)
	}
	defer planFile.Close()
	// The parent-death signal is sent when the thread that made the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, ours, err := s.adopt(spec, stdin, stdout, stderr, planFile)
	if p == nil && err == nil {
		p, ours, err = s.startNow(stdin, stdout, stderr, planFile)
	}
	if err != nil {
		return err
	}
	defer ours.Close()
	stop := context.AfterFunc(ctx, p.kill)
	s.listen(ours, p)
	if s.failed != nil {
		p.kill() // it may not know
	}
	status, err := p.wait()
	stop()
	unanswered := s.own.end()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case s.failed != nil:
		return s.failed
	case unanswered != nil:
		return unanswered
	case err != nil:
		return setupError("wait for the step", err)
	}
	return statusError(status)
}

// startNow makes the step's first process, with the ids of its user namespace, and returns our end of its socket.
func (s *step) startNow(stdin, stdout, stderr, planFile *os.File) (*firstProcess, *os.File, error) {
	ours, theirs, err := messagePair()
	if err != nil {
		return nil, nil, setupError("make a socket", err)
	}
	defer theirs.Close()
	p, err := s.start(stdin, stdout, stderr, theirs, planFile)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	if s.ownUser() {
		if err := mapIDs(p.first, s.plan.Rlimits, ours, argInit); err != nil {
			p.kill()
			p.wait()
			ours.Close()
			return nil, nil, setupError("make the step's user namespace", err)
		}
	}
	return p, ours, nil
}

// ownUser reports whether the step has a user namespace of its own.
func (s *step) ownUser() bool { return len(s.plan.Emulators) > 0 }

// writePlan gives the plan as a file: pipes and sockets are too small for the largest of them.
func writePlan(p any) (*os.File, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "plan")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	_, err = f.Seek(0, 0)
	return f, err
}

func messagePair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "step"), os.NewFile(uintptr(fds[1]), "step"), nil
}

// listen takes the step's messages until it executes its command or ends: either closes the last descriptor of its socket.
func (s *step) listen(socket *os.File, p *firstProcess) {
	oob := make([]byte, unix.CmsgSpace(4*253))
	for {
		buf, oobn, err := receive(socket, oob)
		if err != nil || len(buf) == 0 {
			return
		}
		fds := receivedFDs(oob[:oobn])
		var m message
		err = json.Unmarshal(buf, &m)
		if err == nil && m.Table && len(fds) == 1 {
			s.table.Close() // of which a step sends one
			s.table = os.NewFile(uintptr(fds[0]), "emulators")
			continue
		}
		if err == nil && m.Listener && len(fds) == 1 {
			s.own.supervise(fds[0], s.root, p)
			continue
		}
		if err == nil && m.Attach && len(fds) == 1 && s.attach != nil {
			if s.failed = s.attachPackets(fds[0]); s.failed != nil {
				return
			}
			continue
		}
		if err != nil || len(fds) != 2*len(m.Stubs) {
			s.failed = &SetupError{Op: "start the step", Msg: "its first process sent nonsense"}
			closeFDs(fds)
			return
		}
		for i, st := range m.Stubs {
			s.stubs = append(s.stubs, stub{parent: fds[2*i], fd: fds[2*i+1], name: st.Name, dir: st.Dir})
		}
		s.touched = append(s.touched, m.Touched...)
		if m.Exit != nil {
			s.failed = m.Exit
		} else if m.Setup != nil {
			s.failed = m.Setup
		}
	}
}

// receive waits for one message. Nothing is the end.
func receive(socket *os.File, oob []byte) (msg []byte, oobn int, err error) {
	fd := int(socket.Fd())
	size, err := eintr(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC) // the length, however little room there is
		return n, err
	})
	if err != nil || size == 0 {
		return nil, 0, err
	}
	msg = make([]byte, size)
	n, err := eintr(func() (n int, err error) {
		n, oobn, _, _, err = unix.Recvmsg(fd, msg, oob, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	return msg[:max(n, 0)], oobn, err
}

func eintr(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

func receivedFDs(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			out = append(out, fds...)
		}
	}
	return out
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func startError(err error) error {
	var errno syscall.Errno
	errors.As(err, &errno)
	e := &SetupError{Op: "make the step's namespaces", Errno: errno}
	switch errno {
	case unix.ENOSPC:
		e.Blocker = "the limit of namespaces is reached (sysctl user.max_mnt_namespaces, max_pid_namespaces, max_net_namespaces)"
	case unix.EPERM, unix.EACCES:
		e.Blocker, e.Fix = blockerOf("namespaces")
	case 0:
		e.Msg = err.Error()
	}
	return e
}

// statusError translates how the command ended.
func statusError(ws syscall.WaitStatus) error {
	switch {
	case ws.Signaled():
		return &ExitError{Code: 128 + int(ws.Signal()), Signal: ws.Signal().String()}
	case ws.ExitStatus() != 0:
		return &ExitError{Code: ws.ExitStatus()}
	}
	return nil
}

// removeStubs takes away the mount points that were made for this run, as far as they are still what was made and empty.
// Everything goes by descriptor, so whatever the step put in their place or above them is neither followed nor touched.
func (s *step) removeStubs() {
	for i := len(s.stubs) - 1; i >= 0; i-- {
		removeStub(&s.stubs[i])
	}
}

func removeStub(s *stub) {
	var made, now, parent unix.Stat_t
	if unix.Fstat(s.fd, &made) != nil || unix.Fstat(s.parent, &parent) != nil ||
		unix.Fstatat(s.parent, s.name, &now, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	if made.Dev != now.Dev || made.Ino != now.Ino || made.Mode&unix.S_IFMT != now.Mode&unix.S_IFMT {
		return
	}
	flags := 0
	if s.dir {
		flags = unix.AT_REMOVEDIR // fails when not empty
	} else if now.Size != 0 {
		return
	}
	if unix.Unlinkat(s.parent, s.name, flags) == nil {
		restoreTime(s.parent, &parent)
	}
}
