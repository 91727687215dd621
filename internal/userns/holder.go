package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Handler serves one method in the holder. The files are closed when it returns. An error with a method
// Remote() (kind string, data any) crosses with that kind and data; others with their message and error number.
type Handler func(ctx context.Context, in json.RawMessage, files []*os.File) (any, error)

// Reentry must be called first in main. In the front process it returns false at once; in a holder it serves the handlers and
// never returns.
func Reentry(handlers map[string]Handler) bool {
	if len(os.Args) != 1 {
		return false
	}
	if mode, ok := strings.CutPrefix(os.Args[0], argUnmapped); ok {
		awaitMaps(mode)
	}
	switch os.Args[0] {
	case argHolder, argShared, argPlain:
		holder(os.Args[0], handlers)
	default:
		return false
	}
	return true
}

// awaitMaps waits in the new user namespace until the front process has written its maps, then executes the program again:
// only an execution as user 0 gives back the capabilities that the first one took.
func awaitMaps(mode string) {
	var b [1]byte
	for {
		n, err := unix.Read(holderSocket, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			os.Exit(1) // the front process gave up
		}
		break
	}
	err := syscall.Exec("/proc/self/exe", []string{mode}, []string{})
	die("execute the holder again", err)
}

func die(what string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	os.Exit(1)
}

// holder prepares the process, says that it is ready and serves until the socket ends.
func holder(mode string, handlers map[string]Handler) {
	// The parent-death signal belongs to this thread, which therefore must not end before the process does.
	runtime.LockOSThread()
	if err := unix.CloseRange(holderSocket, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		die("protect inherited files", err)
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGTSTP)
	c, err := newConn(os.NewFile(holderSocket, "front"))
	if err != nil {
		die("open the socket", err)
	}
	if err := settleIn(mode); err != nil {
		c.write(response{Err: toRemote(err)}, nil)
		os.Exit(1)
	}
	if err := c.write(response{}, nil); err != nil {
		os.Exit(1)
	}
	s := &server{conn: c, handlers: handlers, cancel: map[uint64]context.CancelFunc{}}
	s.serve()
	if mode == argShared {
		sweep() // not without namespaces: what is left there has caches to put back and secrets to remove, and ends by itself
	}
	os.Exit(0) // the kernel now kills whatever is left in our pid namespace
}

// KindNoProc is the kind of the error of a holder that could not mount a fresh /proc. Without a pid namespace (Plan.SharePID) it
// needs none.
const KindNoProc = "no-proc"

func settleIn(mode string) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent-death signal: %w", err)
	}
	// Set after the maps are written: it makes /proc/self belong to root, and newuidmap looks at the owner.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	unix.Umask(0o022)
	if mode != argHolder {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the reaper of what steps leave: %w", err)
		}
	}
	if mode == argPlain {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if mode == argHolder {
		return tryProc()
	}
	return nil
}

// tryProc finds out whether a step in a pid namespace can have the /proc of that namespace: the kernel refuses when any part of
// the one outside is covered (mount_too_revealing in fs/namespace.c).
func tryProc() error {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err == nil {
		defer unix.Close(fs)
		err = unix.FsconfigCreate(fs)
	}
	if err == nil {
		var fd int
		if fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err == nil {
			return unix.Close(fd)
		}
	}
	return &RemoteError{Kind: KindNoProc, Msg: "mount a fresh /proc: " + err.Error()}
}

// server runs the calls of one connection.
type server struct {
	conn     *conn
	handlers map[string]Handler

	mu     sync.Mutex
	cancel map[uint64]context.CancelFunc
}

func (s *server) serve() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for {
		var q request
		files, err := s.conn.read(&q)
		if err != nil {
			return
		}
		if q.Cancel {
			closeAll(files)
			s.mu.Lock()
			if cancel := s.cancel[q.ID]; cancel != nil {
				cancel()
			}
			s.mu.Unlock()
			continue
		}
		callCtx, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		s.cancel[q.ID] = cancel
		s.mu.Unlock()
		go s.call(callCtx, cancel, q, files)
	}
}

func (s *server) call(ctx context.Context, cancel context.CancelFunc, q request, files []*os.File) {
	defer cancel()
	out, err := s.run(ctx, q, files)
	closeAll(files)
	s.mu.Lock()
	delete(s.cancel, q.ID)
	s.mu.Unlock()
	r := response{ID: q.ID, Err: toRemote(err)}
	if err == nil {
		if r.Out, err = json.Marshal(out); err != nil {
			r.Err = toRemote(fmt.Errorf("%s: encode the result: %w", q.Method, err))
		}
	}
	err = s.conn.write(r, nil)
	if errors.Is(err, errNotSent) {
		err = s.conn.write(response{ID: q.ID, Err: toRemote(fmt.Errorf("%s: send the result: %w", q.Method, err))}, nil)
	}
	if err != nil {
		os.Exit(1) // the front process is gone, or can no longer be told anything
	}
}

// run calls the handler and turns a panic into an error, so that one bad call does not take the steps of others with it.
func (s *server) run(ctx context.Context, q request, files []*os.File) (out any, err error) {
	h := s.handlers[q.Method]
	if h == nil {
		return nil, &RemoteError{Kind: KindMethod, Msg: "no such method: " + q.Method}
	}
	defer func() {
		if p := recover(); p != nil {
			stack, _ := json.Marshal(string(debug.Stack()))
			out, err = nil, &RemoteError{Kind: KindPanic, Msg: fmt.Sprintf("%s: panic: %v", q.Method, p), Data: stack}
		}
	}()
	return h(ctx, q.In, files)
}
