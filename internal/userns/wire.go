package userns

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A frame is an 8 byte header (payload length, number of files; little endian), sent with one sendmsg that carries the files,
// followed by the payload. The receiver reads header and payload by their exact lengths, so files always arrive with the
// frame they belong to.
const (
	headerLen  = 8
	maxPayload = 256 << 20
	maxFiles   = 250 // the kernel's limit for one message is 253
)

// request asks for one call, or, with Cancel, that the call of that ID be given up.
type request struct {
	ID     uint64
	Method string          `json:",omitempty"`
	In     json.RawMessage `json:",omitempty"`
	Cancel bool            `json:",omitempty"`
}

type response struct {
	ID  uint64
	Out json.RawMessage `json:",omitempty"`
	Err *RemoteError    `json:",omitempty"`
}

// conn sends and receives frames. Sends may be concurrent; receives may not.
type conn struct {
	sock *net.UnixConn
	send sync.Mutex
}

func newConn(f *os.File) (*conn, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("open the holder's socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("open the holder's socket: not a unix socket")
	}
	return &conn{sock: u}, nil
}

func (c *conn) Close() error { return c.sock.Close() }

// errNotSent marks errors of write that were found before anything was sent.
var errNotSent = errors.New("not sent")

func (c *conn) write(v any, files []*os.File) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: encode: %w", errNotSent, err)
	}
	if len(payload) > maxPayload {
		return fmt.Errorf("%w: message of %d bytes is too long", errNotSent, len(payload))
	}
	if len(files) > maxFiles {
		return fmt.Errorf("%w: %d files in one message, at most %d", errNotSent, len(files), maxFiles)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd()) // also makes it blocking, as the programs that get it as standard output expect
		}
		oob = unix.UnixRights(fds...)
	}
	var head [headerLen]byte
	binary.LittleEndian.PutUint32(head[:4], uint32(len(payload)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(files)))

	c.send.Lock()
	defer c.send.Unlock()
	n, _, err := c.sock.WriteMsgUnix(head[:], oob, nil)
	if err != nil {
		return err
	}
	if n < headerLen {
		if _, err := c.sock.Write(head[n:]); err != nil {
			return err
		}
	}
	_, err = c.sock.Write(payload)
	return err
}

// read returns the next frame's payload decoded into v, and its files. io.EOF means that the other side is gone.
func (c *conn) read(v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	var head [headerLen]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	for got := 0; got < headerLen; {
		n, oobn, flags, _, err := c.sock.ReadMsgUnix(head[got:], oob)
		if err != nil {
			return files, err
		}
		fs, err := receivedFiles(oob[:oobn])
		files = append(files, fs...)
		if err != nil {
			return files, err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return files, errors.New("files were lost in transit: too many open files")
		}
		if n == 0 {
			return files, io.EOF
		}
		got += n
	}
	size, count := binary.LittleEndian.Uint32(head[:4]), binary.LittleEndian.Uint32(head[4:])
	if size > maxPayload {
		return files, fmt.Errorf("message of %d bytes is too long", size)
	}
	if int(count) != len(files) {
		return files, fmt.Errorf("message has %d files instead of %d", len(files), count)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c.sock, payload); err != nil {
		return files, err
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return files, fmt.Errorf("decode: %w", err)
	}
	return files, nil
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("decode control message: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
