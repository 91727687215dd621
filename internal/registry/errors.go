package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Class says what kind of failure an Error is; callers choose exit codes and advice by it.
type Class string

const (
	Auth        Class = "auth"        // the registry refused the credentials, or wants some
	NotFound    Class = "not found"   // no such repository, manifest, blob or platform
	Network     Class = "network"     // could not reach the registry, or it kept failing
	Digest      Class = "digest"      // content is not what its digest, size or type promised
	Offline     Class = "offline"     // a request would have been needed, but sockets are forbidden
	Unsupported Class = "unsupported" // the content is well-formed but not something that can be built on
	Invalid     Class = "invalid"     // the reference or local configuration is malformed
)

// Error is the one error type of this package. Cancelled contexts are the exception: they come back as context errors.
type Error struct {
	Class  Class
	Ref    string // the reference, repository or host the operation was about
	Status int    // HTTP status, when a response caused it
	Err    error
	Hint   string // what the user can do, "" when there is no good advice

	after time.Duration // how long the registry asked to wait
}

func (e *Error) Error() string {
	if e.Ref == "" {
		return e.Err.Error()
	}
	return e.Ref + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// IsClass reports whether err is an Error of class c.
func IsClass(err error, c Class) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == c
}

func errorf(c Class, format string, args ...any) *Error {
	return &Error{Class: c, Err: fmt.Errorf(format, args...)}
}

// about fills in what the operation was about, unless an inner step already said it, and leaves context errors alone.
func about(ref string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.Ref != "" {
			return err
		}
		return &Error{Class: e.Class, Ref: ref, Status: e.Status, Err: err, Hint: e.Hint}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return &Error{Class: Network, Ref: ref, Err: err}
}

// statusError turns an unexpected response into an Error. It reads at most a little of the body and closes it.
func (h *host) statusError(resp *http.Response) error {
	defer resp.Body.Close()
	err := transport.CheckError(resp)
	var terr *transport.Error
	if !errors.As(err, &terr) {
		err = fmt.Errorf("%s %s: unexpected status %s", resp.Request.Method, resp.Request.URL.Redacted(), resp.Status)
	}
	e := &Error{Class: Network, Status: resp.StatusCode, Err: err, after: retryAfter(resp, h.c.now())}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Class = Auth
		e.Hint = h.authHint()
	case http.StatusNotFound, http.StatusGone:
		e.Class = NotFound
	case http.StatusTooManyRequests:
		e.Hint = "the registry limits requests; wait, or log in with `build login " + h.name + "` for a higher limit"
	case http.StatusRequestEntityTooLarge:
		e.Hint = "the registry, or a proxy before it, limits the size of uploads"
	case http.StatusUnsupportedMediaType:
		e.Class = Unsupported
	}
	if resp.StatusCode >= 400 && resp.StatusCode < 500 && e.Class == Network && isUnsupported(terr) {
		e.Class = Unsupported
	}
	return e
}

func isUnsupported(terr *transport.Error) bool {
	if terr == nil {
		return false
	}
	for _, d := range terr.Errors {
		if d.Code == transport.UnsupportedErrorCode {
			return true
		}
	}
	return false
}

func (h *host) authHint() string {
	if src := h.auth.source(); src != "" {
		return fmt.Sprintf("credentials from %s were used; check them with `build login %s`", src, h.name)
	}
	return fmt.Sprintf("no credentials for %s were found; the repository does not exist or needs `build login %s`", h.name, h.name)
}

// networkError explains a failed exchange with target. The standard library's messages name the cause; the hint names
// the setting that usually is wrong.
func (h *host) networkError(target string, err error) error {
	var already *Error
	if errors.As(err, &already) {
		return err
	}
	e := &Error{Class: Network, Err: fmt.Errorf("talking to %s: %w", target, err)}
	var (
		dns       *net.DNSError
		unknownCA x509.UnknownAuthorityError
		badName   x509.HostnameError
		badCert   x509.CertificateInvalidError
		op        *net.OpError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		e.Hint = fmt.Sprintf("%s speaks plain http; allow that with --insecure %s", target, target)
	case errors.As(err, &unknownCA):
		e.Hint = fmt.Sprintf("put the registry's CA into /etc/docker/certs.d/%s/ca.crt, name it in SSL_CERT_FILE, or skip verification with --insecure %s", target, target)
	case errors.As(err, &badName), errors.As(err, &badCert):
		e.Hint = fmt.Sprintf("the certificate of %s does not fit; skip verification with --insecure %s", target, target)
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; their type is not exported
		e.Hint = fmt.Sprintf("%s may want a client certificate: /etc/docker/certs.d/%s/client.cert and client.key", target, target)
	case errors.As(err, &dns):
		e.Hint = "check the host name, the resolver and HTTPS_PROXY"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "nothing listens there; check the port and that the registry runs"
	case strings.Contains(err.Error(), "proxyconnect"):
		e.Hint = "check HTTPS_PROXY and NO_PROXY"
	}
	return e
}
