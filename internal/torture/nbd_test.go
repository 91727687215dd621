package torture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
)

// The protocol of network block devices (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle
// negotiation, simple replies), by which a virtual machine has a recorder as its disk.

// serve serves one client on a socket until it disconnects. The channel is closed then.
func (d *recorder) serve(t testing.TB, socket string) <-chan struct{} {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err == nil {
			if err = d.negotiate(c); err == nil {
				err = d.transmit(c)
			}
			c.Close()
		}
		d.err = err
	}()
	return done
}

const (
	optionMagic  = 0x49484156454F5054 // "IHAVEOPT"
	optionAbort  = 2
	optionGo     = 7
	hasFlags     = 1
	sendsFlushes = 4
)

func (d *recorder) negotiate(c net.Conn) error {
	hello := binary.BigEndian.AppendUint64([]byte("NBDMAGIC"), optionMagic)
	if _, err := c.Write(binary.BigEndian.AppendUint16(hello, 3)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		return err
	}
	for {
		var o struct {
			Magic     uint64
			Option, N uint32
		}
		if err := binary.Read(c, binary.BigEndian, &o); err != nil {
			return err
		}
		if o.Magic != optionMagic || o.N > 1<<16 {
			return fmt.Errorf("option %+v", o)
		}
		if _, err := io.CopyN(io.Discard, c, int64(o.N)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := binary.BigEndian.AppendUint64(nil, 0x3e889045565a9)
			b = binary.BigEndian.AppendUint32(b, o.Option)
			b = binary.BigEndian.AppendUint32(b, kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
			_, err := c.Write(append(b, data...))
			return err
		}
		switch o.Option {
		case optionGo:
			info := binary.BigEndian.AppendUint64([]byte{0, 0}, uint64(len(d.now)))
			info = binary.BigEndian.AppendUint16(info, hasFlags|sendsFlushes)
			return errors.Join(reply(3, info), reply(1, nil))
		case optionAbort:
			return errors.Join(reply(1, nil), errors.New("the client gave up"))
		}
		if err := reply(1<<31|1, nil); err != nil { // not supported
			return err
		}
	}
}

func (d *recorder) transmit(c net.Conn) error {
	for {
		var q struct {
			Magic         uint32
			Flags, Type   uint16
			Handle, Begin uint64
			N             uint32
		}
		if err := binary.Read(c, binary.BigEndian, &q); err != nil {
			return err
		}
		end := q.Begin + uint64(q.N)
		if q.Magic != 0x25609513 || end > uint64(len(d.now)) {
			return fmt.Errorf("request %+v", q)
		}
		answer := binary.BigEndian.AppendUint32(nil, 0x67446698)
		answer = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(answer, 0), q.Handle)
		switch q.Type {
		case 0:
			answer = append(answer, d.now[q.Begin:end]...)
		case 1:
			data := make([]byte, q.N)
			if _, err := io.ReadFull(c, data); err != nil {
				return err
			}
			d.write(int64(q.Begin), data)
		case 2:
			return nil
		case 3:
			d.flush()
		default:
			return fmt.Errorf("request %+v", q)
		}
		if _, err := c.Write(answer); err != nil {
			return err
		}
	}
}
