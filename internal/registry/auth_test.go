package registry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// tokenServer hands out tokens to alice:secret, and anonymous ones that may only pull.
type tokenServer struct {
	*httptest.Server
	mu    sync.Mutex
	seen  []*http.Request
	forms []url.Values
	fail  atomic.Int32 // so many requests are answered 503
}

func newTokenServer(t *testing.T) *tokenServer {
	ts := &tokenServer{}
	ts.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		ts.mu.Lock()
		ts.seen = append(ts.seen, r.Clone(t.Context()))
		ts.forms = append(ts.forms, r.Form)
		ts.mu.Unlock()
		if ts.fail.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		user, pass, ok := r.BasicAuth()
		if r.Method == http.MethodPost {
			user, pass, ok = "alice", "secret", r.PostForm.Get("refresh_token") == "refresh-me"
		}
		switch {
		case ok && user == "alice" && pass == "secret":
			fmt.Fprintf(w, `{"token":"good %s","expires_in":300}`, strings.Join(r.Form["scope"], ";"))
		case ok || r.Method == http.MethodPost:
			w.WriteHeader(http.StatusUnauthorized)
		default:
			fmt.Fprint(w, `{"access_token":"anonymous"}`)
		}
	}))
	t.Cleanup(ts.Close)
	return ts
}

// demandToken makes s want a bearer token from realm; anonymous ones allow pulling from public/.
func demandToken(s *server, realm string) {
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		have := r.Header.Get("Authorization")
		public := strings.HasPrefix(r.URL.Path, "/v2/public/") && (r.Method == http.MethodGet || r.Method == http.MethodHead)
		if strings.HasPrefix(have, "Bearer good") || have == "Bearer anonymous" && public {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func dockerConfig(t *testing.T, v any) string {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func auths(kv ...string) map[string]any {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(kv[i+1]))}
	}
	return map[string]any{"auths": m}
}

