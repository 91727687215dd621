package git

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"build/internal/lazyregexp"
)

// Remote is one repository.
type Remote struct {
	url  *url.URL // scheme http, https, ssh or git
	auth *url.Userinfo
	name string // for messages: without credentials
	cfg  Config
	list *advert // once asked for
	conn transport
}

// transport is a way to speak to a repository.
type transport interface {
	// advert asks for the refs.
	advert(ctx context.Context) (*advert, error)
	// fetch puts what ids name into o, with all they are made of; without their history when shallow.
	fetch(ctx context.Context, a *advert, o *objects, ids []string, shallow bool) error
}

var scpForm = lazyregexp.New(`^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*)$`)

// Open prepares for speaking to the repository at a URL; nothing is sent yet. Only http, https, ssh (also as user@host:path)
// and git are spoken: repositories on the local file system are refused.
func Open(raw string, cfg Config) (*Remote, error) {
	if cfg.UserAgent == "" {
		cfg.UserAgent = "git/2.0 (build)"
	}
	r := &Remote{name: Redact(raw), cfg: cfg}
	if m := scpForm().FindStringSubmatch(raw); m != nil && !strings.Contains(raw, "://") {
		r.url = &url.URL{Scheme: "ssh", User: url.User(m[1]), Host: m[2], Path: m[3]}
	} else {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, r.refError("invalid URL")
		}
		r.url = u
		r.url.Scheme = strings.ToLower(u.Scheme)
	}
	if r.url.Host == "" || strings.HasPrefix(r.url.Host, "-") || strings.HasPrefix(r.url.Path, "-") {
		return nil, r.refError("not a URL of a remote repository")
	}
	r.auth, r.url.User = r.url.User, nil
	switch r.url.Scheme {
	case "http", "https":
		r.conn = &httpTransport{r: r}
	case "ssh":
		r.conn = &streamTransport{r: r, open: r.openSSH}
	case "git":
		r.conn = &streamTransport{r: r, open: r.openGit}
	default:
		return nil, r.refError("repositories are fetched over http, https, ssh and git only, not %q", r.url.Scheme)
	}
	return r, nil
}

// Query says what is wanted of a repository.
type Query struct {
	Ref           string // branch, tag, refs/… or full commit id; "" is the branch HEAD stands for
	Checksum      string // how the id of the commit, or of an annotated tag, has to begin
	FetchByCommit bool   // take Checksum, a full id, without asking what Ref is now
}

// Target is what a query stands for.
type Target struct {
	Ref    string // full name, or the id when that was asked for
	Object string // id of a commit or an annotated tag
	Commit string // id of the commit when it is known that Object is a tag, else ""
}

// ID is what a target is known by: the commit, unless only the tag is known.
func (t Target) ID() string {
	if t.Commit != "" {
		return t.Commit
	}
	return t.Object
}

// Resolve finds out what a query stands for. When it names a commit already, nothing is sent.
func (r *Remote) Resolve(ctx context.Context, q Query) (Target, error) {
	if q.Checksum != "" && !isHex(q.Checksum) {
		return Target{}, r.refError("invalid checksum %s for Git URL, expected hex commit hash", q.Checksum)
	}
	if strings.HasPrefix(q.Ref, "-") || strings.ContainsAny(q.Ref, " \n\x00~^:?*[\\") {
		return Target{}, r.refError("invalid git ref %q", q.Ref)
	}
	if IsCommit(q.Ref) {
		if q.Checksum != "" && !strings.HasPrefix(q.Ref, q.Checksum) {
			return Target{}, r.refError("expected checksum to match %s, got %s", q.Checksum, q.Ref)
		}
		return Target{Ref: q.Ref, Object: q.Ref}, nil
	}
	if q.FetchByCommit {
		return r.byCommit(q)
	}
	a, err := r.advert(ctx)
	if err != nil {
		return Target{}, err
	}
	return r.lookup(a, q)
}

