package usernet

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// noHang bounds what would wait for ever when something is broken.
func noHang() time.Time { return time.Now().Add(30 * time.Second) }

// echo sends datagrams back.
func echo(c *net.UDPConn) {
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
}

func TestDatagrams(t *testing.T) {
	s := newStep(t, "")
	for _, a := range []netip.Prefix{outside4, outside6} {
		c := listenUDP(t, outside(t), netip.AddrPortFrom(a.Addr(), 0).String())
		echo(c)
		want := "0 true 1 true 1400 true 9000 true 65000 true 65507 true"
		if got := s.run("udp", c.LocalAddr().String(), "0", "1", "1400", "9000", "65000", "65507"); got != want {
			t.Error(got)
		}
	}
}

func TestDatagramsRefused(t *testing.T) {
	out := outside(t)
	c := listenUDP(t, out, "10.77.0.2:0")
	closed := c.LocalAddr().String()
	c.Close()
	here := listenUDP(t, nil, "10.77.0.1:0")
	echo(here)
	s := newStep(t, "")
	for addr, want := range map[string]string{
		closed:                    "ECONNREFUSED",
		here.LocalAddr().String(): "EHOSTUNREACH",
		"169.254.169.254:53":      "EHOSTUNREACH",
		"192.0.0.1:54":            "ECONNREFUSED",
		"[fd77::1]:53":            "EACCES",
	} {
		if got, err := s.try("udp", addr, "10"); strings.TrimSpace(got) != want {
			t.Errorf("%s: %s %v, want %s", addr, got, err, want)
		}
	}
}

// A packet socket is given datagrams that were left for the device to cut.
func TestSegments(t *testing.T) {
	c := listenUDP(t, outside(t), "10.77.0.2:0")
	s := newStep(t, "")
	s.run("segments", c.LocalAddr().String())
	b := make([]byte, 1<<16)
	for i := range 5 {
		c.SetReadDeadline(noHang())
		n, err := c.Read(b)
		if n != 1000 || err != nil {
			t.Fatalf("datagram %d of 5: %d bytes, %v", i+1, n, err)
		}
	}
}

// nameServer answers for known names, and with a code for others, over UDP and TCP.
type nameServer struct {
	names map[string]string
	code  dnsmessage.RCode
}

func (ns nameServer) answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response, m.Additionals = true, nil
	q := m.Questions[0]
	addr, known := ns.names[q.Name.String()]
	switch {
	case !known:
		m.RCode = ns.code
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()},
		}}
	}
	b, _ := m.Pack()
	return b
}

func (ns nameServer) start(t *testing.T, th thread, addr string) {
	c := listenUDP(t, th, addr)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(ns.answer(b[:n]), from)
		}
	}()
	each(listen(t, th, "tcp", addr), func(c *net.TCPConn) {
		defer c.Close()
		b := make([]byte, 1<<16)
		for {
			n, err := c.Read(b)
			if err != nil || n < 2 {
				return
			}
			a := ns.answer(b[2:n])
			_, _ = c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
		}
	})
}

func TestNames(t *testing.T) {
	out := outside(t)
	known := nameServer{names: map[string]string{"known.test.": "1.2.3.4"}, code: dnsmessage.RCodeNameError}
	known.start(t, nil, "127.0.0.53:53") // as systemd's: a step on the same machine could not ask it
	nameServer{code: dnsmessage.RCodeServerFailure}.start(t, out, "10.77.0.2:53")
	for _, c := range []struct{ conf, name, want string }{
		{"nameserver 127.0.0.53", "known.test", "1.2.3.4"},
		{"nameserver 127.0.0.53", "unknown.test", "notfound=true temporary=false"},
		{"# none\nnameserver 10.77.0.2\nnameserver 127.0.0.53\n", "known.test", "1.2.3.4"}, // one that fails, one that answers
		{"nameserver 10.77.0.2", "known.test", "notfound=false temporary=true"},
		{"nameserver 127.0.0.99", "known.test", "notfound=false temporary=true"}, // nobody there
	} {
		s := newStep(t, c.conf)
		if got := s.run("lookup", "udp", c.name); got != c.want {
			t.Errorf("%q: %s is %s, want %s", c.conf, c.name, got, c.want)
		}
	}
	if got := newStep(t, "nameserver 127.0.0.53").run("lookup", "tcp", "known.test"); got != "1.2.3.4" {
		t.Errorf("over TCP: %s", got)
	}
}
