package build

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/buildctx"
)

// sourceTime is what SOURCE_DATE_EPOCH=NAME stands for, if NAME is a named context or a stage with one ADD: the time of the
// commit, or of the file as the server has it, or of the newest file in an archive. Directories and images have no time.
func (s *session) sourceTime(ctx context.Context, n dag.Need) (*time.Time, error) {
	raw := n.Name
	if n.Context {
		raw = n.Value
	}
	r, err := buildctx.ParseRemote(raw)
	if err != nil {
		return nil, &UsageError{Msg: err.Error()}
	}
	switch r.Kind {
	case buildctx.HTTP:
		var sum digest.Digest
		if n.Add != nil {
			sum = digest.Digest(n.Add.Checksum)
		}
		dl, err := s.download(ctx, raw, sum)
		if err != nil {
			return nil, err
		}
		return fileTime(ctx, dl)
	case buildctx.Git:
		c, err := s.timedCheckout(ctx, n, &r.Git)
		if err != nil {
			return nil, err
		}
		return &c.res.Time, nil
	}
	return nil, nil
}

// timedCheckout fetches a commit in the form in which the build will want it, so that it is fetched once.
func (s *session) timedCheckout(ctx context.Context, n dag.Need, g *buildctx.GitSource) (*checkedOut, error) {
	if n.Add == nil {
		return s.contextCheckout(ctx, g)
	}
	source, o, err := addedRepository(*n.Add, n.Name)
	if err != nil {
		return nil, err
	}
	t, err := s.gitTarget(ctx, &source)
	if err != nil {
		return nil, err
	}
	return s.gitCheckout(ctx, &source, t, o)
}

// fileTime is the time of a file that was fetched.
func fileTime(ctx context.Context, dl *buildctx.Download) (*time.Time, error) {
	if dl.LastModified != nil {
		return dl.LastModified, nil
	}
	f, err := dl.Open(contextName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return buildctx.NewestInArchive(ctx, f.Reader())
}
