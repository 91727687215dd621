package usernet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What a step does in these tests. Each command prints its result in one line.
var clients = map[string]func(args []string) (string, error){
	"exchange": exchange,
	"dial":     dial,
	"parallel": parallel,
	"lookup":   lookup,
	"udp":      askUDP,
	"segments": segments,
	"drain":    drain,
	"reset":    resetAfter,
	"stream":   stream,
	"connects": connects,
}

func clientMain(args []string) {
	out, err := clients[args[0]](args[1:])
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println(out)
}

// noise is the same stream of bytes for the same seed.
func noise(seed uint64, size int64) io.Reader {
	var s [32]byte
	s[0] = byte(seed)
	return io.LimitReader(rand.NewChaCha8(s), size)
}

func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), n, err
}

// exchange sends size bytes, says that it is all, and reads until the other side says so: what the server sends after it has
// seen the end.
func exchange(args []string) (string, error) {
	size, _ := strconv.ParseInt(args[1], 10, 64)
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, noise(1, size))
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	s, n, err := sum(c)
	return fmt.Sprint(s, " ", n), errors.Join(err, <-sent)
}

// dial says how an attempt to connect ends.
func dial(args []string) (string, error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	c, err := d.Dial(args[0], args[1])
	if err == nil {
		c.Close()
		return "connected", nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno), nil
	}
	return "timeout", nil
}

// parallel has many exchanges at a time.
func parallel(args []string) (string, error) {
	count, _ := strconv.Atoi(args[1])
	var wg sync.WaitGroup
	results := make([]string, count)
	for i := range count {
		wg.Go(func() {
			out, err := exchange([]string{args[0], args[2]})
			results[i] = fmt.Sprint(out, " ", err)
		})
	}
	wg.Wait()
	slices.Sort(results)
	return strings.Join(slices.Compact(results), ", "), nil
}

// lookup asks the network's name server, over the given protocol.
func lookup(args []string) (string, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, args[0], gatewayIPv4.String()+":53")
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	addrs, err := r.LookupHost(ctx, args[1])
	var d *net.DNSError
	if errors.As(err, &d) {
		return fmt.Sprintf("notfound=%v temporary=%v", d.IsNotFound, d.IsTemporary), nil
	}
	return strings.Join(addrs, " "), err
}

// askUDP sends datagrams of the given sizes to a server that sends them back.
func askUDP(args []string) (string, error) {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	var got []string
	for _, a := range args[1:] {
		size, _ := strconv.ParseInt(a, 10, 64)
		b, _ := io.ReadAll(noise(2, size))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(b); err != nil {
			return "", err
		}
		in := make([]byte, 1<<16)
		n, err := c.Read(in)
		switch {
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
			var errno unix.Errno
			errors.As(err, &errno)
			return unix.ErrnoName(errno), nil
		case err != nil:
			return "", fmt.Errorf("datagram of %d bytes: %w", size, err)
		}
		got = append(got, fmt.Sprint(n, string(in[:n]) == string(b)))
	}
	return strings.Join(got, " "), nil
}

// segments has the kernel cut one buffer into datagrams of 1000 bytes, as programs that speak QUIC do.
func segments(args []string) (string, error) {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return "", err
	}
	var serr error
	raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) })
	if serr != nil {
		return "", serr
	}
	if _, err := c.Write(make([]byte, 5000)); err != nil {
		return "", err
	}
	return "sent", nil
}

// drain says a word, reads until the connection ends and says how.
func drain(args []string) (string, error) {
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, c)
	if errors.Is(err, unix.ECONNRESET) {
		return "ECONNRESET", nil
	}
	return "end", err
}

// resetAfter connects, says a word, waits for one, and ends with a reset.
func resetAfter(args []string) (string, error) {
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return "", err
	}
	c.(*net.TCPConn).SetLinger(0)
	return "reset", c.Close()
}
