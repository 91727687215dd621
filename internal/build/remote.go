package build

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"build/internal/buildctx"
	"build/internal/git"
	"build/internal/progress"
	"build/internal/registry"
	"build/snapshot"

	"github.com/opencontainers/go-digest"
)

// remotes is what a build fetched that is no image: files over http and commits of repositories, each once.
type remotes struct {
	downloads flights[*buildctx.Download]
	targets   flights[git.Target]
	checkouts flights[*checkedOut]
	archives  flights[string] // compressed images by their file: where their plain copy is
}

// flights are values that are computed once for each key, whoever asks first.
type flights[T any] struct {
	mu sync.Mutex
	m  map[string]*future[T]
}

func (f *flights[T]) do(ctx context.Context, key string, compute func() (T, error)) (T, error) {
	f.mu.Lock()
	if f.m == nil {
		f.m = map[string]*future[T]{}
	}
	fl, ok := f.m[key]
	if !ok {
		fl = &future[T]{done: make(chan struct{})}
		f.m[key] = fl
	}
	f.mu.Unlock()
	if !ok {
		defer close(fl.done)
		fl.val, fl.err = compute()
		return fl.val, fl.err
	}
	return fl.wait(ctx)
}

const userAgent = "build"

// secret returns the value of a --secret.
func (s *session) secret(id string) (string, bool) {
	x := s.givenSecret(id)
	if x == nil {
		return "", false
	}
	return strings.TrimRight(string(x.Data), "\r\n"), true
}

// httpAuthorization is what the secrets say for a host of ADD.
func (s *session) httpAuthorization(host string) string {
	if v, ok := s.secret("HTTP_AUTH_TOKEN_" + host); ok {
		return "Bearer " + v
	}
	v, _ := s.secret("HTTP_AUTH_HEADER_" + host)
	return v
}

// gitAuthorization returns what the secrets say for a repository, and whom else to tell: submodules elsewhere on the same
// host are none of its business, but github.com is one place.
func (s *session) gitAuthorization(repo string) func(*url.URL) string {
	main, err := url.Parse(repo)
	if err != nil {
		return nil
	}
	scope := strings.TrimSuffix(main.Path, "/")
	if main.Scheme == "https" && (main.Host == "github.com" || main.Host == "www.github.com") {
		scope = ""
	}
	value := ""
	for _, suffix := range []string{"." + main.Host, ""} {
		if v, ok := s.secret("GIT_AUTH_HEADER" + suffix); ok && value == "" {
			value = v
		}
		if v, ok := s.secret("GIT_AUTH_TOKEN" + suffix); ok && value == "" {
			value = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+v))
		}
	}
	return func(u *url.URL) string {
		path := strings.TrimSuffix(u.Path, "/")
		if u.Scheme == main.Scheme && u.Host == main.Host && (path == scope || strings.HasPrefix(path, scope+"/")) {
			return value
		}
		return ""
	}
}

// download fetches the file at a URL, or knows that what is here is still the same.
func (s *session) download(ctx context.Context, raw string, checksum digest.Digest) (*buildctx.Download, error) {
	return s.remotes.downloads.do(ctx, raw+"\n"+checksum.String(), func() (dl *buildctx.Download, err error) {
		raw, sum, err := s.policyHTTP(raw, checksum.String())
		if err != nil {
			return nil, err
		}
		checksum := digest.Digest(sum)
		if checksum != "" {
			if err := checksum.Validate(); err != nil {
				return nil, &UsageError{Msg: fmt.Sprintf("checksum %q of %s: %v", sum, git.Redact(raw), err)}
			}
		}
		dir := filepath.Join(s.store.Dir(), "http")
		if s.dry {
			if dir, err = s.scratchDownloads(dir); err != nil {
				return nil, err
			}
		}
		d := &buildctx.Downloads{
			Dir: dir, Transport: &s.transport, UserAgent: userAgent,
			Authorization: s.httpAuthorization, Offline: s.opts.Store.Offline,
		}
		if err := s.transport.check(raw); err != nil {
			return nil, err
		}
		err = s.task("[internal] load "+git.Redact(raw), func(progress.ID) error {
			dl, err = d.Get(ctx, raw, checksum)
			return remoteError(git.Redact(raw), err)
		})
		if err == nil && dl.Stale {
			s.warn("%s was not asked for again because of --offline: what was fetched before is used", git.Redact(raw))
		}
		return dl, err
	})
}

// remoteError gives what went wrong with a place its class, by which the exit code is chosen.
func remoteError(name string, err error) error {
	var (
		hErr *buildctx.HTTPError
		auth *git.AuthError
		rem  *git.RemoteError
		ref  *git.RefError
		sum  *buildctx.ChecksumError
	)
	e := &registry.Error{Class: registry.Network, Err: err}
	switch {
	case errors.As(err, &hErr):
		switch {
		case errors.Is(err, buildctx.ErrOffline):
			e.Class = registry.Offline
		case hErr.Status == http.StatusUnauthorized, hErr.Status == http.StatusForbidden:
			e.Class = registry.Auth
		case hErr.Status == http.StatusNotFound, hErr.Status == http.StatusGone:
			e.Class = registry.NotFound
		}
	case errors.As(err, &auth):
		e.Class = registry.Auth
	case errors.As(err, &ref):
		e.Class = registry.NotFound
	case errors.As(err, &sum):
		e.Class = registry.Digest
	case errors.As(err, &rem):
	default:
		return err
	}
	return e
}

