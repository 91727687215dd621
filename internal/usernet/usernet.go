// Package usernet is the other end of a step's private network: a TCP/IP stack inside a process of ours that ends every
// connection of the step and makes it once more, with an ordinary socket, from where the build runs. It needs no privilege, no
// device and no program.
//
// It owns the addresses of that network, what may be reached from it (policy.go), the name server in it (dns.go), and the
// process all this runs in (gateway.go): one for each step, so that neither a flaw in the stack nor a flood of packets meets
// anything but the step that sent it. It knows nothing of namespaces: package veth makes the interface, in the step, and what
// arrives here is a packet socket. It refuses to reach the machine the build runs on, and to invent answers: what is refused, unreachable or
// silent outside is so inside.
//
// Reading order: NewInterface, Start (gateway.go), serve (stack.go), then tcp.go, udp.go, dns.go and icmp.go, one protocol each.
package usernet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"build/internal/veth"
)

// The addresses are the same everywhere, so that results do not depend on the machine, and such that they hide nothing outside.
// 192.0.0.0/29 is meant for a host and a translator inside it and never occurs on a wire (RFC 7335). The IPv6 network is one of
// the local ones of RFC 4193 with a random number, and programs that have the choice prefer IPv4 to it (RFC 6724), because a
// route for IPv6 says little about whether it works.
var (
	gatewayIPv4 = netip.MustParseAddr("192.0.0.1")
	stepIPv4    = netip.MustParsePrefix("192.0.0.2/29")
	gatewayIPv6 = netip.MustParseAddr("fd5c:9b1e:72d4::1")
	stepIPv6    = netip.MustParsePrefix("fd5c:9b1e:72d4::2/64")
)

// mtu is what a frame of the ring has room for, after its own header and that of Ethernet. Few large packets cost less than many
// small ones (twice as much passes as with 16 KiB), and as every connection ends here their size is no business of the networks
// outside.
const mtu = veth.FrameSize - 128

// Locally administered addresses (the 2 in the first byte).
var (
	gatewayMAC = [6]byte{0x02, 0, 0, 0, 0, 1}
	stepMAC    = [6]byte{0x02, 0, 0, 0, 0, 2}
)

// NewInterface returns what the step's interface has to be when the calling process is what dials for it: with IPv6 if there is
// IPv6 here.
func NewInterface() (*veth.Interface, error) {
	six, err := hasIPv6()
	if err != nil {
		return nil, fmt.Errorf("look for IPv6: %w", err)
	}
	i := &veth.Interface{MTU: mtu, MAC: stepMAC, PeerMAC: gatewayMAC, Addresses: []veth.Address{address(stepIPv4, gatewayIPv4)}}
	if six {
		i.Addresses = append(i.Addresses, address(stepIPv6, gatewayIPv6))
	}
	return i, nil
}

func address(step netip.Prefix, gateway netip.Addr) veth.Address {
	return veth.Address{IP: step.Addr().AsSlice(), Bits: uint8(step.Bits()), Gateway: gateway.AsSlice()}
}

// hasIPv6 reports whether an interface has an address that reaches further than its own wire.
func hasIPv6() (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if ip := p.Addr(); err == nil && ip.Is6() && ip.IsGlobalUnicast() {
			return true, nil
		}
	}
	return false, nil
}

// ResolvConf returns what /etc/resolv.conf is inside where it is callers outside: the same, but for the servers. They are asked
// by the gateway, because those of the machine (127.0.0.53, say) cannot be reached from the step.
func ResolvConf(callers []byte) []byte {
	out := "nameserver " + gatewayIPv4.String() + "\n"
	for line := range strings.Lines(string(callers)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "nameserver" && f[0][0] != '#' && f[0][0] != ';' {
			out += strings.TrimRight(line, "\r\n") + "\n"
		}
	}
	return []byte(out)
}
