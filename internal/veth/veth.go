// Package veth makes a network namespace with one interface, eth0, of which whatever comes out arrives at a packet socket.
//
// It owns how that is asked of the kernel: a pair of veth devices, because it takes nothing but the right to make the namespace
// (a tap would take /dev/net/tun, which containers do not have). The other end stays in a namespace where nobody is, so that eth0
// is all there is to see. The package runs in a step's first process and therefore imports little (see executor/init.go). It
// knows nothing of what is said over the interface.
package veth

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"build/internal/netlink"
)

// Interface says what eth0 is to be.
type Interface struct {
	MTU          uint32  // bytes of the largest IP packet
	MAC, PeerMAC [6]byte // of eth0, and of whoever answers at the other end
	Addresses    []Address
}

// Address is an address of eth0 and the default route of its family. IP and Gateway have 4 or 16 bytes.
type Address struct {
	IP      []byte
	Bits    uint8 // of the network that is reached without the gateway
	Gateway []byte
}

const (
	// Name is the interface's.
	Name = "eth0"
	// index is the same everywhere. Small numbers are taken where modules put devices into every new namespace (sit0, tunl0).
	index = 100
	// loopback is the first device that the kernel makes in a namespace.
	loopback = 1
)

// The socket that Join returns has a ring (PACKET_RX_RING of packet(7), version 2) of so many frames of so many bytes, headers
// included. It lies in the kernel's memory, for as long as the socket is open.
const (
	RingFrames = 128
	FrameSize  = 64 << 10

	blockSize = 64 << 10 // frames are allocated by blocks, which are contiguous memory
)

// Check refuses what is no interface.
func (i *Interface) Check() error {
	if i == nil || i.MTU == 0 || len(i.Addresses) == 0 {
		return errors.New("a private network without an interface")
	}
	for _, a := range i.Addresses {
		if n := len(a.IP); (n != 4 && n != 16) || len(a.Gateway) != n || int(a.Bits) > 8*n {
			return fmt.Errorf("interface address %v/%d with gateway %v", a.IP, a.Bits, a.Gateway)
		}
	}
	return nil
}

