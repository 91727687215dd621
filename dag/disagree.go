package dag

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"build/internal/lazyregexp"
	"build/parser"
)

// This file holds the warnings about what the Dockerfile reference describes otherwise than BuildKit does it. The result is
// BuildKit's; who believed the reference shall know. (An undefined variable in WORKDIR, which the reference keeps as text,
// has the lint rule UndefinedVar.)

// warnOverEnv warns of an ARG that gets the better of an ENV. By the reference no ARG ever does; in fact the later one counts.
// The config of the image keeps the ENV.
func (l *lowering) warnOverEnv(d *stage, c *instructions.ArgCommand, key, value string) {
	for _, kv := range d.state.img.Config.Env {
		if k, old, _ := strings.Cut(kv, "="); k == key && old != value {
			l.found(parser.Warning{
				Msg: "ARG " + key + " replaces the ENV of the same name for the instructions that follow, although the Dockerfile reference says that " +
					"ENV always overrides ARG; the image keeps the ENV",
				Range: l.file.Position(c.Location()),
			})
		}
	}
}

// modifiers are the forms of a variable that the reference knows from a pre-release of the syntax only: ${v#p}, ${v##p},
// ${v%p}, ${v%%p}, ${v/p/r} and ${v//p/r}.
var modifiers = lazyregexp.New(`\$\{([A-Za-z_][A-Za-z0-9_]*)[#%/]`)

// warnModifier warns, once a file, of a word with one of the modifiers, unless a quote or an escape takes its meaning away.
func (l *lowering) warnModifier(pos parser.Range, word string, m shell.ProcessWordResult) {
	if l.modifierSeen {
		return
	}
	for _, found := range modifiers().FindAllStringSubmatch(word, -1) {
		_, set := m.Matched[found[1]]
		_, unset := m.Unmatched[found[1]]
		if !set && !unset {
			continue
		}
		l.modifierSeen = true
		l.found(parser.Warning{
			Msg:   found[0] + "…}: the Dockerfile reference has this form in a pre-release of the syntax only; it works here as in BuildKit",
			Range: pos,
		})
		return
	}
}
