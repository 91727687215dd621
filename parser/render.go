package parser

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// contextLines is how many lines around the offending ones an excerpt shows.
const contextLines = 2

// maxExcerptLines bounds how many lines of one instruction an excerpt shows.
const maxExcerptLines = 12

// maxShownBytes bounds how much of one line an excerpt shows.
const maxShownBytes = 400

const rule = "--------------------\n"

// Render shows the place of the error in the source the way docker does: the lines around it, the offending ones marked
// with >>>, and a caret with the suggestion below the column when it is known. It is empty for an error without a
// place. src may be nil if the error comes from this package or from dag, which remember it.
func (e *Error) Render(src []byte) string {
	s := e.source
	if src != nil {
		s = newSource(e.Range.File, src)
	}
	if e.Range.Start.Line == 0 || s == nil {
		return ""
	}
	at := e.At
	if at.Line == 0 && e.Range.End.Line <= e.Range.Start.Line && e.Range.Start.Col > 1 {
		at = e.Range.Start // an indented single line: the caret helps to see what is meant
	}
	note := ""
	if strings.HasPrefix(e.Hint, didYouMean) {
		note = e.Hint
	}
	return s.excerpt(e.Range, at, note)
}

// Render shows every error of the file.
func (e Errors) Render(src []byte) string {
	var b strings.Builder
	for _, x := range e {
		b.WriteString(x.Render(src))
	}
	return b.String()
}

// Excerpt shows a range of a file like Error.Render does, for messages that are not about the text itself.
func Excerpt(r Range, src []byte) string {
	if r.Start.Line == 0 || len(src) == 0 {
		return ""
	}
	return newSource(r.File, src).excerpt(r, Position{}, "")
}

func (s *source) excerpt(r Range, at Position, note string) string {
	var b strings.Builder
	first, last := r.Start.Line, max(r.Start.Line, r.End.Line)
	from, to := max(1, first-contextLines), min(len(s.lines), last+contextLines)
	width := len(fmt.Sprint(to)) + 2
	fmt.Fprintf(&b, "%s:%d\n", r.File, first)
	b.WriteString(rule)
	for n := from; n <= to; n++ {
		if skipped := last - maxExcerptLines/2 - 1; n == first+maxExcerptLines/2 && n < skipped && (at.Line < n || at.Line > skipped) {
			fmt.Fprintf(&b, "%*s | >>> ... %d more lines\n", width, "", skipped-n+1)
			n = skipped
			continue
		}
		mark := "    "
		if n >= first && n <= last {
			mark = ">>> "
		}
		text := s.line(n)
		if len(text) > maxShownBytes {
			text = strings.ToValidUTF8(text[:maxShownBytes], "") + "..."
		}
		line := fmt.Sprintf("%*d | %s%s", width, n, mark, printable(text))
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		if n == at.Line && at.Col > 0 && at.Col <= maxShownBytes {
			fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%*s |     %s^ %s", width, "", caretIndent(text, at.Col), note), " "))
		}
	}
	b.WriteString(rule)
	return b.String()
}

// printable keeps a source line from doing anything to the terminal it is shown on.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, line)
}

// caretIndent is as wide on a terminal as the text before column col (in bytes): tabs stay tabs.
func caretIndent(line string, col int) string {
	prefix := line[:min(max(col-1, 0), len(line))]
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, prefix)
}
