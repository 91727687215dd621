package usernet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"build/internal/veth"
)

// link is the stack's view of a packet socket with a ring. The stack has such an end itself, but it takes frames from the queue of
// the socket, which is bounded to a few of 64 KiB by a limit that only root can raise (net.core.rmem_max); a third of what a busy
// step sent was lost.
type link struct {
	fd   int
	ring []byte
	wake int // an event: stop reading

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
	address    tcpip.LinkAddress
	reading    sync.WaitGroup
}

// newLink maps the ring of a socket that veth.Join made. The socket stays the caller's, and has to stay open until close.
func newLink(packets *os.File) (*link, error) {
	l := &link{fd: int(packets.Fd()), address: tcpip.LinkAddress(gatewayMAC[:])}
	var err error
	if l.ring, err = unix.Mmap(l.fd, 0, veth.RingFrames*veth.FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(err, unix.Munmap(l.ring))
	}
	return l, nil
}

// close gives up the ring. Nobody reads any more: the stack has let go of the link.
func (l *link) close() {
	unix.Close(l.wake)
	_ = unix.Munmap(l.ring)
}

// The fields of struct tpacket2_hdr (linux/if_packet.h) that matter here.
const (
	frameLen     = 4  // of the frame as it was
	frameSnaplen = 8  // of what there was room for
	frameMAC     = 12 // where it begins
	statusKernel = 0
	statusUser   = 1
)

func (l *link) status(frame []byte) *uint32 { return (*uint32)(unsafe.Pointer(&frame[0])) }

// read passes frames on in the order in which they came, until it is woken.
func (l *link) read(d stack.NetworkDispatcher) {
	for at := 0; ; at = (at + 1) % veth.RingFrames {
		frame := l.ring[at*veth.FrameSize:][:veth.FrameSize]
		for atomic.LoadUint32(l.status(frame))&statusUser == 0 {
			if l.wait() {
				return
			}
		}
		n := binary.NativeEndian.Uint32(frame[frameSnaplen:])
		mac := uint32(binary.NativeEndian.Uint16(frame[frameMAC:]))
		var view *buffer.View
		if n == binary.NativeEndian.Uint32(frame[frameLen:]) && mac+n <= veth.FrameSize {
			view = buffer.NewViewWithData(frame[mac : mac+n])
		}
		atomic.StoreUint32(l.status(frame), statusKernel)
		if view == nil { // larger than the interface allows
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
		pkt.RXChecksumValidated = true
		d.DeliverNetworkPacket(0, pkt)
		pkt.DecRef()
	}
}

// wait blocks until something happened, and reports whether it is the end.
func (l *link) wait() (stop bool) {
	fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.wake), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, -1); err != nil {
		return err != unix.EINTR
	}
	if fds[0].Revents&unix.POLLERR != 0 { // the interface is gone, which is said once; the end of the step will be said, too
		_, _ = unix.GetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	}
	return fds[1].Revents != 0
}

// WritePackets sends frames to the step. One that cannot be sent is lost, as on any wire.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range list.AsSlice() {
		if _, err := unix.SendmsgBuffers(l.fd, pkt.AsSlices(), nil, nil, unix.MSG_DONTWAIT); err != nil {
			if errno, ok := err.(unix.Errno); ok && sent == 0 {
				return sent, tcpip.TranslateErrno(errno)
			}
			return sent, nil
		}
		sent++
	}
	return sent, nil
}

// Attach sets who is given the frames from begin on. With nil it ends reading.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	l.dispatcher = d
	l.mu.Unlock()
	if d == nil {
		one := binary.NativeEndian.AppendUint64(nil, 1)
		_, _ = unix.Write(l.wake, one) // an event that is full wakes, too
		l.reading.Wait()
	}
}

// begin starts reading: when the stack is ready, so that no frame meets a part of it.
func (l *link) begin() {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	l.reading.Go(func() { l.read(d) })
}

// IsAttached reports whether Attach was called with something.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// Wait waits until nobody reads.
func (l *link) Wait() { l.reading.Wait() }

// MTU is that of frames; the Ethernet endpoint on top takes its header off.
func (l *link) MTU() uint32 { return mtu + header.EthernetMinimumSize }

// LinkAddress is the gateway's.
func (l *link) LinkAddress() tcpip.LinkAddress {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.address
}

// SetLinkAddress changes it.
func (l *link) SetLinkAddress(a tcpip.LinkAddress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.address = a
}

// Capabilities says that checksums need not be checked: the step's kernel leaves them to the device, which is memory.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// The rest of what the stack may ask of a link has no meaning for this one.

func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
