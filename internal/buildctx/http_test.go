package buildctx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// origin serves one file and counts what is asked.
type origin struct {
	*httptest.Server
	asked, sent atomic.Int32
	body        atomic.Pointer[string]
	etag, mod   string
	fail        atomic.Int32 // how many answers are failures
	last        http.Header
}

func newOrigin(t *testing.T, body string) *origin {
	t.Helper()
	o := &origin{}
	o.body.Store(&body)
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.asked.Add(1)
		o.last = r.Header.Clone()
		if o.fail.Add(-1) >= 0 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if o.etag != "" {
			w.Header().Set("ETag", o.etag)
		}
		if o.mod != "" {
			w.Header().Set("Last-Modified", o.mod)
		}
		if o.etag != "" && r.Header.Get("If-None-Match") == o.etag || o.mod != "" && r.Header.Get("If-Modified-Since") == o.mod {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		o.sent.Add(1)
		io.WriteString(w, *o.body.Load())
	}))
	t.Cleanup(o.Close)
	return o
}

func downloads(t *testing.T) *Downloads {
	return &Downloads{Dir: filepath.Join(t.TempDir(), "http"), UserAgent: "test", Wait: time.Millisecond}
}

func body(t *testing.T, dl *Download) string {
	t.Helper()
	f, err := dl.Open("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// S97: what has not changed is asked about and not sent again.
func TestS97Revalidation(t *testing.T) {
	ctx := context.Background()
	const mod = "Tue, 14 Nov 2023 22:13:20 GMT"
	for name, set := range map[string]func(*origin){
		"etag":          func(o *origin) { o.etag = `W/"1"` },
		"last-modified": func(o *origin) { o.mod = mod },
		"both":          func(o *origin) { o.etag, o.mod = `"1"`, mod },
	} {
		o, d := newOrigin(t, "hello"), downloads(t)
		set(o)
		for i := range 3 {
			dl, err := d.Get(ctx, o.URL+"/dir/f.txt", "")
			if err != nil || body(t, dl) != "hello" || dl.Name != "f.txt" || int(o.asked.Load()) != i+1 || o.sent.Load() != 1 {
				t.Fatalf("%s, %d: %+v %v, asked %d, sent %d", name, i, dl, err, o.asked.Load(), o.sent.Load())
			}
			if (dl.LastModified != nil) != (o.mod != "") || o.mod != "" && dl.LastModified.Unix() != 1700000000 {
				t.Errorf("%s: %v", name, dl.LastModified)
			}
		}
		changed := "other"
		o.body.Store(&changed)
		o.etag, o.mod = `"2"`, ""
		if dl, err := d.Get(ctx, o.URL+"/dir/f.txt", ""); err != nil || body(t, dl) != changed || dl.LastModified != nil {
			t.Errorf("%s changed: %+v %v", name, dl, err)
		}
	}
	o, d := newOrigin(t, "hello"), downloads(t) // neither: sent every time
	for range 2 {
		if _, err := d.Get(ctx, o.URL+"/f", ""); err != nil {
			t.Fatal(err)
		}
	}
	if o.sent.Load() != 2 {
		t.Errorf("sent %d times", o.sent.Load())
	}
}

func TestChecksum(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, "hello"), downloads(t)
	o.etag = `"1"`
	good := digest.FromString("hello")
	for range 2 {
		if dl, err := d.Get(ctx, o.URL+"/f", good); err != nil || body(t, dl) != "hello" {
			t.Fatal(err)
		}
	}
	if o.asked.Load() != 1 {
		t.Errorf("what has the checksum was asked for again: %d", o.asked.Load())
	}
	if dl, err := d.Get(ctx, o.URL+"/elsewhere", good); err != nil || body(t, dl) != "hello" || o.asked.Load() != 1 {
		t.Errorf("the same content from another place: %v", err)
	}
	if _, err := d.Get(ctx, o.URL+"/f", digest.SHA512.FromString("hello")); err != nil {
		t.Error(err)
	}
	var bad *ChecksumError
	for _, want := range []digest.Digest{digest.FromString("x"), digest.SHA384.FromString("x")} {
		if _, err := d.Get(ctx, o.URL+"/f", want); !errors.As(err, &bad) || bad.Want != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestDamagedDownloads(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, "hello"), downloads(t)
	o.etag = `"1"`
	dl, err := d.Get(ctx, o.URL+"/f", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"cut":  func() error { return os.Truncate(dl.Path, 2) },
		"gone": func() error { return os.Remove(dl.Path) },
		"note": func() error {
			m, _ := filepath.Glob(d.Dir + "/url-*")
			return os.WriteFile(m[0], []byte(`{"digest":"../../etc/passwd"}`), 0o600)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if dl, err := d.Get(ctx, o.URL+"/f", ""); err != nil || body(t, dl) != "hello" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRetries(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, "hello"), downloads(t)
	o.fail.Store(2)
	if dl, err := d.Get(ctx, o.URL+"/f", ""); err != nil || body(t, dl) != "hello" || o.asked.Load() != 3 {
		t.Errorf("%v after %d", err, o.asked.Load())
	}
	o.fail.Store(100)
	var herr *HTTPError
	if _, err := d.Get(ctx, o.URL+"/f", ""); !errors.As(err, &herr) || herr.Status != http.StatusBadGateway || o.asked.Load() != 3+attempts {
		t.Errorf("%v after %d", err, o.asked.Load())
	}
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	if _, err := d.Get(ctx, missing.URL, ""); !errors.As(err, &herr) || herr.Status != http.StatusNotFound {
		t.Errorf("%v", err)
	}
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "short")
	}))
	defer cut.Close()
	if _, err := d.Get(ctx, cut.URL, ""); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(d.Dir + "/tmp-*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOfflineDownloads(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, "hello"), downloads(t)
	d.Offline = true
	if _, err := d.Get(ctx, o.URL+"/f", ""); !errors.Is(err, ErrOffline) {
		t.Errorf("%v", err)
	}
	d.Offline = false
	if _, err := d.Get(ctx, o.URL+"/f", ""); err != nil {
		t.Fatal(err)
	}
	d.Offline = true
	if dl, err := d.Get(ctx, o.URL+"/f", ""); err != nil || !dl.Stale || body(t, dl) != "hello" {
		t.Errorf("%+v %v", dl, err)
	}
	if dl, err := d.Get(ctx, o.URL+"/f", digest.FromString("hello")); err != nil || dl.Stale {
		t.Errorf("%+v %v", dl, err)
	}
	if _, err := d.Get(ctx, o.URL+"/f", digest.FromString("other")); !errors.Is(err, ErrOffline) {
		t.Errorf("%v", err)
	}
	if o.asked.Load() != 1 {
		t.Errorf("asked %d times", o.asked.Load())
	}
}

// Credentials go to their host only, and stay out of messages and of the disk.
func TestDownloadCredentials(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, "hello"), downloads(t)
	away := httptest.NewServer(http.RedirectHandler(o.URL+"/f", http.StatusFound))
	defer away.Close()
	d.Authorization = func(host string) string {
		if host == "127.0.0.1" {
			return "Bearer tok"
		}
		return ""
	}
	if _, err := d.Get(ctx, o.URL+"/f", ""); err != nil || o.last.Get("Authorization") != "Bearer tok" {
		t.Errorf("%v %v", o.last, err)
	}
	// The name of a host is what it is known by: localhost is another one.
	if _, err := d.Get(ctx, strings.Replace(away.URL, "127.0.0.1", "localhost", 1), ""); err != nil || o.last.Get("Authorization") != "" {
		t.Errorf("%v %v", o.last, err)
	}
	// So is another port, which may be somebody else's server.
	if _, err := d.Get(ctx, away.URL, ""); err != nil || o.last.Get("Authorization") != "" {
		t.Errorf("another port: %v %v", o.last, err)
	}
	for next, want := range map[string]bool{
		"http://h/b": true, "https://h/b": true, "http://h:81/b": false, "https://h:444/b": false, "http://sub.h/b": false, "http://h.other/b": false,
	} {
		a, b := parseURL(t, "http://h/a"), parseURL(t, next)
		if sameOrigin(a, b) != want || b.Scheme == "https" && sameOrigin(b, a) {
			t.Errorf("from %s to %s: %v", a, b, !want)
		}
	}
	asked := 0
	file := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	}))
	defer file.Close()
	if _, err := d.Get(ctx, file.URL, ""); err == nil || asked != 1 {
		t.Errorf("redirected to a file: asked %d times, %v", asked, err)
	}
	o.fail.Store(100)
	secret := strings.Replace(o.URL, "http://", "http://user:s3cret@", 1) + "/f"
	if _, err := d.Get(ctx, secret, ""); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%v", err)
	}
	o.fail.Store(0)
	if _, err := d.Get(ctx, secret, ""); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(d.Dir)
	if err != nil || len(entries) == 0 {
		t.Fatal(err)
	}
	for _, e := range entries {
		if data, err := os.ReadFile(filepath.Join(d.Dir, e.Name())); err != nil || strings.Contains(string(data), "s3cret") {
			t.Errorf("%s: %q %v", e.Name(), data, err)
		}
	}
}

