package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Options is what the user decided about registries. The zero value talks https to every host but this machine's own,
// anonymously.
type Options struct {
	// Insecure lists hosts, with or without a port, that may be reached by plain http or behind a certificate that
	// does not verify. Loopback addresses always are.
	Insecure []string
	// Offline makes every operation that would need a socket fail with class Offline before opening one.
	Offline bool
	// DockerConfig is the directory of docker's config.json, or such a file itself. "" means no credentials.
	DockerConfig string
	// AuthConfig is the text of DOCKER_AUTH_CONFIG: a config.json whose auths are looked at first.
	AuthConfig string
	// CertsDir are directories like /etc/docker/certs.d: HOST/*.crt are further CAs for HOST, HOST/*.cert with *.key
	// the certificates we show it.
	CertsDir []string
	// UserAgent is sent with every request.
	UserAgent string
	// Proxy chooses the proxy of a request; nil means http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// Notify, if set, hears of every repeated request. It may be called from several goroutines.
	Notify func(Notice)
	// Patience scales the waits between attempts; 0 means 1. Tests make it small.
	Patience float64
}

// Client is a set of registries and what was learnt about each: scheme, tokens, blobs seen. It is safe for concurrent
// use and meant to be shared, because connections and tokens are reused.
type Client struct {
	o    Options
	keys *keychain
	now  func() time.Time

	stall         time.Duration // see stallAfter
	many, segment int64         // see manySize

	mu    sync.Mutex
	hosts map[string]*host // by domain, as references spell it
}

// New returns a client. Nothing is read or opened before the first operation.
func New(o Options) *Client {
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Patience == 0 {
		o.Patience = 1
	}
	if o.UserAgent == "" {
		o.UserAgent = "build"
	}
	return &Client{o: o, keys: newKeychain(o.DockerConfig, o.AuthConfig), now: time.Now, stall: stallAfter, many: manySize, segment: segmentSize, hosts: map[string]*host{}}
}

// Close drops idle connections. The client stays usable.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.closeIdle()
	}
}

func (c *Client) scale(d time.Duration) time.Duration {
	return time.Duration(float64(d) * c.o.Patience)
}

