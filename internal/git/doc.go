// Package git fetches one commit of a repository over http(s), ssh or the git protocol and lays its files out in a
// directory. It owns the protocols, the object formats (SHA-1 and SHA-256) and the rules by which a ref is resolved. It
// needs no git program, knows no hooks and no filters, and so has nothing that a repository could make it run: pointers of
// Git LFS stay pointers. It refuses repositories on the local file system, paths that leave the directory, and to know what
// the files are for.
//
// Start reading at Open, Resolve and Checkout. A transport (http.go, stream.go; the messages are in wire.go) brings a pack or
// single objects into objects, which reads them by name (pack.go, resolve.go, delta.go); checkout lays them out, converted
// as .gitattributes says (attributes.go, convert.go), and gitDir makes a .git of them.
//
// Everything that comes from a remote is taken to be hostile. What is held in memory has a limit that does not depend on how
// far a pack unfolds: lists of refs (maxRefBytes), commits and directories (maxSmall), deltas and what they are against
// (maxInMemory, of which a few at a time), rules of attributes (maxAttrWeight), and some 80 bytes for each object of a pack.
// What is downloaded and what is laid out is limited by the disk alone, as with git.
package git

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Config says how remotes are reached.
type Config struct {
	Transport http.RoundTripper // for http and https; proxies are its business
	UserAgent string
	// Authorization returns the value of the Authorization header for a repository given by its URL without credentials, ""
	// for none. It is sent to the repository's own host only.
	Authorization func(repo *url.URL) string
	DialAgent     func(ctx context.Context) (net.Conn, error) // reaches the ssh agent whose keys may be used; nil: none
	KnownHosts    []string                                    // files that name the host keys to accept
	Dial          func(ctx context.Context, network, address string) (net.Conn, error)
}

// AuthError says that a remote wants credentials, or others than it got.
type AuthError struct {
	Repo string
	Err  error
	Hint string
}

func (e *AuthError) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %v", e.Repo, e.Err)
	}
	return fmt.Sprintf("%s: %v\n  %s", e.Repo, e.Err, e.Hint)
}
func (e *AuthError) Unwrap() error { return e.Err }

// RemoteError says that a remote could not be reached or did not do what the protocol promises.
type RemoteError struct {
	Repo string
	Err  error
}

func (e *RemoteError) Error() string { return fmt.Sprintf("fetch %s: %v", e.Repo, e.Err) }
func (e *RemoteError) Unwrap() error { return e.Err }

// RefError says that what was asked for is not in the repository, or is not what was expected of it.
type RefError struct{ Repo, Msg string }

func (e *RefError) Error() string { return e.Repo + ": " + e.Msg }

// about gives an error the repository it is about, unless it says so or the context ended it.
func (r *Remote) about(ctx context.Context, err error) error {
	var (
		auth   *AuthError
		remote *RemoteError
		ref    *RefError
	)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err == nil || errors.As(err, &auth) || errors.As(err, &remote) || errors.As(err, &ref) {
		return err
	}
	return &RemoteError{Repo: r.name, Err: err}
}

func (r *Remote) refError(format string, args ...any) error {
	return &RefError{Repo: r.name, Msg: fmt.Sprintf(format, args...)}
}

// Redact returns a URL without the password in it.
func Redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User == nil {
		return raw
	}
	if _, ok := u.User.Password(); ok {
		u.User = url.UserPassword("xxxxx", "xxxxx")
	} else if u.Scheme == "http" || u.Scheme == "https" { // a token may stand alone
		u.User = url.User("xxxxx")
	}
	return u.String()
}

// IsCommit reports whether a string is the full name of an object.
func IsCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && isHex(s) && strings.ToLower(s) == s
}

func isHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return s != ""
}
