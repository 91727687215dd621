package userns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The holder is recognised by its argument zero; nothing else of the command line or the environment is looked at, and none
// of the front process's environment is passed on.
const (
	argHolder   = "build-holder"        // in its namespaces, with its capabilities
	argUnmapped = "unmapped "           // in a user namespace whose maps are not written yet; what it will be follows
	argShared   = "build-holder-shared" // without a pid namespace
	argPlain    = "build-holder-plain"  // without namespaces
)

// holderSocket is the descriptor at which the holder finds its end of the socket.
const holderSocket = 3

// abandonAfter bounds how long a cancelled Call waits for its handler to notice.
const abandonAfter = 10 * time.Second

// ErrClosed is what calls return once Close was called.
var ErrClosed = errors.New("the namespace holder was closed")

// Holder is a running second copy of this program inside the namespaces of a Plan.
type Holder struct {
	conn    *conn
	cmd     *exec.Cmd
	stderr  *tail
	done    chan struct{}
	closing chan struct{}
	once    sync.Once

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan response
	err     error // why it ended; set before done is closed
}

// Start makes the namespaces of the plan and a holder in them. The holder lives until Close, until this process ends or until
// it is killed; ctx bounds only the start.
func Start(ctx context.Context, p Plan) (*Holder, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("start the namespace holder: %w", err)
	}
	defer theirs.Close()
	c, err := newConn(ours)
	if err != nil {
		return nil, err
	}
	h := &Holder{
		conn: c, stderr: &tail{max: 16 << 10},
		done: make(chan struct{}), closing: make(chan struct{}), pending: map[uint64]chan response{},
	}
	h.cmd = holderCommand(p, theirs, h.stderr)

	// A parent-death signal is sent when the *thread* that made the child ends. This goroutine keeps its thread until the
	// holder is gone.
	started := make(chan error, 1)
	exited := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := h.cmd.Start()
		started <- err
		if err == nil {
			exited <- h.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		c.Close()
		return nil, explainClone(p, err)
	}
	theirs.Close()
	if err := h.handshake(ctx, p); err != nil {
		h.cmd.Process.Kill()
		c.Close()
		<-exited
		return nil, h.startError(p, err)
	}
	go h.receive(exited)
	return h, nil
}

func socketpair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "holder"), os.NewFile(uintptr(fds[1]), "front"), nil
}

func holderCommand(p Plan, sock *os.File, stderr *tail) *exec.Cmd {
	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{argHolder},
		Env:        []string{},
		Dir:        "/",
		ExtraFiles: []*os.File{sock},
		Stderr:     stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		},
	}
	switch {
	case p.Plain:
		cmd.Args[0] = argPlain
		cmd.SysProcAttr.Cloneflags = 0
	case p.SharePID:
		cmd.Args[0] = argShared
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	if !p.NewUser() {
		return cmd
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	if p.Newuidmap != "" {
		cmd.Args[0] = argUnmapped + cmd.Args[0]
		return cmd
	}
	// Maps that this process may write are there before the program is executed: with no_new_privs an execution takes capabilities
	// and gives none. Who maps only the own group must deny setgroups first (user_namespaces(7)).
	cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = kernelMap(p.UIDs), kernelMap(p.GIDs)
	cmd.SysProcAttr.GidMappingsEnableSetgroups = p.IDs != IDsSingle
	return cmd
}

func kernelMap(m []IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(m))
	for i, e := range m {
		out[i] = syscall.SysProcIDMap{ContainerID: int(e.Inside), HostID: int(e.Outside), Size: int(e.Count)}
	}
	return out
}

