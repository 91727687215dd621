package executor

import (
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ahead has the first process of a step started before the step is known. Starting this program and making namespaces, /dev, /proc
// and /sys takes several times as long as what is left to do then, and needs nothing that is the step's own. At most one process
// waits. It has nothing but its namespaces: no file of any step, and nothing of the caller's memory.
//
// A step that needs other namespaces, or a process born in its control group, is started as without Ahead, and so is one for which
// no process is there. The zero value is ready for use; nil never has a process.
type Ahead struct {
	mu      sync.Mutex
	next    *spare
	further int // steps expected after those that were begun
	closed  bool
}

// Expect says how many further steps there will probably be. With at least one, the process for it is started; Run does so again
// whenever it took one.
func (a *Ahead) Expect(further int) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.further = further
	a.refill()
}

// refill is called with the lock held.
func (a *Ahead) refill() {
	if a.closed || a.next != nil || a.further <= 0 {
		return
	}
	a.next = newSpare()
}

// Close ends the process that waits, if any. None is started afterwards.
func (a *Ahead) Close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	s := a.next
	a.next, a.closed = nil, true
	a.mu.Unlock()
	if s != nil {
		<-s.ready
		s.discard()
	}
}

// take returns a process that waits, and leaves it to the caller to make it a step's or to discard it.
func (a *Ahead) take(spec *Spec) *spare {
	if a == nil || !servesAhead(spec) {
		return nil
	}
	a.mu.Lock()
	s := a.next
	a.next = nil
	a.mu.Unlock()
	if s == nil {
		return nil
	}
	<-s.ready
	if s.err != nil { // what is started in its place says why
		s.discard()
		return nil
	}
	return s
}

// taken is called when a process has become a step's.
func (a *Ahead) taken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.further--
	a.refill()
}

// servesAhead reports whether a step can have what was made before it was known.
func servesAhead(spec *Spec) bool {
	return !spec.Means.Chroot && !spec.Means.BoundProc && spec.Network == NetworkHost && spec.Security == Sandbox &&
		len(spec.Emulators) == 0 && spec.Cgroups == nil && !slices.ContainsFunc(spec.Mounts, func(m Mount) bool { return isShm(m.Target) })
}

// spare is a first process that waits for its step.
type spare struct {
	p      *os.Process
	socket *os.File
	ready  chan struct{} // closed when the process waits, or err is set
	err    error
	gone   chan struct{} // closed when the process has been waited for
}

func newSpare() *spare {
	s := &spare{ready: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		// The parent-death signal is sent when the thread that made the child ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		s.err = s.start()
		started := s.p != nil
		close(s.ready)
		if started {
			<-s.gone
		}
	}()
	return s
}

// start returns when the process waits for its step.
func (s *spare) start() error {
	exe, err := protectedExe()
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ours, theirs, err := messagePair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	// The places of plan and root are taken, so that nothing else comes to be there.
	p, err := os.StartProcess(initExePath, []string{argAhead}, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: []*os.File{null, null, null, theirs, null, null, exe},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: stepNamespaces, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		ours.Close()
		return err
	}
	s.p, s.socket = p, ours
	theirs.Close()
	buf, oobn, err := receive(ours, make([]byte, unix.CmsgSpace(0)))
	var m message
	switch {
	case err != nil:
		return err
	case oobn != 0 || json.Unmarshal(buf, &m) != nil || !m.Ready:
		return errors.New("it could not be made ready")
	}
	return nil
}

// discard ends a process that is nobody's.
func (s *spare) discard() {
	if s.p == nil {
		return
	}
	s.p.Kill()
	s.p.Wait()
	s.socket.Close()
	close(s.gone)
}

// give makes the process that of a step: it gets the step's files, of which the plan says what they are.
func (s *spare) give(files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	err := unix.Sendmsg(int(s.socket.Fd()), []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
	runtime.KeepAlive(files)
	return err
}

// maxAhead is how many files one message carries (SCM_MAX_FD in the kernel's net/scm.h).
const maxAhead = 253

// adopt makes a process that waits, if there is one, the first of this step.
func (s *step) adopt(spec *Spec, stdin, stdout, stderr, planFile *os.File) (p *firstProcess, socket *os.File, err error) {
	sp := spec.Ahead.take(spec)
	if sp == nil {
		return nil, nil, nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		sp.discard()
		return nil, nil, setupError("start the step", err)
	}
	defer null.Close()
	files := append([]*os.File{stdin, stdout, stderr, planFile, s.root}, s.sources.files...)
	for i := range initSocket {
		if files[i] == nil {
			files[i] = null
		}
	}
	if len(files) > maxAhead || sp.give(files) != nil {
		sp.discard()
		return nil, nil, nil
	}
	spec.Ahead.taken()
	return &firstProcess{p: sp.p, first: sp.p, ended: sync.OnceFunc(func() { close(sp.gone) })}, sp.socket, nil
}