// repo opens a repository.
func (s *session) repo(g *buildctx.GitSource) (*git.Remote, error) {
	if err := s.transport.check(g.Repo); err != nil {
		return nil, err
	}
	r, err := git.Open(g.Repo, git.Config{
		Transport: &s.transport, Authorization: s.gitAuthorization(g.Repo),
		DialAgent: s.gitAgent(), KnownHosts: s.opts.KnownHosts,
	})
	if err != nil {
		return nil, &UsageError{Msg: err.Error()}
	}
	return r, nil
}

// gitTarget finds out which commit is meant.
func (s *session) gitTarget(ctx context.Context, g *buildctx.GitSource) (git.Target, error) {
	key := fmt.Sprintf("%q %+v", g.Repo, g.Query)
	return s.remotes.targets.do(ctx, key, func() (t git.Target, err error) {
		if err := s.policyGit(g); err != nil {
			return t, err
		}
		r, err := s.repo(g)
		if err != nil {
			return t, err
		}
		if s.opts.Store.Offline && !git.IsCommit(g.Query.Ref) && !g.Query.FetchByCommit {
			return t, offlineGit(g)
		}
		err = s.task("[internal] load git source "+git.Redact(g.Repo), func(progress.ID) error {
			t, err = r.Resolve(ctx, g.Query)
			return remoteError(git.Redact(g.Repo), err)
		})
		return t, err
	})
}

func offlineGit(g *buildctx.GitSource) error {
	return &registry.Error{
		Class: registry.Offline, Ref: git.Redact(g.Repo),
		Err:  errors.New("--offline forbids fetching the repository"),
		Hint: "name the full commit id: what was built of it before stays cached",
	}
}

// checkedOut is a commit laid out in a directory.
type checkedOut struct {
	dir string
	res *git.Result
}

// gitCheckout lays a commit out below the store's temporary directory. It is removed when the build ends.
func (s *session) gitCheckout(ctx context.Context, g *buildctx.GitSource, t git.Target, o git.CheckoutOptions) (*checkedOut, error) {
	key := fmt.Sprintf("%q %+v %+v", g.Repo, t, o)
	return s.remotes.checkouts.do(ctx, key, func() (*checkedOut, error) {
		if s.opts.Store.Offline {
			return nil, offlineGit(g)
		}
		if g.Unencrypted {
			s.warn("%s is fetched without encryption: anybody on the way can change it", git.Redact(g.Repo))
		}
		r, err := s.repo(g)
		if err != nil {
			return nil, err
		}
		tmp, release, err := s.store.TempDir()
		if err != nil {
			return nil, err
		}
		s.contexts.onClose(release)
		out := &checkedOut{dir: filepath.Join(tmp, "tree")}
		o.Temp = filepath.Join(tmp, "objects")
		for _, dir := range []string{out.dir, o.Temp} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, err
			}
		}
		if out.res, err = r.Checkout(ctx, t, g.Query, out.dir, o); err != nil {
			return nil, remoteError(git.Redact(g.Repo), err)
		}
		return out, os.RemoveAll(o.Temp)
	})
}

// openTree opens a directory that was fetched: everything in it counts, there are no ignore rules.
func openTree(dir string) (*buildctx.Dir, error) {
	return buildctx.OpenDir(dir, buildctx.DirOptions{NoIgnore: true})
}

// contextCheckout fetches the repository that is a context.
func (s *session) contextCheckout(ctx context.Context, g *buildctx.GitSource) (*checkedOut, error) {
	t, err := s.gitTarget(ctx, g)
	if err != nil {
		return nil, err
	}
	args := s.buildArgs()
	keep := g.KeepGitDir != nil && *g.KeepGitDir || isTrue(args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"])
	return s.gitCheckout(ctx, g, t, git.CheckoutOptions{
		Subdir: g.Subdir, KeepGitDir: keep, Submodules: g.Submodules == nil || *g.Submodules,
		CommitTime: g.MTime == "commit" || g.MTime == "" && args["SOURCE_DATE_EPOCH"] != "",
	})
}

func isTrue(s string) bool {
	switch s {
	case "1", "t", "T", "true", "TRUE", "True":
		return true
	}
	return false
}

// contextName is what the single file of an http context is called.
const contextName = "context"

// fetchContext fetches a context that is a URL: the tree of a repository, or one file.
func (s *session) fetchContext(ctx context.Context, r buildctx.Remote) (dir string, dl *buildctx.Download, epoch *time.Time, err error) {
	if r.Kind == buildctx.Git {
		c, err := s.contextCheckout(ctx, &r.Git)
		if err != nil {
			return "", nil, nil, err
		}
		return c.dir, nil, &c.res.Time, nil
	}
	if dl, err = s.download(ctx, r.URL, ""); err != nil {
		return "", nil, nil, err
	}
	tmp, release, err := s.store.TempDir()
	if err != nil {
		return "", nil, nil, err
	}
	s.contexts.onClose(release)
	return tmp, dl, dl.LastModified, nil
}

// layFile puts what was fetched into a directory.
func layFile(dl *buildctx.Download, dir, name string) error {
	f, err := dl.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	e, _, err := f.Lstat(name)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(e.Mode))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f.Reader())
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Chtimes(path, e.ModTime, e.ModTime)
}

