package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// access is what a request needs to be allowed to do.
type access struct {
	repo   string   // path on the host, "" for the registry as a whole
	scopes []string // in the token protocol's spelling, the repository's own first
}

func pullAccess(path string) access {
	return access{repo: path, scopes: []string{"repository:" + path + ":pull"}}
}

// pushAccess also covers reading the repositories blobs are mounted from.
func pushAccess(path string, mounts ...string) access {
	a := access{repo: path, scopes: []string{"repository:" + path + ":pull,push"}}
	for _, m := range mounts {
		if m != path {
			a.scopes = append(a.scopes, "repository:"+m+":pull")
		}
	}
	slices.Sort(a.scopes[1:])
	a.scopes = slices.Compact(a.scopes)
	return a
}

func (a access) key() string { return a.repo + " " + strings.Join(a.scopes, " ") }

type token struct {
	value  string
	expiry time.Time
}

// authState is what a registry has told us about how it wants to be asked, and the tokens obtained so far.
type authState struct {
	turn chan struct{} // held while talking to the token server, so that equal requests share one token

	mu      sync.Mutex
	scheme  string // "" (nothing asked for yet), "basic" or "bearer"
	realm   *url.URL
	service string
	tokens  map[string]token
	creds   map[string]credential // by repo
	from    string                // where the credentials in use came from
}

func (a *authState) init() {
	a.turn = make(chan struct{}, 1)
	a.tokens = map[string]token{}
	a.creds = map[string]credential{}
}

// source names where credentials came from, "" when there were none.
func (a *authState) source() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.from
}

// authorization returns the value of the Authorization header for a request to the registry, "" while the registry
// has not asked for any.
func (h *host) authorization(ctx context.Context, ac access) (string, error) {
	h.auth.mu.Lock()
	scheme := h.auth.scheme
	h.auth.mu.Unlock()
	switch scheme {
	case "basic":
		cred, err := h.credential(ctx, ac.repo)
		if err != nil {
			return "", err
		}
		return cred.basic(), nil
	case "bearer":
		t, err := h.token(ctx, ac, "")
		if err != nil {
			return "", err
		}
		return "Bearer " + t, nil
	}
	return "", nil
}

// challenged digests a 401 from the registry that answered a request sent with the given authorization. It reports
// whether asking again may help.
func (h *host) challenged(ctx context.Context, resp *http.Response, ac access, sent string) (bool, error) {
	ch, ok := pickChallenge(resp.Header.Values("WWW-Authenticate"))
	if !ok {
		return false, nil
	}
	if ch.scheme == "basic" {
		h.auth.mu.Lock()
		h.auth.scheme = "basic"
		h.auth.mu.Unlock()
		cred, err := h.credential(ctx, ac.repo)
		return err == nil && cred.basic() != "" && cred.basic() != sent, err
	}
	realm, err := h.checkRealm(ch.params["realm"])
	if err != nil {
		return false, err
	}
	h.auth.mu.Lock()
	h.auth.scheme, h.auth.realm, h.auth.service = "bearer", realm, ch.params["service"]
	if t, ok := h.auth.tokens[ac.key()]; ok && sent == "Bearer "+t.value {
		delete(h.auth.tokens, ac.key()) // expired early or revoked
	}
	h.auth.mu.Unlock()
	_, err = h.token(ctx, ac, ch.params["scope"])
	return err == nil, err
}

// credential looks up, once per repository, what to identify as.
func (h *host) credential(ctx context.Context, repo string) (credential, error) {
	h.auth.mu.Lock()
	cred, ok := h.auth.creds[repo]
	h.auth.mu.Unlock()
	if ok {
		return cred, nil
	}
	cred, err := h.c.keys.lookup(ctx, h.name, repo)
	if err != nil {
		return credential{}, err
	}
	h.auth.mu.Lock()
	defer h.auth.mu.Unlock()
	h.auth.creds[repo] = cred
	if cred.from != "" {
		h.auth.from = cred.from
	}
	return cred, nil
}

