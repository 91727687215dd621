package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"path"
	"strings"

	"github.com/moby/patternmatcher"

	"build/internal/tree"
)

// Select finds what the sources of a COPY name. A literal path that does not exist is a *NotFoundError; a wildcard that
// matches nothing selects nothing. Nothing is read but directories.
func Select(ctx context.Context, src Source, spec *CopySpec) (*Selection, error) {
	if _, err := parseChmod(spec.Chmod); err != nil {
		return nil, err
	}
	s := &Selection{src: src, spec: spec}
	for i := range spec.Sources {
		var err error
		if spec.Sources[i].Inline {
			err = s.inline(i)
		} else if _, err = newFilter(nil, spec.Exclude); err == nil { // wrong patterns are wrong for a single file, too
			err = s.source(ctx, i)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// inline adds a document that is written in the Dockerfile itself.
func (s *Selection) inline(source int) error {
	in := &s.spec.Sources[source]
	name := tree.Base(tree.Clean(in.Path))
	if err := tree.CheckPath(name); err != nil || name == "" {
		return copyErrorf("an inline document cannot be called %q", in.Path)
	}
	data := in.Data
	if data == nil {
		data = []byte{}
	}
	e := tree.Entry{Path: name, Mode: 0o644, Size: int64(len(data)), ModTime: s.spec.Now, Digest: sha256.Sum256(data), Offset: -1}
	s.items = append(s.items, item{source: source, name: name, path: name, inline: data, entries: listOf(chosen{Entry: e})})
	return nil
}

// source adds everything one path names.
func (s *Selection) source(ctx context.Context, source int) error {
	from := s.spec.Sources[source].Path
	if src := s.spec.Sources[source].From; src != nil {
		it, err := s.find(ctx, src, tree.Clean(from), nil)
		it.source = source
		s.items = append(s.items, it)
		return err
	}
	var include []string
	required := ""
	if s.spec.Parents {
		parent, pattern, pivot := strings.Cut(from, "/./")
		if !pivot {
			parent, pattern = "/", from
		}
		if pattern = tree.Clean(pattern); pattern == "" { // BuildKit does not find it either
			return copyErrorf("%q names a whole directory, of which --parents can keep no path: name what is in it, or leave --parents out", s.spec.Sources[source].Path)
		}
		include = []string{pattern}
		if !hasWildcard(parent) && !hasWildcard(pattern) {
			required = tree.Join(tree.Clean(parent), pattern)
		}
		from = parent
	}
	names, err := s.expand(tree.Clean(from))
	if err != nil {
		return err
	}
	found := required == ""
	for _, name := range names {
		it, err := s.find(ctx, s.src, name, include)
		if err != nil {
			return err
		}
		it.source = source
		for c := range it.entries.all() {
			if found {
				break
			}
			found = !c.delayed && strings.HasPrefix(tree.Join(name, it.rel(c)), required)
		}
		s.items = append(s.items, it)
	}
	if !found {
		return &NotFoundError{Path: required}
	}
	return nil
}

// resolve follows every symlink in a source path, inside the source only.
func (s *Selection) resolve(src Source, name string) (string, tree.Entry, error) {
	real, err := tree.Resolve(name, true, src.Lstat)
	if errors.Is(err, tree.ErrLoop) || errors.Is(err, tree.ErrPath) {
		return "", tree.Entry{}, copyErrorf("%q: %v", "/"+name, err)
	}
	if err != nil {
		return "", tree.Entry{}, err
	}
	e, ok, err := src.Lstat(real)
	if err != nil {
		return "", tree.Entry{}, err
	}
	if !ok {
		return "", tree.Entry{}, &NotFoundError{Path: name}
	}
	return real, e, nil
}

// expand returns the paths a source with wildcards stands for, in order. Components before the first wildcard are
// followed if they are symlinks, those after it are not.
func (s *Selection) expand(name string) ([]string, error) {
	parts := strings.Split(name, "/")
	first := 0
	for first < len(parts) && !hasWildcard(parts[first]) {
		first++
	}
	if first == len(parts) {
		return []string{name}, nil
	}
	for _, pattern := range parts[first:] {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, copyErrorf("invalid source pattern %q (a bracket that is part of a name is written [[])", pattern)
		}
	}
	base := strings.Join(parts[:first], "/")
	real, e, err := s.resolve(s.src, base)
	if err != nil || e.Type != tree.Dir {
		return nil, err
	}
	return s.match(nil, real, parts[first:])
}

// match appends what below dir matches the patterns, one for each component.
func (s *Selection) match(out []string, dir string, patterns []string) ([]string, error) {
	entries, err := s.src.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		e := &entries[i]
		if ok, _ := path.Match(patterns[0], tree.Base(e.Path)); !ok { // expand has seen that the pattern is valid
			continue
		}
		if len(patterns) == 1 {
			out = append(out, e.Path)
		} else if e.Type == tree.Dir {
			if out, err = s.match(out, e.Path, patterns[1:]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// hasWildcard reports whether a path has a character that makes it a pattern.
func hasWildcard(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// find looks at one path without wildcards and at everything below it.
func (s *Selection) find(ctx context.Context, src Source, name string, include []string) (item, error) {
	real, e, err := s.resolve(src, name)
	if err != nil {
		return item{}, err
	}
	it := item{src: src, name: tree.Base(name), path: real}
	if e.Type != tree.Dir {
		e.Hardlink = ""
		it.entries = listOf(chosen{Entry: e})
		return it, nil
	}
	if len(include) == 0 && len(s.spec.Exclude) == 0 {
		for e, err := range src.Walk(real) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return item{}, err
			}
			it.entries.add(chosen{Entry: e})
		}
		if it.entries.n == 0 { // it went between two looks
			return item{}, &NotFoundError{Path: name}
		}
		return it, nil
	}
	f, err := newFilter(include, s.spec.Exclude)
	if err != nil {
		return item{}, err
	}
	it.entries = listOf(chosen{Entry: e})
	if err := f.walk(ctx, src, &it); err != nil {
		return item{}, err
	}
	return it, nil
}

// filter chooses among the entries of a directory by include and exclude patterns.
type filter struct {
	include, exclude *patternmatcher.PatternMatcher
	start            []string // components every included path begins with
	open             []openDir
	skip             string // a directory of which nothing is wanted
	skipping         bool
}

// openDir is a directory the walk is in.
type openDir struct {
	rel              string
	entry            tree.Entry
	include, exclude patternmatcher.MatchInfo
	pending          bool // not chosen so far
}

func newFilter(include, exclude []string) (*filter, error) {
	f := &filter{}
	var err error
	if len(include) > 0 {
		if f.include, err = patternmatcher.New(include); err != nil {
			return nil, copyErrorf("invalid source pattern %q: %v", include, err)
		}
		f.start = literalStart(include[0])
	}
	if len(exclude) > 0 {
		if f.exclude, err = patternmatcher.New(exclude); err != nil {
			return nil, copyErrorf("invalid exclude pattern %q: %v", exclude, err)
		}
	}
	return f, nil
}

// literalStart returns the leading components of a pattern that stand for themselves.
func literalStart(pattern string) []string {
	if pattern == "" || strings.TrimSpace(pattern) != pattern || pattern[0] == '!' {
		return nil
	}
	parts := strings.Split(pattern, "/")
	for i, p := range parts {
		if strings.ContainsAny(p, `*?[\`) {
			return parts[:i]
		}
	}
	return parts
}

// walk adds to it what is chosen below its path. Directories that cannot hold a match are not read.
func (f *filter) walk(ctx context.Context, src Source, it *item) error {
	from := it.path
	for i, part := range f.start {
		from = tree.Join(from, part)
		if i == len(f.start)-1 {
			break
		}
		e, ok, err := src.Lstat(from)
		if err != nil || !ok || e.Type != tree.Dir {
			return err
		}
		if err := f.visit(it, e); err != nil || f.skipping {
			return err
		}
	}
	for e, err := range src.Walk(from) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && e.Path != it.path {
			err = f.visit(it, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *filter) visit(it *item, e tree.Entry) error {
	c := chosen{Entry: e}
	rel := it.rel(&c)
	if f.skipping && tree.Below(rel, f.skip) {
		return nil
	}
	f.skipping = false
	for len(f.open) > 0 && !tree.Below(rel, f.open[len(f.open)-1].rel) {
		f.open = f.open[:len(f.open)-1]
	}
	dir := openDir{rel: rel, entry: e}
	wanted, excluded, err := f.judge(&dir)
	if err != nil {
		return copyErrorf("matching %q: %v", rel, err)
	}
	if wanted {
		f.addParents(it)
		it.entries.add(c)
	}
	if e.Type == tree.Dir {
		dir.pending = !wanted
		f.open = append(f.open, dir)
		if excluded && !f.exclude.Exclusions() {
			f.skip, f.skipping = rel, true
		}
	}
	return nil
}

// judge matches the patterns against dir.rel and keeps what its children need.
func (f *filter) judge(dir *openDir) (wanted, excluded bool, err error) {
	var parent openDir
	if len(f.open) > 0 {
		parent = f.open[len(f.open)-1]
	}
	wanted = true
	if f.include != nil {
		if wanted, dir.include, err = f.include.MatchesUsingParentResults(dir.rel, parent.include); err != nil {
			return false, false, err
		}
	}
	if f.exclude != nil {
		if excluded, dir.exclude, err = f.exclude.MatchesUsingParentResults(dir.rel, parent.exclude); err != nil {
			return false, false, err
		}
	}
	return wanted && !excluded, excluded, nil
}

// addParents adds the directories the walk is in that were not chosen themselves.
func (f *filter) addParents(it *item) {
	for i := range f.open {
		if d := &f.open[i]; d.pending {
			d.pending = false
			it.entries.add(chosen{Entry: d.entry, delayed: true})
		}
	}
}
