package build

import (
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// forwarder is a proxy that knows where names are.
type forwarder struct {
	*httptest.Server
	mu    sync.Mutex
	where map[string]string // name to address
	asked []string          // names
}

func newForwarder(t *testing.T, where map[string]string) *forwarder {
	t.Helper()
	f := &forwarder{where: where}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Hostname()
		if r.Method == http.MethodConnect {
			name, _, _ = net.SplitHostPort(r.Host)
		}
		f.mu.Lock()
		addr, ok := f.where[name]
		f.asked = append(f.asked, name)
		f.mu.Unlock()
		switch {
		case !ok:
			http.Error(w, "no such host", http.StatusBadGateway)
		case r.Method == http.MethodConnect:
			tunnel(w, addr)
		default:
			back := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
			back.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

// tunnel joins a client with what is at an address.
func tunnel(w http.ResponseWriter, addr string) {
	back, err := net.Dial("tcp", addr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	front, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		back.Close()
		return
	}
	go func() { _, _ = io.Copy(back, front); back.Close() }()
	go func() { _, _ = io.Copy(front, back); front.Close() }()
}

// take returns the names that were asked for, each once, and forgets them.
func (f *forwarder) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.asked)
	out := slices.Compact(f.asked)
	f.asked = nil
	return out
}

func proxied(f *forwarder) mod {
	return func(o *Options) {
		o.ProxyArgs = []KeyValue{{"http_proxy", f.URL}, {"HTTPS_PROXY", f.URL}}
	}
}

// Proxies carry FROM, ADD of files and repositories, and contexts; RUN sees them. They are in no key, and nothing of them stays in the
// image.
func TestProxies(t *testing.T) {
	needIDs(t)
	p, s := newPlace(t), newServer(t)
	s.seed(t)
	secure := httptest.NewTLSServer(s.Config.Handler)
	t.Cleanup(secure.Close)
	p.put(t, "f.txt", "file")
	p.repo(t, "r", "a", "1")
	p.repo(t, "ctx", "Dockerfile", "FROM scratch\nCOPY a /\n", "a", "2")
	addr := strings.TrimPrefix(p.URL, "http://")
	where := map[string]string{"files.example": addr, "git.example": addr, "reg.example": strings.TrimPrefix(secure.URL, "https://")}
	one, two := newForwarder(t, where), newForwarder(t, where)
	insecure := func(o *Options) { o.Store.Insecure = []string{"reg.example"} }
	w := newWorld(t)
	df := from(`
		FROM reg.example/base:1
		ADD http://files.example/f.txt /f.txt
		ADD http://git.example/r.git /r
		RUN test "$http_proxy" = "$HTTP_PROXY" && echo $HTTP_PROXY && echo ran > /ran
	`)
	file := w.tmp + "/a.tar"
	res, rec := w.ok(df, online, insecure, proxied(one), ociTo(file))
	if got, want := one.take(), []string{"files.example", "git.example", "reg.example"}; !slices.Equal(got, want) {
		t.Errorf("proxied %q, want %q", got, want)
	}
	if got := rec.log("RUN"); !strings.Contains(got, one.URL) {
		t.Errorf("RUN saw %q", got)
	}
	again, rec := w.ok(df, online, insecure, proxied(two))
	if again.Digest != res.Digest || len(rec.ran()) != 0 {
		t.Errorf("another proxy: %s instead of %s, ran %v", again.Digest, res.Digest, rec.ran())
	}
	a := readArchive(t, file)
	for _, h := range a.config.History {
		if strings.Contains(h.CreatedBy, one.URL) || strings.Contains(strings.ToLower(h.CreatedBy), "http_proxy=http") {
			t.Errorf("history: %s", h.CreatedBy)
		}
	}
	if env := strings.Join(a.config.Config.Env, "\n"); strings.Contains(strings.ToLower(env), "proxy") {
		t.Errorf("environment of the image: %s", env)
	}

	one.take()
	dir, _ := w.out(contextAt("http://git.example/ctx.git"), proxied(one))
	has(t, dir+"/a", "2")
	dir, _ = w.out(from("FROM scratch\nCOPY --from=n /context /\n"), named("n", "http://files.example/f.txt"), proxied(one))
	has(t, dir+"/context", "file")
	if got := one.take(); !slices.Equal(got, []string{"files.example", "git.example"}) {
		t.Errorf("proxied %q", got)
	}
	// A build argument is over what the environment says.
	w.out(from("FROM scratch\nADD http://files.example/f.txt /new\n"), proxied(one), arg("HTTP_PROXY", two.URL))
	if got := two.take(); !slices.Contains(got, "files.example") || len(one.take()) != 0 {
		t.Errorf("by the proxy of the build argument: %q", got)
	}
}

// A proxy given as build argument counts more than an ENV of its name, one that is merely in the environment does not.
func TestProxyAndENV(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	df := from("FROM base\nENV HTTP_PROXY=mine\nRUN echo sees $HTTP_PROXY and $http_proxy\n")
	for want, given := range map[string]mod{
		"sees mine and http://there:1":           func(o *Options) { o.ProxyArgs = []KeyValue{{"http_proxy", "http://there:1"}} },
		"sees http://given:1 and http://given:1": arg("http_proxy", "http://given:1"),
	} {
		_, rec := w.ok(df, noCache, given)
		if got := strings.TrimSpace(rec.log("sees")); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestProxyOf(t *testing.T) {
	for _, c := range []struct {
		args map[string]string
		url  string
		want string
	}{
		{map[string]string{"HTTP_PROXY": "http://p:1"}, "http://a.example/", "http://p:1"},
		{map[string]string{"HTTP_PROXY": "http://p:1"}, "https://a.example/", ""},
		{map[string]string{"https_proxy": "http://p:1"}, "https://a.example/", "http://p:1"},
		{map[string]string{"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "https://a.example/", "http://q:1"},
		{map[string]string{"all_proxy": "socks5://p:1"}, "http://a.example/", "socks5://p:1"},
		{map[string]string{"HTTP_PROXY": "http://p:1", "no_proxy": "b.example,.a.example"}, "http://x.a.example/", ""},
		{map[string]string{"HTTP_PROXY": "http://p:1", "NO_PROXY": "b.example"}, "http://x.a.example/", "http://p:1"},
		{map[string]string{"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:5000/", ""},
		{nil, "http://a.example/", ""},
	} {
		req, err := http.NewRequest(http.MethodGet, c.url, nil)
		must(t, err)
		got, err := proxyOf(c.args)(req)
		must(t, err)
		if got == nil && c.want != "" || got != nil && got.String() != c.want {
			t.Errorf("%v %s: %v, want %q", c.args, c.url, got, c.want)
		}
	}
}

// Hosts of ADD and contexts are trusted as registries are: by a directory of certificates or --insecure, each for itself.
func TestTrustOfPlaces(t *testing.T) {
	w := newWorld(t)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "secret place") }))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	host := strings.TrimPrefix(secure.URL, "https://")
	df := from("FROM scratch\nADD " + secure.URL + "/f /f\n")
	w.fails(ExitNetwork, []string{"certificate"}, df, online)
	w.fails(ExitNetwork, []string{"certificate"}, df, online, func(o *Options) { o.Store.Insecure = []string{"other.example"} })
	dir, _ := w.out(df, func(o *Options) { o.Store.Insecure = []string{host} })
	has(t, dir+"/f", "secret place")

	certs := w.tmp + "/certs.d"
	must(t, os.MkdirAll(filepath.Join(certs, host), 0o755))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(certs, host, "ca.crt"), ca, 0o644))
	trust := func(o *Options) { o.Store.CertsDirs = []string{certs} }
	dir, _ = newWorld(t).out(df, trust)
	has(t, dir+"/f", "secret place")
	dir, _ = w.out(contextAt(secure.URL+"/Dockerfile"), trust, func(o *Options) { o.Dockerfile = "-"; o.Stdin = strings.NewReader("FROM scratch\nCOPY context /c\n") })
	has(t, dir+"/c", "secret place")
	must(t, os.WriteFile(filepath.Join(certs, host, "ca.crt"), []byte("none"), 0o644))
	w.fails(ExitUsage, []string{"holds no PEM certificate"}, from("FROM scratch\nADD "+secure.URL+"/other /f\n"), online, trust)
}
