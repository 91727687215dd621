package parser

import (
	"errors"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"

	"build/internal/lazyregexp"
)

// Error is something wrong with a Dockerfile, or with a build because of a line in it.
type Error struct {
	Range Range    // the instruction (or the whole file, when it has no line)
	At    Position // the offending word inside the instruction; zero when it is not known
	Msg   string   // what is wrong, in BuildKit's words where BuildKit has words for it
	Hint  string   // what to do about it, such as "did you mean RUN?"; may be empty
	Err   error    // the cause, if there is one below

	source *source // of the file Range is in, for Render; nil in errors made elsewhere
}

// Error is one line: place, message and, where it is a plain suggestion, the hint.
func (e *Error) Error() string {
	r := e.Range
	if e.At.Line != 0 {
		r.Start = e.At
	}
	msg := e.Msg
	if strings.HasPrefix(e.Hint, didYouMean) {
		msg += " (" + e.Hint + ")"
	}
	return r.String() + ": " + msg
}

func (e *Error) Unwrap() error { return e.Err }

// Errors is several independent errors of one file, in the order of the file.
type Errors []*Error

// Error gives one line for each error.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the single errors.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

// maxErrors bounds how many errors of one file are collected: enough to fix a file in one go, not a screenful for a file
// that is no Dockerfile at all.
const maxErrors = 10

// Error makes an Error about the instruction at locs. A suggestion at the end of err's message becomes the hint, and words of the
// message that stand in the instruction give the column.
func (f *File) Error(locs []bkparser.Range, err error) *Error {
	return f.source.wrap(f.source.rangeOf(locs), err)
}

// ErrorAt is Error for a place that is already a Range.
func (f *File) ErrorAt(r Range, err error) *Error {
	return f.source.wrap(r, err)
}

// didYouMean begins the hints that are a plain suggestion.
const didYouMean = "did you mean "

// endAsModifier is what the lexer says about ${NAME without a brace: it takes the end for the modifier.
const endAsModifier = "unsupported modifier (\uFFFD) in substitution"

var suggestion = lazyregexp.New(`^(?s)(.*) \((did you mean [^()]*\?)\)$`)

func (s *source) wrap(r Range, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e // already placed, and nearer to the cause than we are
	}
	msg, hint := strings.ReplaceAll(err.Error(), endAsModifier, "syntax error: missing '}'"), ""
	if m := suggestion().FindStringSubmatch(msg); m != nil {
		msg, hint = m[1], m[2]
	}
	if better, ok := s.suggest(r, err, msg); ok {
		hint = better
	}
	var hinted *hintError
	if errors.As(err, &hinted) {
		hint = hinted.hint
	}
	e = &Error{Range: r, Msg: harmless(msg), Hint: hint, Err: err, source: s}
	if at, ok := s.find(r, tokensOf(err, msg)); ok {
		e.At = at
	}
	return e
}

var (
	flagWord   = lazyregexp.New(`--[a-z][a-z-]*`)
	quotedWord = lazyregexp.New(`"(?:[^"\\]|\\.)+"|'[^']+'`)
)

// tokensOf lists the words of a message that probably stand in the source, most telling first.
func tokensOf(err error, msg string) []string {
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		return []string{unknown.Instruction}
	}
	var tokens []string
	var about *wordError
	if errors.As(err, &about) {
		tokens = append(tokens, about.word)
	}
	for _, q := range quotedWord().FindAllString(msg, -1) {
		if word, err := strconv.Unquote(q); err == nil && q[0] == '"' {
			tokens = append(tokens, word)
		} else {
			tokens = append(tokens, q[1:len(q)-1])
		}
	}
	if strings.Contains(msg, "flag") {
		tokens = append(tokens, flagWord().FindAllString(msg, -1)...)
	}
	return tokens
}

// wordError is an error about a word of an instruction.
type wordError struct {
	error
	word string
}

func (e *wordError) Unwrap() error { return e.error }

// About says which word of an instruction an error is about, as it stands in the file, so that File.Error finds its column.
func About(word string, err error) error { return &wordError{error: err, word: word} }

// hintError is an error that says what to do about it.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// WithHint adds what to do about an error, on a line of its own below the source.
func WithHint(hint string, err error) error { return &hintError{error: err, hint: hint} }

// harmless keeps words of a Dockerfile that are quoted in a message from doing anything to the terminal.
func harmless(msg string) string {
	lines := strings.Split(msg, "\n")
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "\n")
}

// located turns an error of BuildKit's packages into ours. Directive and scanner errors are reported by them one line too early,
// because they count a line only after it has been read.
func (s *source) located(err error) *Error {
	var le *bkparser.LocationError
	if !errors.As(err, &le) {
		return s.wrap(Range{File: s.name}, err)
	}
	var locs []bkparser.Range
	if len(le.Locations) > 0 {
		locs = le.Locations[0]
	}
	r := s.rangeOf(locs)
	cause := le.Unwrap()
	if len(locs) > 0 && countedEarly(cause.Error()) {
		r = s.lineRange(locs[0].Start.Line+1, 0)
	}
	return s.wrap(r, cause)
}

func countedEarly(msg string) bool {
	return strings.Contains(msg, "parser directive can be used") ||
		strings.HasPrefix(msg, "invalid escape token") ||
		strings.HasPrefix(msg, "dockerfile line greater than")
}
