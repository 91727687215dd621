package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var schemeHTTPS, schemeHTTP = "https", "http"

// host is one registry as the user named it, with its own connections. Connections to other addresses that the
// registry names (redirects, token servers, upload locations) are kept per registry too, so that what one registry may
// reach never depends on what another one did before.
type host struct {
	c       *Client
	name    string // docker.io
	addr    string // registry-1.docker.io
	plainOK bool   // plain http and certificates that do not verify are acceptable
	scheme  atomic.Pointer[string]
	own     *http.Transport
	reach   atomic.Int32 // the most public place a connection to addr led to
	auth    authState
	known   sync.Map // repo@digest → struct{}: blobs that exist there

	single atomic.Bool // blobs come over one connection each: see segments
	ahead  chan []byte // buffers for segments, nil until first needed

	mu      sync.Mutex
	foreign map[string]*http.Transport // by host:port and whether a proxy is used
}

func newHost(c *Client, domain string) (*host, error) {
	h := &host{c: c, name: domain, addr: apiHost(domain), ahead: make(chan []byte, segmentsAhead), foreign: map[string]*http.Transport{}}
	for range segmentsAhead {
		h.ahead <- nil
	}
	h.plainOK = c.plainAllowed(domain)
	h.auth.init()
	if !h.plainOK {
		h.scheme.Store(&schemeHTTPS)
	}
	conf, err := c.tlsConfig(h.addr, domain)
	if err != nil {
		return nil, &Error{Class: Invalid, Ref: domain, Err: err}
	}
	h.own = newTransport(conf)
	h.own.Proxy = c.o.Proxy
	h.own.DialContext = h.dialOwn
	return h, nil
}

// dialOwn connects to the registry, or to the proxy that stands before it. Only the former says where it lives.
func (h *host) dialOwn(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if strings.EqualFold(hostname(addr), hostname(h.addr)) {
		d.ControlContext = h.noteReach
	}
	return d.DialContext(ctx, network, addr)
}

const dialTimeout = 20 * time.Second

func newTransport(conf *tls.Config) *http.Transport {
	return &http.Transport{
		TLSClientConfig:        conf,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a blob is what its digest names, not what an encoding makes of it
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        60 * time.Second,
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  5 * time.Minute, // the last request of an upload is answered after the registry has moved it
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        64 << 10,
	}
}

func (h *host) closeIdle() {
	h.own.CloseIdleConnections()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.foreign {
		t.CloseIdleConnections()
	}
}

// base is the root of the registry under the scheme in use.
func (h *host) base() *url.URL {
	scheme := schemeHTTPS
	if s := h.scheme.Load(); s != nil {
		scheme = *s
	}
	return &url.URL{Scheme: scheme, Host: h.addr}
}

// isOwn reports whether u is on the registry itself.
func (h *host) isOwn(u *url.URL) bool { return origin(u) == origin(h.base()) }

// origin is scheme, host and port of u in a comparable form.
func origin(u *url.URL) string {
	return u.Scheme + "://" + hostport(u)
}

func hostport(u *url.URL) string {
	port := u.Port()
	if port == "" {
		if port = "443"; u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// speaksPlain reports whether a failed https exchange means that the server does not speak TLS on that port.
func speaksPlain(err error, addr string) bool {
	var record tls.RecordHeaderError
	if errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) {
		return true
	}
	// Without a port the two schemes have two ports; the https one being closed says nothing about the other.
	_, _, hasPort := net.SplitHostPort(addr)
	return hasPort != nil && errors.Is(err, syscall.ECONNREFUSED)
}

// plainAllowed reports whether a host may be reached by plain http or with a certificate that does not verify.
func (c *Client) plainAllowed(hostport string) bool {
	return isLoopback(hostport) || c.listedInsecure(hostport)
}

func (c *Client) listedInsecure(hostport string) bool {
	for _, in := range c.o.Insecure {
		in = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(in, "http://"), "https://"), "/")
		if strings.EqualFold(in, hostport) || strings.EqualFold(in, hostname(hostport)) {
			return true
		}
	}
	return false
}

// configured reports whether the user said something about a host: then its being private is no surprise.
func (c *Client) configured(hostport string) bool {
	if c.listedInsecure(hostport) {
		return true
	}
	for _, dir := range c.o.CertsDir {
		if fi, err := os.Stat(filepath.Join(dir, hostport)); err == nil && fi.IsDir() {
			return true
		}
	}
	return false
}

// roundTrip sends one request over the connections it belongs to.
func (h *host) roundTrip(req *http.Request) (*http.Response, error) {
	if h.isOwn(req.URL) {
		return h.own.RoundTrip(req)
	}
	t, err := h.foreignTransport(req)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(req)
}

