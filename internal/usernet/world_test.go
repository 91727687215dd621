package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/netlink"
	"build/internal/testenv"
	"build/internal/veth"
)

// The tests have a machine of their own: this binary starts itself again in a new network namespace (and, as an ordinary user, a
// new user namespace with a single id), which plays the machine that builds. A second namespace, joined to it by a pair of veth
// devices, plays the outside: it has the servers. Steps are processes of this binary, too (client_test.go).

const (
	insideVar = "USERNET_TEST_INSIDE"
	clientVar = "USERNET_TEST_CLIENT"
)

func TestMain(m *testing.M) {
	Reentry()
	if os.Getenv(clientVar) != "" {
		clientMain(os.Args[1:])
		return
	}
	if os.Getenv(insideVar) == "" {
		os.Exit(again())
	}
	os.Exit(m.Run())
}

// again runs the tests in the namespaces. Where they cannot be made each test says so.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	cmd = exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=no: "+err.Error())
	if cmd.Run() != nil {
		return 1
	}
	return 0
}

// The addresses of the wire between the machine and the outside.
var (
	machine4 = netip.MustParsePrefix("10.77.0.1/24")
	outside4 = netip.MustParsePrefix("10.77.0.2/24")
	machine6 = netip.MustParsePrefix("fd77::1/64")
	outside6 = netip.MustParsePrefix("fd77::2/64")
	silent4  = netip.MustParseAddr("10.77.1.1") // the outside drops what is for it
)

// thread is an OS thread in a network namespace of its own; functions run on it.
type thread chan func()

func (th thread) do(f func()) {
	done := make(chan struct{})
	th <- func() { defer close(done); f() }
	<-done
}

func newThread(t testing.TB) thread {
	th := make(thread)
	go func() {
		runtime.LockOSThread() // and never back: a thread in other namespaces is of no further use
		for f := range th {
			f()
		}
	}()
	t.Cleanup(func() { close(th) })
	return th
}

var theWorld struct {
	sync.Once
	outside thread
	err     error
}

// outside returns the thread that is outside, and makes the wire when it is the first to ask.
func outside(t testing.TB) thread {
	t.Helper()
	if v := os.Getenv(insideVar); v != "yes" {
		testenv.Skip(t, "user and network namespaces: "+v)
	}
	theWorld.Do(func() {
		th := make(thread)
		go func() {
			runtime.LockOSThread()
			for f := range th {
				f()
			}
		}()
		theWorld.outside = th
		theWorld.err = makeWire(th)
	})
	must(t, theWorld.err)
	return theWorld.outside
}

const wireIndex = 50

func makeWire(out thread) error {
	here, err := netlink.Open()
	if err != nil {
		return err
	}
	defer here.Close()
	var there *netlink.Conn
	var tid int
	out.do(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			there, err = netlink.Open()
		}
		tid = unix.Gettid()
	})
	if err != nil {
		return err
	}
	m := netlink.New(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(wireIndex, 0))
	m.String(unix.IFLA_IFNAME, "wire0")
	m.Nest(unix.IFLA_LINKINFO, func() {
		m.String(unix.IFLA_INFO_KIND, "veth")
		m.Nest(unix.IFLA_INFO_DATA, func() {
			m.Nest(1, func() {
				m.Raw(linkHeader(wireIndex, 0))
				m.String(unix.IFLA_IFNAME, "wire1")
				m.Uint32(unix.IFLA_NET_NS_PID, uint32(tid))
			})
		})
	})
	if _, err := here.Do(m); err != nil {
		return fmt.Errorf("make the wire: %w", err)
	}
	for _, end := range []struct {
		conn  *netlink.Conn
		addrs []netip.Prefix
	}{{here, []netip.Prefix{machine4, machine6}}, {there, []netip.Prefix{outside4, outside6}}} {
		for _, m := range endMessages(end.addrs) {
			if _, err := end.conn.Do(m); err != nil {
				return fmt.Errorf("set up the wire: %w", err)
			}
		}
	}
	for _, m := range []*netlink.Message{
		routeMessage(netip.MustParsePrefix("0.0.0.0/0"), outside4.Addr(), unix.RTN_UNICAST),
		routeMessage(netip.MustParsePrefix("10.78.0.0/16"), netip.Addr{}, unix.RTN_UNREACHABLE),
		routeMessage(netip.MustParsePrefix("10.79.0.0/16"), netip.Addr{}, unix.RTN_LOCAL),
	} {
		if _, err := here.Do(m); err != nil {
			return fmt.Errorf("add a route: %w", err)
		}
	}
	if _, err = there.Do(routeMessage(netip.PrefixFrom(silent4, 32), netip.Addr{}, unix.RTN_BLACKHOLE)); err != nil {
		return err
	}
	return waitForWire(out)
}

