package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where a step cannot have a pid namespace nothing ends its processes with its first one. A process of ours, the minder, stands
// between: it starts the step's first process, is the reaper of everything that descends from it, and kills all of it when that
// ends, or when whoever started the minder is gone.

// argMinder begins argument zero of a minder. What to start, the flags of its namespaces and the numbers of descriptors follow.
const argMinder = "build-step-minder"

// firstProcess is a step's first process, and the minder that stands between it and us, if there is one.
type firstProcess struct {
	p, first *os.Process // the same where there is no minder
	control  *os.File    // of a minder
	ended    func()      // nil unless somebody wants to know when it was waited for
	once     sync.Once
}

// kill ends all processes of the step.
func (f *firstProcess) kill() {
	if f.control == nil {
		f.p.Kill() // by pidfd; the kernel ends the others of its pid namespace
		return
	}
	f.once.Do(func() { unix.Shutdown(int(f.control.Fd()), unix.SHUT_WR) })
}

// wait returns how the step's first process ended, when all others are gone, too.
func (f *firstProcess) wait() (syscall.WaitStatus, error) {
	if f.control == nil {
		state, err := f.p.Wait()
		if f.ended != nil {
			f.ended()
		}
		if err != nil {
			return 0, err
		}
		return state.Sys().(syscall.WaitStatus), nil
	}
	defer f.control.Close()
	status, rerr := readNumber(f.control)
	state, err := f.p.Wait()
	switch {
	case err != nil:
		return 0, err
	case rerr != nil:
		return 0, &SetupError{Op: "mind the step", Msg: "the process that does it ended: " + state.String()}
	}
	return syscall.WaitStatus(status), nil
}

func readNumber(f *os.File) (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(f, b[:])
	return binary.NativeEndian.Uint32(b[:]), err
}

// startMinder starts a minder that starts a process with these files in namespaces of its own.
func (s *step) startMinder(become string, files []*os.File, flags uintptr) (*firstProcess, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, setupError("make a socket", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "minder"), os.NewFile(uintptr(fds[1]), "minder")
	defer theirs.Close()
	control, total := len(files), len(files)+1
	if s.cgroups != nil {
		// They are entered as without a minder, before the namespace that shows them is made.
		total += len(s.cgroups.Procs)
		flags &^= unix.CLONE_NEWCGROUP
		s.plan.NewCgroupNS = true
	}
	arg := fmt.Sprintf("%s %s %d %d %d", argMinder, become, flags, control, total)
	p, err := s.startProcess(arg, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: append(files, theirs),
		Sys: &syscall.SysProcAttr{Setsid: true}, // not killed with its parent: it has others to kill
	})
	if err != nil {
		ours.Close()
		return nil, startError(err)
	}
	f := &firstProcess{p: p, control: ours}
	pid, err := readNumber(ours)
	if err == nil {
		f.first, err = os.FindProcess(int(pid))
	}
	if err != nil {
		// The minder ends by itself; what it said, if anything, is on the step's socket.
		f.first = p
	}
	return f, nil
}

// minderInit never returns. Its thread is the process's first: the step's first process gets a signal when it ends.
func minderInit(arg string) {
	runtime.LockOSThread()
	var m minder
	var name string
	if _, err := fmt.Sscanf(arg, "%s %s %d %d %d", &name, &m.become, &m.flags, &m.control, &m.total); err != nil {
		os.Exit(1)
	}
	unix.CloseRange(initSocket, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	ignoreSignals()
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	proc, err := openProc()
	if err == nil {
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if err != nil {
		os.Exit(1)
	}
	status, ok := m.mind()
	if killDescendants(proc) != nil || !ok {
		os.Exit(1)
	}
	m.tell(uint32(status))
	os.Exit(0)
}

// minder is one, seen from inside: what to start, and which of its descriptors is the control socket.
type minder struct {
	become         string
	flags          uint64
	control, total int
}

func (m *minder) tell(n uint32) { unix.Write(m.control, binary.NativeEndian.AppendUint32(nil, n)) }

// mind starts the step's first process, kills it when nobody wants it any more, and waits for its end.
func (m *minder) mind() (status syscall.WaitStatus, ok bool) {
	files := make([]*os.File, m.total)
	for fd := range files {
		if fd != m.control {
			files[fd] = os.NewFile(uintptr(fd), "step")
		}
	}
	p, err := os.StartProcess(initExePath, []string{m.become}, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: uintptr(m.flags), Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		var setup *SetupError
		errors.As(startError(err), &setup)
		report(message{Setup: setup})
		return 0, false
	}
	m.tell(uint32(p.Pid))
	// Whoever listens to the step waits for the last one who could speak; and its root is free when nobody has it open.
	for _, f := range files {
		f.Close()
	}
	go func() {
		buf := make([]byte, 1)
		for {
			if n, err := eintr(func() (int, error) { return unix.Read(m.control, buf) }); err != nil || n == 0 {
				p.Kill()
				return
			}
		}
	}()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil) // and collects the orphans that end meanwhile
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, false
		}
		if pid == p.Pid {
			return ws, true
		}
	}
}