// readRemote takes the context from a URL: a repository, an archive, or a Dockerfile alone.
func (s *session) readRemote(ctx context.Context, r buildctx.Remote) (*buildctx.Dockerfile, error) {
	dir, dl, epoch, err := s.fetchContext(ctx, r)
	if err != nil {
		return nil, err
	}
	s.contextEpoch = epoch
	open := opener(dir)
	var alone *buildctx.Dockerfile
	if dl != nil {
		if open, alone, err = s.openDownload(ctx, dl, dir); err != nil {
			return nil, err
		}
	}
	df, err := s.dockerfileOf(ctx, dir, alone)
	if err != nil {
		return nil, err
	}
	s.contexts.open = func(name string) (*buildctx.Dir, error) {
		if name != "" {
			return s.openNamedDir(name)
		}
		return s.openFetched("", df.IgnoreFile, open)
	}
	return df, nil
}

// dockerfileOf finds the Dockerfile of a context that was fetched; alone is what the context consists of when it is one.
func (s *session) dockerfileOf(ctx context.Context, dir string, alone *buildctx.Dockerfile) (*buildctx.Dockerfile, error) {
	switch {
	case s.opts.Dockerfile == "-":
		return buildctx.FindDockerfile(dir, "-", s.opts.Stdin)
	case isHTTP(s.opts.Dockerfile):
		return s.dockerfileAt(ctx, s.opts.Dockerfile)
	case alone != nil:
		return alone, nil
	}
	return buildctx.FindDockerfileIn(dir, s.opts.Dockerfile)
}

// openDownload makes a context of one file: an archive is unpacked, anything else is the Dockerfile.
func (s *session) openDownload(ctx context.Context, dl *buildctx.Download, dir string) (
	open func(buildctx.DirOptions) (*buildctx.Dir, error), alone *buildctx.Dockerfile, err error,
) {
	f, err := dl.Open(contextName)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	in, err := buildctx.OpenStdin(ctx, f.Reader(), dir)
	if err != nil {
		return nil, nil, err
	}
	if in.Dockerfile == nil {
		if s.contextEpoch == nil {
			s.contextEpoch = in.Newest()
		}
		return in.Open, nil, nil
	}
	if err := layFile(dl, dir, contextName); err != nil {
		return nil, nil, err
	}
	return opener(dir), &buildctx.Dockerfile{Name: "Dockerfile", Data: in.Dockerfile}, nil
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// dockerfileAt fetches the Dockerfile that -f names by its URL.
func (s *session) dockerfileAt(ctx context.Context, raw string) (*buildctx.Dockerfile, error) {
	dl, err := s.download(ctx, raw, "")
	if err != nil {
		return nil, err
	}
	f, err := dl.Open("Dockerfile")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return buildctx.FindDockerfile("", "-", f.Reader())
}

// fetchNamed fetches a named context that is a URL. It returns false when the value is something else.
func (s *session) fetchNamed(ctx context.Context, name, value string) (bool, error) {
	r, err := buildctx.ParseRemote(value)
	if err != nil {
		return false, &UsageError{Msg: err.Error()}
	}
	if r.Kind == buildctx.Local {
		return false, nil
	}
	dir, dl, _, err := s.fetchContext(ctx, r)
	if err == nil && dl != nil { // one file, whatever is in it
		err = layFile(dl, dir, contextName)
	}
	if err == nil {
		s.contexts.fetched(name, dir)
	}
	return true, err
}

// dirSource gives the source of copies that a checkout is.
func (s *session) dirSource(dir string) (snapshot.Source, error) {
	d, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	s.contexts.onClose(func() { d.Close() })
	return d, nil
}

// isURL reports whether a context has to be fetched.
func isURL(s string) bool {
	r, err := buildctx.ParseContext(s)
	return err != nil || r.Kind != buildctx.Local
}

// IsSSH reports whether a context is a repository behind ssh: naming it on the command line allows using the agent for it.
func IsSSH(s string) bool {
	r, err := buildctx.ParseContext(s)
	return err == nil && r.Kind == buildctx.Git && (strings.HasPrefix(r.Git.Repo, "ssh://") || !strings.Contains(r.Git.Repo, "://"))
}