func TestBearer(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	img := newSample(t, "linux/amd64", 3, 1000)
	demandToken(s, ts.URL)
	c := testClient(t, Options{DockerConfig: dockerConfig(t, auths(s.host, "alice:secret"))})
	if err := c.Push(t.Context(), s.host+"/private/app:1", img.push()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(t.Context(), s.host+"/private/app:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
	if n := len(ts.seen); n != 2 {
		t.Errorf("%d tokens fetched, want one for pushing and one for pulling", n)
	}
	if got := ts.seen[0].Form.Get("service") + " " + ts.seen[0].Form.Get("scope"); got != "test repository:private/app:pull,push" {
		t.Errorf("asked for %q", got)
	}
	for _, h := range s.headers("Authorization") {
		if strings.HasPrefix(h, "Basic") {
			t.Error("the password went to the registry although it wants tokens")
		}
	}
}

func TestBearerAnonymousAndRefused(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	seed(t, s.host+"/public/app:1", newSample(t, "linux/amd64", 1, 10))
	demandToken(s, ts.URL)
	c := testClient(t, Options{})
	if _, err := c.Resolve(t.Context(), s.host+"/public/app:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
	_, err := c.Resolve(t.Context(), s.host+"/private/app:1", linuxAMD64)
	if e := wantClass(t, err, Auth); !strings.Contains(e.Hint, "build login "+s.host) {
		t.Errorf("hint %q", e.Hint)
	}
	dir := dockerConfig(t, auths(s.host, "alice:wrong"))
	_, err = testClient(t, Options{DockerConfig: dir}).Resolve(t.Context(), s.host+"/public/app:1", linuxAMD64)
	e := wantClass(t, err, Auth)
	if !strings.Contains(e.Hint, dir) {
		t.Errorf("hint %q does not say where the credentials came from", e.Hint)
	}
	if strings.Contains(e.Error()+e.Hint, "wrong") {
		t.Error("the password is in the message")
	}
}

func TestTokenServerFaultsAreRetried(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	seed(t, s.host+"/public/app:1", newSample(t, "linux/amd64", 1, 10))
	demandToken(s, ts.URL)
	ts.fail.Store(2)
	if _, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/public/app:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
}

func TestIdentityToken(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	demandToken(s, ts.URL)
	conf := map[string]any{"auths": map[string]any{s.host: map[string]string{"identitytoken": "refresh-me"}}}
	c := testClient(t, Options{DockerConfig: dockerConfig(t, conf)})
	if err := c.Push(t.Context(), s.host+"/private/app:1", newSample(t, "linux/amd64", 1, 10).push()); err != nil {
		t.Fatal(err)
	}
	if got := ts.forms[0].Get("grant_type"); ts.seen[0].Method != http.MethodPost || got != "refresh_token" {
		t.Errorf("%s with grant %q", ts.seen[0].Method, got)
	}
}

func TestExpiredTokenIsReplaced(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	img := newSample(t, "linux/amd64", 1, 10)
	seed(t, s.host+"/public/app:1", img)
	demandToken(s, ts.URL)
	c := testClient(t, Options{})
	if _, err := c.Resolve(t.Context(), s.host+"/public/app:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
	var refused atomic.Bool
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" && refused.CompareAndSwap(false, true) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+ts.URL+`",error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	if _, err := readBlob(t, c, s.host+"/public/app", img.descs[0]); err != nil {
		t.Fatal(err)
	}
	if n := len(ts.seen); n != 2 {
		t.Errorf("%d tokens fetched, want 2", n)
	}
}

func TestBasic(t *testing.T) {
	s := newServer(t, false)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == "alice" && p == "secret" {
			return false
		}
		w.Header().Add("WWW-Authenticate", `Negotiate`)
		w.Header().Add("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	img := newSample(t, "linux/amd64", 2, 100_000)
	c := testClient(t, Options{DockerConfig: dockerConfig(t, auths(s.host, "alice:secret"))})
	if err := c.Push(t.Context(), s.host+"/a:1", img.push()); err != nil {
		t.Fatal(err)
	}
	_, err := testClient(t, Options{}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	wantClass(t, err, Auth)
}

func TestRealms(t *testing.T) {
	for _, tc := range []struct {
		registry, scheme, realm string
		insecure                []string
		ok                      bool
	}{
		{"reg.example", "https", "https://reg.example/token", nil, true},
		{"reg.example", "https", "https://auth.example/token", nil, true},
		{"reg.example", "https", "http://reg.example/token", nil, false},  // downgrade on the same host
		{"reg.example", "https", "http://auth.example/token", nil, false}, // downgrade on another
		{"reg.example", "https", "http://auth.example/token", []string{"auth.example"}, true},
		{"reg.example:5000", "http", "http://reg.example/jwt/auth", []string{"reg.example:5000"}, true}, // GitLab's layout
		{"reg.example:5000", "http", "http://evil.example/", []string{"reg.example:5000"}, false},
		{"127.0.0.1:5000", "http", "http://127.0.0.1:5001/token", nil, true},
		{"reg.example", "https", "http://127.0.0.1:5001/token", nil, false},
		{"reg.example", "https", "http://localhost:5001/token", nil, false},
		{"reg.example", "https", "https://user:pw@auth.example/", nil, false},
		{"reg.example", "https", "file:///etc/passwd", nil, false},
		{"reg.example", "https", "ftp://auth.example/", nil, false},
		{"reg.example", "https", "", nil, false},
		{"reg.example", "https", "/token", nil, false},
	} {
		h, err := testClient(t, Options{Insecure: tc.insecure}).host(tc.registry)
		if err != nil {
			t.Fatal(err)
		}
		h.scheme.Store(&tc.scheme)
		if _, err := h.checkRealm(tc.realm); (err == nil) != tc.ok {
			t.Errorf("%s (%s) with realm %q: %v, want ok=%v", tc.registry, tc.scheme, tc.realm, err, tc.ok)
		}
	}
}

func TestAddressesOfOthers(t *testing.T) {
	for _, tc := range []struct {
		own, target string
		ok          bool
	}{
		{"93.184.216.34", "93.184.216.35", true},
		{"93.184.216.34", "10.0.0.1", false},
		{"93.184.216.34", "127.0.0.1", false},
		{"93.184.216.34", "169.254.169.254", false},
		{"93.184.216.34", "::1", false},
		{"93.184.216.34", "::ffff:10.0.0.1", false},
		{"93.184.216.34", "64:ff9b::a00:1", false},
		{"93.184.216.34", "fd00:ec2::254", false},
		{"93.184.216.34", "fe80::1%eth0", false},
		{"93.184.216.34", "100.64.0.1", false},
		{"93.184.216.34", "0.0.0.0", false},
		{"93.184.216.34", "2606:4700::1", true},
		{"10.0.0.5", "10.9.0.1", true},
		{"10.0.0.5", "127.0.0.1", false},
		{"10.0.0.5", "169.254.169.254", false},
		{"127.0.0.1", "127.0.0.2", true},
		{"127.0.0.1", "192.168.0.1", true},
		{"127.0.0.1", "169.254.169.254", false},
	} {
		h, err := testClient(t, Options{}).host("reg.example")
		if err != nil {
			t.Fatal(err)
		}
		_ = h.noteReach(t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr(tc.own), 443).String(), nil)
		if got := h.mayReach("other.example", netip.MustParseAddr(tc.target)); got != tc.ok {
			t.Errorf("registry at %s sends us to %s: %v, want %v", tc.own, tc.target, got, tc.ok)
		}
	}
	// A registry with a private and a public address is public.
	h, _ := testClient(t, Options{}).host("reg.example")
	for _, a := range []string{"10.0.0.5:443", "93.184.216.34:443", "10.0.0.5:443"} {
		_ = h.noteReach(t.Context(), "tcp", a, nil)
	}
	if h.mayReach("other.example", netip.MustParseAddr("10.0.0.1")) {
		t.Error("a name with one public and one private address may send us to private ones")
	}
}

// A name that resolves to this machine is caught when it is dialled, not by its spelling.
func TestPrivateAddressBehindAName(t *testing.T) {
	ts := newTokenServer(t)
	u, _ := url.Parse(ts.URL)
	h, err := testClient(t, Options{}).host("reg.example")
	if err != nil {
		t.Fatal(err)
	}
	_ = h.noteReach(t.Context(), "tcp", "93.184.216.34:443", nil)
	for _, name := range []string{"localhost", "127.0.0.1"} {
		req := httptest.NewRequest(http.MethodGet, "http://"+name+":"+u.Port()+"/", nil)
		req.RequestURI = ""
		resp, err := h.roundTrip(req)
		if err == nil {
			resp.Body.Close()
			t.Fatalf("%s was reached", name)
		}
		if !strings.Contains(err.Error(), "private address") {
			t.Errorf("error %v", err)
		}
	}
	if len(ts.seen) != 0 {
		t.Error("a request arrived")
	}
}

func TestRedirectsDropCredentials(t *testing.T) {
	img := newSample(t, "linux/amd64", 1, 1000)
	var leaked atomic.Int32
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			leaked.Add(1)
		}
		_, _ = w.Write(img.layers[0])
	}))
	t.Cleanup(cdn.Close)
	s := newServer(t, false)
	seed(t, s.host+"/a:1", img)
	var target atomic.Pointer[string]
	to := cdn.URL + "/blob"
	target.Store(&to)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u != "alice" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/"+img.descs[0].Digest.String()) {
			w.Header().Set("Location", *target.Load())
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	c := testClient(t, Options{DockerConfig: dockerConfig(t, auths(s.host, "alice:secret"))})
	if _, err := c.Resolve(t.Context(), s.host+"/a:1", linuxAMD64); err != nil {
		t.Fatal(err)
	}
	got, err := readBlob(t, c, s.host+"/a", img.descs[0])
	if err != nil || !bytes.Equal(got, img.layers[0]) {
		t.Fatalf("through the redirect: %v", err)
	}
	if leaked.Load() != 0 {
		t.Error("credentials followed the redirect")
	}
	// A loop ends.
	loop := s.URL + "/v2/a/blobs/" + img.descs[0].Digest.String()
	target.Store(&loop)
	_, err = readBlob(t, c, s.host+"/a", img.descs[0])
	wantClass(t, err, Network)
}

func TestRedirectFromHTTPSToPlainIsRefused(t *testing.T) {
	h, err := testClient(t, Options{Insecure: []string{"minio.example:9000"}}).host("reg.example")
	if err != nil {
		t.Fatal(err)
	}
	from, _ := url.Parse("https://reg.example/v2/a/blobs/x")
	for target, ok := range map[string]bool{
		"https://cdn.example/x":        true,
		"http://cdn.example/x":         false,
		"http://minio.example:9000/x":  true,
		"http://minio.example:9001/x":  false,
		"https://u:p@cdn.example/":     false,
		"gopher://cdn.example/x":       false,
		"https:///x":                   false,
		"http://reg.example/v2/a/blob": false,
	} {
		to, _ := url.Parse(target)
		if err := h.checkStep(from, to); (err == nil) != ok {
			t.Errorf("%s: %v, want ok=%v", target, err, ok)
		}
	}
}

func TestUploadElsewhereGetsNoCredentials(t *testing.T) {
	var leaked, bytesSeen atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		bytesSeen.Add(r.ContentLength)
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(other.Close)
	s := newServer(t, false)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		if u, _, _ := r.BasicAuth(); u != "alice" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		switch {
		case r.Method == http.MethodPost:
			w.Header().Set("Location", other.URL+"/upload?state=1")
			w.WriteHeader(http.StatusAccepted)
		case r.Method == http.MethodPut:
			w.WriteHeader(http.StatusCreated)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
		return true
	})
	img := newSample(t, "linux/amd64", 1, 1000)
	c := testClient(t, Options{DockerConfig: dockerConfig(t, auths(s.host, "alice:secret"))})
	if err := c.Push(t.Context(), s.host+"/a:1", img.push()); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() != 0 {
		t.Error("credentials went to the upload host")
	}
	if want := img.descs[0].Size + int64(len(img.config)); bytesSeen.Load() != want {
		t.Errorf("%d bytes uploaded, want %d", bytesSeen.Load(), want)
	}
}

