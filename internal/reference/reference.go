// Package reference parses the names of images: what stands after FROM and --tag. It owns the grammar that
// github.com/distribution/reference defines and docker's way of completing short names, and accepts and refuses what that
// package does, but for a_b.c/d, in which that one finds no domain and this one no name. Its tests hold the two side by side.
//
// It exists because that package compiles ten regular expressions whenever a program starts that contains it, a tenth of a
// build that finds nothing to do. It knows nothing of registries.
package reference

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The domain that names without one belong to, its former name, and the part of a name there that may be left out.
const (
	hub       = "docker.io"
	legacyHub = "index.docker.io"
	official  = "library/"
)

// Errors of names that cannot be parsed, worded as docker's are.
var (
	ErrFormat  = errors.New("invalid reference format")
	ErrTooLong = fmt.Errorf("repository name must not be more than %d characters", maxPath)
)

const (
	maxPath = 255 // without the domain
	maxTag  = 128
)

// A Reference is the full name of an image. Domain and Path are never empty, Tag and Digest may be.
type Reference struct {
	Domain string // docker.io, localhost:5000
	Path   string // library/debian
	Tag    string
	Digest digest.Digest
}

// Parse completes a name as docker does (docker.io and library/ are implied, a tag is not) and takes it apart. A digest must
// be of a known algorithm and complete.
func Parse(s string) (Reference, error) {
	if len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" {
		return Reference{}, fmt.Errorf("invalid repository name (%s), cannot specify 64-byte hexadecimal strings", s)
	}
	domain, rest := splitDomain(s)
	if path, _, _ := strings.Cut(rest, ":"); strings.ToLower(path) != path {
		return Reference{}, fmt.Errorf("%w: repository name (%s) must be lowercase", ErrFormat, path)
	}
	rest, sum, hasDigest := strings.Cut(rest, "@")
	path, tag, hasTag := strings.Cut(rest, ":")
	if !isDomain(domain) || !isPath(path) || hasTag && !isTag(tag) {
		return Reference{}, ErrFormat
	}
	if len(path) > maxPath {
		return Reference{}, ErrTooLong
	}
	r := Reference{Domain: domain, Path: path, Tag: tag, Digest: digest.Digest(sum)}
	if hasDigest {
		if err := r.Digest.Validate(); err != nil {
			return Reference{}, fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	return r, nil
}

// splitDomain parts a name at its first slash if what is before it can only be a domain.
func splitDomain(s string) (domain, rest string) {
	first, rest, found := strings.Cut(s, "/")
	switch {
	case !found:
		return hub, official + s
	case first == legacyHub:
		domain = hub
	case first == "localhost", strings.ContainsAny(first, ".:"), strings.ToLower(first) != first:
		domain = first
	default:
		return hub, s
	}
	if domain == hub && !strings.Contains(rest, "/") {
		rest = official + rest
	}
	return domain, rest
}

// Name is domain and path.
func (r Reference) Name() string { return r.Domain + "/" + r.Path }

// String is the full name: docker.io/library/debian:12.
func (r Reference) String() string { return r.Name() + r.suffix() }

// Familiar is the name as users write it: debian:12.
func (r Reference) Familiar() string {
	if r.Domain != hub {
		return r.String()
	}
	path := r.Path
	if short := strings.TrimPrefix(path, official); !strings.Contains(short, "/") {
		path = short
	}
	return path + r.suffix()
}

func (r Reference) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// Tagged is r with the tag latest if it has neither tag nor digest.
func (r Reference) Tagged() Reference {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r
}