func (r *Remote) byCommit(q Query) (Target, error) {
	switch {
	case q.Checksum == "":
		return Target{}, r.refError("fetch-by-commit requires a checksum or a commit SHA ref")
	case !IsCommit(q.Checksum):
		return Target{}, r.refError("fetch-by-commit requires a full commit SHA checksum, got %q", q.Checksum)
	}
	ref := q.Ref
	if ref == "" {
		ref = q.Checksum
	} else if !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	return Target{Ref: ref, Object: q.Checksum}, nil
}

// lookup resolves a name as git does, branches before tags.
func (r *Remote) lookup(a *advert, q Query) (Target, error) {
	ref := q.Ref
	if ref == "" {
		name, ok := strings.CutPrefix(a.head, "refs/heads/")
		if !ok || strings.HasPrefix(name, "-") {
			return Target{}, r.refError("could not find default branch for repository")
		}
		ref = a.head
	}
	tag := "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")
	for _, name := range []string{
		"refs/" + strings.TrimPrefix(ref, "refs/"), "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"), tag,
	} {
		id, ok := a.refs[name]
		if !ok {
			continue
		}
		t := Target{Ref: name, Object: id}
		if name == tag {
			t.Commit = a.refs[name+"^{}"]
		}
		if q.Checksum == "" || strings.HasPrefix(id, q.Checksum) || strings.HasPrefix(t.Commit, q.Checksum) {
			return t, nil
		}
		got := id
		if t.Commit != "" {
			got += " or " + t.Commit
		}
		return Target{}, r.refError("expected checksum to match %s, got %s", q.Checksum, got)
	}
	return Target{}, r.refError("repository does not contain ref %s", ref)
}

func (r *Remote) advert(ctx context.Context) (*advert, error) {
	if r.list == nil {
		a, err := r.conn.advert(ctx)
		if err != nil {
			return nil, r.about(ctx, err)
		}
		r.list = a
	}
	return r.list, nil
}

// fetch gets the files of a target. dir is a private directory for what is fetched.
func (r *Remote) fetch(ctx context.Context, t Target, dir string) (*objects, error) {
	a, err := r.advert(ctx)
	if err != nil {
		return nil, err
	}
	if len(t.Object) != a.hexLen {
		return nil, r.refError("repository does not contain %s: its ids have %d digits", t.Object, a.hexLen)
	}
	o := &objects{hexLen: a.hexLen, dir: dir}
	if err := r.fill(ctx, a, o, t.Object); err != nil {
		o.close()
		return nil, r.about(ctx, err)
	}
	return o, nil
}

// fill fetches one object and what it is made of. Servers may refuse to give what no ref names: then everything they do
// name is fetched, with its history, in the hope that it is among that.
func (r *Remote) fill(ctx context.Context, a *advert, o *objects, id string) error {
	shallow := a.caps["shallow"]
	err := r.conn.fetch(ctx, a, o, []string{id}, shallow)
	if err == nil || context.Cause(ctx) != nil {
		return err
	}
	var ids []string
	for _, v := range a.refs {
		if v == id {
			return err
		}
		ids = append(ids, v)
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 0 {
		return err
	}
	if ferr := r.conn.fetch(ctx, a, o, ids, false); ferr != nil {
		return err
	}
	if !o.has(id) {
		return r.refError("repository does not contain %s", id)
	}
	return nil
}

// receive reads the answer to a request into a pack and adds that.
func receive(ctx context.Context, a *advert, o *objects, r io.Reader, shallow bool) error {
	f, err := os.OpenFile(filepath.Join(o.dir, fmt.Sprintf("pack-%d", len(o.packs))), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 256<<10)
	if err = a.readAnswer(ctx, bufio.NewReaderSize(r, 64<<10), w, shallow); err == nil {
		err = w.Flush()
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	return o.addPack(ctx, f)
}
