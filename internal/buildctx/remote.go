package buildctx

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"

	"build/internal/git"
)

// RemoteKind says where files come from.
type RemoteKind int

// The kinds of places.
const (
	Local RemoteKind = iota // a path, or something else that is no URL of files
	HTTP                    // one file
	Git                     // a repository
)

// Remote is a place files come from, parsed.
type Remote struct {
	Kind RemoteKind
	URL  string // as written
	Git  GitSource
}

// GitSource says what of a repository is wanted. Options that were not given are nil or empty.
type GitSource struct {
	Repo        string // URL without what is below
	Query       git.Query
	Subdir      string
	KeepGitDir  *bool
	Submodules  *bool
	MTime       string // "checkout" or "commit"
	Unencrypted bool   // http:// or git://
}

// Redacted is the place as it may be shown: without passwords.
func (r Remote) Redacted() string { return git.Redact(r.URL) }

// ParseRemote tells files, URLs and repositories apart, as ADD does. The error is about a repository whose options are
// wrong.
func ParseRemote(s string) (Remote, error) { return parseRemote(s, false) }

// ParseContext is ParseRemote for a build context: there github.com/owner/name is a repository too.
func ParseContext(s string) (Remote, error) { return parseRemote(s, true) }

func parseRemote(s string, context bool) (Remote, error) {
	r := Remote{URL: s}
	ref, isGit, err := dfgitutil.ParseGitRef(s)
	switch {
	case isGit && err != nil:
		return r, errors.New("invalid git source " + git.Redact(s) + ": " + err.Error())
	case err == nil && (context || !ref.IndistinguishableFromLocal):
		repo := ref.Remote
		if ref.IndistinguishableFromLocal {
			repo = "https://" + repo
		}
		r.Kind = Git
		r.Git = GitSource{
			Repo:       repo,
			Query:      git.Query{Ref: ref.Ref, Checksum: ref.Checksum, FetchByCommit: ref.FetchByCommit},
			Subdir:     strings.TrimPrefix(path.Clean("/"+ref.SubDir), "/"),
			KeepGitDir: ref.KeepGitDir, Submodules: ref.Submodules, MTime: ref.MTime, Unencrypted: ref.UnencryptedTCP,
		}
	case strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://"):
		r.Kind = HTTP
	}
	return r, nil
}

// unnamed is the name of a file whose URL has none.
const unnamed = "__unnamed__"

// URLFileName is the name that ADD gives to the file at a URL.
func URLFileName(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return safeName(base)
		}
	}
	return unnamed
}

// safeName makes the name of a file out of what somebody else calls it: one component, and nothing that a terminal obeys.
func safeName(s string) string {
	name := path.Base(strings.TrimSpace(s))
	if name == "" || name == "." || name == ".." || name == "/" || len(name) > 255 || strings.ContainsFunc(name, unicode.IsControl) {
		return "download"
	}
	return name
}
