package buildctx

import (
	"build/internal/tree"
)

// Unapplied is what an ignore file would do to a tree that was opened without rules.
type Unapplied struct {
	Rules string // the ignore file, relative to the tree
	File  string // the first file it would leave out, in the order of a walk
}

// WouldIgnore looks for an ignore file in a tree that was opened with NoIgnore, as OpenDir would with its rules: the
// one that belongs to the Dockerfile first, then the tree's own. It returns nil when there is none, or when it would leave
// nothing out.
func (d *Dir) WouldIgnore(specific string) (*Unapplied, error) {
	ig, err := loadIgnore(d.root.dir, specific)
	if ig == nil || err != nil {
		return nil, err
	}
	rules := ignoreName
	if rel, ok := inContext(d.root.dir, ig.name); ok {
		rules = rel
	}
	verdicts := map[string]verdict{} // of the directories on the way
	for e, err := range d.Walk("") {
		if err != nil {
			return nil, err
		}
		var v verdict
		if e.Path != "" {
			if v, err = ig.judge(e.Path, verdicts[tree.Parent(e.Path)]); err != nil {
				return nil, err
			}
		}
		if e.Type == tree.Dir {
			verdicts[e.Path] = v
			continue
		}
		if v.out {
			return &Unapplied{Rules: rules, File: e.Path}, nil
		}
	}
	return nil, nil
}