func TestFindAuth(t *testing.T) {
	conf := auths("quay.io/org-a", "a:1", "quay.io/org-a/app", "app:1", "https://index.docker.io/v1/", "hub:1", "https://legacy.example/v1/", "l:1",
		"ghcr.io", "g:1", "registry.example:5000", "port:1")
	k := newKeychain(dockerConfig(t, conf), "")
	for ref, user := range map[string]string{
		"quay.io/org-a/app":             "app",
		"quay.io/org-a/other":           "a",
		"quay.io/org-ab/app":            "", // a namespace is not a prefix of letters
		"quay.io/org-b/app":             "",
		"debian":                        "hub",
		"docker.io/library/debian":      "hub",
		"legacy.example/x":              "l",
		"ghcr.io/o/p":                   "g",
		"registry.example:5000/x":       "port",
		"registry.example/x":            "",
		"registry.example:5001/x":       "",
		"evil-ghcr.io/o/p":              "",
		"ghcr.io.evil.example/o/p":      "",
		"sub.ghcr.io/o/p":               "",
		"index.docker.io.evil.example/": "",
	} {
		tg, err := parseRef(strings.TrimSuffix(ref, "/") + map[bool]string{true: "/x", false: ""}[strings.HasSuffix(ref, "/")])
		if err != nil {
			t.Fatal(err)
		}
		cred, err := k.lookup(t.Context(), tg.domain, tg.path)
		if err != nil || cred.user != user {
			t.Errorf("%s: user %q (%v), want %q", ref, cred.user, err, user)
		}
	}
}

