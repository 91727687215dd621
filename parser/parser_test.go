package parser

import (
	"errors"
	"strings"
	"testing"

	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"
)

func TestParse(t *testing.T) {
	src := "# escape=`\nARG V=1\nFROM base:$V AS Build\nRUN a `\n\n  b\nfrom scratch\n"
	f, err := Parse("D", []byte(src), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if f.Escape != '`' || len(f.MetaArgs) != 1 || len(f.Stages) != 2 || f.Stages[0].Name != "build" {
		t.Errorf("escape %q, %d args, stages %+v", f.Escape, len(f.MetaArgs), f.Stages)
	}
	var rules []string
	for _, w := range f.Warnings {
		rules = append(rules, w.Rule)
		if w.Range.File != "D" || w.Range.Start.Line == 0 || w.Msg == "" || w.URL == "" {
			t.Errorf("incomplete warning %+v", w)
		}
	}
	if got := strings.Join(rules, " "); got != "NoEmptyContinuation StageNameCasing ConsistentInstructionCasing" {
		t.Errorf("warnings %s", got)
	}
	if got := f.Position(f.Stages[0].Commands[0].Location()); got != (Range{"D", Position{4, 1}, Position{6, 4}}) {
		t.Errorf("position of RUN: %+v", got)
	}
}

func TestCheckDirective(t *testing.T) {
	src := []byte("# check=skip=StageNameCasing;error=true\nFROM base AS Build\n")
	f, err := Parse("D", src, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Warnings) != 0 || !f.Check.ReturnAsError {
		t.Errorf("warnings %v, check %+v", f.Warnings, f.Check)
	}
	f, err = Parse("D", src, Options{Args: map[string]string{"BUILDKIT_DOCKERFILE_CHECK": ""}})
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Warnings) != 1 || f.Check.ReturnAsError {
		t.Errorf("the build argument does not override: warnings %v, check %+v", f.Warnings, f.Check)
	}
}

