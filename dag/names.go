package dag

import (
	"fmt"
	"math"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
)

// title is an instruction as it is shown: in one line, variables expanded, its name in capitals.
func (l *lowering) title(text string, lex *shell.Lex, e shell.EnvGetter) string {
	if w, _, err := lex.ProcessWord(text, e); err == nil {
		text = w
	}
	name, rest, found := strings.Cut(text, " ")
	if !found {
		return strings.ToUpper(name)
	}
	return strings.ToUpper(name) + " " + rest
}

// stepName puts stage and number in front of a title: "[build 2/5] RUN make".
func (l *lowering) stepName(d *stage, title string, p ocispec.Platform, e *env, onbuild bool) string {
	if d.total == 0 {
		return title
	}
	var b strings.Builder
	b.WriteString("[")
	if l.MultiPlatform {
		b.WriteString(platforms.FormatAll(p) + crossTarget(p, e) + " ")
	}
	if d.display != "" {
		b.WriteString(d.display + " ")
	}
	d.count++
	width := 1 + int(math.Log10(float64(d.total)))
	fmt.Fprintf(&b, "%*d/%d] ", width, d.count, d.total)
	if onbuild {
		b.WriteString("ONBUILD ")
	}
	return b.String() + title
}

// crossTarget is the "->arm64" of a stage that runs on one platform and builds for another, which it shows by declaring the
// variables of the target.
func crossTarget(base ocispec.Platform, e *env) string {
	var (
		t   ocispec.Platform
		set bool
	)
	for _, k := range e.Keys() {
		v := e.vals[k]
		switch k {
		case "TARGETPLATFORM":
			p, err := platforms.Parse(v)
			if err != nil {
				continue
			}
			return arrow(base, p)
		case "TARGETOS":
			t.OS, set = v, true
		case "TARGETARCH":
			t.Architecture, set = v, true
		case "TARGETVARIANT":
			t.Variant, set = v, true
		}
	}
	if !set {
		return ""
	}
	if t.OS == "" {
		t.OS = base.OS
	}
	if t.Architecture == "" {
		t.Architecture = base.Architecture
	}
	return arrow(base, t)
}

func arrow(base, target ocispec.Platform) string {
	t := platforms.Normalize(target)
	switch {
	case t.OS != base.OS:
		return "->" + platforms.FormatAll(t)
	case t.Architecture == base.Architecture:
		return ""
	case t.Variant != "":
		return "->" + t.Architecture + "/" + t.Variant
	default:
		return "->" + t.Architecture
	}
}

// imageName is what parsing the name of an image gave.
type imageName struct {
	ref reference.Reference
	err error
}

// parseName parses the name of an image, each only once: many stages stand on the same.
func (l *lowering) parseName(name string) (reference.Reference, error) {
	n, ok := l.names[name]
	if !ok {
		n.ref, n.err = reference.Parse(name)
		l.names[name] = n
	}
	return n.ref, n.err
}
