package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// tunnel is a proxy that leads every CONNECT to one server, so that the test can give that server any name.
func tunnel(t *testing.T, to string) (proxy func(*http.Request) (*url.URL, error), used *atomic.Int32) {
	t.Helper()
	used = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		used.Add(1)
		if r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			out.Close()
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(out, in); out.Close() }()
		_, _ = io.Copy(in, out)
		in.Close()
	}))
	t.Cleanup(s.Close)
	u, _ := url.Parse(s.URL)
	return func(*http.Request) (*url.URL, error) { return u, nil }, used
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCertificates(t *testing.T) {
	s := newServer(t, true) // its certificate is for example.com, by a CA nobody knows
	seed(t, s.host+"/a:1", newSample(t, "linux/amd64", 1, 10))
	proxy, used := tunnel(t, s.host)
	resolve := func(o Options) error {
		o.Proxy = proxy
		_, err := testClient(t, o).Resolve(t.Context(), "example.com/a:1", linuxAMD64)
		return err
	}
	e := wantClass(t, resolve(Options{}), Network)
	if !strings.Contains(e.Hint, "/etc/docker/certs.d/example.com/ca.crt") {
		t.Errorf("hint %q", e.Hint)
	}
	certs := t.TempDir()
	writePEM(t, filepath.Join(certs, "example.com", "ca.crt"), "CERTIFICATE", s.Certificate().Raw)
	if err := resolve(Options{CertsDir: []string{t.TempDir(), certs}}); err != nil {
		t.Errorf("with the CA: %v", err)
	}
	if err := resolve(Options{Insecure: []string{"example.com"}}); err != nil {
		t.Errorf("as insecure: %v", err)
	}
	wantClass(t, resolve(Options{Insecure: []string{"other.example.com"}}), Network)
	if used.Load() == 0 {
		t.Error("the proxy was not used")
	}
	if err := os.WriteFile(filepath.Join(certs, "example.com", "bad.crt"), []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantClass(t, resolve(Options{CertsDir: []string{certs}}), Invalid)
}

func TestClientCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	pool := x509.NewCertPool()
	leaf, _ := x509.ParseCertificate(der)
	pool.AddCert(leaf)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")

	certs := t.TempDir()
	_, err = testClient(t, Options{CertsDir: []string{certs}}).Resolve(t.Context(), host+"/a:1", linuxAMD64)
	wantClass(t, err, Network)
	writePEM(t, filepath.Join(certs, host, "client.key"), "PRIVATE KEY", keyDER)
	_, err = testClient(t, Options{CertsDir: []string{certs}}).Resolve(t.Context(), host+"/a:1", linuxAMD64)
	wantClass(t, err, Invalid) // a key without its certificate
	writePEM(t, filepath.Join(certs, host, "client.cert"), "CERTIFICATE", der)
	_, err = testClient(t, Options{CertsDir: []string{certs}}).Resolve(t.Context(), host+"/a:1", linuxAMD64)
	wantClass(t, err, NotFound)
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	s := newServer(t, false)
	seed(t, s.host+"/a:1", newSample(t, "linux/amd64", 1, 10))
	s.requests()
	proxy, _ := tunnel(t, s.host)
	_, err := testClient(t, Options{Proxy: proxy}).Resolve(t.Context(), "10.1.2.3:5000/a:1", linuxAMD64)
	e := wantClass(t, err, Network)
	if !strings.Contains(e.Hint, "--insecure 10.1.2.3:5000") {
		t.Errorf("hint %q for %v", e.Hint, err)
	}
	if got := s.requests(); len(got) != 0 {
		t.Errorf("plain requests %q", got)
	}
	for host, want := range map[string]bool{"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true,
		"10.0.0.1": false, "192.168.0.1:5000": false, "localhost.evil.example": false, "reg.local": false, "127.0.0.1.evil.example": false} {
		if got := testClient(t, Options{}).plainAllowed(host); got != want {
			t.Errorf("plain http to %s: %v, want %v", host, got, want)
		}
	}
	c := testClient(t, Options{Insecure: []string{"reg.example:5000", "any.example", "http://url.example/"}})
	for host, want := range map[string]bool{"reg.example:5000": true, "reg.example": false, "reg.example:5001": false, "any.example": true, "any.example:1": true,
		"url.example": true, "sub.any.example": false} {
		if got := c.plainAllowed(host); got != want {
			t.Errorf("plain http to %s: %v, want %v", host, got, want)
		}
	}
}
