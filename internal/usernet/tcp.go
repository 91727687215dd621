package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// maxConnecting is how many connections may be under way, as with a listener's backlog. The SYN of a further one is lost, and
// sent again by the step.
const maxConnecting = 1024

// syns remembers, of each connection under way, what an ICMP message about it has to quote.
type syns struct {
	mu     sync.Mutex
	quotes map[stack.TransportEndpointID]quote
}

// add reports whether the connection is new, and may be made.
func (s *syns) add(id stack.TransportEndpointID, q quote) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.quotes[id]; known || len(s.quotes) >= maxConnecting {
		return false
	}
	s.quotes[id] = q
	return true
}

func (s *syns) get(id stack.TransportEndpointID) quote {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quotes[id]
}

func (s *syns) remove(id stack.TransportEndpointID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.quotes, id)
}

// tcpHandler is given the segments of no connection. A SYN begins one; the forwarder's answer to anything else is a reset.
func (n *network) tcpHandler() func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	f := tcp.NewForwarder(n.stack, 0, maxConnecting, n.connect)
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		h := header.TCP(pkt.TransportHeader().Slice())
		if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return f.HandlePacket(id, pkt)
		}
		if !n.syns.add(id, quoteOf(pkt)) {
			return true
		}
		if !f.HandlePacket(id, pkt) { // malformed
			n.syns.remove(id)
			return false
		}
		return true
	}
}

// connect dials first and lets the step's connection be made only when that succeeded, so that it fails in the same way.
func (n *network) connect(r *tcp.ForwarderRequest) {
	id := r.ID()
	defer n.syns.remove(id)
	out, err := n.dialTCP(netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort))
	if err != nil {
		r.Complete(n.refuse(n.syns.get(id), err))
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil { // the step has given up
		abort(out)
		return
	}
	ep.SocketOptions().SetKeepAlive(false) // both ends are on this machine; whether the outside lives is asked there
	go (&pair{in: gonet.NewTCPConn(&wq, ep), ep: ep, out: out}).relay(n.ctx)
}

func (n *network) dialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	if isGateway(to.Addr()) {
		if to.Port() != dnsPort {
			return nil, unix.ECONNREFUSED
		}
		return n.resolver.dialTCP(ctx)
	}
	if err := n.policy.check(to.Addr()); err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
}

// refuse tells the step why a connection cannot be had, and reports whether it is to be a reset.
func (n *network) refuse(q quote, err error) (reset bool) {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return true
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false // silence outside is silence inside
	}
	reason, known := reasonOf(err)
	if !known {
		n.complain("a connection could not be made: %v", err)
		return true
	}
	n.unreachable(q, reason)
	return false
}

// abort ends a connection with a reset.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// pair is one connection of the step: the half that ends here, and the one that was dialled for it.
type pair struct {
	in   *gonet.TCPConn
	ep   tcpip.Endpoint
	out  *net.TCPConn
	once sync.Once
}

// relay passes on everything, the end of each direction and resets included.
func (p *pair) relay(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.reset)
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { p.direction(p.out, p.in, p.out.CloseWrite) })
	both.Go(func() { p.direction(p.in, p.out, p.in.CloseWrite) })
	both.Wait()
	p.in.Close()
	p.out.Close()
}

// chunk is how much is passed on at a time.
const chunk = 128 << 10

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

func (p *pair) direction(to io.Writer, from io.Reader, closeWrite func() error) {
	b := chunks.Get().(*[]byte)
	defer chunks.Put(b)
	for {
		k, err := from.Read(*b)
		if k > 0 {
			if _, err := to.Write((*b)[:k]); err != nil {
				p.reset()
				return
			}
		}
		if err == io.EOF {
			if closeWrite() != nil {
				p.reset()
			}
			return
		}
		if err != nil {
			p.reset()
			return
		}
	}
}

// reset ends both halves at once, without saying that all has been said.
func (p *pair) reset() {
	p.once.Do(func() {
		p.ep.Abort()
		abort(p.out)
	})
}
