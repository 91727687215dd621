package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"build/internal/buildctx"
	"build/internal/git"
)

// SourcePolicy decides which images, files and repositories a build may fetch, and in what others stead: the rules of
// BuildKit's source policies. It is asked before the first request for a source.
type SourcePolicy struct {
	rules []policyRule
}

type policyRule struct {
	action   string // ALLOW, DENY or CONVERT
	match    *regexp.Regexp
	literal  string // the identifier as written, which always matches itself
	kind     string // WILDCARD, EXACT or REGEX
	only     []policyConstraint
	to       string
	setAttrs map[string]string
}

type policyConstraint struct {
	key, value string
	condition  string // EQUAL, NOTEQUAL or MATCHES
	match      *regexp.Regexp
}

// policyEnum reads a value that may be given by name or number.
type policyEnum string

func (e *policyEnum) UnmarshalJSON(b []byte) error {
	*e = policyEnum(strings.Trim(string(b), `"`))
	return nil
}

// name gives the name of a value; the first of names is that of 0, which is also what stands for nothing.
func (e policyEnum) name(what string, names ...string) (string, error) {
	if e == "" {
		return names[0], nil
	}
	if n, err := strconv.Atoi(string(e)); err == nil && n >= 0 && n < len(names) {
		return names[n], nil
	}
	if slices.Contains(names, string(e)) {
		return string(e), nil
	}
	return "", fmt.Errorf("unknown %s %q: the choices are %s", what, string(e), strings.Join(names, ", "))
}

type policyFile struct {
	Version int `json:"version"`
	Rules   []struct {
		Action   policyEnum `json:"action"`
		Selector struct {
			Identifier  string     `json:"identifier"`
			MatchType   policyEnum `json:"matchType"`
			MatchType2  policyEnum `json:"match_type"` // protobuf has both spellings
			Constraints []struct {
				Key       string     `json:"key"`
				Value     string     `json:"value"`
				Condition policyEnum `json:"condition"`
			} `json:"constraints"`
		} `json:"selector"`
		Updates *struct {
			Identifier string            `json:"identifier"`
			Attrs      map[string]string `json:"attrs"`
		} `json:"updates"`
	} `json:"rules"`
}