func TestDownloadsMakeRoom(t *testing.T) {
	ctx := context.Background()
	o, d := newOrigin(t, ""), downloads(t)
	d.Limit = 50_000
	for i := range 8 {
		text := strings.Repeat(fmt.Sprint(i), 10_000)
		o.body.Store(&text)
		dl, err := d.Get(ctx, fmt.Sprintf("%s/%d", o.URL, i), "")
		if err != nil || body(t, dl) != text {
			t.Fatal(err)
		}
		old := time.Now().Add(time.Duration(i-100) * time.Minute)
		if err := os.Chtimes(dl.Path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(d.Dir + "/sha256-*")
	if err != nil || len(left) < 3 || len(left) > 5 {
		t.Errorf("%d files are left: %v", len(left), err)
	}
}

// B14: what a server calls a file never leads anywhere.
func TestB14FileNames(t *testing.T) {
	for disposition, want := range map[string]string{
		"":                                   "u.txt",
		`attachment; filename="a.txt"`:       "a.txt",
		`attachment; filename="../../x"`:     "x",
		`attachment; filename="/etc/passwd"`: "passwd",
		`attachment; filename=".."`:          "download",
		`attachment; filename="a/"`:          "u.txt",
		`attachment; filename*=UTF-8''a%00b`: "download",
		`attachment; filename*=UTF-8''%1bm`:  "download",
		`attachment; filename="`:             "u.txt",
	} {
		if got := nameOf("http://h/d/u.txt?x=y", disposition); got != want {
			t.Errorf("%s: %q, want %q", disposition, got, want)
		}
	}
	for url, want := range map[string]string{ // S23
		"http://h": "__unnamed__", "http://h/": "__unnamed__", "http://h/a/b": "b", "http://h/a/": "a",
		"http://h/a%2f..%2fb": "b", "http://h/x/..": "download", "http://h/a%0ab": "download", "http://h/*": "*",
	} {
		if got := URLFileName(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}

// S24, and every form that names a repository.
func TestS24ParseRemote(t *testing.T) {
	for _, c := range []struct {
		src       string
		kind      RemoteKind
		repo, ref string
		sub       string
	}{
		{"file", Local, "", "", ""}, {"./a.git", Local, "", "", ""}, {"github.com/x/y", Local, "", "", ""}, {"ftp://h/x.git", Local, "", "", ""},
		{"https://h/org/repo", HTTP, "", "", ""}, {"http://h/x.tar.gz#frag", HTTP, "", "", ""},
		{"https://h/org/repo.git", Git, "https://h/org/repo.git", "", ""},
		{"https://h/org/repo.git#v1:a/../b", Git, "https://h/org/repo.git", "v1", "b"},
		{"https://h/org/repo.git#:../../x", Git, "https://h/org/repo.git", "", "x"},
		{"git://h/r", Git, "git://h/r", "", ""}, {"ssh://git@h:22/r#main", Git, "ssh://git@h:22/r", "main", ""},
		{"git@h:o/r.git#b:s", Git, "git@h:o/r.git", "b", "s"},
		{"https://h/r.git?branch=x&subdir=d", Git, "https://h/r.git", "refs/heads/x", "d"},
		{"https://h/r.git?tag=v1", Git, "https://h/r.git", "refs/tags/v1", ""},
		{"https://h/r.git?ref=main#main", Git, "https://h/r.git", "main", ""},
	} {
		r, err := ParseRemote(c.src)
		if err != nil || r.Kind != c.kind || r.Git.Repo != c.repo || r.Git.Query.Ref != c.ref || r.Git.Subdir != c.sub {
			t.Errorf("%s: %+v %v", c.src, r, err)
		}
	}
	if r, err := ParseContext("github.com/x/y#v1"); err != nil || r.Kind != Git || r.Git.Repo != "https://github.com/x/y" || r.Git.Query.Ref != "v1" {
		t.Errorf("%+v %v", r, err)
	}
	for _, bad := range []string{
		"https://h/r.git?ref=a#b", "https://h/r.git?tag=a&branch=b", "https://h/r.git?tag=a#b", "https://h/r.git?nope=1", "https://h/r.git?ref=",
		"https://h/r.git?mtime=x", "https://h/r.git?submodules=x", "https://h/r.git?keep-git-dir=x", "https://h/r.git?subdir=a#:b", "https://h/r.git?ref=a&ref=b",
	} {
		if r, err := ParseRemote(bad); err == nil {
			t.Errorf("%s: %+v", bad, r)
		}
	}
	r, err := ParseRemote("https://h/r.git?keep-git-dir&submodules=false&mtime=commit&commit=abc&fetch-by-commit")
	if g := r.Git; err != nil || !*g.KeepGitDir || *g.Submodules || g.MTime != "commit" || g.Query.Checksum != "abc" || !g.Query.FetchByCommit {
		t.Errorf("%+v %v", r, err)
	}
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
