package usernet

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"build/internal/netlink"
)

// errDenied is why a destination is not dialled. Inside it is an ICMP message: administratively prohibited.
var errDenied = errors.New("not to be reached from a private network")

// denied are the networks that are never the outside.
var denied = prefixes(
	"0.0.0.0/8", "::/128", // this host: connecting there reaches the loopback interface
	"127.0.0.0/8", "::1/128",
	"169.254.0.0/16", "fe80::/10", // link-local: among them what tells a virtual machine its credentials
	"fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32", // the same of EC2, GCE, Alibaba, Azure
	"224.0.0.0/4", "ff00::/8", "240.0.0.0/4", // no connection can be made to them
)

// nat64 is the prefix below which a network may translate to IPv4 (RFC 6052); the last 32 bits are the address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// deniedAlways reports whether an address is in one of the denied networks, however it is written.
func deniedAlways(a netip.Addr) bool {
	a = a.Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, p := range denied {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// policy decides what may be dialled.
type policy struct {
	mu    sync.Mutex
	route *netlink.Conn // of the namespace that is dialled from
}

func newPolicy() (*policy, error) {
	c, err := netlink.Open()
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &policy{route: c}, nil
}

// check returns nil, errDenied, or why the kernel has no way to a.
//
// Every address that the kernel delivers to this machine itself is denied, not only those of loopback: such a packet goes over lo
// and so past the rules of a firewall for what comes in from outside. The kernel is asked because it knows all of them (routes of
// type local, which need not be an address of an interface) and as they are now.
func (p *policy) check(a netip.Addr) error {
	if deniedAlways(a) {
		return errDenied
	}
	a = a.Unmap()
	kind, err := p.routeType(a)
	if err != nil {
		return err
	}
	switch kind {
	case unix.RTN_UNICAST:
		return nil
	case unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE:
		return unix.EHOSTUNREACH
	}
	return errDenied // local, broadcast, anycast, prohibit
}

// rtmType is where a struct rtmsg has its type.
const rtmType = 7

// routeType asks the kernel how it would send to a: RTN_….
func (p *policy) routeType(a netip.Addr) (byte, error) {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = unix.AF_INET, 32
	if a.Is6() {
		h[0], h[1] = unix.AF_INET6, 128
	}
	m := netlink.New(unix.RTM_GETROUTE, 0, h)
	m.Attr(unix.RTA_DST, a.AsSlice())
	p.mu.Lock()
	answer, err := p.route.Do(m)
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if len(answer) < unix.SizeofRtMsg {
		return 0, fmt.Errorf("the kernel's route to %s is of %d bytes", a, len(answer))
	}
	return answer[rtmType], nil
}
