package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"build/internal/testenv"
)

// place serves files, archives and repositories.
type place struct {
	*httptest.Server
	dir string

	mu      sync.Mutex
	sent    map[string]int // bodies, by path
	untimed bool           // no Last-Modified
}

const placeTime = "Tue, 14 Nov 2023 22:13:20 GMT" // 1700000000

func newPlace(t *testing.T) *place {
	t.Helper()
	git := testenv.Tool(t, "git")
	exe, err := exec.Command(git, "--exec-path").Output()
	must(t, err)
	p := &place{dir: t.TempDir(), sent: map[string]int{}}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(exe)), "git-http-backend"), Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + p.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + p.dir},
	}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, ".git/") {
			if _, password, _ := r.BasicAuth(); strings.HasPrefix(r.URL.Path, "/private") && password != "s3cret-token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			backend.ServeHTTP(w, r)
			return
		}
		data, err := os.ReadFile(filepath.Join(p.dir, filepath.Clean(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/private") && r.Header.Get("Authorization") != "Bearer s3cret-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("ETag", `"`+digest.FromBytes(data).Encoded()+`"`)
		if !p.untimed {
			w.Header().Set("Last-Modified", placeTime)
		}
		if r.Header.Get("If-None-Match") == w.Header().Get("ETag") {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		p.mu.Lock()
		p.sent[r.URL.Path]++
		p.mu.Unlock()
		_, _ = w.Write(data)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *place) put(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
	return p.URL + "/" + name
}

func (p *place) git(t *testing.T, repo string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = filepath.Join(p.dir, repo)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a",
		"GIT_COMMITTER_EMAIL=a@b", "GIT_AUTHOR_DATE=1600000000 +0000", "GIT_COMMITTER_DATE=1600000000 +0000",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// repo makes a repository NAME.git out of files and returns its URL and commit.
func (p *place) repo(t *testing.T, name string, pairs ...string) (url, commit string) {
	t.Helper()
	name += ".git"
	if _, err := os.Stat(filepath.Join(p.dir, name)); err != nil {
		must(t, os.MkdirAll(filepath.Join(p.dir, name), 0o755))
		p.git(t, name, "init", "-q", "-b", "main")
	}
	for i := 0; i < len(pairs); i += 2 {
		p.put(t, name+"/"+pairs[i], pairs[i+1])
	}
	p.git(t, name, "add", "-A")
	p.git(t, name, "commit", "-q", "-m", "x")
	return p.URL + "/" + name, p.git(t, name, "rev-parse", "HEAD")
}

// out builds and returns the directory with what was built.
func (w *world) out(mods ...mod) (string, *recorder) {
	w.t.Helper()
	dest, err := os.MkdirTemp(w.tmp, "out-")
	must(w.t, err)
	_, rec := w.ok(append(append([]mod{online}, mods...), output(Output{Type: OutputLocal, Dest: dest}))...)
	return dest, rec
}

func has(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, want %q (%v)", path, got, want, err)
	}
}

func contextAt(c string) mod { return func(o *Options) { o.Context = c } }
func secret(id, v string) mod {
	return func(o *Options) { o.Secrets = append(o.Secrets, Secret{ID: id, Data: []byte(v)}) }
}
func offline(o *Options) { o.Store.Offline = true }

// noTrace checks that a secret is nowhere in the store.
func (w *world) noTrace(secret string) {
	w.t.Helper()
	err := filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(secret)) {
			w.t.Errorf("%s holds the secret", path)
		}
		return err
	})
	must(w.t, err)
}

