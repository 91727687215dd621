package git

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"build/internal/testenv"
)

// run runs git in a directory, far from anybody's configuration.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "git"), args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_ALLOW_PROTOCOL=file:http",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=1700000000 +0100", "GIT_COMMITTER_DATE=1700000000 +0100",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// site is a directory of repositories, served in two ways.
type site struct {
	dir         string
	smart, dumb string
	header      http.Header // of the last request
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	exe := run(t, s.dir, "--exec-path")
	backend := &cgi.Handler{
		Path: filepath.Join(exe, "git-http-backend"), Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + s.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + s.dir},
	}
	if _, err := os.Stat(backend.Path); err != nil {
		testenv.Skip(t, backend.Path)
	}
	serve := func(h http.Handler) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.header = r.Header.Clone()
			h.ServeHTTP(w, r)
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	s.smart, s.dumb = serve(backend), serve(http.FileServer(http.Dir(s.dir)))
	return s
}

// history is a repository with two commits, tags and branches.
type history struct{ first, second, tag string }

func (s *site) repo(t *testing.T, name, format string) history {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	run(t, s.dir, "init", "-q", "-b", "main", "--object-format="+format, name)
	write(t, dir+"/file", "one\n", 0o644)
	big := strings.Repeat("some text that compresses\n", 4000)
	write(t, dir+"/sub/big", big, 0o600)
	write(t, dir+"/sub/run.sh", "#!/bin/sh\n", 0o755)
	if err := os.Symlink("../file", dir+"/sub/link"); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "add", "-A")
	run(t, dir, "commit", "-q", "-m", "first")
	run(t, dir, "tag", "light")
	run(t, dir, "tag", "-a", "-m", "annotated", "v1")
	h := history{first: run(t, dir, "rev-parse", "HEAD"), tag: run(t, dir, "rev-parse", "v1")}
	write(t, dir+"/file", "two\n", 0o644)
	write(t, dir+"/sub/big", big+"and more\n", 0o600)
	run(t, dir, "add", "-A")
	run(t, dir, "commit", "-q", "-m", "second")
	run(t, dir, "branch", "feature/x")
	run(t, dir, "branch", "both", h.first)
	run(t, dir, "tag", "both")
	h.second = run(t, dir, "rev-parse", "HEAD")
	run(t, dir, "update-ref", "refs/pull/7/head", h.first)
	run(t, dir, "update-server-info")
	return h
}

// get checks a query out and returns the directory.
func get(t *testing.T, url string, q Query, o CheckoutOptions, cfg Config) (string, *Result, error) {
	t.Helper()
	ctx := context.Background()
	r, err := Open(url, cfg)
	if err != nil {
		return "", nil, err
	}
	target, err := r.Resolve(ctx, q)
	if err != nil {
		return "", nil, err
	}
	dir := t.TempDir()
	o.Temp = t.TempDir()
	res, err := r.Checkout(ctx, target, q, dir, o)
	return dir, res, err
}

