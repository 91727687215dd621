package build

import (
	"context"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/internal/buildctx"
	"build/internal/git"
	"build/snapshot"
)

// remoteSource is a source of ADD that is somewhere else, as far as it is known without having it.
type remoteSource struct {
	key  string // what it is known by in keys
	path string // in the tree that open gives
	open func(ctx context.Context) (snapshot.Source, error)
}

func hasRemote(op dag.Copy) bool {
	for _, src := range op.Sources {
		if src.Place != "" {
			return true
		}
	}
	return false
}

// remoteFields adds what the sources of an ADD that are somewhere else are now. Where that is stays out: the same file from
// another place is the same file.
func (e *evaluator) remoteFields(ctx context.Context, h *cache.Hash, op dag.Copy) error {
	for i, src := range op.Sources {
		if src.Place == "" {
			continue
		}
		r, err := e.remoteSource(ctx, op, src)
		if err != nil {
			return err
		}
		h.Field("remote"+strconv.Itoa(i), r.key)
	}
	return nil
}

func (e *evaluator) remoteSource(ctx context.Context, op dag.Copy, src dag.CopySource) (*remoteSource, error) {
	if src.Place == dag.Git {
		return e.gitSource(ctx, op, src.Path)
	}
	return e.httpSource(ctx, op, src.Path)
}

// httpSource is a file. Its key is what BuildKit's is made of: content, name and time. With a checksum only that and the
// name, so that nobody has to be asked.
func (e *evaluator) httpSource(ctx context.Context, op dag.Copy, raw string) (*remoteSource, error) {
	name := buildctx.URLFileName(raw)
	want := digest.Digest(op.Checksum)
	// Also when nothing has to be fetched: what is denied is not taken from the cache either.
	if _, err := e.opts.SourcePolicy.decide(policySource{id: raw, attrs: map[string]string{"http.checksum": op.Checksum}}); err != nil {
		return nil, err
	}
	get := func(ctx context.Context) (*buildctx.Download, error) { return e.download(ctx, raw, want) }
	r := &remoteSource{key: fmt.Sprintf("http %s %s", want, name), path: name}
	if want == "" {
		dl, err := get(ctx)
		if err != nil {
			return nil, err
		}
		modified := ""
		if dl.LastModified != nil {
			modified = dl.LastModified.UTC().Format("2006-01-02T15:04:05Z")
		}
		r.key = fmt.Sprintf("http sha256:%x %s %s", dl.Digest, name, modified)
	}
	r.open = func(ctx context.Context) (snapshot.Source, error) {
		dl, err := get(ctx)
		if err != nil {
			return nil, err
		}
		f, err := dl.Open(name)
		if err != nil {
			return nil, err
		}
		e.contexts.onClose(func() { f.Close() })
		return f, nil
	}
	return r, nil
}

// addedRepository says which commit of a repository an ADD means, and how it is laid out.
func addedRepository(op dag.Copy, raw string) (buildctx.GitSource, git.CheckoutOptions, error) {
	parsed, err := buildctx.ParseRemote(raw)
	if err != nil {
		return buildctx.GitSource{}, git.CheckoutOptions{}, &UsageError{Msg: err.Error()}
	}
	g := parsed.Git
	if g.Query.Checksum == "" {
		g.Query.Checksum = op.Checksum
	}
	if g.KeepGitDir == nil {
		g.KeepGitDir = op.KeepGitDir
	}
	return g, git.CheckoutOptions{
		Subdir: g.Subdir, KeepGitDir: g.KeepGitDir != nil && *g.KeepGitDir,
		Submodules: g.Submodules == nil || *g.Submodules, CommitTime: g.MTime == "commit",
	}, nil
}

// gitSource is the tree of a commit.
func (e *evaluator) gitSource(ctx context.Context, op dag.Copy, raw string) (*remoteSource, error) {
	g, o, err := addedRepository(op, raw)
	if err != nil {
		return nil, err
	}
	t, err := e.gitTarget(ctx, &g)
	if err != nil {
		return nil, err
	}
	r := &remoteSource{key: fmt.Sprintf("git %s %+v", t.ID(), o)}
	if o.KeepGitDir { // the name of the ref and the address are in it
		r.key = fmt.Sprintf("git %s %s %s %+v", t.Object, t.Ref, git.Redact(g.Repo), o)
	}
	r.open = func(ctx context.Context) (snapshot.Source, error) {
		c, err := e.gitCheckout(ctx, &g, t, o)
		if err != nil {
			return nil, err
		}
		return e.dirSource(c.dir)
	}
	return r, nil
}

// wholeSelection is what an ADD copies, including what has to be fetched for it.
func (e *evaluator) wholeSelection(ctx context.Context, step *dag.Step, op dag.Copy) (*selection, error) {
	src, err := e.contextSource(step)
	if err != nil {
		return nil, err
	}
	s := &selection{spec: copySpec(op, e.began)}
	s.spec.Sources = nil
	for _, from := range op.Sources {
		c := snapshot.CopySource{Path: from.Path, Inline: from.Inline, Data: from.Data}
		if from.Place != "" {
			r, err := e.remoteSource(ctx, op, from)
			if err != nil {
				return nil, err
			}
			if c.From, err = r.open(ctx); err != nil {
				return nil, err
			}
			c.Path = r.path
		}
		s.spec.Sources = append(s.spec.Sources, c)
	}
	if s.files, err = snapshot.Select(ctx, src, s.spec); err != nil {
		return nil, err
	}
	s.sum, err = s.files.Digest(ctx)
	return s, err
}