func TestS23AddURL(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url := p.put(t, "d/f.txt", "one")
	w.write("local", "here")
	df := from("FROM scratch\nADD local " + url + " /to/\nADD " + url + " /named\n")
	dir, rec := w.out(df)
	has(t, dir+"/to/f.txt", "one")
	has(t, dir+"/to/local", "here")
	has(t, dir+"/named", "one")
	if fi, err := os.Stat(dir + "/named"); err != nil || fi.Mode().Perm() != 0o600 || fi.ModTime().Unix() != 1700000000 {
		t.Errorf("%v %v", fi, err)
	}
	if n := len(rec.ran()); n != 2 {
		t.Errorf("%d steps ran", n)
	}
	if _, rec := w.out(df); len(rec.ran()) != 0 || p.sent["/d/f.txt"] != 1 {
		t.Errorf("not cached: %v, sent %v", rec.ran(), p.sent)
	}
	p.put(t, "d/f.txt", "two")
	dir, rec = w.out(df)
	if has(t, dir+"/named", "two"); len(rec.ran()) != 2 {
		t.Errorf("ran %v", rec.ran())
	}
	w.fails(ExitNetwork, []string{"404"}, online, from("FROM scratch\nADD "+p.URL+"/missing /x\n"))
	w.fails(ExitNetwork, []string{"digest mismatch"}, online, from("FROM scratch\nADD --checksum=sha256:"+strings.Repeat("0", 64)+" "+url+" /x\n"))
	w.fails(ExitUsage, []string{"COPY"}, online, from("FROM scratch\nCOPY "+url+" /x\n"))
}

func tarball(t *testing.T, pairs ...string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for i := 0; i < len(pairs); i += 2 {
		must(t, tw.WriteHeader(&tar.Header{Name: pairs[i], Mode: 0o640, Size: int64(len(pairs[i+1])), Format: tar.FormatPAX}))
		_, err := io.WriteString(tw, pairs[i+1])
		must(t, err)
	}
	must(t, tw.Close())
	must(t, z.Close())
	return b.String()
}

// S21: an archive that was fetched stays one, unless it is to be unpacked.
func TestS21AddUnpack(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	text := tarball(t, "in/side", "x")
	url := p.put(t, "a.tgz", text)
	dir, _ := w.out(from("FROM scratch\nADD " + url + " /kept/\nADD --unpack " + url + " /un/\nADD --unpack=false " + url + " /no/\n"))
	has(t, dir+"/kept/a.tgz", text)
	has(t, dir+"/no/a.tgz", text)
	has(t, dir+"/un/in/side", "x")
}

func TestS25AddGit(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url, first := p.repo(t, "r", "a", "1", "sub/b", "2")
	df := from("FROM scratch\nADD " + url + " /all/\nADD " + url + "#main:sub /sub/\nADD --keep-git-dir=true " + url + " /git/\nADD --checksum=" + first + " " + url + "#" + first + " /first/\n")
	dir, rec := w.out(df)
	has(t, dir+"/all/a", "1")
	has(t, dir+"/sub/b", "2")
	has(t, dir+"/git/.git/HEAD", first+"\n")
	if _, err := os.Lstat(dir + "/all/.git"); err == nil {
		t.Error(".git without --keep-git-dir")
	}
	if len(rec.ran()) != 4 {
		t.Errorf("ran %v", rec.ran())
	}
	if _, rec := w.out(df); len(rec.ran()) != 0 {
		t.Errorf("ran %v", rec.ran())
	}
	p.repo(t, "r", "a", "3")
	dir, rec = w.out(df)
	has(t, dir+"/all/a", "3")
	if has(t, dir+"/first/a", "1"); len(rec.ran()) != 4 { // all but nothing: the layers below changed
		t.Logf("ran %v", rec.ran())
	}
	w.fails(ExitNetwork, []string{"expected checksum"}, online, from("FROM scratch\nADD --checksum="+strings.Repeat("1", 40)+" "+url+" /x\n"))
	w.fails(ExitUsage, []string{"inconsistent keep-git-dir"}, online, from("FROM scratch\nADD --keep-git-dir=true "+url+"?keep-git-dir=false /x\n"))
}

