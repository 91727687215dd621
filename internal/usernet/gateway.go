package usernet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// argGateway is argument zero of the process that serves a private network. It finds the packet socket as its descriptor
// packetsFD, tells its troubles on standard error, and ends when its standard input does.
const (
	argGateway = "build-gateway"
	packetsFD  = 3
)

// resolvConf is the machine's own.
const resolvConf = "/etc/resolv.conf"

// Gateway is the process that serves the private network of one step.
type Gateway struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{}
	err    error // why it ended; set before done is closed
	once   sync.Once
}

// Start starts the process for a packet socket, which may be closed afterwards. It dials from the namespaces of the calling
// process, and dies with it. What it has to tell also goes to log.
func Start(packets *os.File, log io.Writer) (*Gateway, error) {
	g := &Gateway{stderr: &tail{}, done: make(chan struct{})}
	g.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{argGateway}, Env: []string{}, Dir: "/",
		Stderr: io.MultiWriter(g.stderr, log), ExtraFiles: []*os.File{packets},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL},
	}
	lifeline, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		defer lifeline.Close()
		// The parent-death signal is sent when the thread that made the child ends. It never goes back to other work: it has given
		// up what it may.
		runtime.LockOSThread()
		err := renounce()
		if err == nil {
			err = g.cmd.Start()
		}
		started <- err
		if err == nil {
			g.err = g.ended(g.cmd.Wait())
		}
		close(g.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the process that serves it: %w", err)
	}
	return g, nil
}

func (g *Gateway) ended(err error) error {
	said := strings.TrimSpace(g.stderr.String())
	if err == nil {
		err = errors.New("it ended by itself")
	}
	if said != "" {
		return fmt.Errorf("the process that serves the private network: %w: %s", err, said)
	}
	return fmt.Errorf("the process that serves the private network: %w", err)
}

// Done is closed when the process has ended, called for or not.
func (g *Gateway) Done() <-chan struct{} { return g.done }

// Err says why the process ended. It is meaningful once Done is closed, and only when Close was not called before.
func (g *Gateway) Err() error { return g.err }

// Close ends the process, and with it every connection. It does not wait: nothing of the process runs any more, but it takes the
// kernel some 30 ms to give up a packet socket (synchronize_net), and the step need not last longer for that. Done tells when.
func (g *Gateway) Close() {
	g.once.Do(func() { g.cmd.Process.Kill() })
}

// tail keeps the last of what a process said.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if over := t.b.Len() - tailSize; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// Reentry serves a private network and does not return when this process was started for that. It is among the first things
// main calls.
func Reentry() {
	if len(os.Args) != 1 || os.Args[0] != argGateway {
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run() error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // nothing is ever written: it ends when whoever started us does
		stop()
	}()
	return serve(ctx, os.NewFile(packetsFD, "packets"), resolvConf, os.Stderr)
}

// renounce takes from the calling thread, and so from the process it makes next, what that does not need, which is everything: it
// reads what a step sends. Without new privileges not even being root gives capabilities back.
func renounce() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}
