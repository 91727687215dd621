package dag

import (
	"errors"
	"path"
	"strings"
	"testing"

	"build/parser"
)

// The options of RUN --mount: whatever they are, they make a mount with a place, or an error that points into the source.
func FuzzMount(f *testing.F) {
	for _, seed := range []string{
		"type=bind,source=a,target=/b", "target=/c,from=s,rw", "type=cache,target=/root/.cache,id=x,sharing=locked,from=s,source=/x,mode=0755,uid=1,gid=2",
		"type=cache,target=rel,ro=false", "type=tmpfs,target=/t,size=1.5g", "type=tmpfs,size=10", "type=secret", "type=secret,id=a/b,required", "type=secret,id=a,env=E,target=/e",
		"type=secret,env=,id=x", "type=ssh", "type=ssh,id=x,mode=600,target=/s,required=true", "type=ssh,source=x", "type=bind,from=$X", "type=$T,target=/x", "type=cache,target=/", "typ=bind",
		"type=bind,target=/a,readonly=maybe", "type=cache,target=/c,sharing=none", "type=cache,target=/c,mode=9", "type=cache,target=/c,uid=-1", "type=cache,uid=4294967296,target=/c", "\"type=bind\",\"target=/a,b\"",
		"", ",", "=", "\"", "type=bind,target=/a --mount=type=ssh", "type=bind,target=a/../..", "type=bind,from=base,target=/x,source=../..", "type=bind,target=$$x", "TYPE=cache,Target=/x", "type=cache,target=${A:-/d}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, options string) {
		src := "FROM base AS s\nFROM base\nARG A=/arg\nWORKDIR /w\nRUN --mount=" + options + " x\n"
		inside := func(r parser.Range) {
			lines := strings.Split(src, "\n")
			for _, p := range []parser.Position{r.Start, r.End} {
				if p.Line < 0 || p.Line > len(lines) || p.Line > 0 && p.Col > len(lines[p.Line-1])+1 {
					t.Fatalf("%+v is outside of %q", r, src)
				}
			}
		}
		file, err := parser.Parse("Dockerfile", []byte(src), parser.Options{})
		var g *Graph
		if err == nil {
			o := amd64()
			o.Outline = true
			g, _, err = lowerAll(file, o, nil)
		}
		var many parser.Errors
		var one *parser.Error
		switch {
		case err == nil:
			checkGraph(t, g, []byte(src))
			checkMounts(t, g, src)
			return
		case errors.As(err, &many):
		case errors.As(err, &one):
			many = parser.Errors{one}
		default:
			t.Fatalf("an error without a place: %v", err)
		}
		for _, e := range many {
			inside(e.Range)
			inside(parser.Range{Start: e.At})
			e.Render(nil)
		}
	})
}

func checkMounts(t *testing.T, g *Graph, src string) {
	t.Helper()
	for _, s := range g.Steps {
		run, ok := s.Op.(Run)
		if !ok {
			continue
		}
		for _, m := range run.Mounts {
			if onlyVariable := m.Type == MountSecret && m.Env != "" && m.Target == ""; onlyVariable {
				continue
			}
			if !path.IsAbs(m.Target) || m.Target != path.Clean(m.Target) || m.Target == "/" && m.Type != MountSecret && m.Type != MountSSH {
				t.Fatalf("%q: a mount at %q", src, m.Target)
			}
			if m.Source != "" && !path.IsAbs(m.Source) {
				t.Fatalf("%q: a mount of %q", src, m.Source)
			}
			if m.Type == MountCache && m.ID == "" {
				t.Fatalf("%q: a cache without an id", src)
			}
		}
	}
}
