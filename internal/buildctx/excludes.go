package buildctx

import (
	"slices"

	"github.com/moby/patternmatcher"
)

// Excludes reports whether the ignore rules certainly leave out what a COPY names: with exceptions in the rules something
// below it may come back, and a root is left out only when everything in it is. Paths are compared as they are written, as
// BuildKit's lint does it: one with a slash in front is none of the rules' business.
func (d *Dir) Excludes(src string) (bool, error) {
	ig := d.ignore
	if ig == nil || len(ig.exceptions) > 0 {
		return false, nil
	}
	m, err := patternmatcher.New(ig.patterns)
	if err != nil {
		return false, err
	}
	if src == "." || src == "/" {
		everything := []string{"*", "**", "**/*"}
		named := func(p *patternmatcher.Pattern) bool { return slices.Contains(everything, p.String()) }
		if !slices.ContainsFunc(m.Patterns(), named) {
			return false, nil
		}
	}
	return m.MatchesOrParentMatches(src)
}