// handshake writes the id maps, tells the child so and waits until it serves.
func (h *Holder) handshake(ctx context.Context, p Plan) error {
	stop := context.AfterFunc(ctx, func() { h.conn.sock.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() {
			h.conn.sock.SetDeadline(time.Time{})
		}
	}()
	if p.Newuidmap != "" {
		pid := h.cmd.Process.Pid
		if err := helperMap(ctx, p.Newuidmap, pid, p.UIDs); err != nil {
			return err
		}
		if err := helperMap(ctx, p.Newgidmap, pid, p.GIDs); err != nil {
			return err
		}
		if _, err := h.conn.sock.Write([]byte{1}); err != nil {
			return err
		}
	}
	var ready response
	files, err := h.conn.read(&ready)
	closeAll(files)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if ready.Err != nil {
		return ready.Err
	}
	return nil
}

// helperMap lets one of the helpers of the shadow package write a map.
func helperMap(ctx context.Context, helper string, pid int, m []IDMap) error {
	args := []string{strconv.Itoa(pid)}
	for _, e := range m {
		for _, n := range []uint32{e.Inside, e.Outside, e.Count} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	out, err := exec.CommandContext(ctx, helper, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	msg := strings.TrimSpace(string(out))
	if msg == "" {
		msg = err.Error()
	}
	return explainMap(helper, errors.New(msg))
}

// startError adds what the child said on its standard error before it ended.
func (h *Holder) startError(p Plan, err error) error {
	var e *Error
	if errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if said := h.stderr.String(); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return explainSetup(p, err)
}

// receive hands responses to the calls that wait for them, until the holder is gone.
func (h *Holder) receive(exited <-chan error) {
	for {
		var r response
		files, err := h.conn.read(&r)
		closeAll(files)
		if err != nil {
			break
		}
		h.mu.Lock()
		ch := h.pending[r.ID]
		delete(h.pending, r.ID)
		h.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	h.conn.Close()
	waitErr := <-exited
	h.mu.Lock()
	h.err = h.deathError(waitErr)
	h.mu.Unlock()
	close(h.done)
}

func (h *Holder) deathError(waitErr error) error {
	select {
	case <-h.closing:
		return ErrClosed
	default:
	}
	err := errors.New("the namespace holder ended unexpectedly")
	if waitErr != nil {
		err = fmt.Errorf("%w: %w", err, waitErr)
	}
	if said := h.stderr.String(); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// Done is closed when the holder is gone and with it everything it started.
func (h *Holder) Done() <-chan struct{} { return h.done }

// Pid is the holder's process id as this process sees it.
func (h *Holder) Pid() int { return h.cmd.Process.Pid }

// Call runs the handler of that name in the holder with in (encoded as JSON) and the files, and decodes its result into out
// (which may be nil). Calls run concurrently. When ctx ends the handler's context does too; Call waits for the handler to come
// back, so that nothing it used is in use any more, and returns the cause of ctx. Errors of the handler are *RemoteError. The
// files stay the caller's to close.
func (h *Holder) Call(ctx context.Context, method string, in, out any, files ...*os.File) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("call %s: encode: %w", method, err)
	}
	ch := make(chan response, 1)
	h.mu.Lock()
	h.next++
	id := h.next
	h.pending[id] = ch
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.pending, id)
		h.mu.Unlock()
	}()
	if err := h.conn.write(request{ID: id, Method: method, In: raw}, files); errors.Is(err, errNotSent) {
		return fmt.Errorf("call %s: %w", method, err)
	} else if err != nil {
		h.conn.Close() // half a message may have been sent: nothing after it could be understood
		<-h.done
		return h.gone(method)
	}
	runtime.KeepAlive(files)
	return h.await(ctx, id, method, ch, out)
}

func (h *Holder) await(ctx context.Context, id uint64, method string, ch <-chan response, out any) error {
	canceled := ctx.Done()
	var abandon <-chan time.Time
	for {
		select {
		case r := <-ch:
			return settle(ctx, method, r, out)
		case <-h.done:
			select {
			case r := <-ch:
				return settle(ctx, method, r, out)
			default:
				return h.gone(method)
			}
		case <-canceled:
			canceled = nil
			t := time.NewTimer(abandonAfter)
			defer t.Stop()
			abandon = t.C
			h.conn.write(request{ID: id, Cancel: true}, nil) // an error here is followed by done
		case <-abandon:
			return context.Cause(ctx)
		}
	}
}

func settle(ctx context.Context, method string, r response, out any) error {
	if r.Err != nil {
		if r.Err.Kind == KindCanceled && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return r.Err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.Out, out); err != nil {
		return fmt.Errorf("call %s: decode: %w", method, err)
	}
	return nil
}

func (h *Holder) gone(method string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Errorf("call %s: %w", method, h.err)
}

// Close ends the holder, and with it every process of every step, and waits until they are gone.
func (h *Holder) Close() error {
	h.once.Do(func() {
		close(h.closing)
		h.conn.sock.CloseWrite() // a holder at rest ends on its own
		select {
		case <-h.done:
		case <-time.After(200 * time.Millisecond):
			h.cmd.Process.Kill()
		}
	})
	<-h.done
	return nil
}

// tail keeps the end of what is written to it. os/exec copies into it from a goroutine of its own.
type tail struct {
	mu  sync.Mutex
	buf []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}
