package dag

import (
	"cmp"
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"build/parser"
)

// Outline is what a target takes: its build arguments, secrets, agent sockets and caches, each in the order of the file.
type Outline struct {
	Name, Description string // of the target stage
	Args              []OutlineArg
	Secrets, SSH      []OutlineMount
	Caches            []OutlineMount
}

// OutlineArg is a build argument the target uses.
type OutlineArg struct {
	Name, Value, Description string
	Pos                      parser.Range
}

// OutlineMount is a secret, an agent socket or a cache, by its id.
type OutlineMount struct {
	ID       string
	Required bool
	Pos      parser.Range
}

// declaredArg is one ARG with its value.
type declaredArg struct {
	OutlineArg
	inherited bool     // it takes the value of the global ARG of its name, which has the description
	bare      bool     // it has no default of its own
	uses      []string // global arguments in its default
}

// mounted is a mount and the instruction it belongs to.
type mounted struct {
	Mount
	by instructions.Command
}

// declare notes an ARG of a stage for the outline.
func (l *lowering) declare(d *stage, c *instructions.ArgCommand, a instructions.KeyValuePairOptional, value *string, inherited bool) {
	if !l.Outline {
		return
	}
	arg := declaredArg{OutlineArg: OutlineArg{Name: a.Key, Description: a.DocComment, Pos: l.file.Position(c.Location())}}
	arg.inherited, arg.bare = inherited, a.Value == nil
	if value != nil {
		arg.Value = *value
	}
	d.declared = append(d.declared, arg)
}

// outline describes the target.
func (l *lowering) outline(target *stage) *Outline {
	o := &Outline{Name: target.Name, Description: target.DocComment}
	globals := l.globalDeclarations()
	seenArgs, seenMounts, seenStages := map[string]bool{}, map[[2]string]bool{}, map[*stage]bool{}
	var visit func(d *stage)
	visit = func(d *stage) {
		if seenStages[d] {
			return
		}
		seenStages[d] = true
		for _, a := range d.outlineArgs(globals) {
			if !seenArgs[a.Name] {
				seenArgs[a.Name] = true
				o.Args = append(o.Args, a)
			}
		}
		for _, m := range d.mounted {
			id := [2]string{string(m.Type), m.ID}
			if seenMounts[id] {
				continue
			}
			seenMounts[id] = true
			o.add(m.Type, OutlineMount{ID: m.ID, Required: m.Required, Pos: l.file.Position(m.by.Location())})
		}
		if d.base != nil {
			visit(d.base)
		}
		for _, dep := range d.deps {
			visit(dep.stage)
		}
	}
	visit(target)
	slices.SortStableFunc(o.Args, func(a, b OutlineArg) int { return cmp.Compare(a.Pos.Start.Line, b.Pos.Start.Line) })
	for _, list := range [][]OutlineMount{o.Secrets, o.SSH, o.Caches} {
		slices.SortStableFunc(list, func(a, b OutlineMount) int { return cmp.Compare(a.Pos.Start.Line, b.Pos.Start.Line) })
	}
	return o
}

func (o *Outline) add(t MountType, m OutlineMount) {
	switch t {
	case MountSecret:
		o.Secrets = append(o.Secrets, m)
	case MountSSH:
		o.SSH = append(o.SSH, m)
	case MountCache:
		o.Caches = append(o.Caches, m)
	}
}

// outlineArgs lists the arguments a stage uses: its own, those in its FROM and in the FROM of the stages below it, and what the
// defaults of those refer to.
func (d *stage) outlineArgs(globals map[string]declaredArg) []OutlineArg {
	known := maps.Clone(globals)
	var used []string
	for _, a := range d.declared {
		if !a.inherited {
			if a.bare && a.Description == "" { // the global one by another value
				a.Description = globals[a.Name].Description
			}
			known[a.Name] = a
		}
		used = append(used, a.Name)
	}
	for below := d; below != nil; below = below.base {
		used = append(used, below.fromArgs...)
	}
	var out []OutlineArg
	seen := map[string]bool{}
	for len(used) > 0 {
		name := used[0]
		used = used[1:]
		if a, ok := known[name]; ok && !seen[name] {
			out = append(out, a.OutlineArg)
			used = append(used, a.uses...)
		}
		seen[name] = true
	}
	return out
}

// globalDeclarations evaluates the ARG instructions before the first FROM once more, for what their defaults refer to.
func (l *lowering) globalDeclarations() map[string]declaredArg {
	all := map[string]declaredArg{}
	e := l.platformArgs(l.Target)
	for _, c := range l.meta {
		for _, a := range c.Args {
			arg := declaredArg{OutlineArg: OutlineArg{Name: a.Key, Description: a.DocComment, Pos: l.file.Position(c.Location())}}
			value, set := l.args[a.Key]
			if !set && a.Value != nil {
				m, err := l.lex.ProcessWordWithMatches(*a.Value, e)
				if err != nil {
					continue // has been an error before
				}
				value, set = m.Result, true
				arg.uses = sortedKeys(m.Matched)
				if _, itself := m.Matched[a.Key]; itself {
					arg.uses = append(arg.uses, all[a.Key].uses...)
				}
			}
			if set {
				e.set(a.Key, value)
				arg.Value = value
			}
			all[a.Key] = arg
		}
	}
	return all
}