// listing names what is in a directory: type, mode and content, without .git.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		if rel == ".git" {
			return filepath.SkipDir
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		if fi.Mode()&os.ModeSymlink != 0 {
			text, err = os.Readlink(path)
		} else if fi.Mode().IsRegular() {
			var data []byte
			data, err = os.ReadFile(path)
			text = string(data[:min(len(data), 20)])
		}
		fmt.Fprintf(&b, "%s %s %q\n", fi.Mode(), rel, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const firstTree = `-rw-r--r-- file "one\n"
drwxr-xr-x sub ""
-rw-r--r-- sub/big "some text that compr"
Lrwxrwxrwx sub/link "../file"
-rwxr-xr-x sub/run.sh "#!/bin/sh\n"
`

// Every kind of ref, over both kinds of servers, in both kinds of repositories.
func TestRefs(t *testing.T) {
	s := newSite(t)
	for _, format := range []string{"sha1", "sha256"} {
		name := format + ".git"
		h := s.repo(t, name, format)
		for _, base := range []string{s.smart + "/" + name + "/.git", s.dumb + "/" + name + "/.git"} {
			for _, c := range []struct{ ref, ids, commit string }{
				{"", h.second, h.second},
				{"main", h.second, h.second},
				{"refs/heads/main", h.second, h.second},
				{"heads/main", h.second, h.second},
				{"feature/x", h.second, h.second},
				{"light", h.first, h.first},
				{"v1", h.first, h.first},
				{"refs/tags/v1", h.first, h.first},
				{"tags/v1", h.tag, h.first}, // as in BuildKit, where only refs/tags/ is known to be a tag
				{"both", h.first, h.first},
				{"refs/tags/both", h.second, h.second},
				{"refs/pull/7/head", h.first, h.first},
				{h.first, h.first, h.first},
				{h.tag, h.tag, h.first},
			} {
				r, err := Open(base, Config{})
				if err != nil {
					t.Fatal(err)
				}
				target, err := r.Resolve(context.Background(), Query{Ref: c.ref})
				if err != nil || c.ref != "tags/v1" && target.ID() != c.ids {
					t.Errorf("%s %q: %+v, %v", base, c.ref, target, err)
					continue
				}
				dir, res, err := get(t, base, Query{Ref: c.ref}, CheckoutOptions{}, Config{})
				if err != nil || res.Commit != c.commit || res.Time.Unix() != 1700000000 {
					t.Errorf("%s %q: %+v, %v", base, c.ref, res, err)
					continue
				}
				want := firstTree
				if c.commit == h.second {
					want = strings.Replace(want, "one", "two", 1)
				}
				if got := listing(t, dir); got != want {
					t.Errorf("%s %q:\n%s\nwant\n%s", base, c.ref, got, want)
				}
			}
			for _, ref := range []string{"missing", "-x", "--upload-pack=x", "refs/heads/v1", strings.Repeat("0", len(h.first)), "a b"} {
				if _, _, err := get(t, base, Query{Ref: ref}, CheckoutOptions{}, Config{}); err == nil {
					t.Errorf("%s %q is accepted", base, ref)
				}
			}
		}
	}
}

func TestDeltas(t *testing.T) {
	s := newSite(t)
	h := s.repo(t, "r", "sha1")
	dir := filepath.Join(s.dir, "r")
	run(t, dir, "repack", "-adfq", "--depth=50", "--window=50")
	if n := run(t, dir, "verify-pack", "-v", run(t, dir, "rev-parse", "--git-path", "objects/pack")+"/"+packName(t, dir)); !strings.Contains(n, "chain length = 1") {
		t.Fatalf("no deltas to test with:\n%s", n)
	}
	run(t, dir, "update-server-info")
	out, _, err := get(t, s.dumb+"/r/.git", Query{Ref: h.first}, CheckoutOptions{}, Config{})
	if err != nil || listing(t, out) != firstTree {
		t.Errorf("%v", err)
	}
	if got := content(t, out+"/sub/big"); strings.HasSuffix(got, "and more\n") || len(got) != 26*4000 {
		t.Errorf("the wrong version: %d bytes", len(got))
	}
}

func packName(t *testing.T, dir string) string {
	t.Helper()
	m, err := filepath.Glob(dir + "/.git/objects/pack/*.idx")
	if err != nil || len(m) != 1 {
		t.Fatalf("%v %v", m, err)
	}
	return filepath.Base(m[0])
}

func TestSubdirAndTime(t *testing.T) {
	s := newSite(t)
	s.repo(t, "r", "sha1")
	url := s.smart + "/r/.git"
	dir, res, err := get(t, url, Query{}, CheckoutOptions{Subdir: "/sub/", CommitTime: true, KeepGitDir: true}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := listing(t, dir); !strings.HasPrefix(got, "-rw-r--r-- big") || strings.Contains(got, "file \"") {
		t.Errorf("%s", got)
	}
	for _, name := range []string{"", "/big", "/link"} {
		if fi, err := os.Lstat(dir + name); err != nil || !fi.ModTime().Equal(res.Time) {
			t.Errorf("%q: %v %v", name, fi.ModTime(), err)
		}
	}
	if _, err := os.Lstat(dir + "/.git"); err == nil {
		t.Error(".git below a subdirectory")
	}
	for _, sub := range []string{"missing", "file", "sub/link", "file/x", "sub/link/x"} {
		if _, _, err := get(t, url, Query{}, CheckoutOptions{Subdir: sub}, Config{}); err == nil {
			t.Errorf("%s is accepted", sub)
		}
	}
	if dir, _, err := get(t, url, Query{}, CheckoutOptions{Subdir: "../../sub"}, Config{}); err != nil || !strings.HasPrefix(listing(t, dir), "-rw-r--r-- big") {
		t.Errorf("clamped: %v", err)
	}
}

func TestChecksums(t *testing.T) {
	s := newSite(t)
	h := s.repo(t, "r", "sha1")
	url := s.smart + "/r/.git"
	for _, c := range []struct {
		q  Query
		ok bool
	}{
		{Query{Ref: "v1", Checksum: h.first[:8]}, true},
		{Query{Ref: "v1", Checksum: h.tag}, true},
		{Query{Ref: "v1", Checksum: h.second}, false},
		{Query{Ref: h.first, Checksum: h.first[:7]}, true},
		{Query{Ref: h.first, Checksum: h.second}, false},
		{Query{Ref: "main", Checksum: "xyz"}, false},
		{Query{Ref: "main", Checksum: h.first, FetchByCommit: true}, true},
		{Query{Ref: "main", Checksum: h.first[:9], FetchByCommit: true}, false},
		{Query{FetchByCommit: true}, false},
	} {
		_, res, err := get(t, url, c.q, CheckoutOptions{}, Config{})
		if (err == nil) != c.ok {
			t.Errorf("%+v: %+v %v", c.q, res, err)
		}
	}
}

// What was made is a repository to git: nothing is changed, nothing is missing.
func TestKeptGitDir(t *testing.T) {
	s := newSite(t)
	for _, format := range []string{"sha1", "sha256"} {
		h := s.repo(t, format, format)
		for _, ref := range []string{"main", "v1", h.first} {
			dir, res, err := get(t, s.smart+"/"+format+"/.git", Query{Ref: ref}, CheckoutOptions{KeepGitDir: true}, Config{})
			if err != nil {
				t.Fatal(err)
			}
			if out := run(t, dir, "status", "--porcelain"); out != "" {
				t.Errorf("%s: %s", ref, out)
			}
			if out := run(t, dir, "rev-parse", "HEAD"); out != res.Commit {
				t.Errorf("%s: HEAD is %s", ref, out)
			}
			run(t, dir, "fsck", "--strict")
			if ref == "v1" {
				if out := run(t, dir, "describe"); out != "v1" {
					t.Errorf("describe: %s", out)
				}
			}
		}
	}
}

func TestSubmodules(t *testing.T) {
	s := newSite(t)
	s.repo(t, "lib", "sha1")
	s.repo(t, "app", "sha1")
	app := filepath.Join(s.dir, "app")
	run(t, app, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", s.dir+"/lib", "deps/lib")
	set := func(url string) {
		run(t, app, "config", "-f", ".gitmodules", "submodule.deps/lib.url", url)
		run(t, app, "add", "-A")
		run(t, app, "commit", "-q", "--allow-empty", "-m", "module")
	}
	for _, c := range []struct {
		url string
		ok  bool
	}{
		{"../../lib/.git", true}, {s.smart + "/lib/.git", true},
		{"file://" + s.dir + "/lib", false}, {s.dir + "/lib", false}, {"ext::sh -c id", false}, {"-x", false},
	} {
		set(c.url)
		dir, _, err := get(t, s.smart+"/app/.git", Query{}, CheckoutOptions{Submodules: true}, Config{})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.url, err)
		} else if err == nil && content(t, dir+"/deps/lib/file") != "two\n" {
			t.Errorf("%s: not there", c.url)
		}
		dir, _, err = get(t, s.smart+"/app/.git", Query{}, CheckoutOptions{}, Config{})
		if entries, rerr := os.ReadDir(dir + "/deps/lib"); err != nil || rerr != nil || len(entries) != 0 {
			t.Errorf("%s without submodules: %v %v %v", c.url, entries, err, rerr)
		}
	}
	set("../../lib/.git")
	dir, _, err := get(t, s.smart+"/app/.git", Query{}, CheckoutOptions{Submodules: true, Subdir: "deps/lib/sub"}, Config{})
	if err != nil || !strings.HasPrefix(listing(t, dir), "-rw-r--r-- big") {
		t.Errorf("into a submodule: %v", err)
	}
}

// A repository on the disk of the caller, or anything that is no URL, is none of this package's business.
func TestRefusedPlaces(t *testing.T) {
	for _, url := range []string{"file:///etc", "/etc", "../x", "ext::sh -c id", "http://", "ssh://-oProxyCommand=id/x", "x@-host:y", "git@host:-x"} {
		if _, err := Open(url, Config{}); err == nil {
			t.Errorf("%s is accepted", url)
		}
	}
}

// Credentials go to the repository's own host, and appear in no message.
func TestCredentials(t *testing.T) {
	s := newSite(t)
	s.repo(t, "r", "sha1")
	with := strings.Replace(s.smart, "http://", "http://user:s3cret@", 1) + "/r/.git"
	if _, _, err := get(t, with, Query{}, CheckoutOptions{}, Config{}); err != nil || !strings.HasPrefix(s.header.Get("Authorization"), "Basic ") {
		t.Errorf("%v %v", s.header, err)
	}
	if _, _, err := get(t, with, Query{Ref: "nope"}, CheckoutOptions{}, Config{}); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%v", err)
	}
	cfg := Config{Authorization: func(*url.URL) string { return "Bearer tok" }}
	if _, _, err := get(t, s.smart+"/r/.git", Query{}, CheckoutOptions{}, cfg); err != nil || s.header.Get("Authorization") != "Bearer tok" {
		t.Errorf("%v %v", s.header, err)
	}
	// The same repository, behind a redirection from another host.
	other := httptest.NewServer(http.RedirectHandler(s.smart+"/r/.git/info/refs?service=git-upload-pack", http.StatusFound))
	defer other.Close()
	s.header = nil
	if _, _, err := get(t, other.URL+"/r.git", Query{}, CheckoutOptions{}, cfg); err != nil || s.header == nil || s.header.Get("Authorization") != "" {
		t.Errorf("%v %v", s.header, err)
	}
	denied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer denied.Close()
	var auth *AuthError
	if _, _, err := get(t, denied.URL+"/r.git", Query{}, CheckoutOptions{}, Config{}); !errors.As(err, &auth) {
		t.Errorf("%v", err)
	}
}

