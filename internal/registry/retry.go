package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The waits before the second, third… attempt, before jitter. Their sum is about what a registry behind a load
// balancer needs to come back from a restart, and short enough that a dead one is reported while somebody still looks.
var backoff = [...]time.Duration{250 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second}

const (
	// A refused connection is answered at once and rarely heals within seconds.
	maxRefused = 2
	// A registry that asks for more patience than this is reported instead of obeyed.
	maxRetryAfter = 90 * time.Second
)

// Notice tells the caller that a request is being repeated, so that a pause has a visible reason.
type Notice struct {
	Host  string
	Err   error
	Wait  time.Duration
	Retry int // 1 for the first repetition
}

// retryState counts the attempts of one operation.
type retryState struct {
	c       *Client
	host    string
	attempt int
	refused int
}

// next decides whether err may be repeated and, if so, waits. It returns nil when the operation should run again and
// otherwise the error to give up with.
func (r *retryState) next(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !transient(err) || r.attempt >= len(backoff) {
		return err
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		if r.refused++; r.refused > maxRefused {
			return err
		}
	}
	wait := time.Duration(float64(r.c.scale(backoff[r.attempt])) * (0.8 + 0.4*rand.Float64()))
	var e *Error
	if errors.As(err, &e) && e.after > 0 {
		if e.after > maxRetryAfter {
			return fmt.Errorf("%w (the registry asks to wait %s)", err, e.after)
		}
		wait = max(wait, e.after)
	}
	r.attempt++
	if r.c.o.Notify != nil {
		r.c.o.Notify(Notice{Host: r.host, Err: err, Wait: wait, Retry: r.attempt})
	}
	return sleep(ctx, wait)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// transient reports whether the same request may well succeed a moment later.
func transient(err error) bool {
	var f *finalError
	if errors.As(err, &f) {
		return false
	}
	var e *Error
	if errors.As(err, &e) && e.Status != 0 {
		return retryStatus(e.Status)
	}
	if errors.As(err, &e) && e.Class != Network {
		return false
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, http.ErrSchemeMismatch) {
		return false
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Temporary() && !dns.IsNotFound
	}
	for _, again := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, net.ErrClosed, errStalled} {
		if errors.Is(err, again) {
			return true
		}
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return true
	}
	// The HTTP/2 errors of net/http have no exported types: lost connections, GOAWAY, streams reset by the server.
	return strings.Contains(err.Error(), "http2: ") || strings.Contains(err.Error(), "stream error: ")
}

// finalError marks an error that an inner operation has already given every chance.
type finalError struct{ error }

func (f *finalError) Unwrap() error { return f.error }

func retryStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout, 499, 522:
		return true
	}
	return false
}

// retryAfter reads the Retry-After header in both of its forms; 0 means there is none.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return 0
	}
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
