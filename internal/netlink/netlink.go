// Package netlink speaks the little of rtnetlink(7) that a sandbox needs: messages with attributes, one at a time, each answered.
//
// It owns the encoding and nothing of what the messages mean. It imports only what a step's first process has anyway, because
// that is where it is used (see executor/init.go). It refuses dumps and notifications.
package netlink

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// Conn is a socket of one network namespace: that of the thread that opened it, wherever the thread goes later.
type Conn struct {
	fd  int
	seq uint32
}

// Open opens a socket in the network namespace of the calling thread.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &Conn{fd: fd}, nil
}

// Close closes the socket.
func (c *Conn) Close() { unix.Close(c.fd) }

// Message is a request under construction.
type Message struct{ b []byte }

// New begins a message of a type (RTM_…) with flags (NLM_F_…) and the fixed header that the type prescribes.
func New(typ, flags uint16, header []byte) *Message {
	m := &Message{b: make([]byte, unix.SizeofNlMsghdr, 256)}
	binary.NativeEndian.PutUint16(m.b[4:], typ)
	binary.NativeEndian.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	m.b = append(m.b, header...)
	return m
}

// Attr appends an attribute.
func (m *Message) Attr(typ uint16, data []byte) {
	m.Nest(typ, func() { m.b = append(m.b, data...) })
}

// Uint32 appends an attribute that is a number.
func (m *Message) Uint32(typ uint16, v uint32) {
	m.Attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// String appends an attribute that is a text.
func (m *Message) String(typ uint16, s string) {
	m.Attr(typ, append([]byte(s), 0))
}

// Nest appends an attribute whose content is what add appends.
func (m *Message) Nest(typ uint16, add func()) {
	at := len(m.b)
	m.b = append(m.b, 0, 0, 0, 0)
	add()
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
	binary.NativeEndian.PutUint16(m.b[at+2:], typ)
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// Raw appends bytes that are no attribute, such as the header inside a nested one.
func (m *Message) Raw(b []byte) { m.b = append(m.b, b...) }

// Do sends a message and waits for the answer: its payload, or nothing when all the kernel says is that it is done. What the
// kernel refuses is a unix.Errno. Calls may not be concurrent.
func (c *Conn) Do(m *Message) ([]byte, error) {
	c.seq++
	binary.NativeEndian.PutUint32(m.b[0:], uint32(len(m.b)))
	binary.NativeEndian.PutUint32(m.b[8:], c.seq)
	flags := binary.NativeEndian.Uint16(m.b[6:])
	if flags&(unix.NLM_F_CREATE|unix.NLM_F_ACK) != 0 { // a change is answered only on demand
		binary.NativeEndian.PutUint16(m.b[6:], flags|unix.NLM_F_ACK)
	}
	if err := unix.Sendto(c.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		typ, seq, payload, err := parse(buf[:n])
		if err != nil {
			return nil, err
		}
		if seq != c.seq { // the answer to one that was given up
			continue
		}
		if typ != unix.NLMSG_ERROR {
			return payload, nil
		}
		if len(payload) < 4 {
			return nil, errShort
		}
		if errno := -int32(binary.NativeEndian.Uint32(payload)); errno != 0 {
			return nil, unix.Errno(errno)
		}
		return nil, nil
	}
}

var errShort = errors.New("netlink: a message ends too early")

func parse(b []byte) (typ uint16, seq uint32, payload []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, 0, nil, errShort
	}
	n := binary.NativeEndian.Uint32(b)
	if n < unix.SizeofNlMsghdr || int(n) > len(b) {
		return 0, 0, nil, errShort
	}
	return binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n], nil
}