// ParseSourcePolicy reads a policy. What is not understood is an error: a rule that is left out allows what it was to deny.
func ParseSourcePolicy(data []byte) (*SourcePolicy, error) {
	var f policyFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("there is more after the policy")
	}
	if f.Version > 1 {
		return nil, fmt.Errorf("version %d is not known", f.Version)
	}
	p := &SourcePolicy{}
	for i, in := range f.Rules {
		r := policyRule{literal: in.Selector.Identifier}
		var err error
		if r.action, err = in.Action.name("action", "ALLOW", "DENY", "CONVERT"); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		kind := in.Selector.MatchType
		if kind == "" {
			kind = in.Selector.MatchType2
		}
		if r.kind, err = kind.name("match type", "WILDCARD", "EXACT", "REGEX"); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		if err := r.compile(); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		for _, c := range in.Selector.Constraints {
			k := policyConstraint{key: c.Key, value: c.Value}
			if k.condition, err = c.Condition.name("condition", "EQUAL", "NOTEQUAL", "MATCHES"); err == nil && k.condition == "MATCHES" {
				k.match, err = regexp.Compile(c.Value)
			}
			if err != nil {
				return nil, fmt.Errorf("rule %d: %w", i+1, err)
			}
			r.only = append(r.only, k)
		}
		switch {
		case in.Updates != nil:
			r.to, r.setAttrs = in.Updates.Identifier, in.Updates.Attrs
		case r.action == "CONVERT":
			return nil, fmt.Errorf("rule %d: CONVERT without updates", i+1)
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// compile makes the pattern of a rule. A wildcard's * stands for anything, also nothing, and can be named in what it is converted to.
func (r *policyRule) compile() (err error) {
	switch r.kind {
	case "REGEX":
		r.match, err = regexp.Compile(r.literal)
	case "WILDCARD":
		if strings.Contains(r.literal, "**") {
			return fmt.Errorf("invalid wildcard %q", r.literal)
		}
		r.match, err = regexp.Compile("^" + strings.ReplaceAll(regexp.QuoteMeta(r.literal), `\*`, "(.*)") + "$")
	}
	return err
}

func (r *policyRule) matches(s policySource) bool {
	for _, c := range r.only {
		got := s.attrs[c.key]
		switch {
		case c.condition == "EQUAL" && got != c.value, c.condition == "NOTEQUAL" && got == c.value, c.match != nil && !c.match.MatchString(got):
			return false
		}
	}
	return s.id == r.literal || r.match != nil && r.match.MatchString(s.id)
}

// policySource is a source as policies call it.
type policySource struct {
	id    string
	attrs map[string]string
}

// convert carries out a CONVERT and reports whether it changed anything.
func (r *policyRule) convert(s *policySource) bool {
	to := r.to
	if to == "" {
		to = r.literal
	}
	switch {
	case r.kind == "REGEX":
		to = r.match.ReplaceAllString(s.id, to)
	case r.kind == "WILDCARD":
		at := r.match.FindStringSubmatchIndex(s.id)
		if at == nil { // the pattern itself
			to = s.id
			break
		}
		to = string(r.match.ExpandString(nil, to, s.id, at))
	}
	changed := to != s.id
	s.id = to
	for k, v := range r.setAttrs {
		if s.attrs[k] != v {
			s.attrs[k], changed = v, true
		}
	}
	return changed
}

const maxConversions = 20

// decide applies the rules to a source. Of ALLOW and DENY the last that matches counts; a CONVERT that changes something begins
// anew.
func (p *SourcePolicy) decide(s policySource) (policySource, error) {
	if p == nil {
		return s, nil
	}
	s.attrs = maps.Clone(s.attrs)
	if s.attrs == nil {
		s.attrs = map[string]string{}
	}
next:
	for range maxConversions {
		denied := false
		for i := range p.rules {
			r := &p.rules[i]
			if !r.matches(s) {
				continue
			}
			switch r.action {
			case "CONVERT":
				if r.convert(&s) {
					continue next
				}
			default:
				denied = r.action == "DENY"
			}
		}
		if denied {
			return s, &UsageError{Msg: fmt.Sprintf("source %q denied by policy", git.Redact(s.id)), Hint: "the rules are those of --source-policy-file"}
		}
		return s, nil
	}
	return s, &UsageError{Msg: fmt.Sprintf("source %q: the rules of --source-policy-file convert it without end", git.Redact(s.id))}
}

// policyImage applies the policy to an image, by its normalised name.
func (s *session) policyImage(ref string) (string, error) {
	got, err := s.opts.SourcePolicy.decide(policySource{id: imageScheme + ref})
	if err != nil || got.id == imageScheme+ref {
		return ref, err
	}
	name, ok := strings.CutPrefix(got.id, imageScheme)
	if !ok {
		return "", &UsageError{Msg: fmt.Sprintf("--source-policy-file converts the image %s to %s, which is none", ref, got.id)}
	}
	s.warn("%s is used instead of %s, as --source-policy-file says", name, ref)
	return normalizeName(name)
}

// policyHTTP applies the policy to a file at a URL.
func (s *session) policyHTTP(raw, checksum string) (to, sum string, err error) {
	in := policySource{id: raw, attrs: map[string]string{"http.checksum": checksum}}
	got, err := s.opts.SourcePolicy.decide(in)
	if err != nil || s.opts.SourcePolicy == nil {
		return raw, checksum, err
	}
	if got.id != raw {
		if r, err := buildctx.ParseRemote(got.id); err != nil || r.Kind != buildctx.HTTP {
			return "", "", &UsageError{Msg: fmt.Sprintf("--source-policy-file converts the file %s to %s, which is none", git.Redact(raw), git.Redact(got.id))}
		}
		s.warn("%s is used instead of %s, as --source-policy-file says", git.Redact(got.id), git.Redact(raw))
	}
	return got.id, got.attrs["http.checksum"], nil
}

// policyGit applies the policy to a repository, which it calls git://HOST/PATH#REF:DIR whatever its protocol.
func (s *session) policyGit(g *buildctx.GitSource) error {
	if s.opts.SourcePolicy == nil {
		return nil
	}
	id := gitPolicyName(g)
	got, err := s.opts.SourcePolicy.decide(policySource{id: id, attrs: map[string]string{"git.fullurl": g.Repo}})
	if err != nil || got.id == id && got.attrs["git.fullurl"] == g.Repo {
		return err
	}
	return &UsageError{
		Msg:  fmt.Sprintf("--source-policy-file converts the repository %s to %s: repositories can be allowed and denied", git.Redact(g.Repo), git.Redact(got.id)),
		Hint: "use --build-context to take a context from another repository",
	}
}

func gitPolicyName(g *buildctx.GitSource) string {
	place := g.Repo
	if u, err := url.Parse(g.Repo); err == nil && u.Host != "" {
		place = u.Host + u.Path
	} else if _, after, ok := strings.Cut(g.Repo, "@"); ok {
		place = strings.Replace(after, ":", "/", 1)
	}
	id := "git://" + place
	if g.Query.Ref != "" || g.Subdir != "" {
		id += "#" + g.Query.Ref
	}
	if g.Subdir != "" {
		id += ":" + g.Subdir
	}
	return id
}
