package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"build/dag"
	"build/parser"
)

// What can be asked about a Dockerfile instead of building it.
const (
	CallCheck    = "check"
	CallOutline  = "outline"
	CallTargets  = "targets"
	CallDescribe = "subrequests.describe"
)

// Forms of the answer.
const (
	FormatText  = "text"
	FormatJSON  = "json"
	FormatSARIF = "sarif"
)

// Inspection is a question about a Dockerfile.
type Inspection struct {
	Call    string
	Format  string // "" is text
	Version string // of this program, for SARIF
}

// Report answers an inspection.
type Report struct {
	in   Inspection
	name string // of the Dockerfile, as in messages
	path string // where it is, "" when it is no file here
	src  []byte

	warnings []parser.Warning // of CallCheck: rules that are violated
	failure  error            // of CallCheck: why it would not build
	strict   bool             // violations are errors
	targets  *parser.File     // of CallTargets
	outline  *dag.Outline     // of CallOutline
}

// Violations counts what CallCheck found.
func (r *Report) Violations() int { return len(r.warnings) }

// Failure is the error a build would end with before its first step, if CallCheck found one.
func (r *Report) Failure() error { return r.failure }

// Inspect answers a question about a Dockerfile. Manifests and configs of the images it names are looked up where the answer
// depends on them; no layer is fetched and nothing is built. A check without a target looks at all stages.
func Inspect(ctx context.Context, o Options, in Inspection) (*Report, error) {
	if in.Call == CallDescribe {
		return &Report{in: in}, nil
	}
	o.fill()
	if err := o.checkNamedContexts(); err != nil {
		return nil, err
	}
	if len(o.Platforms) > 1 {
		o.Platforms = o.Platforms[:1]
	}
	s, ctx, err := openSession(ctx, &o, false)
	if err != nil {
		return nil, err
	}
	defer s.close()
	r := &Report{in: in}
	if err := s.inspect(ctx, r); err != nil {
		return nil, s.firstCause(ctx, err)
	}
	return r, nil
}

func (s *session) inspect(ctx context.Context, r *Report) error {
	s.asked = r.in.Call
	file, err := s.loadDockerfile(ctx)
	if s.definition != nil {
		r.src, r.name, r.path = s.definition.Data, s.definition.Name, s.dockerfilePath()
	}
	r.strict = file != nil && file.Check.ReturnAsError
	if err == nil && r.in.Call == CallTargets {
		r.targets = file
		return nil
	}
	var g *dag.Graph
	if err == nil {
		g, err = s.lower(ctx, file, 0)
	}
	if r.in.Call == CallOutline {
		if err == nil {
			r.outline = g.Outline
		}
		return err
	}
	if r.in.Call != CallCheck || err != nil && (r.src == nil || ctx.Err() != nil) {
		return err // no Dockerfile, or no time to look at it: that is no result of a check
	}
	for _, w := range s.found.sorted() {
		if w.Rule != "" {
			r.warnings = append(r.warnings, w)
		}
	}
	if err == nil {
		err = s.lintFailure(file)
	}
	r.failure = err
	return nil
}

// dockerfilePath is where the Dockerfile can be found after the build; "" if it is not a file here, or one that was fetched or
// unpacked into the store for this build.
func (s *session) dockerfilePath() string {
	if s.definition.Path == "" {
		return ""
	}
	path, err := filepath.Abs(s.definition.Path)
	if err != nil || strings.HasPrefix(path, s.store.Dir()+string(filepath.Separator)) {
		return ""
	}
	return path
}

// Print writes the report in its format.
func (r *Report) Print(w io.Writer) error {
	var text []byte
	var err error
	switch {
	case r.in.Format == FormatSARIF && r.in.Call == CallCheck:
		text, err = r.sarif()
	case r.in.Format == FormatSARIF:
		return &UsageError{Msg: fmt.Sprintf("--call=%s has no format sarif", r.in.Call), Hint: "only --call=check has; the others have text and json"}
	case r.in.Format == FormatJSON:
		text, err = r.json()
	default:
		text, err = r.text()
	}
	if err != nil {
		return fmt.Errorf("write the result of --call=%s: %w", r.in.Call, err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// messageOf is an error without its place. Of several it is the first.
func messageOf(err error) string {
	var one *parser.Error
	switch {
	case !errors.As(err, &one):
		return err.Error()
	case one.Hint != "":
		return one.Msg + " (" + one.Hint + ")"
	}
	return one.Msg
}

// apart gives the errors that are in one.
func apart(err error) []error {
	var many parser.Errors
	if !errors.As(err, &many) {
		return []error{err}
	}
	return many.Unwrap()
}

// placeOf says where an error is in the Dockerfile.
func placeOf(err error) parser.Range {
	var one *parser.Error
	var src *SourceError
	switch {
	case errors.As(err, &one):
		return one.Range
	case errors.As(err, &src):
		return src.Pos
	}
	return parser.Range{}
}