// A check comment above an instruction must not need a linter.
func TestCheckComment(t *testing.T) {
	f, err := Parse("D", []byte("# check=skip=all\n\n# check=skip=StageNameCasing\nFROM base AS Build\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Instantiate(); err != nil || len(f.Warnings) != 0 {
		t.Errorf("%v, warnings %v", err, f.Warnings)
	}
}

func TestSyntax(t *testing.T) {
	for ref, ok := range map[string]bool{
		"docker/dockerfile:1":                             true,
		"docker/dockerfile":                               true,
		"docker/dockerfile:1.7-labs":                      true,
		"docker.io/docker/dockerfile:1@sha256:0123456789": true,
		"docker/dockerfile-upstream:master":               true,
		"mirror.example.com:5000/hub/docker/dockerfile:1": true,
		"dockerfile.v0":                                   true,
		"docker/dockerfile-x:1":                           false,
		"evildocker/dockerfile:1":                         false,
		"docker/dockerfile/more":                          false,
		"example.com/syntax":                              false,
	} {
		for _, form := range []string{"# syntax=" + ref + "\nFROM a\n", "#!/bin/x\n#syntax = " + ref + " args\nFROM a\n", "// syntax=" + ref + "\n"} {
			f, err := Parse("D", []byte(form), Options{})
			refused := err != nil && strings.Contains(err.Error(), "is not supported")
			if refused == ok {
				t.Errorf("%q: %v", form, err)
			}
			if f != nil && f.Syntax != ref {
				t.Errorf("%q: syntax is %q", form, f.Syntax)
			}
		}
		_, err := Parse("D", []byte("# syntax=other\nFROM a\n"), Options{Args: map[string]string{"BUILDKIT_SYNTAX": ref}})
		if (err == nil) != ok {
			t.Errorf("BUILDKIT_SYNTAX=%s: %v", ref, err)
		}
	}
}

// Expanding instructions changes them; what Instantiate gives must not be shared.
func TestInstantiateIsFresh(t *testing.T) {
	f, err := Parse("D", []byte("FROM a\nENV x=$y\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	change := func(string) (string, error) { return "changed", nil }
	first, _, err := f.Instantiate()
	if err != nil {
		t.Fatal(err)
	}
	type expander interface {
		Expand(func(string) (string, error)) error
	}
	x, ok := first[0].Commands[0].(interface{ String() string })
	if !ok || x.String() != "ENV x=$y" {
		t.Fatalf("unexpected command %v", first[0].Commands[0])
	}
	if e, ok := first[0].Commands[0].(expander); ok {
		if err := e.Expand(change); err != nil {
			t.Fatal(err)
		}
	}
	second, _, err := f.Instantiate()
	if err != nil {
		t.Fatal(err)
	}
	if first[0].Commands[0] == second[0].Commands[0] || first[0].Commands[0] == f.Stages[0].Commands[0] {
		t.Error("commands are shared")
	}
}

func TestErrorsUnwrap(t *testing.T) {
	_, err := Parse("D", []byte("FROM a\nRUUN x\nCOPPY y\n"), Options{})
	var many Errors
	var one *Error
	if !errors.As(err, &many) || len(many) != 2 || !errors.As(err, &one) || one.Range.Start.Line != 2 {
		t.Errorf("%#v", err)
	}
	if want := "D:2:1: unknown instruction: RUUN (did you mean RUN?)\nD:3:1: unknown instruction: COPPY (did you mean COPY?)"; err.Error() != want {
		t.Errorf("%s", err)
	}
}

func TestManyErrorsEnd(t *testing.T) {
	_, err := Parse("D", []byte("FROM a\n"+strings.Repeat("NOPE x\n", 1000)), Options{})
	var many Errors
	if !errors.As(err, &many) || len(many) != maxErrors {
		t.Errorf("%d errors", len(many))
	}
}

func TestErrorKeepsInnermostPlace(t *testing.T) {
	f, err := Parse("D", []byte("FROM a\nRUN x\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	inner := f.ErrorAt(f.Position([]bkparser.Range{{Start: bkparser.Position{Line: 2}}}), errors.New("cause"))
	if got := f.Error(nil, inner); got != inner {
		t.Errorf("%v", got)
	}
}

func TestRender(t *testing.T) {
	src := []byte("FROM a\nRUN one \\\n\t--mnt two\nRUN x\n")
	e := &Error{Range: Range{"D", Position{2, 1}, Position{3, 11}}, At: Position{3, 2}, Msg: "m", Hint: "did you mean --mount?"}
	want := `D:2
--------------------
  1 |     FROM a
  2 | >>> RUN one \
  3 | >>> 	--mnt two
    |     	^ did you mean --mount?
  4 |     RUN x
--------------------
`
	if got := e.Render(src); got != want {
		t.Errorf("got\n%s", got)
	}
	if got := (&Error{Range: Range{File: "D"}, Msg: "m"}).Render(src); got != "" {
		t.Errorf("an error without a place shows %q", got)
	}
}

func TestRenderLong(t *testing.T) {
	src := []byte("FROM a\nRUN" + strings.Repeat(" \\\n x", 100) + "\nFROM " + strings.Repeat("é", 5000) + "\n")
	f, err := Parse("D", src[:strings.Index(string(src), "\nFROM é")], Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := Excerpt(f.Position(f.Stages[0].Commands[0].Location()), src)
	if lines := strings.Count(got, "\n"); lines > 25 || !strings.Contains(got, "more lines") || len(got) > 2000 {
		t.Errorf("%d lines, %d bytes:\n%s", lines, len(got), got)
	}
	if !strings.Contains(got, "  2 | >>> RUN \\\n") || !strings.Contains(got, "102 | >>>  x\n") {
		t.Errorf("first or last line missing:\n%s", got)
	}
}

func TestRangeString(t *testing.T) {
	for want, r := range map[string]Range{
		"D":     {File: "D"},
		"D:3":   {File: "D", Start: Position{Line: 3}},
		"D:3:4": {File: "D", Start: Position{Line: 3, Col: 4}},
	} {
		if r.String() != want {
			t.Errorf("%+v is %s", r, r)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"chwon", "chown", 1}, {"chwon", "chmod", 2}, {"run", "ruun", 1}, {"mont", "mount", 1}, {"a", "abcd", 3}, {"ab", "ba", 1}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%s %s: %d", c.a, c.b, got)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%s %s: %d", c.b, c.a, got)
		}
	}
}

// FuzzParse: whatever the bytes, no panic, and every place is inside the file.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"FROM a\nRUN <<EOF\nx\nEOF\n", "# escape=`\nFROM a\n", "\xef\xbb\xbfFROM a\r\nRUUN b\r\n", "FROM a\nRUN --mount=typ=x b",
		"#check=skip=all\n#syntax=x\n", "FROM a AS 1\nCOPY --from=$x a <<b\n", "ONBUILD ONBUILD\n\\\n", "FROM a\nENV \\\n#c\n\nA=b", "\n", " ",
		"FROM a\nHEALTHCHECK --interval=x CMD [\"a\"]\n", "// syntax=a\n", "{\"syntax\":\"b\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		file, err := Parse("D", src, Options{})
		lines := strings.Split(string(src), "\n")
		inside := func(r Range) {
			for _, p := range []Position{r.Start, r.End} {
				if p.Line < 0 || p.Line > len(lines) || p.Line > 0 && p.Col > len(lines[p.Line-1])+1 {
					t.Fatalf("%+v is outside of %q", r, src)
				}
			}
		}
		var many Errors
		var one *Error
		switch {
		case errors.As(err, &many):
		case errors.As(err, &one):
			many = Errors{one}
		case err != nil:
			t.Fatalf("an error of type %T", err)
		default:
			for _, w := range file.Warnings {
				inside(w.Range)
			}
			for _, s := range file.Stages {
				inside(file.Position(s.Location))
			}
		}
		for _, e := range many {
			inside(e.Range)
			inside(Range{Start: e.At})
			if shown := e.Render(nil) + e.Error(); strings.ContainsAny(shown, "\x1b\x07\x00") {
				t.Fatalf("control characters reach the terminal: %q", shown)
			}
		}
	})
}