func TestEnvironmentComesFirst(t *testing.T) {
	k := newKeychain(dockerConfig(t, auths("r.example", "file:1")), string(mustJSON(t, auths("r.example", "env:1"))))
	if cred, err := k.lookup(t.Context(), "r.example", "x"); err != nil || cred.user != "env" {
		t.Errorf("%+v %v", cred, err)
	}
}

func TestMalformedConfigIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, false)
	s.bend(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := testClient(t, Options{DockerConfig: dir}).Resolve(t.Context(), s.host+"/a:1", linuxAMD64)
	if e := wantClass(t, err, Invalid); !strings.Contains(e.Error(), dir) {
		t.Errorf("error %q does not name the file", e)
	}
}

// helper puts a credential helper on PATH that keeps one secret per host in a directory.
func helper(t *testing.T, name string) (dir string) {
	t.Helper()
	bin, dir := t.TempDir(), t.TempDir()
	script := `#!/bin/sh
cd ` + dir + ` || exit 1
read -r line
file=$(printf %s "$line" | tr -c 'a-zA-Z0-9.\n' _)
case $1 in
get) if [ -f "$file" ]; then cat "$file"; else echo "credentials not found in native keychain"; exit 1; fi ;;
store) host=$(printf %s "$line" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/'); printf %s "$line" >"$(printf %s "$host" | tr -c 'a-zA-Z0-9.\n' _)" ;;
erase) rm -f "$file" ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return dir
}

func TestHelpers(t *testing.T) {
	dir := helper(t, "one")
	conf := auths("plain.example", "plain:1")
	conf["credHelpers"] = map[string]string{"helped.example": "one", "broken.example": "missing"}
	k := newKeychain(dockerConfig(t, conf), "")
	if err := os.WriteFile(filepath.Join(dir, "helped.example"), []byte(`{"ServerURL":"helped.example","Username":"bob","Secret":"s"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if cred, err := k.lookup(t.Context(), "helped.example", "x"); err != nil || cred.user != "bob" || cred.password != "s" {
		t.Errorf("helped: %+v %v", cred, err)
	}
	if cred, err := k.lookup(t.Context(), "plain.example", "x"); err != nil || cred.user != "plain" {
		t.Errorf("plain: %+v %v", cred, err)
	}
	cred, err := k.lookup(t.Context(), "broken.example", "x")
	if err != nil || cred.basic() != "" || !strings.Contains(cred.from, "docker-credential-missing") {
		t.Errorf("broken: %+v %v", cred, err)
	}
}

func TestLogin(t *testing.T) {
	s, ts := newServer(t, false), newTokenServer(t)
	demandToken(s, ts.URL)
	dir := filepath.Join(t.TempDir(), "new")
	c := testClient(t, Options{DockerConfig: dir})
	_, err := c.Login(t.Context(), s.host, "alice", "wrong")
	wantClass(t, err, Auth)
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		t.Error("refused credentials were stored")
	}
	where, err := c.Login(t.Context(), "http://"+s.host+"/v2/", "alice", "secret")
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(where)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v %v", where, fi, err)
	}
	if err := testClient(t, Options{DockerConfig: dir}).Push(t.Context(), s.host+"/private/a:1", newSample(t, "linux/amd64", 1, 10).push()); err != nil {
		t.Errorf("push after login: %v", err)
	}
	if had, err := c.Logout(s.host); !had || err != nil {
		t.Errorf("logout: %v %v", had, err)
	}
	if had, err := c.Logout(s.host); had || err != nil {
		t.Errorf("second logout: %v %v", had, err)
	}
}