func TestRemoteContexts(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url, _ := p.repo(t, "r", "Dockerfile", "FROM scratch\nCOPY . /\n", ".dockerignore", "a\n", "a", "1", "sub/b", "2", "sub/other.df", "FROM scratch\nCOPY b /other\n")
	dir, _ := w.out(contextAt(url))
	has(t, dir+"/a", "1") // S79: no ignore rules
	has(t, dir+"/sub/b", "2")
	dir, _ = w.out(contextAt(url+"#main:sub"), func(o *Options) { o.Dockerfile = "other.df" })
	has(t, dir+"/other", "2")
	dir, _ = w.out(contextAt(p.put(t, "c.tgz", tarball(t, "Dockerfile", "FROM scratch\nCOPY x /\n", "x", "in tar"))))
	has(t, dir+"/x", "in tar")
	alone := p.put(t, "alone", "FROM scratch\nCOPY context /me\n")
	dir, _ = w.out(contextAt(alone))
	has(t, dir+"/me", "FROM scratch\nCOPY context /me\n")
	w.write("x", "local")
	dir, _ = w.out(func(o *Options) { o.Dockerfile = p.put(t, "df", "FROM scratch\nCOPY x /\n") })
	has(t, dir+"/x", "local")
	dir, _ = w.out(from("FROM scratch\nCOPY --from=g /b /b\nCOPY --from=h / /\n"), func(o *Options) {
		o.NamedContexts = append(o.NamedContexts, KeyValue{"g", url + "#:sub"}, KeyValue{"h", alone})
	})
	has(t, dir+"/b", "2")
	has(t, dir+"/context", "FROM scratch\nCOPY context /me\n")
	w.fails(ExitNetwork, []string{"does not contain ref"}, online, contextAt(url+"#nope"))
	w.fails(ExitUsage, []string{"conflicts"}, online, contextAt(url+"?ref=a#b"))
	for _, sub := range []string{"missing", "a"} { // B8
		w.fails(ExitNetwork, []string{"subdir"}, online, contextAt(url+"#main:"+sub))
	}
}

func TestContextEpoch(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url, _ := p.repo(t, "r", "Dockerfile", "FROM scratch\nARG SOURCE_DATE_EPOCH\nCOPY a /a\n", "a", "1")
	dir, _ := w.out(contextAt(url), arg("SOURCE_DATE_EPOCH", "context"))
	if fi, err := os.Stat(dir + "/a"); err != nil || fi.ModTime().Unix() != 1600000000 {
		t.Errorf("%v %v", fi, err)
	}
}

// B5: what opens a private place reaches that place and nothing else.
func TestB5Credentials(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	const token = "s3cret-token"
	repo, _ := p.repo(t, "private", "a", "1")
	url := p.put(t, "private-file", "x")
	host := strings.Split(strings.TrimPrefix(p.URL, "http://"), ":")[0]
	df := from("FROM scratch\nADD " + repo + " /r\nADD " + url + " /f\n")
	w.fails(ExitAuth, []string{"401"}, online, df)
	dir, _ := w.out(df, secret("GIT_AUTH_TOKEN", token), secret("HTTP_AUTH_TOKEN_"+host, token+"\n"))
	has(t, dir+"/r/a", "1")
	w.noTrace(token)
	inside := strings.Replace(repo, "http://", "http://me:"+token+"@", 1)
	dir, rec := w.out(from("FROM scratch\nADD --keep-git-dir=true "+inside+" /r\n"), tags("example.com/private"))
	has(t, dir+"/r/a", "1")
	config, err := os.ReadFile(dir + "/r/.git/config")
	if err != nil || strings.Contains(string(config), token) || strings.Contains(rec.log(""), token) {
		t.Errorf("%s %v", config, err)
	}
	w.noTrace(token)
}

func TestOfflineRemotes(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url := p.put(t, "f", "x")
	repo, commit := p.repo(t, "r", "a", "1")
	for _, df := range []string{"ADD " + url + " /f", "ADD " + repo + " /r", "ADD " + repo + "#" + commit + " /r"} {
		w.fails(ExitNetwork, []string{"offline"}, from("FROM scratch\n"+df+"\n"), offline)
	}
	w.fails(ExitNetwork, []string{"offline"}, contextAt(repo), offline)
	if len(p.sent) != 0 {
		t.Errorf("asked: %v", p.sent)
	}
	pinned := from("FROM scratch\nADD " + repo + "#" + commit + " /r\nADD " + url + " /f\n")
	w.out(pinned)
	p.Close()
	if dir, rec := w.out(pinned, offline); len(rec.ran()) != 0 {
		t.Errorf("ran %v", rec.ran())
	} else {
		has(t, dir+"/r/a", "1")
	}
}
