package build

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"build/internal/progress"
	"build/parser"
)

// findings are the warnings of one build, each once however many platforms it is found for.
type findings struct {
	mu   sync.Mutex
	list []parser.Warning
}

// add keeps a warning and reports whether it is new.
func (f *findings) add(w parser.Warning) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.list, w) {
		return false
	}
	f.list = append(f.list, w)
	return true
}

// sorted gives the warnings in the order of the file.
func (f *findings) sorted() []parser.Warning {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := slices.Clone(f.list)
	slices.SortStableFunc(list, func(a, b parser.Warning) int { return a.Range.Start.Line - b.Range.Start.Line })
	return list
}

// warnOf tells a warning about the Dockerfile, the first time it is found.
func (s *session) warnOf(w parser.Warning) {
	if !s.found.add(w) || s.asked != "" { // who asks gets them as the answer
		return
	}
	s.emit(progress.Warning{Text: ruled(w), Pos: w.Range.String()})
}

func (s *session) warnOfAll(ws []parser.Warning) {
	for _, w := range ws {
		s.warnOf(w)
	}
}

// ruled is a warning's text with its rule in front.
func ruled(w parser.Warning) string {
	if w.Rule == "" {
		return w.Msg
	}
	return w.Rule + ": " + w.Msg
}

// lintFailed begins the error of lintFailure, in BuildKit's words.
const lintFailed = "lint violation found for rules: "

// lintFailure is the error of a file that wants its violations to be errors: at the first of them.
func (s *session) lintFailure(f *parser.File) error {
	if !f.Check.ReturnAsError {
		return nil
	}
	var rules []string
	var first parser.Range
	for _, w := range s.found.sorted() {
		if w.Rule == "" {
			continue // ours, and no rule anybody could skip
		}
		if len(rules) == 0 {
			first = w.Range
		}
		rules = append(rules, w.Rule)
	}
	if len(rules) == 0 {
		return nil
	}
	slices.Sort(rules)
	rules = slices.Compact(rules)
	return f.ErrorAt(first, errors.New(lintFailed+strings.Join(rules, ", ")))
}

// leavesOut tells lint whether the ignore file leaves a source of the build context out. What is wrong with a context is told
// by the step that uses it.
func (s *session) leavesOut(src string) bool {
	dir, err := s.contexts.get("")
	if err != nil {
		return false
	}
	out, err := dir.Excludes(src)
	return err == nil && out
}

// PrintWarnings lists the warnings of a build after its end, one line each.
func PrintWarnings(w io.Writer, list []parser.Warning) error {
	if len(list) == 0 {
		return nil
	}
	var b strings.Builder
	hint := ""
	if slices.ContainsFunc(list, func(w parser.Warning) bool { return w.Rule != "" }) {
		hint = " (build --check shows the lines)"
	}
	fmt.Fprintf(&b, "\n %s found%s:\n", plural(len(list), "warning"), hint)
	for _, x := range list {
		place := x.Range.File
		if x.Range.Start.Line > 0 {
			place = fmt.Sprintf("%s:%d", place, x.Range.Start.Line)
		}
		fmt.Fprintf(&b, " - %s (%s)\n", parser.Printable(ruled(x)), place)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
