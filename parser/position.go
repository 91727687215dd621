package parser

import (
	"fmt"
	"strings"

	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Position is a place in a Dockerfile. Lines and columns count from 1, columns in bytes; 0 means unknown.
type Position struct{ Line, Col int }

// Range is a stretch of a Dockerfile: the byte at Start up to, not including, the byte at End.
// A Range without a line is about the file as a whole.
type Range struct {
	File       string
	Start, End Position
}

// String gives the form editors and terminals make clickable: file:line:column.
func (r Range) String() string {
	switch {
	case r.Start.Line == 0:
		return r.File
	case r.Start.Col == 0:
		return fmt.Sprintf("%s:%d", r.File, r.Start.Line)
	default:
		return fmt.Sprintf("%s:%d:%d", r.File, r.Start.Line, r.Start.Col)
	}
}

// source answers questions about lines of one file.
type source struct {
	name  string
	lines []string // without their line ends
}

func newSource(name string, src []byte) *source {
	lines := strings.Split(string(src), "\n")
	if n := len(lines); n > 1 && lines[n-1] == "" {
		lines = lines[:n-1] // the file ended in a newline: there is no line after it
	}
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, "\r")
	}
	return &source{name: name, lines: lines}
}

// line gives the text of a line counted from 1; outside the file it is empty.
func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

// lineRange covers the lines first to last, from the first visible character to the end of the last line. Lines outside the
// file are moved to its nearest line, because some of the upstream errors point just before or after what they mean.
func (s *source) lineRange(first, last int) Range {
	first = min(max(first, 1), len(s.lines))
	last = min(max(last, first), len(s.lines))
	text := s.line(first)
	indent := len(text) - len(strings.TrimLeft(text, " \t\v\f\r"))
	if indent == len(text) {
		indent = 0
	}
	return Range{
		File:  s.name,
		Start: Position{Line: first, Col: indent + 1},
		End:   Position{Line: last, Col: len(s.line(last)) + 1},
	}
}

// rangeOf merges BuildKit's list of one range per line into one Range.
func (s *source) rangeOf(locs []bkparser.Range) Range {
	if len(locs) == 0 {
		return Range{File: s.name}
	}
	first, last := locs[0].Start.Line, 0
	for _, l := range locs {
		first = min(first, l.Start.Line)
		last = max(last, l.Start.Line, l.End.Line)
	}
	return s.lineRange(first, last)
}

// find looks for one of the tokens inside r and gives the place of the first token that occurs there.
func (s *source) find(r Range, tokens []string) (Position, bool) {
	if r.Start.Line == 0 {
		return Position{}, false
	}
	for _, tok := range tokens {
		for n := r.Start.Line; n <= r.End.Line; n++ {
			if i := strings.Index(s.line(n), tok); i >= 0 {
				return Position{Line: n, Col: i + 1}, true
			}
		}
	}
	return Position{}, false
}