// Join puts the calling thread into a new network namespace with lo and eth0 and returns a socket for the Ethernet frames of
// eth0, with a ring. The thread must be alone in its namespace, as after CLONE_NEWNET: the other end of eth0 is left there.
func Join(i *Interface) (packets int, err error) {
	outer, err := netlink.Open()
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer outer.Close()
	packets, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // of no protocol: nothing arrives before bind
	if err != nil {
		return -1, fmt.Errorf("open a packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(packets)
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := makePair(outer, i); err != nil {
		return -1, fmt.Errorf("make a pair of interfaces: %w", err)
	}
	if err := configure(i); err != nil {
		return -1, fmt.Errorf("configure "+Name+": %w", err)
	}
	return packets, bind(packets)
}

// bind lets frames arrive.
func bind(packets int) error {
	// The outer device, which was up first, has no queue before the kernel gets round to noticing its carrier, and drops what is
	// sent until then. The socket need not go through a queue.
	if err := unix.SetsockoptInt(packets, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return fmt.Errorf("set up the packet socket: %w", err)
	}
	err := unix.SetsockoptInt(packets, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err != nil && err != unix.ENOPROTOOPT { // before Linux 4.20, where a socket does not hear itself either
		return fmt.Errorf("set up the packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(packets, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return fmt.Errorf("set up the packet socket: %w", err)
	}
	err = unix.SetsockoptTpacketReq(packets, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq{
		Block_size: blockSize, Block_nr: RingFrames * FrameSize / blockSize, Frame_size: FrameSize, Frame_nr: RingFrames,
	})
	if err != nil {
		return fmt.Errorf("make the ring of the packet socket: %w", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(packets, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return fmt.Errorf("bind the packet socket: %w", err)
	}
	return nil
}

// linkHeader is a struct ifinfomsg.
func linkHeader(index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags) // of these flags only
	return b
}

// linkUp is `ip link set … up`. A veth device cannot be up before it has a peer.
func linkUp(c *netlink.Conn, index uint32) error {
	_, err := c.Do(netlink.New(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHeader(index, unix.IFF_UP)))
	return err
}

// makePair makes both ends: the outer one in the namespace of outer, eth0 in that of the calling thread.
func makePair(outer *netlink.Conn, i *Interface) error {
	const vethPeer = 1 // VETH_INFO_PEER
	m := netlink.New(unix.RTM_NEWLINK, create, linkHeader(index, 0))
	m.String(unix.IFLA_IFNAME, "gateway")
	m.Uint32(unix.IFLA_MTU, i.MTU)
	m.Attr(unix.IFLA_ADDRESS, i.PeerMAC[:])
	m.Nest(unix.IFLA_LINKINFO, func() {
		m.String(unix.IFLA_INFO_KIND, "veth")
		m.Nest(unix.IFLA_INFO_DATA, func() {
			m.Nest(vethPeer, func() {
				m.Raw(linkHeader(index, 0))
				m.String(unix.IFLA_IFNAME, Name)
				m.Uint32(unix.IFLA_MTU, i.MTU)
				m.Attr(unix.IFLA_ADDRESS, i.MAC[:])
				// A packet socket is given what the sender left for the device to cut. Of datagrams that were to be cut
				// (UDP_SEGMENT) it could not tell where.
				m.Uint32(unix.IFLA_GSO_MAX_SEGS, 1)
				m.Uint32(unix.IFLA_NET_NS_PID, uint32(unix.Gettid()))
			})
		})
	})
	if _, err := outer.Do(m); err != nil {
		return err
	}
	return linkUp(outer, index)
}

// configure gives eth0 its addresses, and neighbours that need not be asked for.
func configure(i *Interface) error {
	c, err := netlink.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, i := range []uint32{loopback, index} {
		if err := linkUp(c, i); err != nil {
			return err
		}
	}
	for _, a := range i.Addresses {
		for _, m := range []*netlink.Message{addressMessage(a), neighbourMessage(a, i.PeerMAC), routeMessage(a)} {
			if _, err := c.Do(m); err != nil {
				return err
			}
		}
	}
	return nil
}

const create = unix.NLM_F_CREATE | unix.NLM_F_EXCL

func (a Address) family() byte {
	if len(a.IP) == 16 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func addressMessage(a Address) *netlink.Message {
	// Nobody else is there to have the address, so it need not be probed for (a second during which it cannot be used).
	h := []byte{a.family(), a.Bits, unix.IFA_F_PERMANENT | unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(h[4:], index)
	m := netlink.New(unix.RTM_NEWADDR, create, h)
	m.Attr(unix.IFA_LOCAL, a.IP)
	m.Attr(unix.IFA_ADDRESS, a.IP)
	return m
}

func neighbourMessage(a Address, mac [6]byte) *netlink.Message {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = a.family()
	binary.NativeEndian.PutUint32(h[4:], index)
	binary.NativeEndian.PutUint16(h[8:], unix.NUD_PERMANENT)
	m := netlink.New(unix.RTM_NEWNEIGH, create, h)
	m.Attr(unix.NDA_DST, a.Gateway)
	m.Attr(unix.NDA_LLADDR, mac[:])
	return m
}

const (
	firstSegments   = 2
	retransmitAfter = 10 // milliseconds; the kernel's own minimum is 200
)

func routeMessage(a Address) *netlink.Message {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[4], h[5] = a.family(), unix.RT_TABLE_MAIN, unix.RTPROT_BOOT
	h[6], h[7] = unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	m := netlink.New(unix.RTM_NEWROUTE, create, h)
	m.Attr(unix.RTA_GATEWAY, a.Gateway)
	m.Uint32(unix.RTA_OIF, index)
	// What the ring has no room for is lost. Many new connections may not fill it with their first ten segments, and nobody is
	// further away than the next process.
	m.Nest(unix.RTA_METRICS, func() {
		m.Uint32(unix.RTAX_INITCWND, firstSegments)
		m.Uint32(unix.RTAX_RTO_MIN, retransmitAfter)
	})
	return m
}