// host returns what is known about a domain, making the record at first use.
func (c *Client) host(domain string) (*host, error) {
	if c.o.Offline {
		return nil, &Error{Class: Offline, Ref: domain, Err: errors.New("a request to the registry is needed, but this build is offline"),
			Hint: "run once without --offline, or import the image with --build-context NAME=oci-layout://DIR"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[domain]; h != nil {
		return h, nil
	}
	h, err := newHost(c, domain)
	if err != nil {
		return nil, err
	}
	c.hosts[domain] = h
	return h, nil
}

// request is one call of the registry API. It can be sent several times.
type request struct {
	method string
	path   string // below /v2/, without the leading slash; escaped by construction (names and digests are checked)
	url    *url.URL
	query  url.Values
	header http.Header
	body   func() (io.ReadCloser, error) // nil: no body
	size   int64
	access access
	// once marks requests whose repetition is the caller's business, such as the upload of a blob.
	once bool
}

// do sends r until it is answered with one of the wanted statuses or failing has become certain. The caller closes the
// body of the response.
func (h *host) do(ctx context.Context, r *request, want ...int) (*http.Response, error) {
	retry := retryState{c: h.c, host: h.name}
	for {
		resp, err := h.authorized(ctx, r)
		if err == nil {
			for _, code := range want {
				if resp.StatusCode == code {
					return resp, nil
				}
			}
			err = h.statusError(resp)
		}
		if r.once {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
		if err := retry.next(ctx, err); err != nil {
			return nil, err
		}
	}
}

// authorized sends r with whatever authorization is known to be needed, and once more when the answer is a challenge.
func (h *host) authorized(ctx context.Context, r *request) (*http.Response, error) {
	for try := 0; ; try++ {
		value, err := h.authorization(ctx, r.access)
		if err != nil {
			return nil, err
		}
		resp, err := h.send(ctx, r, value)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try > 0 || !h.isOwn(resp.Request.URL) {
			return resp, nil
		}
		answered, err := h.challenged(ctx, resp, r.access, value)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		if !answered {
			return resp, nil
		}
		discard(resp.Body)
	}
}

// discard reads a little of what is left, so that the connection can be used again, and closes.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 64<<10)
	body.Close()
}

// target builds the URL of r under the scheme in use.
func (h *host) target(r *request) *url.URL {
	if r.url != nil {
		return r.url
	}
	u := h.base()
	u.Path = "/v2/" + r.path
	u.RawQuery = r.query.Encode()
	return u
}

// send sends r once. A host that may speak plain http is tried with https first; what it turned out to speak is kept.
func (h *host) send(ctx context.Context, r *request, authorization string) (*http.Response, error) {
	undecided := h.plainOK && h.scheme.Load() == nil
	resp, err := h.exchange(ctx, r, authorization, origin(h.base()))
	switch {
	case !undecided:
	case err == nil:
		h.scheme.CompareAndSwap(nil, &schemeHTTPS)
	case speaksPlain(err, h.addr):
		h.scheme.Store(&schemeHTTP)
		resp, err = h.exchange(ctx, r, authorization, origin(h.base()))
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, h.networkError(h.addr, err)
	}
	return resp, nil
}

const maxRedirects = 6

// exchange sends r and follows redirects by the rules of this package: the authorization is shown to one origin only,
// a body is never sent to an address the registry chose by a redirect, and https does not become http unless the
// target may be reached that way.
func (h *host) exchange(ctx context.Context, r *request, authorization, shownTo string) (*http.Response, error) {
	u := h.target(r)
	for n := 0; ; n++ {
		req, err := h.newRequest(ctx, r, u)
		if err != nil {
			return nil, err
		}
		if authorization != "" && origin(u) == shownTo {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := h.roundTrip(req)
		if err != nil {
			return nil, err
		}
		next, err := h.redirect(r, resp)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		if next == nil {
			return resp, nil
		}
		discard(resp.Body)
		if n >= maxRedirects {
			return nil, errorf(Network, "%s %s: more than %d redirects", r.method, h.target(r).Redacted(), maxRedirects)
		}
		u = next
	}
}

func (h *host) newRequest(ctx context.Context, r *request, u *url.URL) (*http.Request, error) {
	var body io.ReadCloser
	if r.body != nil {
		var err error
		if body, err = r.body(); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		if body != nil {
			body.Close()
		}
		return nil, err
	}
	if r.body != nil {
		req.ContentLength = r.size
		if r.size == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", h.c.o.UserAgent)
	return req, nil
}

// redirect returns where resp sends us, or nil when it is a final answer.
func (h *host) redirect(r *request, resp *http.Response) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		if r.method != http.MethodGet && r.method != http.MethodHead {
			return nil, nil
		}
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		if r.body != nil {
			return nil, nil
		}
	default:
		return nil, nil
	}
	loc := resp.Header.Get("Location")
	if loc == "" {
		return nil, nil
	}
	next, err := resp.Request.URL.Parse(loc)
	if err != nil {
		return nil, errorf(Network, "%s sends us to a malformed address: %w", resp.Request.URL.Host, err)
	}
	return next, h.checkStep(resp.Request.URL, next)
}

// checkStep decides whether an address the registry named may be visited at all after from. Private addresses are
// refused later, when they are dialled.
func (h *host) checkStep(from, to *url.URL) error {
	switch {
	case to.Host == "" || to.User != nil:
		return errorf(Network, "%s sends us to %s, which is not a proper address", from.Host, to.Redacted())
	case to.Scheme == "https":
		return nil
	case to.Scheme == "http" && (from.Scheme == "http" || h.c.plainAllowed(to.Host)):
		return nil
	case to.Scheme == "http":
		e := errorf(Network, "%s sends us from https to plain http at %s", from.Host, to.Host)
		e.Hint = fmt.Sprintf("if that is meant, allow it with --insecure %s", to.Host)
		return e
	}
	return errorf(Network, "%s sends us to an address of scheme %q", from.Host, to.Scheme)
}

// readAll reads a body that has to fit in limit bytes.
func readAll(body io.Reader, limit int64, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if int64(len(data)) > limit {
		return nil, errorf(Unsupported, "%s is larger than %d MiB", what, limit>>20)
	}
	return data, nil
}

// mediaType is a Content-Type without its parameters.
func mediaType(header string) string {
	t, _, _ := strings.Cut(header, ";")
	return strings.ToLower(strings.TrimSpace(t))
}
