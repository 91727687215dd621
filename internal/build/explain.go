package build

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"build/internal/buildctx"
	"build/internal/registry"
	"build/parser"
)

// Explain prints an error the way its kind asks for: a mistake in the Dockerfile with its lines and a caret, a failed
// step with its last output and its instruction, anything else with what to do about it.
func Explain(w io.Writer, err error) {
	var (
		step *StepError
		perr *parser.Error
		many parser.Errors
		src  *SourceError
	)
	switch {
	case errors.As(err, &step):
		step.explain(w)
	case errors.As(err, &many):
		for _, e := range many {
			fmt.Fprint(w, e.Render(nil))
			fmt.Fprintf(w, "ERROR: %s\n", withHint(e, e.Hint))
		}
	case errors.As(err, &perr):
		fmt.Fprint(w, perr.Render(nil))
		fmt.Fprintf(w, "ERROR: %s\n", withHint(err, perr.Hint))
	case errors.As(err, &src):
		fmt.Fprint(w, parser.Excerpt(src.Pos, src.source))
		fmt.Fprintf(w, "ERROR: %s: %s\n", src.Pos, withHint(src.Err, hintOf(src.Err)))
	default:
		fmt.Fprintf(w, "ERROR: %s\n", withHint(err, hintOf(err)))
		if ExitCode(err) == ExitInternal {
			fmt.Fprintln(w, "  this is not a failure we know: please report it with the Dockerfile that shows it")
		}
	}
}

func hintOf(err error) string {
	var reg *registry.Error
	if errors.As(err, &reg) {
		return reg.Hint
	}
	var missing *buildctx.NoDockerfileError
	if errors.As(err, &missing) {
		return missing.Hint()
	}
	return ""
}

// withHint is the text of an error, without what would do something to a terminal: parts of it may come from a server.
func withHint(err error, hint string) string {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = parser.Printable(lines[i])
	}
	msg := strings.Join(lines, "\n")
	if hint == "" || strings.Contains(msg, hint) {
		return msg
	}
	return msg + "\n  " + hint
}

func (e *StepError) explain(w io.Writer) {
	fmt.Fprintf(w, "------\n > %s:\n", e.Step)
	for _, l := range e.Tail {
		fmt.Fprintln(w, l)
	}
	fmt.Fprintln(w, "------")
	fmt.Fprint(w, parser.Excerpt(e.Pos, e.source))
	if e.Log != "" {
		fmt.Fprintf(w, "full output: %s\n", e.Log)
	}
	fmt.Fprintf(w, "ERROR: %s: failed to build: %s\n", e.Pos, e)
}
