package parser

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"

	"build/internal/lazyregexp"
)

// Build arguments that steer the parser instead of the build.
const (
	argSyntax = "BUILDKIT_SYNTAX"
	argCheck  = "BUILDKIT_DOCKERFILE_CHECK"
)

// Options is what parsing may depend on besides the file.
type Options struct {
	// Args are the build arguments: BUILDKIT_SYNTAX and BUILDKIT_DOCKERFILE_CHECK override the directives of the file.
	Args map[string]string
	// Warn, if set, is told each warning when it is found: those of a file that then turns out to be wrong are kept nowhere else.
	Warn func(Warning)
}

// File is a parsed Dockerfile.
type File struct {
	Name     string                    // as shown in messages
	Src      []byte                    // the bytes it was parsed from
	Stages   []instructions.Stage      // for reading only: see Instantiate
	MetaArgs []instructions.ArgCommand // ARG before the first FROM
	Escape   rune                      // \ or `
	Syntax   string                    // image named by the syntax directive or BUILDKIT_SYNTAX, "" without
	Check    linter.Config             // the check directive or BUILDKIT_DOCKERFILE_CHECK, parsed
	Warnings []Warning                 // what lint found while parsing

	source *source
	ast    *bkparser.Node
}

// Warning is one finding of lint.
type Warning struct {
	Rule        string // such as "StageNameCasing"
	Description string // of the rule
	URL         string // where the rule is explained
	Msg         string
	Range       Range
}

// String is one line: place, rule and message.
func (w Warning) String() string {
	if w.Rule == "" {
		return w.Range.String() + ": " + w.Msg
	}
	return w.Range.String() + ": " + w.Rule + ": " + w.Msg
}

// Parse reads a Dockerfile. The error is an *Error or, when several instructions are wrong, Errors.
func Parse(name string, src []byte, o Options) (*File, error) {
	f := &File{Name: name, Src: src, source: newSource(name, src)}
	if len(src) == 0 {
		return nil, &Error{Range: Range{File: name}, Msg: "the Dockerfile cannot be empty"}
	}
	if err := f.syntax(o); err != nil {
		return nil, err
	}
	if err := f.check(o); err != nil {
		return nil, err
	}
	result, err := bkparser.Parse(bytes.NewReader(src))
	if err != nil {
		return nil, f.source.located(err)
	}
	f.ast, f.Escape = result.AST, result.EscapeToken
	lint := f.Linter(func(w Warning) {
		f.Warnings = append(f.Warnings, w)
		if o.Warn != nil {
			o.Warn(w)
		}
	})
	for _, w := range result.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			lint.Run(&linter.RuleNoEmptyContinuation, []bkparser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	if f.Stages, f.MetaArgs, err = f.instructions(lint); err != nil {
		return nil, err
	}
	if len(f.Stages) == 0 {
		return nil, &Error{Range: Range{File: name}, Msg: "dockerfile contains no stages to build", Hint: "add a FROM instruction"}
	}
	lintStages(f.Stages, lint)
	return f, nil
}

// Instantiate gives stages and global arguments of their own, free to be changed: expanding variables in a typed instruction
// changes it in place, and one File may be lowered many times, also at the same time.
func (f *File) Instantiate() ([]instructions.Stage, []instructions.ArgCommand, error) {
	return f.instructions(linter.New(&linter.Config{}))
}

// Position gives the range of an instruction from its BuildKit locations.
func (f *File) Position(locs []bkparser.Range) Range { return f.source.rangeOf(locs) }

// instructions types the nodes of the syntax tree. It goes on after an error, so that all mistakes show at once.
func (f *File) instructions(lint *linter.Linter) ([]instructions.Stage, []instructions.ArgCommand, error) {
	var (
		stages  []instructions.Stage
		meta    []instructions.ArgCommand
		errs    Errors
		noStage bool // a wrong FROM must not make its instructions look stray
	)
	for _, node := range f.ast.Children {
		cmd, err := instructions.ParseInstructionWithLinter(node, lint)
		if err == nil {
			switch c := cmd.(type) {
			case *instructions.Stage:
				stages = append(stages, *c)
				continue
			case *instructions.ArgCommand:
				if len(stages) == 0 && !noStage {
					meta = append(meta, *c)
					continue
				}
			}
			if c, ok := cmd.(instructions.Command); ok && len(stages) > 0 {
				stages[len(stages)-1].AddCommand(c)
				continue
			}
			if noStage {
				continue
			}
			err = bkparser.WithLocation(errors.New("no build stage in current context"), node.Location())
		}
		e := f.source.located(err)
		if e.Msg == "no build stage in current context" {
			e.Hint = "begin the file with FROM"
		}
		errs = append(errs, e)
		noStage = noStage || len(stages) == 0
		if len(errs) == maxErrors {
			break
		}
	}
	switch len(errs) {
	case 0:
		return stages, meta, nil
	case 1:
		return nil, nil, errs[0]
	default:
		return nil, nil, errs
	}
}

// check reads the lint options.
func (f *File) check(o Options) error {
	text, r := o.Args[argCheck], Range{File: f.Name}
	if _, ok := o.Args[argCheck]; !ok {
		var locs []bkparser.Range
		text, _, locs, _ = bkparser.ParseDirective("check", f.Src)
		r = f.source.rangeOf(locs)
	}
	config, err := linter.ParseLintOptions(text)
	if err != nil {
		return f.source.wrap(r, fmt.Errorf("failed to parse check options: %w", err))
	}
	f.Check = *config
	return nil
}

// family matches the images of the standard frontend, also on a mirror; any version, labs channel and digest.
var family = lazyregexp.New(`^(.+/)?docker/dockerfile(-upstream)?(:[\w][\w.-]*)?(@[a-z0-9]+:[0-9a-f]+)?$`)

// builtin is the value of BUILDKIT_SYNTAX that names the built-in frontend.
const builtin = "dockerfile.v0"

// syntax accepts the standard frontend, which is what this package is, without fetching anything, and refuses any other.
func (f *File) syntax(o Options) error {
	ref, r := "", Range{File: f.Name}
	if v, ok := o.Args[argSyntax]; ok {
		ref, _, _ = strings.Cut(strings.TrimSpace(v), " ")
	} else {
		var locs []bkparser.Range
		ref, _, locs, _ = bkparser.DetectSyntax(f.Src)
		r = f.source.rangeOf(locs)
	}
	f.Syntax = ref
	if ref == "" || ref == builtin || family().MatchString(ref) {
		return nil
	}
	err := fmt.Errorf("syntax %q is not supported: it is a program in an image, and only docker/dockerfile is built in", ref)
	return f.source.wrap(r, WithHint("use # syntax=docker/dockerfile:1 or remove the directive, if this is a Dockerfile; otherwise build it with BuildKit", err))
}
