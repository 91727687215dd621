package usernet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// quote is what a message about a packet says of it: its IP header and the first 8 bytes behind it (RFC 792, RFC 4443).
type quote []byte

func quoteOf(pkt *stack.PacketBuffer) quote {
	b := append(quote(nil), pkt.NetworkHeader().Slice()...)
	t := pkt.TransportHeader().Slice()
	return append(b, t[:min(8, len(t))]...)
}

func (q quote) is6() bool { return len(q) > 0 && q[0]>>4 == 6 }

// ends returns where the packet came from and where it went.
func (q quote) ends() (from, to netip.Addr) {
	if q.is6() {
		h := header.IPv6(q)
		return addrOf(h.SourceAddress()), addrOf(h.DestinationAddress())
	}
	h := header.IPv4(q)
	return addrOf(h.SourceAddress()), addrOf(h.DestinationAddress())
}

// reason is why a destination is unreachable: the codes of ICMP and of ICMPv6.
type reason struct{ v4, v6 byte }

var (
	netUnreachable  = reason{byte(header.ICMPv4NetUnreachable), byte(header.ICMPv6NetworkUnreachable)}
	hostUnreachable = reason{byte(header.ICMPv4HostUnreachable), byte(header.ICMPv6AddressUnreachable)}
	portUnreachable = reason{byte(header.ICMPv4PortUnreachable), byte(header.ICMPv6PortUnreachable)}
	prohibited      = reason{byte(header.ICMPv4AdminProhibited), byte(header.ICMPv6Prohibited)}
)

// reasonOf translates an error of a socket. It does not know all of them.
func reasonOf(err error) (reason, bool) {
	for _, known := range []struct {
		err error
		reason
	}{
		{errDenied, prohibited}, {unix.EACCES, prohibited}, {unix.EPERM, prohibited},
		{unix.ENETUNREACH, netUnreachable}, {unix.EADDRNOTAVAIL, netUnreachable}, {unix.EAFNOSUPPORT, netUnreachable},
		{unix.EHOSTUNREACH, hostUnreachable}, {unix.EHOSTDOWN, hostUnreachable}, {unix.ENETDOWN, netUnreachable},
		{unix.ECONNREFUSED, portUnreachable},
	} {
		if errors.Is(err, known.err) {
			return known.reason, true
		}
	}
	return reason{}, false
}

// unreachable tells the step that a packet did not arrive. That nobody listens on a port is said by the destination; anything
// else by the gateway.
func (n *network) unreachable(q quote, r reason) {
	if len(q) == 0 {
		return
	}
	from, to := q.ends()
	if q.is6() {
		sender := gatewayIPv6
		if r == portUnreachable {
			sender = to
		}
		b := make([]byte, header.ICMPv6MinimumSize, header.ICMPv6MinimumSize+len(q))
		b[0], b[1] = byte(header.ICMPv6DstUnreachable), r.v6
		n.sendICMP(sender, from, append(b, q...))
		return
	}
	sender := gatewayIPv4
	if r == portUnreachable {
		sender = to
	}
	b := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(q))
	b[0], b[1] = byte(header.ICMPv4DstUnreachable), r.v4
	n.sendICMP(sender, from, append(b, q...))
}

// sendICMP sends a message to the step after it has filled in the checksum.
func (n *network) sendICMP(from, to netip.Addr, message []byte) {
	src, dst := tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.AsSlice())
	message[2], message[3] = 0, 0
	if from.Is6() {
		sum := header.PseudoHeaderChecksum(header.ICMPv6ProtocolNumber, src, dst, uint16(len(message)))
		binary.BigEndian.PutUint16(message[2:], ^checksum.Checksum(message, sum))
		h := header.IPv6(make([]byte, header.IPv6MinimumSize))
		h.Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(message)), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst,
		})
		n.send(header.IPv6ProtocolNumber, append(h, message...))
		return
	}
	binary.BigEndian.PutUint16(message[2:], ^checksum.Checksum(message, 0))
	h := header.IPv4(make([]byte, header.IPv4MinimumSize))
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(h) + len(message)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber), SrcAddr: src, DstAddr: dst,
	})
	h.SetChecksum(^h.CalculateChecksum())
	n.send(header.IPv4ProtocolNumber, append(h, message...))
}

// pingWait is how long the answer to an echo request is waited for.
const pingWait = 10 * time.Second

// handleICMP is given every echo request. Those to the gateway are left to the stack, which answers them; others are sent on, and
// answered when their answer comes.
func (n *network) handleICMP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	to := addrOf(id.LocalAddress)
	if isGateway(to) || to.IsMulticast() {
		return false
	}
	q := quoteOf(pkt)
	view := stack.PayloadSince(pkt.TransportHeader())
	request := append([]byte(nil), view.AsSlice()...)
	view.Release()
	isEcho := len(request) >= header.ICMPv4MinimumSize &&
		(to.Is4() && request[0] == byte(header.ICMPv4Echo) || to.Is6() && request[0] == byte(header.ICMPv6EchoRequest))
	if !isEcho || !n.pings.take() {
		return true
	}
	go func() {
		defer n.pings.release()
		answer, err := n.ping(to, request)
		if answer != nil {
			n.sendICMP(to, addrOf(id.RemoteAddress), answer)
		} else if reason, known := reasonOf(err); known {
			n.unreachable(q, reason)
		}
	}()
	return true
}

// ping sends an echo request by a socket for that purpose, which an administrator may forbid (sysctl net.ipv4.ping_group_range),
// and returns the answer as the step expects it.
func (n *network) ping(to netip.Addr, request []byte) ([]byte, error) {
	if err := n.policy.check(to); err != nil {
		return nil, err
	}
	c, err := dialPing(to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer closeWhen(n.ctx, c)()
	c.SetDeadline(time.Now().Add(pingWait))
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	answer := make([]byte, maxDatagram)
	k, err := c.Read(answer)
	if err != nil {
		return nil, err
	}
	if k < header.ICMPv4MinimumSize {
		return nil, errors.New("an answer that is too short")
	}
	copy(answer[4:6], request[4:6]) // the identifier; outside it was the socket's
	return answer[:k], nil
}

func dialPing(to netip.Addr) (net.Conn, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	var addr unix.Sockaddr = &unix.SockaddrInet4{Addr: v4(to)}
	if to.Is6() {
		addr = &unix.SockaddrInet6{Addr: to.As16()}
	}
	if err := unix.Connect(fd, addr); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func v4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}
