package usernet

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

// BenchmarkThroughput is what one connection carries: from the step to the outside, the other way, and, to compare with, from
// this machine to the outside without a private network in between.
func BenchmarkThroughput(b *testing.B) {
	const size = 512 << 20
	for _, dir := range []string{"up", "down"} {
		l := listen(b, outside(b), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
		each(l, func(c *net.TCPConn) {
			defer c.Close()
			if dir == "up" {
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
			} else {
				_ = pour(c, size)
			}
		})
		b.Run(dir+"/direct", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if _, err := stream([]string{l.Addr().String(), dir, strconv.Itoa(size)}); err != nil {
					b.Fatal(err)
				}
			}
		})
		s := newStep(b, "")
		b.Run(dir+"/private", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				s.run("stream", l.Addr().String(), dir, strconv.Itoa(size))
			}
		})
	}
}

// BenchmarkConnect is one connection, made, used for a byte each way, and ended.
func BenchmarkConnect(b *testing.B) {
	l := listen(b, outside(b), "tcp", netip.AddrPortFrom(outside4.Addr(), 0).String())
	swap(l, nil, 1)
	s := newStep(b, "")
	for _, where := range []string{"direct", "private"} {
		b.Run(where, func(b *testing.B) {
			args := []string{l.Addr().String(), strconv.Itoa(b.N)}
			var took string
			if where == "direct" {
				took, _ = connects(args)
			} else {
				took = s.run("connects", args[0], args[1])
			}
			d, err := time.ParseDuration(took)
			must(b, err)
			b.ReportMetric(float64(d.Nanoseconds())/float64(b.N), "ns/op")
		})
	}
}

// pour sends zeros.
func pour(w io.Writer, size int64) error {
	block := make([]byte, 1<<20)
	for ; size > 0; size -= int64(len(block)) {
		if _, err := w.Write(block[:min(size, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}

// stream sends or receives that much.
func stream(args []string) (string, error) {
	size, _ := strconv.ParseInt(args[2], 10, 64)
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return "", err
	}
	defer c.Close()
	if args[1] == "up" {
		if err := pour(c, size); err != nil {
			return "", err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
	return fmt.Sprint(n), err
}

// connects has so many exchanges of one byte, one after the other, and says how long that took.
func connects(args []string) (string, error) {
	count, _ := strconv.Atoi(args[1])
	start := time.Now()
	for range count {
		if _, err := exchange([]string{args[0], "1"}); err != nil {
			return "", err
		}
	}
	return time.Since(start).String(), nil
}
