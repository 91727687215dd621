package registry

import (
	"net"
	"net/netip"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/internal/reference"
)

// The names of Docker Hub: what references say, where its API answers, and the key its credentials are kept under.
const (
	hubDomain = "docker.io"
	hubHost   = "registry-1.docker.io"
	hubKey    = "https://index.docker.io/v1/"
)

// target is a parsed reference: which host, which repository on it, and which manifest in that.
type target struct {
	name   string // normalised: docker.io/library/debian
	domain string // docker.io
	path   string // library/debian
	tag    string // "" when only a digest was given
	digest digest.Digest
}

// parseRef normalises ref as docker does: docker.io and library/ are implied, and the tag latest when there is neither
// tag nor digest.
func parseRef(ref string) (target, error) {
	named, err := reference.Parse(ref)
	if err != nil {
		return target{}, &Error{Class: Invalid, Ref: ref, Err: err}
	}
	named = named.Tagged()
	t := target{name: named.Name(), domain: named.Domain, path: named.Path, tag: named.Tag, digest: named.Digest}
	if t.digest != "" {
		if err := checkDigest(t.digest); err != nil {
			return target{}, &Error{Class: Invalid, Ref: ref, Err: err}
		}
	}
	return t, nil
}

// manifest is the last path element of a manifest request: the digest wins, because it cannot move.
func (t target) manifest() string {
	if t.digest != "" {
		return t.digest.String()
	}
	return t.tag
}

// String is the canonical spelling, with tag and digest.
func (t target) String() string {
	s := t.name
	if t.tag != "" {
		s += ":" + t.tag
	}
	if t.digest != "" {
		s += "@" + t.digest.String()
	}
	return s
}

// apiHost is where a domain's API answers.
func apiHost(domain string) string {
	if domain == hubDomain || domain == "index."+hubDomain {
		return hubHost
	}
	return domain
}

// hostname strips the port of host[:port] and the brackets of an IPv6 literal.
func hostname(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

// isLoopback reports whether a host name is this machine by its spelling alone; the resolver is not asked, because its
// answer may change between the question and the use.
func isLoopback(hostport string) bool {
	h := hostname(hostport)
	if h == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(h)
	return err == nil && ip.Unmap().IsLoopback()
}

// checkDigest refuses digests that are malformed or of an algorithm we cannot verify. It runs before a digest becomes
// part of a URL or a path.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return errorf(Digest, "digest %q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
		return errorf(Unsupported, "digest algorithm %s", d.Algorithm())
	}
	return nil
}
