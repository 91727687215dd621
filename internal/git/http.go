package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// httpTransport speaks to a repository over http: to a server that knows git, or to one that only serves files.
type httpTransport struct {
	r    *Remote
	base string // where requests go, after redirections
	dumb bool
	seen map[string]bool // packs of a dumb server that were fetched
}

func (t *httpTransport) client() *http.Client {
	return &http.Client{
		Transport: t.r.cfg.Transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= 10 {
				return errors.New("too many redirections")
			}
			if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return errors.New("redirected from https to " + req.URL.Scheme + ": refused")
			}
			// net/http keeps the credentials for other ports of a host and for the domains below it.
			if !t.own(req.URL) {
				req.Header.Del("Authorization")
			}
			return nil
		},
	}
}

// do sends one request. The caller closes the body.
func (t *httpTransport) do(ctx context.Context, method, url, contentType string, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", t.r.cfg.UserAgent)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	t.authorize(req)
	resp, err := t.client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	resp.Body.Close()
	err = &statusError{resp.StatusCode, resp.Status}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
		return nil, &AuthError{Repo: t.r.name, Err: err, Hint: "give a token with --secret id=GIT_AUTH_TOKEN,env=NAME, or a whole header with --secret id=GIT_AUTH_HEADER,env=NAME"}
	}
	return nil, err
}

// statusError says that a server did not answer with what was asked for. Its body is not read: it says nothing that a user
// needs, and can be endless.
type statusError struct {
	code   int
	status string
}

func (e *statusError) Error() string { return "unexpected status " + plainText(e.status) }

// own reports whether a URL is one of the host that the repository was said to be at.
func (t *httpTransport) own(u *url.URL) bool {
	return u.Scheme == t.r.url.Scheme && u.Host == t.r.url.Host
}

// authorize adds credentials to requests to the repository's own host.
func (t *httpTransport) authorize(req *http.Request) {
	if !t.own(req.URL) {
		return
	}
	if t.r.cfg.Authorization != nil {
		if v := t.r.cfg.Authorization(t.r.url); v != "" {
			req.Header.Set("Authorization", v)
			return
		}
	}
	if u := t.r.auth; u != nil {
		password, _ := u.Password()
		req.SetBasicAuth(u.Username(), password)
	}
}

const refsPath = "/info/refs"

func (t *httpTransport) advert(ctx context.Context) (*advert, error) {
	t.base = strings.TrimSuffix(t.r.url.String(), "/")
	resp, err := t.do(ctx, http.MethodGet, t.base+refsPath+"?service=git-upload-pack", "", "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	final := *resp.Request.URL
	final.RawQuery, final.User = "", nil
	base, ok := strings.CutSuffix(final.String(), refsPath)
	if !ok {
		return nil, fmt.Errorf("redirected to %s", final.Redacted())
	}
	t.base = base
	br := bufio.NewReaderSize(resp.Body, 64<<10)
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media != "application/x-git-upload-pack-advertisement" {
		t.dumb = true
		return t.dumbAdvert(ctx, br)
	}
	buf := make([]byte, maxPacket)
	if line, err := readPacket(br, buf); err != nil {
		return nil, err
	} else if !strings.HasPrefix(string(line), "# service=git-upload-pack") {
		return nil, fmt.Errorf("unexpected line %.200q", line)
	}
	if _, err := readPacket(br, buf); err != errFlush {
		return nil, fmt.Errorf("the list of refs does not begin as it should: %v", err)
	}
	return readAdvert(br)
}

func (t *httpTransport) fetch(ctx context.Context, a *advert, o *objects, ids []string, shallow bool) error {
	if t.dumb {
		o.miss = func(ctx context.Context, id string) error { return t.dumbGet(ctx, o, id) }
		_, err := o.peel(ctx, ids[0])
		return err
	}
	resp, err := t.do(ctx, http.MethodPost, t.base+"/git-upload-pack", "application/x-git-upload-pack-request", a.request(t.r.cfg.UserAgent, ids, shallow))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return receive(ctx, a, o, resp.Body, shallow)
}

const (
	maxDumbList  = 64 << 20 // of what is read into memory of the lists of a server of files
	maxSmallFile = 64 << 10
)

// dumbAdvert reads the list of refs that git update-server-info leaves in a repository.
func (t *httpTransport) dumbAdvert(ctx context.Context, r io.Reader) (*advert, error) {
	a := newAdvert()
	s := bufio.NewScanner(io.LimitReader(r, maxDumbList))
	for s.Scan() {
		id, name, ok := strings.Cut(s.Text(), "\t")
		if !ok || !IsCommit(id) {
			return nil, errors.New("there is no git repository")
		}
		if err := a.add(name, id); err != nil {
			return nil, err
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	head, err := t.small(ctx, "HEAD", maxSmallFile)
	if err != nil {
		return nil, err
	}
	if ref, ok := strings.CutPrefix(strings.TrimSpace(head), "ref: "); ok {
		a.head = ref
	}
	return a, nil
}

// small reads a file of the repository, but no more of it than limit.
func (t *httpTransport) small(ctx context.Context, path string, limit int64) (string, error) {
	resp, err := t.do(ctx, http.MethodGet, t.base+"/"+path, "", "")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	return string(data), err
}

// dumbGet gets an object from a server of files: the object itself, or a pack that was not looked at so far.
func (t *httpTransport) dumbGet(ctx context.Context, o *objects, id string) error {
	err := t.download(ctx, "objects/"+id[:2]+"/"+id[2:], o.loosePath(id))
	var status *statusError
	if err == nil || !errors.As(err, &status) || status.code != http.StatusNotFound {
		return err
	}
	list, err := t.small(ctx, "objects/info/packs", maxDumbList)
	if err != nil {
		return fmt.Errorf("%w: %s", errNoObject, id)
	}
	if t.seen == nil {
		t.seen = map[string]bool{}
	}
	for line := range strings.Lines(list) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "P ")
		if !ok || t.seen[name] || !strings.HasPrefix(name, "pack-") || !strings.HasSuffix(name, ".pack") || strings.Contains(name, "/") {
			continue
		}
		t.seen[name] = true
		path := filepath.Join(o.dir, fmt.Sprintf("pack-%d", len(o.packs)))
		if err := t.download(ctx, "objects/pack/"+url.PathEscape(name), path); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := o.addPack(ctx, f); err != nil {
			return err
		}
		if o.has(id) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s", errNoObject, id)
}

// download copies a file of the repository to a path.
func (t *httpTransport) download(ctx context.Context, path, to string) error {
	resp, err := t.do(ctx, http.MethodGet, t.base+"/"+path, "", "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.OpenFile(to+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(to+".part", to)
}
