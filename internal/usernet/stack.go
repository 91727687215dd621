package usernet

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nic is the number of the stack's one interface.
const nic = 1

// network is the private network of one step.
type network struct {
	ctx      context.Context // ends with the network
	stack    *stack.Stack
	policy   *policy
	resolver *resolver
	complain func(format string, args ...any)

	syns  syns
	udp   slots // datagram flows
	pings slots
}

// serve answers what comes out of a packet socket until ctx ends; that nothing comes any more, because the step and its interface
// are gone, is not the end: whoever made them knows it better. The socket stays the caller's. What cannot be
// done for want of something on this machine is told on log, each kind once.
func serve(ctx context.Context, packets *os.File, resolvConf string, log io.Writer) error {
	p, err := newPolicy()
	if err != nil {
		return err
	}
	n := &network{
		ctx: ctx, policy: p, resolver: &resolver{path: resolvConf, slots: slots{max: 256}}, complain: complainer(log),
		syns: syns{quotes: map[stack.TransportEndpointID]quote{}}, udp: slots{max: 1024}, pings: slots{max: 64},
	}
	l, err := newLink(packets)
	if err != nil {
		return err
	}
	defer l.close()
	if err := n.start(ethernet.New(l)); err != nil {
		return err
	}
	l.begin()
	<-ctx.Done()
	n.stack.RemoveNIC(nic) // returns when nobody reads the socket any more
	n.stack.Close()
	runtime.KeepAlive(packets) // the stack knows only its number
	return nil
}

// start makes the stack. It answers to every address: what is behind one is found out by dialling it.
func (n *network) start(link stack.LinkEndpoint) error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		HandleLocal:        false,
	})
	n.stack = s
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	for _, err := range []tcpip.Error{
		s.CreateNIC(nic, link),
		s.SetPromiscuousMode(nic, true),
		s.SetSpoofing(nic, true),
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate),
		n.addAddress(ipv4.ProtocolNumber, gatewayIPv4, stepIPv4),
		n.addAddress(ipv6.ProtocolNumber, gatewayIPv6, stepIPv6),
	} {
		if err != nil {
			return fmt.Errorf("set up the TCP/IP stack: %v", err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, n.tcpHandler())
	s.SetTransportProtocolHandler(udp.ProtocolNumber, n.handleUDP)
	s.SetTransportProtocolHandler(header.ICMPv4ProtocolNumber, n.handleICMP)
	s.SetTransportProtocolHandler(header.ICMPv6ProtocolNumber, n.handleICMP)
	return nil
}

// addAddress gives the stack the gateway's address of one family, and the step as its neighbour.
func (n *network) addAddress(proto tcpip.NetworkProtocolNumber, gateway netip.Addr, step netip.Prefix) tcpip.Error {
	err := n.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          proto,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(gateway.AsSlice()), PrefixLen: step.Bits()},
	}, stack.AddressProperties{})
	if err != nil {
		return err
	}
	return n.stack.AddStaticNeighbor(nic, proto, tcpip.AddrFromSlice(step.Addr().AsSlice()), tcpip.LinkAddress(stepMAC[:]))
}

// isGateway reports whether a packet is for the gateway itself.
func isGateway(a netip.Addr) bool { return a == gatewayIPv4 || a == gatewayIPv6 }

func addrOf(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

// send puts an IP packet on the wire to the step.
func (n *network) send(proto tcpip.NetworkProtocolNumber, packet []byte) {
	// A packet that is lost on its way is nothing new to whoever waits for it.
	_ = n.stack.WritePacketToRemote(nic, tcpip.LinkAddress(stepMAC[:]), proto, buffer.MakeWithData(packet))
}

// slots bounds how much of something there is at a time.
type slots struct {
	max  int
	mu   sync.Mutex
	used int
}

func (s *slots) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.max {
		return false
	}
	s.used++
	return true
}

func (s *slots) release() {
	s.mu.Lock()
	s.used--
	s.mu.Unlock()
}

// complainer tells each kind of complaint once: it may concern every packet.
func complainer(log io.Writer) func(format string, args ...any) {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if told[format] {
			return
		}
		told[format] = true
		fmt.Fprintf(log, "private network: "+format+"\n", args...)
	}
}

// dialTimeout is longer than any kernel tries on its own by default (two minutes): it ends what no longer has a caller inside.
const dialTimeout = 5 * time.Minute
