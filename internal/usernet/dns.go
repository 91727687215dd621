package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// resolver is the name server of the network. It understands nothing of names: questions go to the servers of the machine, and
// answers come back, byte for byte.
type resolver struct {
	path  string // of the machine's resolv.conf, read for each question: networks change while builds run
	slots slots
}

// maxServers is how many servers the C library asks (MAXNS in resolv.h), and serverWait for how long each before the next.
const (
	maxServers = 3
	serverWait = 3 * time.Second
)

// servers returns what the machine's resolv.conf names; without one, or one that names none, the machine itself (resolv.conf(5)).
func (r *resolver) servers() []string {
	b, _ := os.ReadFile(r.path)
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(out) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, dnsPort).String())
		}
	}
	if len(out) == 0 {
		out = []string{"127.0.0.1:53"}
	}
	return out
}

// dialTCP connects to the first server that can be reached.
func (r *resolver) dialTCP(ctx context.Context) (*net.TCPConn, error) {
	var first error
	for _, s := range r.servers() {
		d := net.Dialer{Timeout: serverWait}
		c, err := d.DialContext(ctx, "tcp", s)
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// serveUDP answers the questions that come from one port of the step, each on its own.
func (r *resolver) serveUDP(ctx context.Context, in *gonet.UDPConn) {
	for {
		in.SetReadDeadline(time.Now().Add(dnsIdle))
		question := make([]byte, 4<<10) // no server takes a longer one over UDP
		k, err := in.Read(question)
		if err != nil || ctx.Err() != nil {
			return
		}
		if k < dnsHeader || !r.slots.take() {
			continue
		}
		go func() {
			defer r.slots.release()
			if answer := r.ask(ctx, question[:k]); answer != nil {
				_, _ = in.Write(answer) // whoever asked may have left
			}
		}()
	}
}

// The header of a DNS message (RFC 1035, 4.1.1).
const (
	dnsHeader  = 12
	flagAnswer = 1 << 15
	codeMask   = 0xf
	serverFail = 2
	notImpl    = 4
	refused    = 5
)

// ask asks one server after the other, as a C library does: the next when one cannot be reached, is silent or is not able to
// answer. It returns nil when all were silent.
func (r *resolver) ask(ctx context.Context, question []byte) []byte {
	var worst []byte
	silent := false
	for _, s := range r.servers() {
		answer, err := askServer(ctx, s, question)
		var timeout net.Error
		switch {
		case err != nil:
			silent = silent || errors.As(err, &timeout) && timeout.Timeout()
			continue
		case ctx.Err() != nil:
			return nil
		}
		switch binary.BigEndian.Uint16(answer[2:]) & codeMask {
		case serverFail, notImpl, refused:
			worst = answer
			continue
		}
		return answer
	}
	if worst == nil && !silent { // none could be reached, so waiting makes no sense
		worst = failure(question)
	}
	return worst
}

func askServer(ctx context.Context, server string, question []byte) ([]byte, error) {
	c, err := net.Dial("udp", server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer closeWhen(ctx, c)()
	c.SetDeadline(time.Now().Add(serverWait))
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDatagram)
	for {
		k, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		isAnswer := k >= dnsHeader && binary.BigEndian.Uint16(buf[2:])&flagAnswer != 0
		if isAnswer && bytes.Equal(buf[:2], question[:2]) { // of this question
			return buf[:k], nil
		}
	}
}

// failure is the question, marked as one that could not be answered.
func failure(question []byte) []byte {
	b := bytes.Clone(question)
	flags := binary.BigEndian.Uint16(b[2:])
	binary.BigEndian.PutUint16(b[2:], flags&^codeMask|flagAnswer|serverFail)
	return b
}

// closeWhen closes c when ctx ends, unless the returned function is called before.
func closeWhen(ctx context.Context, c io.Closer) func() bool {
	return context.AfterFunc(ctx, func() { c.Close() })
}
