package build

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// transport speaks http for everything but registries: contexts, ADD and repositories. Hosts are trusted as registries are, by
// --insecure and the directories of certificates, each host for itself.
type transport struct {
	s    *session
	mu   sync.Mutex
	host map[string]*http.Transport
}

// RoundTrip makes transport an http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	own, err := t.of(req.URL.Host)
	if err != nil {
		return nil, err
	}
	return own.RoundTrip(req)
}

// of gives the connections to a host.
func (t *transport) of(host string) (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own, ok := t.host[host]; ok {
		return own, nil
	}
	conf, err := t.s.client.TLSConfig(host)
	if err != nil {
		return nil, &UsageError{Msg: err.Error()}
	}
	own := http.DefaultTransport.(*http.Transport).Clone()
	own.TLSClientConfig = conf
	own.Proxy = t.s.proxy
	own.ResponseHeaderTimeout = time.Minute
	if t.host == nil {
		t.host = map[string]*http.Transport{}
	}
	t.host[host] = own
	return own, nil
}

// check finds out before the first request whether what is configured for the host of a URL can be used.
func (t *transport) check(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" {
		return nil // what is wrong with it is told by who uses it
	}
	_, err = t.of(u.Host)
	return err
}

// close drops the connections that are idle, which would hold their goroutines for as long as this process lasts.
func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, own := range t.host {
		own.CloseIdleConnections()
	}
}

// proxyOf chooses the proxy of a request as the variables say that RUN gets too: those of the environment and docker's config.json,
// and build arguments above them. What they say about this machine itself is ignored, as everywhere.
func proxyOf(args map[string]string) func(*http.Request) (*url.URL, error) {
	get := func(name string) string {
		if v := args[name]; v != "" {
			return v
		}
		return args[strings.ToLower(name)]
	}
	p := &httpproxy.Config{HTTPProxy: get("HTTP_PROXY"), HTTPSProxy: get("HTTPS_PROXY"), NoProxy: get("NO_PROXY")}
	if all := get("ALL_PROXY"); all != "" {
		if p.HTTPProxy == "" {
			p.HTTPProxy = all
		}
		if p.HTTPSProxy == "" {
			p.HTTPSProxy = all
		}
	}
	choose := p.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}
