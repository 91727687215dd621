package build

import (
	"build/internal/buildctx"
)

// openFetched opens a context that came from elsewhere: a repository or an archive. As in BuildKit its ignore file is not
// applied, because whoever published it published these files. Most people do not expect that, so the first file that the
// rules would have left out is named; --ignore-everywhere applies them.
func (s *session) openFetched(name, ignoreFile string, open func(buildctx.DirOptions) (*buildctx.Dir, error)) (*buildctx.Dir, error) {
	if s.opts.IgnoreEverywhere {
		return open(buildctx.DirOptions{IgnoreFile: ignoreFile})
	}
	d, err := open(buildctx.DirOptions{NoIgnore: true})
	if err != nil {
		return nil, err
	}
	what := "the build context"
	if name != "" {
		what = "the context " + name
	}
	switch would, err := d.WouldIgnore(ignoreFile); {
	case err != nil:
		s.warn("ignore rules are not applied to %s, which was not a local directory, and these are not valid: %v", what, err)
	case would != nil:
		s.warn("%s of %s is not applied, because that was not a local directory: %s is part of it; --ignore-everywhere leaves it out",
			would.Rules, what, would.File)
	}
	return d, nil
}

// opener gives openFetched a directory that was filled by a download.
func opener(dir string) func(buildctx.DirOptions) (*buildctx.Dir, error) {
	return func(o buildctx.DirOptions) (*buildctx.Dir, error) { return buildctx.OpenDir(dir, o) }
}
