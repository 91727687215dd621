package parser

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Linter makes a linter with the file's options that hands what it finds to warn.
func (f *File) Linter(warn func(Warning)) *linter.Linter {
	config := f.Check
	config.Warn = func(rule, description, url, msg string, locs []bkparser.Range) {
		warn(Warning{Rule: rule, Description: description, URL: url, Msg: msg, Range: f.source.rangeOf(locs)})
	}
	return linter.New(&config)
}

// lintStages checks what can only be seen when all instructions are known: names of stages, and the case of instructions.
func lintStages(stages []instructions.Stage, lint *linter.Linter) {
	seen := map[string]bool{}
	for _, st := range stages {
		if st.Name == "" {
			continue
		}
		if st.Name == "scratch" || st.Name == "context" {
			lint.Run(&linter.RuleReservedStageName, st.Location, linter.RuleReservedStageName.Format(st.Name))
		}
		if seen[st.Name] {
			lint.Run(&linter.RuleDuplicateStageName, st.Location, linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
	lintCase(stages, lint)
}

// lintCase wants all instructions written in the case most of them have; capitals win a draw.
func lintCase(stages []instructions.Stage, lint *linter.Linter) {
	lower, upper := 0, 0
	count := func(name string) {
		switch name {
		case strings.ToLower(name):
			lower++
		case strings.ToUpper(name):
			upper++
		}
	}
	for _, st := range stages {
		count(st.OrigCmd)
		for _, c := range st.Commands {
			count(c.Name())
		}
	}
	right, wanted := strings.ToUpper, "uppercase"
	if lower > upper {
		right, wanted = strings.ToLower, "lowercase"
	}
	check := func(name string, locs []bkparser.Range) {
		if right(name) != name {
			lint.Run(&linter.RuleConsistentInstructionCasing, locs, linter.RuleConsistentInstructionCasing.Format(name, wanted))
		}
	}
	for _, st := range stages {
		check(st.OrigCmd, st.Location)
		for _, c := range st.Commands {
			check(c.Name(), c.Location())
		}
	}
}

// Printable keeps words of a Dockerfile from doing anything to the terminal they are shown on.
func Printable(text string) string { return printable(text) }
