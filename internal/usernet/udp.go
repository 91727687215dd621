package usernet

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpIdle is how long a flow of datagrams lives without one. RFC 4787 asks for at least two minutes of whatever translates
// addresses; names are looked up from a new port each time.
const (
	udpIdle = 2 * time.Minute
	dnsIdle = 15 * time.Second
)

const dnsPort = 53

// maxDatagram is the largest payload of UDP.
const maxDatagram = 65507

// flow is the datagrams between one port of the step and one outside.
type flow struct {
	network *network
	in      *gonet.UDPConn
	out     *net.UDPConn
	quote   quote
	idle    time.Duration
	last    atomic.Int64 // when something was last passed on, in nanoseconds
}

// handleUDP is given the datagrams of no flow, one after the other.
func (n *network) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	q := quoteOf(pkt)
	to := netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
	switch {
	case isGateway(to.Addr()) && to.Port() != dnsPort:
		n.unreachable(q, portUnreachable)
		return true
	case to.Addr().IsMulticast():
		return true // nobody has joined
	}
	if !n.udp.take() {
		n.complain("more than %d flows of UDP at a time: datagrams are lost", n.udp.max)
		return true
	}
	var wq waiter.Queue
	ep, err := udp.NewForwarderRequest(n.stack, id, pkt.Clone()).CreateEndpoint(&wq)
	if err != nil {
		n.udp.release()
		n.complain("a datagram could not be taken: %v", err)
		return true
	}
	f := &flow{network: n, in: gonet.NewUDPConn(&wq, ep), quote: q, idle: udpIdle}
	go func() {
		defer n.udp.release()
		defer f.in.Close()
		if isGateway(to.Addr()) {
			n.resolver.serveUDP(n.ctx, f.in)
			return
		}
		f.run(to)
	}()
	return true
}

func (f *flow) run(to netip.AddrPort) {
	n := f.network
	err := n.policy.check(to.Addr())
	if err == nil {
		f.out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	}
	if err != nil {
		reason, known := reasonOf(err)
		if !known {
			n.complain("datagrams could not be sent: %v", err)
			reason = hostUnreachable
		}
		n.unreachable(f.quote, reason)
		return
	}
	if to.Port() == dnsPort {
		f.idle = dnsIdle
	}
	f.touch()
	go f.back()
	defer f.out.Close()
	buf := make([]byte, maxDatagram)
	for {
		k, err := f.in.Read(buf)
		if err != nil {
			return // back closed it
		}
		f.touch()
		if _, err := f.out.Write(buf[:k]); errors.Is(err, unix.ECONNREFUSED) {
			f.refused()
			_, _ = f.out.Write(buf[:k]) // that was about an earlier one; datagrams may be lost
		}
	}
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

// refused passes on that nobody listens.
func (f *flow) refused() { f.network.unreachable(f.quote, portUnreachable) }

// back passes on the answers, and ends the flow when it has been silent.
func (f *flow) back() {
	defer f.in.Close()
	buf := make([]byte, maxDatagram)
	for {
		end := time.Unix(0, f.last.Load()).Add(f.idle)
		if time.Now().After(end) || f.network.ctx.Err() != nil {
			return
		}
		f.out.SetReadDeadline(end)
		k, err := f.out.Read(buf)
		switch {
		case err == nil:
			f.touch()
			if _, err := f.in.Write(buf[:k]); err != nil {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED):
			f.refused()
		case errors.Is(err, net.ErrClosed):
			return
		}
	}
}