// waitForWire returns when the wire carries datagrams both ways: new devices drop some.
func waitForWire(out thread) error {
	for _, a := range []netip.Prefix{outside4, outside6} {
		var l net.PacketConn
		var err error
		out.do(func() { l, err = net.ListenPacket("udp", netip.AddrPortFrom(a.Addr(), 0).String()) })
		if err != nil {
			return err
		}
		defer l.Close()
		echo(l.(*net.UDPConn))
		c, err := net.Dial("udp", l.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		for end := noHang(); ; {
			_, _ = c.Write([]byte("x"))
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err = c.Read(make([]byte, 1)); err == nil {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("nothing passes the wire: %w", err)
			}
		}
	}
	return nil
}

func endMessages(addrs []netip.Prefix) (out []*netlink.Message) {
	for _, i := range []uint32{1, wireIndex} {
		out = append(out, netlink.New(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(i, unix.IFF_UP)))
	}
	for _, a := range addrs {
		h := []byte{family(a.Addr()), byte(a.Bits()), unix.IFA_F_NODAD, 0, 0, 0, 0, 0}
		binary.NativeEndian.PutUint32(h[4:], wireIndex)
		m := netlink.New(unix.RTM_NEWADDR, unix.NLM_F_CREATE, h)
		m.Attr(unix.IFA_LOCAL, a.Addr().AsSlice())
		m.Attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
		out = append(out, m)
	}
	return out
}

func routeMessage(to netip.Prefix, via netip.Addr, kind byte) *netlink.Message {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1], h[4], h[5], h[7] = family(to.Addr()), byte(to.Bits()), unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, kind
	if kind == unix.RTN_LOCAL {
		h[4], h[6] = unix.RT_TABLE_LOCAL, unix.RT_SCOPE_HOST
	}
	m := netlink.New(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, h)
	m.Attr(unix.RTA_DST, to.Addr().AsSlice())
	if via.IsValid() {
		m.Attr(unix.RTA_GATEWAY, via.AsSlice())
	}
	if kind == unix.RTN_LOCAL {
		m.Uint32(unix.RTA_OIF, 1)
	}
	return m
}

func family(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func linkHeader(index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// step is a network namespace served by this process.
type step struct {
	t      testing.TB
	thread thread
	log    *syncBuffer
}

// newStep makes one whose name server asks those of resolvConf, which is the content of such a file.
func newStep(t testing.TB, resolvConf string) *step {
	t.Helper()
	outside(t)
	s := &step{t: t, thread: newThread(t), log: &syncBuffer{}}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(conf, []byte(resolvConf), 0o644))
	i, err := NewInterface()
	must(t, err)
	var packets int
	s.thread.do(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			packets, err = veth.Join(i)
		}
	})
	must(t, err)
	f := os.NewFile(uintptr(packets), "packets")
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, f, conf, s.log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		f.Close()
	})
	return s
}

// run runs a command of client_test.go in the step and returns what it printed.
func (s *step) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s\nnetwork: %s", strings.Join(args, " "), err, out, s.log)
	}
	return strings.TrimSpace(out)
}

func (s *step) try(args ...string) (string, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), clientVar+"=yes")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	s.thread.do(func() { err = cmd.Start() }) // a child has the namespaces of the thread that makes it
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// listen listens on a thread's side, until the test ends.
func listen(t testing.TB, th thread, network, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	on(th, func() { l, err = net.Listen(network, addr) })
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func listenUDP(t testing.TB, th thread, addr string) *net.UDPConn {
	t.Helper()
	var c net.PacketConn
	var err error
	on(th, func() { c, err = net.ListenPacket("udp", addr) })
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// on runs f on a thread, or on whatever thread this is when there is none: on the machine that builds.
func on(th thread, f func()) {
	if th == nil {
		f()
		return
	}
	th.do(f)
}
