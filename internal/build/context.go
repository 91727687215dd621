package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"build/internal/buildctx"
	"build/internal/progress"
	"build/internal/tree"
	"build/parser"
)

// loadDockerfile finds and parses the Dockerfile and prepares the contexts. Directories are opened when a step asks.
func (s *session) loadDockerfile(ctx context.Context) (*parser.File, error) {
	s.contexts = &contexts{
		opened:      map[string]*buildctx.Dir{},
		openFetched: func(name, dir string) (*buildctx.Dir, error) { return s.openFetched(name, "", opener(dir)) },
	}
	var df *buildctx.Dockerfile
	err := s.task("[internal] load build definition from "+s.dockerfileName(), func(id progress.ID) error {
		var err error
		df, err = s.readDockerfile(ctx)
		if err == nil {
			s.emit(progress.Transfer{ID: id, Key: "dockerfile", Label: "transferring dockerfile", Current: int64(len(df.Data)), Total: int64(len(df.Data)), Done: true})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.dockerfile, s.definition = df.Data, df
	s.file, err = parser.Parse(df.Name, df.Data, parser.Options{Args: s.buildArgs(), Warn: s.warnOf})
	return s.file, err
}

func (s *session) dockerfileName() string {
	if s.opts.Dockerfile == "" || s.opts.Dockerfile == "-" {
		return "Dockerfile"
	}
	return filepath.Base(s.opts.Dockerfile)
}

// readDockerfile reads the Dockerfile and says where the contexts are.
func (s *session) readDockerfile(ctx context.Context) (*buildctx.Dockerfile, error) {
	o := s.opts
	if r, err := buildctx.ParseContext(o.Context); err != nil {
		return nil, &UsageError{Msg: err.Error()}
	} else if r.Kind != buildctx.Local {
		return s.readRemote(ctx, r)
	}
	if o.Context == "-" {
		return s.readStdin(ctx)
	}
	if fi, err := os.Stat(o.Context); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &UsageError{Msg: fmt.Sprintf("unable to prepare context: %v", err)}
	} else if err != nil {
		return nil, &UsageError{Msg: fmt.Sprintf("unable to prepare context: path %q not found", o.Context), Hint: "the last argument is the directory whose files COPY can use; most often it is ."}
	} else if !fi.IsDir() {
		return nil, &UsageError{Msg: fmt.Sprintf("unable to prepare context: %q is not a directory", o.Context), Hint: "pass the directory, and the Dockerfile with -f"}
	}
	find := func() (*buildctx.Dockerfile, error) { return buildctx.FindDockerfile(o.Context, o.Dockerfile, o.Stdin) }
	if isHTTP(o.Dockerfile) {
		find = func() (*buildctx.Dockerfile, error) { return s.dockerfileAt(ctx, o.Dockerfile) }
	}
	df, err := find()
	if err != nil {
		return nil, err
	}
	s.contexts.open = func(name string) (*buildctx.Dir, error) {
		if name == "" {
			return buildctx.OpenDir(o.Context, s.dirOptions(o.Context, df.IgnoreFile))
		}
		return s.openNamedDir(name)
	}
	return df, nil
}

func (s *session) dirOptions(dir, ignoreFile string) buildctx.DirOptions {
	var cache buildctx.StatCache = buildctx.OpenStatCache(s.statCachePath(dir))
	if s.dry {
		cache = unsaved{cache}
	}
	return buildctx.DirOptions{IgnoreFile: ignoreFile, StatCache: cache}
}

// namedDir is the directory of a named context.
func (s *session) namedDir(name string) string {
	for _, kv := range s.opts.NamedContexts {
		if kv.Key == name {
			return kv.Value
		}
	}
	return name
}

// readStdin takes a Dockerfile or a tar from standard input.
func (s *session) readStdin(ctx context.Context) (*buildctx.Dockerfile, error) {
	if s.opts.Dockerfile == "-" {
		return nil, &UsageError{Msg: "invalid argument: can't use stdin for both build context and dockerfile"}
	}
	tmp, release, err := s.store.TempDir()
	if err != nil {
		return nil, err
	}
	s.contexts.cleanup = append(s.contexts.cleanup, release)
	in, err := buildctx.OpenStdin(ctx, s.opts.Stdin, tmp)
	if err != nil {
		return nil, err
	}
	if in.Dockerfile != nil { // no tar: the Dockerfile itself, and an empty context
		s.contexts.open = func(name string) (*buildctx.Dir, error) {
			if name != "" {
				return s.openNamedDir(name)
			}
			return buildctx.OpenDir(tmp, buildctx.DirOptions{NoIgnore: true})
		}
		return &buildctx.Dockerfile{Name: "Dockerfile", Data: in.Dockerfile}, nil
	}
	s.contextEpoch = in.Newest()
	find := func() (*buildctx.Dockerfile, error) { return buildctx.FindDockerfileIn(in.Dir, s.opts.Dockerfile) }
	if isHTTP(s.opts.Dockerfile) {
		find = func() (*buildctx.Dockerfile, error) { return s.dockerfileAt(ctx, s.opts.Dockerfile) }
	}
	df, err := find()
	if err != nil {
		return nil, err
	}
	s.contexts.open = func(name string) (*buildctx.Dir, error) {
		if name != "" {
			return s.openNamedDir(name)
		}
		return s.openFetched("", df.IgnoreFile, in.Open)
	}
	return df, nil
}

// openNamedDir opens a named context that is a directory of this machine, with its own ignore rules.
func (s *session) openNamedDir(name string) (*buildctx.Dir, error) {
	dir := s.namedDir(name)
	return buildctx.OpenDir(dir, s.dirOptions(dir, ""))
}

// emptySource is what a COPY of nothing but here-documents copies from.
type emptySource struct{}

func (emptySource) Lstat(string) (tree.Entry, bool, error) { return tree.Entry{}, false, nil }
func (emptySource) ReadDir(string) ([]tree.Entry, error)   { return nil, nil }
func (emptySource) Walk(string) iter.Seq2[tree.Entry, error] {
	return func(func(tree.Entry, error) bool) {}
}
func (emptySource) Digest(context.Context, *tree.Entry) ([32]byte, error) {
	return [32]byte{}, os.ErrNotExist
}
func (emptySource) Open(context.Context, *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(nil)), os.ErrNotExist
}
