// Package fakeroot lets the programs of a step behave as if their user namespace had all ids. A seccomp filter (Filter) stops
// the system calls that would fail there or show it, and a Supervisor in another process answers them: it keeps who every thread
// believes to be, writes owners and device numbers into records beside the files (internal/owner), and shows what is recorded to
// who looks. All other calls go straight to the kernel.
//
// There are two kinds. Where 0 is the only id, everything about ids is answered here. Where a range is mapped the kernel does
// its work, and only chown to ids outside of it, and device nodes, come here.
//
// It is bookkeeping, not a boundary. The kernel keeps the step in its namespaces whatever is answered; processes that believe to
// be different users are one to the kernel and can read, write and signal what is another's; /proc/<pid>/status shows that. What
// the supervisor does itself, it does below the caller's own root, by descriptor, whatever other threads do to paths meanwhile.
//
// Reading order: filter.go, Start, calls.go, then one of the files for a kind of call.
package fakeroot

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// Config says for whom a Supervisor works.
type Config struct {
	// Proc is a procfs of the calling process's pid namespace, which must also show the step's processes. It stays the
	// caller's.
	Proc int
	// Root is the root file system of the step, for telling its files from those of other mounts. It stays the caller's.
	Root    int
	Records *Records
	// UID, GID and Groups are who the step's first process is.
	UID, GID uint32
	Groups   []uint32
}

// Supervisor answers the calls of one step.
type Supervisor struct {
	listener, stop int
	done           chan struct{}
	err            error // when done is closed

	cfg    Config
	calls  map[uint32]map[int32]handler // by AUDIT_ARCH
	tasks  *tasks
	chroot bool // somebody in the step may have another root
	seesUs bool // the /proc of the step shows this process
	note   notification
	call   call // the one that is being answered
	memory memory
}

// Start takes over a listener, which it closes at the end, and answers its calls until no process is left that could make one,
// or Close. If it cannot go on, it closes the listener, so that the step's calls fail instead of waiting, and tells fail.
func Start(listener int, cfg Config, fail func(error)) (*Supervisor, error) {
	s := &Supervisor{listener: listener, stop: -1, cfg: cfg, done: make(chan struct{})}
	if err := s.prepare(); err != nil {
		unix.Close(listener)
		if s.stop >= 0 {
			unix.Close(s.stop)
		}
		return nil, err
	}
	started := make(chan error, 1)
	go s.thread(started, fail)
	if err := <-started; err != nil {
		<-s.done
		unix.Close(s.stop)
		return nil, err
	}
	return s, nil
}

func (s *Supervisor) prepare() error {
	if err := checkSizes(); err != nil {
		return err
	}
	self := make([]byte, 16)
	n, err := unix.Readlinkat(s.cfg.Proc, "self", self)
	if err != nil || string(self[:n]) != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("the procfs does not show this process by its id (%v)", err)
	}
	if s.calls, err = handlers(); err != nil {
		return err
	}
	if err := s.cfg.Records.useRoot(s.cfg.Root); err != nil {
		return err
	}
	s.tasks = newTasks(s.cfg.Proc, newCredentials(s.cfg.UID, s.cfg.GID, s.cfg.Groups))
	s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an event: %w", err)
	}
	return nil
}

// handlers finds what answers a call by AUDIT_ARCH and number.
var handlers = sync.OnceValues(func() (map[uint32]map[int32]handler, error) {
	abis, err := bpf.HostABIs()
	if err != nil {
		return nil, err
	}
	all := map[uint32]map[int32]handler{}
	for i, abi := range abis {
		table := nativeCalls
		if i > 0 {
			table = compatCalls
		}
		byNr := map[int32]handler{}
		for name, h := range table {
			if nr, ok := abi.Numbers[name]; ok {
				byNr[int32(nr)] = h
			}
		}
		all[abi.Audit] = byNr
	}
	return all, nil
})

// Close ends the supervisor, if it has not ended by itself, and returns why it could not do its work, if so.
func (s *Supervisor) Close() error {
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	if _, err := unix.Write(s.stop, one); err != nil {
		return fmt.Errorf("stop the supervisor: %w", err)
	}
	<-s.done
	unix.Close(s.stop)
	return s.err
}

// thread is the operating system thread that does all the work. It ends with it: its root is the step's.
func (s *Supervisor) thread(started chan<- error, fail func(error)) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() { // what /proc shows as the process's root and directory is this thread's
		moved := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(moved)
			s.work(started, fail)
		}()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	s.work(started, fail)
}

func (s *Supervisor) work(started chan<- error, fail func(error)) {
	defer close(s.done)
	defer unix.Close(s.listener)
	if err := s.enter(); err != nil {
		s.err = err
		started <- err
		return
	}
	started <- nil
	if s.err = s.serve(); s.err != nil {
		fail(s.err)
	}
	s.tasks.close()
}

// enter gives this thread a root and a working directory of its own: paths of the step resolve below its root, and our own
// descriptors have names below the working directory.
func (s *Supervisor) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the root directory of a thread: %w", err)
	}
	return nil
}

// rootAt makes the root of a thread of the step ours.
func (s *Supervisor) rootAt(t *task) error {
	fd, err := unix.Openat(t.dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	if err := chroot("."); err != nil {
		return err
	}
	if err := unix.Fchdir(s.cfg.Proc); err != nil {
		return err
	}
	var self [16]byte
	_, err = unix.Readlink("/proc/self", self[:])
	s.seesUs = err == nil
	return nil
}

// serve answers calls one at a time: answers take microseconds, and handing them to another thread takes longer.
func (s *Supervisor) serve() (err error) {
	defer func() {
		if p := recover(); p != nil { // one step is lost, not all that run in this process
			err = fmt.Errorf("internal error: %v\n%s", p, stack())
		}
	}()
	hurry(s.listener)
	first := true
	for {
		more, err := s.next(&s.note)
		if err != nil || !more {
			return err
		}
		t := s.tasks.find(s.note.pid, func() bool { return s.valid(s.note.id) })
		if t == nil {
			continue // killed; nobody waits for an answer
		}
		if first || s.chroot {
			if err := s.rootAt(t); err != nil {
				if !s.valid(s.note.id) {
					continue
				}
				return fmt.Errorf("enter the root of a process of the step: %w", err)
			}
			first = false
		}
		if err := s.answer(s.note.id, s.handle(t)); err != nil {
			return err
		}
	}
}

func (s *Supervisor) handle(t *task) reply {
	h := s.calls[s.note.data.arch][s.note.data.nr]
	if h == nil {
		return failed(unix.ENOSYS)
	}
	s.call = call{Supervisor: s, task: t, id: s.note.id, args: s.note.data.args}
	return h(&s.call)
}

// stack is that of the calling goroutine. It is package runtime/debug's, which is initialized late (see TestStepsStartEarly).
func stack() []byte {
	buf := make([]byte, 16<<10)
	return buf[:runtime.Stack(buf, false)]
}
