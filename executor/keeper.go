package executor

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keeper is the process that keeps one step in a chroot. See chroot.go.
type keeper struct {
	plan    keeperPlan
	proc    int
	staging *staging
	fake    *fakeProc
	ended   atomic.Bool // nobody wants the step any more

	mu     sync.Mutex
	child  *os.Process // the step's first process
	server *procServer
	files  []*os.File // what it gets; kept, because the descriptors are ours as well
}

// keeperInit never returns. Its thread is the process's first, which lasts as long as the process: the step's first process
// gets a signal when it ends.
func keeperInit() {
	k := &keeper{}
	var r keeperResult
	err := k.keep()
	var exit *ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		r.Exit = exit
	default:
		errors.As(setupError("keep the step", err), &r.Setup)
	}
	if s := k.staging; s != nil {
		s.restore()
		r.Traces.Notes = s.notes
		for p := range s.touched {
			r.Traces.Touched = append(r.Traces.Touched, p)
		}
		slices.Sort(r.Traces.Touched)
	}
	if data, err := json.Marshal(r); err == nil {
		unix.Sendmsg(initSocket, data, nil, nil, unix.MSG_NOSIGNAL) // if anybody is left to hear it
	}
	os.Exit(0)
}

func (k *keeper) keep() error {
	if err := k.settle(); err != nil {
		return err
	}
	go k.listen()
	var err error
	k.staging, err = newStaging(k.proc, initRoot, k.plan.Tree, k.ended.Load)
	if err != nil {
		return setupError("open the root", err)
	}
	if err := k.staging.fill(&k.plan); err != nil {
		return err
	}
	if k.fake, err = k.staging.procNames(); err != nil {
		return err
	}
	if err := k.guardDevices(); err != nil {
		return err
	}
	if len(k.plan.Step.Watch) == 0 {
		k.fake.fill()
	}
	status, err := k.step()
	// Before anything is put back: nobody writes to it any more.
	if kerr := killDescendants(k.proc); err == nil && kerr != nil {
		return setupError("end what the step left running", kerr)
	}
	if k.server != nil {
		k.server.stop()
	}
	if err == nil {
		err = statusError(status)
	}
	if err != nil {
		k.staging.explainRaisers(&k.plan.Step)
	}
	return err
}

// guardDevices takes CAP_MKNOD from a step that could open the devices it makes.
func (k *keeper) guardDevices() error {
	p := &k.plan.Step
	if p.Insecure {
		return nil
	}
	ok, err := k.staging.guarded()
	if err == nil && !ok {
		p.KeepCaps &^= 1 << unix.CAP_MKNOD
		k.staging.note("the step cannot make devices: nothing here would keep it from using those of the host")
	}
	return setupError("try a device", err)
}

// settle makes this process what a keeper is.
func (k *keeper) settle() error {
	if err := unix.CloseRange(initSocket, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return setupError("protect inherited files", err)
	}
	ignoreSignals()
	unix.Umask(0)
	// Nobody may trace it, whatever its threads become.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return setupError("make the process undumpable", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return setupError("become the step's reaper", err)
	}
	if err := readPlan(&k.plan); err != nil {
		return setupError("read the plan", err)
	}
	var err error
	if k.proc, err = openProc(); err != nil {
		return setupError("open /proc", err)
	}
	return nil
}

// ignoreSignals leaves a keeper to end when it is done, and not when somebody ends what is around it.
func ignoreSignals() {
	const sigIgn = 1
	ign := sigaction{handler: sigIgn}
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGTSTP, unix.SIGTTOU, unix.SIGTTIN} {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&ign)), 0, 8, 0, 0)
	}
}

// listen waits for the end of the socket: the step is not wanted any more, or nobody is left who wanted it.
func (k *keeper) listen() {
	buf := make([]byte, 1)
	for {
		if n, err := eintr(func() (int, error) { return unix.Read(initSocket, buf) }); err != nil || n == 0 {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended.Store(true)
	if k.child != nil {
		k.child.Kill() // what it leaves is killed after it
	}
}

// step runs the step's first process and waits for its end.
func (k *keeper) step() (status syscall.WaitStatus, err error) {
	ours, theirs, err := messagePair()
	if err != nil {
		return 0, setupError("make a socket", err)
	}
	defer ours.Close()
	defer theirs.Close()
	if err := k.start(theirs); err != nil {
		return 0, setupError("start the step", err)
	}
	theirs.Close()
	said := make(chan error, 1)
	go func() { said <- k.hear(ours) }()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil) // and collects the orphans that end meanwhile
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, setupError("wait for the step", err)
		}
		if pid == k.child.Pid {
			return ws, <-said
		}
	}
}

func (k *keeper) start(sock *os.File) error {
	planFile, err := writePlan(&k.plan.Step)
	if err != nil {
		return err
	}
	defer planFile.Close()
	for fd := range initSocket {
		k.files = append(k.files, os.NewFile(uintptr(fd), "stdio"))
	}
	k.files = append(k.files, sock, planFile, os.NewFile(initRoot, "root"), os.NewFile(initExe, "exe"))
	for i := range k.plan.Groups {
		fd := initFirst + k.plan.hands() + i
		k.files = append(k.files, os.NewFile(uintptr(fd), "cgroup.procs"))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended.Load() {
		return errStopped
	}
	k.child, err = os.StartProcess(initExePath, []string{argEnter}, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: k.files, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		return err
	}
	// Whoever reads what the step prints waits for the last one who could write it.
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	if err := k.staging.chroot(); err != nil {
		return err
	}
	for fd := range initSocket {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// hear takes the first process's messages until it executes its command or ends: either closes the last descriptor of its socket.
func (k *keeper) hear(sock *os.File) error {
	var failed error
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		buf, oobn, err := receive(sock, oob)
		if err != nil || len(buf) == 0 {
			return failed
		}
		fds := receivedFDs(oob[:oobn])
		var m message
		switch err := json.Unmarshal(buf, &m); {
		case err != nil:
			failed = &SetupError{Op: "start the step", Msg: "its first process sent nonsense"}
		case m.Exit != nil:
			failed = m.Exit
		case m.Setup != nil:
			failed = m.Setup
		case m.Watched && len(fds) == 1:
			k.server = newProcServer(fds[0], k.fake)
			go k.server.serve(asUser{k.plan.Step.UID, k.plan.Step.GID})
		case m.Blind != "":
			k.fake.fill()
			k.staging.note("the step has no /proc but copies of some of its files (%s)", m.Blind)
			unix.Sendmsg(int(sock.Fd()), []byte{0}, nil, nil, unix.MSG_NOSIGNAL)
		}
	}
}