func TestLoginWithHelper(t *testing.T) {
	store := helper(t, "two")
	s, ts := newServer(t, false), newTokenServer(t)
	demandToken(s, ts.URL)
	dir := dockerConfig(t, map[string]any{"credsStore": "two", "psFormat": "kept"})
	where, err := testClient(t, Options{DockerConfig: dir}).Login(t.Context(), s.host, "alice", "secret")
	if err != nil || where != "docker-credential-two" {
		t.Fatalf("%s %v", where, err)
	}
	data, _ := os.ReadFile(filepath.Join(dir, "config.json"))
	if bytes.Contains(data, []byte("secret")) || bytes.Contains(data, []byte(base64.StdEncoding.EncodeToString([]byte("alice:secret")))) {
		t.Error("the secret is in the file although there is a helper")
	}
	if !bytes.Contains(data, []byte("kept")) {
		t.Error("other settings were lost")
	}
	if entries, _ := os.ReadDir(store); len(entries) != 1 {
		t.Errorf("the helper stored %d entries", len(entries))
	}
	if err := testClient(t, Options{DockerConfig: dir}).Push(t.Context(), s.host+"/private/a:1", newSample(t, "linux/amd64", 1, 10).push()); err != nil {
		t.Errorf("push after login: %v", err)
	}
}

func TestChallenges(t *testing.T) {
	for in, want := range map[string][]challenge{
		`Bearer realm="https://a/b",service="x y",scope="repository:a:pull,push"`: {{"bearer", map[string]string{"realm": "https://a/b", "service": "x y", "scope": "repository:a:pull,push"}}},
		`Basic realm=x`: {{"basic", map[string]string{"realm": "x"}}},
		`Negotiate, Basic realm="a\"b", Bearer realm=c`: {{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": `a"b`}}, {"bearer", map[string]string{"realm": "c"}}},
		``:                 nil,
		`realm="orphan"`:   nil,
		`Bearer realm="un`: {{"bearer", map[string]string{"realm": "un"}}},
		`=,"`:              nil,
	} {
		if got := parseChallenges(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/b",service="x"`)
	f.Add(`Basic realm="a\`)
	f.Add(`a=b, "c" = d`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges(s) { // must end and never give an empty scheme
			if c.scheme == "" {
				t.Errorf("empty scheme from %q", s)
			}
		}
	})
}
