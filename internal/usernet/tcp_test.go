package usernet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// each accepts connections and handles them.
func each(l net.Listener, handle func(c *net.TCPConn)) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c.(*net.TCPConn))
		}
	}()
}

// hear waits for one byte.
func hear(c net.Conn) {
	c.SetReadDeadline(noHang())
	_, _ = c.Read(make([]byte, 1))
}

// swap reads to the end, and only then sends size bytes: that it may is what half-closed connections are for.
func swap(l net.Listener, sums chan<- string, size int64) {
	each(l, func(c *net.TCPConn) {
		defer c.Close()
		s, n, err := sum(c)
		if sums != nil {
			sums <- fmt.Sprint(s, " ", n, " ", err)
		}
		_, _ = io.Copy(c, noise(2, size))
	})
}

func noiseSum(seed uint64, size int64) string {
	s, n, _ := sum(noise(seed, size))
	return fmt.Sprint(s, " ", n)
}

func TestBothWays(t *testing.T) {
	const size = 50 << 20
	for _, addr := range []netip.Prefix{outside4, outside6} {
		t.Run(addr.String(), func(t *testing.T) {
			l := listen(t, outside(t), "tcp", netip.AddrPortFrom(addr.Addr(), 0).String())
			sums := make(chan string, 1)
			swap(l, sums, size)
			s := newStep(t, "")
			if got := s.run("exchange", l.Addr().String(), strconv.Itoa(size)); got != noiseSum(2, size) {
				t.Errorf("the step got %s", got)
			}
			if got := <-sums; got != noiseSum(1, size)+" <nil>" {
				t.Errorf("the server got %s", got)
			}
			if s.log.String() != "" {
				t.Error(s.log)
			}
		})
	}
}

func TestParallel(t *testing.T) {
	l := listen(t, outside(t), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
	swap(l, nil, 200000)
	if got := newStep(t, "").run("parallel", l.Addr().String(), "200", "100000"); got != noiseSum(2, 200000)+" <nil>" {
		t.Error(got)
	}
}

func TestResets(t *testing.T) {
	l := listen(t, outside(t), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
	s := newStep(t, "")
	ends := make(chan error, 1)
	each(l, func(c *net.TCPConn) {
		one := make([]byte, 1)
		c.SetReadDeadline(noHang())
		if _, err := c.Read(one); err != nil {
			ends <- err
			return
		}
		_, _ = c.Write(one)
		_, err := c.Read(one)
		ends <- err
	})
	s.run("reset", l.Addr().String())
	if err := <-ends; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the step's reset arrived as %v", err)
	}
	l = listen(t, outside(t), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
	each(l, func(c *net.TCPConn) { hear(c); abort(c) })
	if got := s.run("drain", l.Addr().String()); got != "ECONNRESET" {
		t.Errorf("the server's reset arrived as %s", got)
	}
	l = listen(t, outside(t), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
	each(l, func(c *net.TCPConn) { hear(c); c.Close() })
	if got := s.run("drain", l.Addr().String()); got != "end" {
		t.Errorf("the server's end arrived as %s", got)
	}
}

// TestRefusals checks that an attempt ends inside as it ends outside, and that nothing of the machine itself is reached.
func TestRefusals(t *testing.T) {
	out := outside(t)
	open := listen(t, out, "tcp", "[::]:0").Addr().(*net.TCPAddr).Port
	here := listen(t, nil, "tcp", "[::]:0").Addr().(*net.TCPAddr).Port // on all addresses of the machine
	s := newStep(t, "")
	at := func(a string, port int) string { return net.JoinHostPort(a, strconv.Itoa(port)) }
	for _, c := range []struct{ addr, want, why string }{
		{at("10.77.0.2", open), "connected", "outside"},
		{at("fd77::2", open), "connected", "outside"},
		{at("10.77.0.2", 1), "ECONNREFUSED", "nobody listens there"},
		{at("fd77::2", 1), "ECONNREFUSED", "nobody listens there"},
		{at("10.78.0.1", 1), "EHOSTUNREACH", "the machine has no way there"},
		{at(silent4.String(), 1), "timeout", "dropped outside"},
		{at("127.0.0.1", here), "ECONNREFUSED", "the step's own loopback"},
		{at("10.77.0.1", here), "EHOSTUNREACH", "an address of the machine"},
		{at("fd77::1", here), "EACCES", "an address of the machine"},
		{at("10.79.3.4", here), "EHOSTUNREACH", "an address of the machine that no interface has"},
		{at("127.0.0.2", here), "ECONNREFUSED", "the step's own loopback"},
		{at("169.254.169.254", 80), "EHOSTUNREACH", "metadata"},
		{at("fd00:ec2::254", 80), "EACCES", "metadata"},
		{at("64:ff9b::a9fe:a9fe", 80), "EACCES", "metadata, translated"},
		{at("0.0.0.0", here), "ECONNREFUSED", "the step's own loopback"},
		{at(gatewayIPv4.String(), here), "ECONNREFUSED", "the gateway is not the machine"},
		{at(gatewayIPv6.String(), here), "ECONNREFUSED", "the gateway is not the machine"},
	} {
		if got := s.run("dial", "tcp", c.addr); got != c.want {
			t.Errorf("%s (%s): %s, want %s", c.addr, c.why, got, c.want)
		}
	}
	if s.log.String() != "" {
		t.Error(s.log)
	}
}

func TestAbstractSockets(t *testing.T) {
	const name = "@usernet-test"
	listen(t, nil, "unix", name)
	s := newStep(t, "")
	if got := s.run("dial", "unix", name); got != "ECONNREFUSED" {
		t.Error(got)
	}
	out, err := clients["dial"]([]string{"unix", name}) // the test can fail: from here it is reached
	if out != "connected" || err != nil {
		t.Fatal(out, err)
	}
}