// Trees that no git makes: they must not reach anything but the directory.
func TestHostileTrees(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "evil")
	run(t, s.dir, "init", "-q", "-b", "main", "evil")
	write(t, dir+"/payload", "x", 0o644)
	blob := run(t, dir, "hash-object", "-w", "payload")
	raw := func(entries ...[2]string) string { // mode and name
		var b strings.Builder
		for _, e := range entries {
			b.WriteString(e[0] + " " + e[1] + "\x00")
			for i := 0; i < len(blob); i += 2 {
				var c byte
				fmt.Sscanf(blob[i:i+2], "%02x", &c)
				b.WriteByte(c)
			}
		}
		write(t, s.dir+"/tree", b.String(), 0o600)
		tree := run(t, dir, "hash-object", "-t", "tree", "-w", "--literally", s.dir+"/tree")
		return run(t, dir, "commit-tree", "-m", "x", tree)
	}
	for name, entries := range map[string][][2]string{
		"up":        {{"100644", ".."}},
		"slash":     {{"100644", "a/b"}},
		"up slash":  {{"100644", "../../x"}},
		"git":       {{"100644", ".GIT"}},
		"empty":     {{"100644", ""}},
		"twice":     {{"120000", "a"}, {"100644", "a"}},
		"odd mode":  {{"060000", "dev"}},
		"no module": {{"160000", "m"}},
	} {
		run(t, dir, "update-ref", "refs/heads/main", raw(entries...))
		if out, _, err := get(t, s.smart+"/evil/.git", Query{Ref: "main"}, CheckoutOptions{Submodules: true}, Config{}); err == nil {
			t.Errorf("%s is accepted: %s", name, listing(t, out))
		}
	}
}