// token returns a bearer token for ac, from memory or from the token server. extra is a scope the registry asked for.
func (h *host) token(ctx context.Context, ac access, extra string) (string, error) {
	select {
	case h.auth.turn <- struct{}{}:
		defer func() { <-h.auth.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	h.auth.mu.Lock()
	t, ok := h.auth.tokens[ac.key()]
	h.auth.mu.Unlock()
	if ok && h.c.now().Before(t.expiry) {
		return t.value, nil
	}
	cred, err := h.credential(ctx, ac.repo)
	if err != nil {
		return "", err
	}
	if cred.registryToken != "" {
		t = token{value: cred.registryToken, expiry: h.c.now().Add(time.Hour)}
	} else if t, err = h.fetchToken(ctx, cred, ac, extra); err != nil {
		return "", err
	}
	h.auth.mu.Lock()
	h.auth.tokens[ac.key()] = t
	h.auth.mu.Unlock()
	return t.value, nil
}

const maxToken = 1 << 20

// fetchToken asks the token server. Only here do credentials leave for a host that may not be the registry itself;
// checkRealm has judged it.
func (h *host) fetchToken(ctx context.Context, cred credential, ac access, extra string) (token, error) {
	scopes := ac.scopes
	if extra != "" && !slices.Contains(scopes, extra) {
		scopes = append([]string{extra}, scopes...) // some servers look at the first one only
	}
	h.auth.mu.Lock()
	realm, service := *h.auth.realm, h.auth.service
	h.auth.mu.Unlock()

	retry := retryState{c: h.c, host: realm.Host}
	for {
		t, err := h.tryToken(ctx, &realm, service, cred, scopes)
		if err == nil {
			return t, nil
		}
		if err := retry.next(ctx, err); err != nil {
			return token{}, fmt.Errorf("asking %s for a token: %w", realm.Host, err)
		}
	}
}

func (h *host) tryToken(ctx context.Context, realm *url.URL, service string, cred credential, scopes []string) (token, error) {
	resp, err := h.askToken(ctx, realm, service, cred, scopes)
	if err != nil {
		return token{}, err
	}
	if resp.StatusCode == http.StatusOK {
		return h.readToken(resp)
	}
	err = h.statusError(resp)
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusBadRequest {
		e.Class = Auth // OAuth2 servers refuse a refresh token this way
	}
	return token{}, err
}

// askToken sends one request to the token server: the OAuth2 form for identity tokens, a GET for everything else.
func (h *host) askToken(ctx context.Context, realm *url.URL, service string, cred credential, scopes []string) (*http.Response, error) {
	r := &request{method: http.MethodGet, url: realm}
	auth := ""
	if cred.identity != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {cred.identity}, "client_id": {"build"},
			"service": {service}, "scope": {strings.Join(scopes, " ")}}.Encode()
		r.method, r.size = http.MethodPost, int64(len(form))
		r.header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		r.body = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
	} else {
		q := realm.Query()
		if service != "" {
			q.Set("service", service)
		}
		q["scope"] = scopes
		if cred.user != "" {
			q.Set("account", cred.user)
		}
		u := *realm
		u.RawQuery = q.Encode()
		r.url, auth = &u, cred.basic()
	}
	resp, err := h.exchange(ctx, r, auth, origin(realm))
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, h.networkError(realm.Host, err)
	}
	return resp, nil
}

func (h *host) readToken(resp *http.Response) (token, error) {
	defer resp.Body.Close()
	data, err := readAll(resp.Body, maxToken, "token")
	if err != nil {
		return token{}, err
	}
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(data, &body); err != nil {
		return token{}, errorf(Auth, "the token server at %s does not answer with JSON", resp.Request.URL.Host)
	}
	if body.Token == "" {
		body.Token = body.AccessToken
	}
	if body.Token == "" || strings.ContainsAny(body.Token, "\r\n") {
		return token{}, errorf(Auth, "the token server at %s answers without a token", resp.Request.URL.Host)
	}
	// The protocol's default is 60 seconds; a tenth is kept as margin for the request that uses it.
	life := time.Duration(min(max(body.ExpiresIn, 60), 3600)) * time.Second
	return token{value: body.Token, expiry: h.c.now().Add(life * 9 / 10)}, nil
}

// checkRealm decides whether the token server a registry names may be sent the credentials of that registry: any https
// server may (private addresses are refused when dialled), a plain http one only if the registry itself is reached by
// plain http and the server is the same machine, or the user allowed plain http to it.
func (h *host) checkRealm(realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return nil, errorf(Auth, "%s names no usable token server (realm %q)", h.name, realm)
	}
	switch u.Scheme {
	case "https":
		return u, nil
	case "http":
		base := h.base()
		same := strings.EqualFold(u.Hostname(), base.Hostname()) && base.Scheme == "http"
		bothLocal := isLoopback(u.Host) && isLoopback(h.addr)
		if same || bothLocal || h.c.listedInsecure(u.Host) {
			return u, nil
		}
		e := errorf(Auth, "%s wants its credentials sent by plain http to %s", h.name, u.Host)
		e.Hint = "if that is meant, allow it with --insecure " + u.Host
		return nil, e
	}
	return nil, errorf(Auth, "%s names a token server of scheme %q", h.name, u.Scheme)
}

// credential is one identity, and where it was found.
type credential struct {
	user, password string
	identity       string // OAuth2 refresh token
	registryToken  string // ready-made bearer token
	from           string
}

func (c credential) basic() string {
	if c.user == "" && c.password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.password))
}

// verify asks the registry whether it accepts cred. It is used before storing them.
func (h *host) verify(ctx context.Context, cred credential) error {
	h.auth.mu.Lock()
	h.auth.creds[""] = cred
	h.auth.from = cred.from
	h.auth.tokens = map[string]token{}
	h.auth.mu.Unlock()
	resp, err := h.do(ctx, &request{method: http.MethodGet}, http.StatusOK)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && e.Class == Auth {
			return &Error{Class: Auth, Status: e.Status, Err: fmt.Errorf("the registry refuses this user name and password: %w", err)}
		}
		return err
	}
	discard(resp.Body)
	return nil
}