// foreignTransport returns connections to a host that the registry, not the user, has named.
func (h *host) foreignTransport(req *http.Request) (*http.Transport, error) {
	proxy, err := h.c.o.Proxy(req)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		// The proxy resolves the name, so only what is spelt out can be judged here.
		if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && !h.mayReach(req.URL.Host, ip) {
			return nil, h.refusal(req.URL.Host, ip)
		}
	}
	key := hostport(req.URL)
	if proxy != nil {
		key += " by proxy"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.foreign[key]; t != nil {
		return t, nil
	}
	conf, err := h.c.tlsConfig(req.URL.Host, req.URL.Host)
	if err != nil {
		return nil, err
	}
	t := newTransport(conf)
	t.Proxy = h.c.o.Proxy
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if proxy == nil {
		name := req.URL.Host
		d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			if !h.mayReach(name, ap.Addr()) {
				return h.refusal(name, ap.Addr())
			}
			return nil
		}
	}
	t.DialContext = d.DialContext
	h.foreign[key] = t
	return t, nil
}

// How public an address is. The order matters: noteReach keeps the greatest.
const (
	reachUnknown int32 = iota
	reachLoopback
	reachLinkLocal
	reachPrivate
	reachPublic
)

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
	nat64       = netip.MustParsePrefix("64:ff9b::/96")
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
)

func reachOf(ip netip.Addr) int32 {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case ip.IsLoopback(), ip.IsUnspecified(), thisNetwork.Contains(ip):
		return reachLoopback
	case ip.IsLinkLocalUnicast(), ip.IsMulticast():
		return reachLinkLocal
	case ip.IsPrivate(), sharedSpace.Contains(ip):
		return reachPrivate
	}
	return reachPublic
}

// noteReach remembers where the registry lives, at the moment its address is dialled.
func (h *host) noteReach(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil // not an IP connection
	}
	r := reachOf(ap.Addr())
	for {
		old := h.reach.Load()
		if r <= old || h.reach.CompareAndSwap(old, r) {
			return nil
		}
	}
}

// mayReach says whether this registry may send us to an address. Public ones always; a private one only when the
// registry itself is private or on this machine; this machine or a link-local address (where clouds keep their
// credentials) only from the same kind of place. What the user configured is always fine.
func (h *host) mayReach(name string, ip netip.Addr) bool {
	if h.c.configured(name) {
		return true
	}
	from, to := h.reach.Load(), reachOf(ip)
	switch to {
	case reachPublic:
		return true
	case reachPrivate:
		return from == reachPrivate || from == reachLoopback
	}
	return from == to
}

func (h *host) refusal(name string, ip netip.Addr) error {
	e := errorf(Network, "%s sends us to %s, which is the private address %s", h.name, name, ip)
	e.Hint = fmt.Sprintf("if that is meant, allow it with --insecure %s or by a directory %s in certs.d", name, name)
	return e
}

// TLSConfig makes the TLS settings for a host that is no registry but is trusted like one: by the certificates of its directory, and
// without verification if it is listed as insecure. Unlike a registry it is not excused for being this machine.
func (c *Client) TLSConfig(host string) (*tls.Config, error) {
	conf, err := c.tlsConfig(host)
	if err == nil {
		conf.InsecureSkipVerify = c.listedInsecure(host)
	}
	return conf, err
}

// tlsConfig makes the TLS settings for a host from the certificate directories; names are the spellings to look for.
func (c *Client) tlsConfig(names ...string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.plainAllowed(names[0]) || c.plainAllowed(names[len(names)-1])}
	seen := map[string]bool{}
	for _, dir := range c.o.CertsDir {
		for _, name := range names {
			path := filepath.Join(dir, name)
			if seen[path] {
				continue
			}
			seen[path] = true
			if err := loadCerts(conf, path); err != nil {
				return nil, err
			}
		}
	}
	return conf, nil
}

// loadCerts adds the CAs and client certificates of one directory in docker's certs.d layout.
func loadCerts(conf *tls.Config, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading certificates: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			if err := addCA(conf, path); err != nil {
				return err
			}
		case ".cert":
			key := strings.TrimSuffix(path, ".cert") + ".key"
			pair, err := tls.LoadX509KeyPair(path, key)
			if err != nil {
				return fmt.Errorf("client certificate %s with %s: %w", path, filepath.Base(key), err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		case ".key":
			if _, err := os.Stat(strings.TrimSuffix(path, ".key") + ".cert"); err != nil {
				return fmt.Errorf("client key %s has no certificate beside it (the name must end in .cert; .crt is for CAs)", path)
			}
		}
	}
	return nil
}

func addCA(conf *tls.Config, path string) error {
	pem, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading CA: %w", err)
	}
	if conf.RootCAs == nil {
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			conf.RootCAs = x509.NewCertPool()
		}
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("CA file %s holds no PEM certificate", path)
	}
	return nil
}