func TestEndsWithContext(t *testing.T) {
	block := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }))
	defer srv.Close()
	defer close(block)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	r, err := Open(srv.URL+"/x.git", Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(ctx, Query{}); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

func TestParseModules(t *testing.T) {
	mods := parseModules("# c\n[submodule \"a b\"]\n\tpath = \"x y\" ; c\n\turl = ../a\\\nb\n[core]\n\turl = no\n[submodule \"n\"]\npath=p\nurl=u\nupdate = none\n")
	if m := mods["x y"]; m.url != "../ab" {
		t.Errorf("%+v", mods)
	}
	if m := mods["p"]; m.url != "u" || m.update != "none" {
		t.Errorf("%+v", mods)
	}
}

func FuzzPack(f *testing.F) {
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00"))
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x01\x33x\x9c\x03\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := newHash(40)
		h.Write(data)
		file, err := os.Create(filepath.Join(t.TempDir(), "pack"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(h.Sum(data)); err != nil {
			t.Fatal(err)
		}
		p, err := openPack(context.Background(), file, 40)
		if err != nil {
			file.Close()
			return
		}
		o := &objects{hexLen: 40, dir: t.TempDir(), packs: []*pack{p}}
		defer o.close()
		for i := range p.objs {
			id := hex.EncodeToString(p.objs[i].id[:20])
			if k, _, err := o.readAny(context.Background(), id); err != nil || k == 0 {
				t.Errorf("%s was named and cannot be read: %v", id, err)
			}
		}
	})
}

func FuzzDelta(f *testing.F) {
	f.Add([]byte("base"), []byte("\x04\x06\x90\x04\x02ab"))
	f.Fuzz(func(t *testing.T, base, delta []byte) {
		if out, err := applyDelta(base, delta); err == nil && len(out) > maxInMemory {
			t.Error("too large")
		}
	})
}
