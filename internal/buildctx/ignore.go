package buildctx

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"
)

const ignoreName = ".dockerignore"

// ignore holds the rules of an ignore file. A nil *ignore ignores nothing.
type ignore struct {
	name       string
	patterns   []string
	exceptions [][]string // components of the patterns after "!"
	matchers   sync.Pool  // of *patternmatcher.PatternMatcher, which is not safe for concurrent use
}

// verdict is what the rules say about a path. The rules of what is below a directory are looked at from its verdict.
type verdict struct {
	out  bool
	info patternmatcher.MatchInfo
}

// IgnoreError says that an ignore file has a line that means nothing. Files would get into the image that somebody meant to
// keep out, so it ends the build.
type IgnoreError struct {
	File    string
	Pattern string // "" when the file as a whole cannot be read
	Err     error
}

func (e *IgnoreError) Error() string {
	if e.Pattern == "" {
		return fmt.Sprintf("parse %s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("parse %s: pattern %q: %v", e.File, e.Pattern, e.Err)
}
func (e *IgnoreError) Unwrap() error { return e.Err }

// loadIgnore reads the rules for a context: the ignore file that belongs to the Dockerfile when there is one, else the
// context's own.
func loadIgnore(dir, specific string) (*ignore, error) {
	if specific != "" {
		data, found, err := readIgnore(specific, func() ([]byte, error) { return readSpecific(dir, specific) })
		if err != nil {
			return nil, err
		}
		if found {
			return parseIgnore(specific, data)
		}
	}
	name := filepath.Join(dir, ignoreName)
	data, found, err := readIgnore(name, func() ([]byte, error) { return readConfined(dir, ignoreName) })
	if !found || err != nil {
		return nil, err
	}
	return parseIgnore(name, data)
}

// readIgnore reads an ignore file. That there is none, or that it is a directory, is no error; a symlink to nothing is,
// because files would enter the image that somebody meant to keep out.
func readIgnore(name string, read func() ([]byte, error)) ([]byte, bool, error) {
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, false, nil
	}
	data, err := read()
	if errors.Is(err, unix.EISDIR) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read ignore file %s: %w", name, err)
	}
	return data, true, nil
}

// readSpecific reads an ignore file beside a Dockerfile. One in the context must not lead out of it.
func readSpecific(dir, path string) ([]byte, error) {
	if rel, ok := inContext(dir, path); ok {
		return readConfined(dir, rel)
	}
	return readHost(path)
}

// inContext returns path relative to the context when the directory it is in lies in the context.
func inContext(dir, path string) (string, bool) {
	parent, err := realPath(filepath.Dir(path))
	if err != nil {
		return "", false
	}
	top, err := realPath(dir)
	if err != nil {
		return "", false
	}
	return within(top, filepath.Join(parent, filepath.Base(path)))
}

func realPath(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// parseIgnore reads an ignore file.
func parseIgnore(name string, data []byte) (*ignore, error) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return nil, &IgnoreError{File: name, Err: err}
	}
	if len(patterns) == 0 {
		return nil, nil
	}
	for _, p := range patterns {
		// Patterns are compiled when they are first compared, those of exceptions only where something is left out. One that
		// cannot be is better refused now.
		rules := []string{p}
		if strings.HasPrefix(p, "!") {
			rules = []string{"**", p}
		}
		pm, err := patternmatcher.New(rules)
		if err == nil {
			_, err = pm.MatchesOrParentMatches("x")
		}
		if err != nil {
			return nil, &IgnoreError{File: name, Pattern: p, Err: err}
		}
	}
	ig := &ignore{name: name, patterns: patterns}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, &IgnoreError{File: name, Err: err}
	}
	ig.matchers.Put(m)
	for _, p := range m.Patterns() {
		if p.Exclusion() {
			ig.exceptions = append(ig.exceptions, strings.Split(p.String(), "/"))
		}
	}
	return ig, nil
}

// judge applies the rules to a path, given the verdict on the directory it is in.
func (ig *ignore) judge(path string, parent verdict) (verdict, error) {
	if ig == nil {
		return verdict{}, nil
	}
	m, ok := ig.matchers.Get().(*patternmatcher.PatternMatcher)
	if !ok {
		var err error
		if m, err = patternmatcher.New(ig.patterns); err != nil {
			return verdict{}, &IgnoreError{File: ig.name, Err: err}
		}
	}
	defer ig.matchers.Put(m)
	out, info, err := m.MatchesUsingParentResults(path, parent.info)
	if err != nil {
		return verdict{}, fmt.Errorf("apply %s to %s: %w", ig.name, path, err)
	}
	return verdict{out, info}, nil
}

// judgeAll applies the rules to a path and all directories above it.
func (ig *ignore) judgeAll(path string) (verdict, error) {
	var v verdict
	if ig == nil || path == "" {
		return v, nil
	}
	for i := 0; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		var err error
		if v, err = ig.judge(path[:i], v); err != nil {
			return v, err
		}
	}
	return v, nil
}

// mayInclude reports whether an exception could bring back something below an ignored directory.
func (ig *ignore) mayInclude(dir string) bool {
	if ig == nil {
		return true
	}
	for _, pattern := range ig.exceptions {
		if couldMatchBelow(pattern, dir) {
			return true
		}
	}
	return false
}

// couldMatchBelow reports whether a pattern may match a path below dir. When in doubt it does.
func couldMatchBelow(pattern []string, dir string) bool {
	for {
		name, rest, more := strings.Cut(dir, "/")
		if len(pattern) == 0 {
			return false
		}
		if strings.Contains(pattern[0], "**") {
			return true
		}
		if pattern[0] != name && !strings.ContainsAny(pattern[0], `*?[\`) {
			return false
		}
		pattern = pattern[1:]
		if !more {
			return len(pattern) > 0
		}
		dir = rest
	}
}
