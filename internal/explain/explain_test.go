package explain

import (
	"fmt"
	"iter"
	"reflect"
	"strings"
	"testing"

	"build/cache"
	"build/internal/tree"
)

func list(entries ...tree.Entry) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func file(path string, content byte) tree.Entry {
	return tree.Entry{Path: path, Type: tree.File, Mode: 0o644, Digest: [32]byte{content}}
}

func dir(path string) tree.Entry { return tree.Entry{Path: path, Type: tree.Dir, Mode: 0o755} }

func TestCompareFiles(t *testing.T) {
	same := func(p string) string { return p }
	mode := file("d/b", 2)
	mode.Mode = 0o755
	owner := file("d/b", 3)
	owner.UID = 7
	link := tree.Entry{Path: "d/b", Type: tree.Symlink, Link: "x"}
	old := []tree.Entry{dir("d"), file("d/a", 1), file("d/b", 2), file("d/z", 1)}
	for _, tc := range []struct {
		now  []tree.Entry
		text string
	}{
		{old, "files changed"},
		{[]tree.Entry{dir("d"), file("d/a", 9), file("d/b", 2), file("d/z", 1)}, "d/a changed (content)"},
		{[]tree.Entry{dir("d"), file("d/a", 1), mode, file("d/z", 1)}, "d/b changed (mode 644 → 755)"},
		{[]tree.Entry{dir("d"), file("d/a", 1), owner, file("d/z", 1)}, "d/b changed (content, owner 0:0 → 7:0)"},
		{[]tree.Entry{dir("d"), file("d/a", 1), link, file("d/z", 1)}, "d/b changed (file → symlink)"},
		{[]tree.Entry{dir("d"), file("d/a", 1), file("d/b", 2)}, "d/z was removed"},
		{[]tree.Entry{dir("d"), file("d/0", 1), file("d/a", 1), file("d/b", 2), file("d/z", 1)}, "d/0 was added"},
		{append(old[:4:4], dir("e"), dir("e/f"), file("e/f/g", 1)), "e/f/g was added"},
		{append(old[:4:4], dir("e"), file("e/f", 1), file("e/g", 1)), "e/f was added, and 1 more"},
		{nil, "d/a was removed, and 2 more"},
	} {
		f, err := CompareFiles(list(old...), list(tc.now...), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Change("", same); got.Text != tc.text {
			t.Errorf("got %q, want %q", got.Text, tc.text)
		}
	}
	broken := func(yield func(tree.Entry, error) bool) { yield(tree.Entry{}, tree.ErrCorrupt) }
	if _, err := CompareFiles(list(old...), broken, nil); err == nil {
		t.Error("a damaged index was compared")
	}
	if _, err := CompareFiles(broken, list(old...), nil); err == nil {
		t.Error("a damaged index was compared")
	}
	var many []tree.Entry
	for i := range 500 {
		many = append(many, file(fmt.Sprintf("f%03d", i), 1))
	}
	f, err := CompareFiles(list(), list(many...), nil)
	if err != nil || len(f.List) != MaxFiles || f.Total != 500 {
		t.Fatalf("%d of %d, %v", len(f.List), f.Total, err)
	}
	if c := f.Change("", same); c.Text != "f000 was added, and 499 more" || c.FilesLeftOut != 400 {
		t.Errorf("%+v", c)
	}
}

// text makes the text of a key from "name=value" pairs.
func text(pairs ...string) []byte {
	h := cache.NewHash("k")
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		h.Field(name, value)
	}
	return h.Text()
}

func facts() Facts {
	return Facts{
		SameText: true, Was: "RUN old", Text: "COPY f$V /f",
		Hide:   func(name string) bool { return name == "PASSWORD" },
		Files:  func(field, _, _ string) Change { return Change{Kind: File, Text: "files of " + field} },
		Below:  func(before, after []string, base bool) Change { return Change{Kind: Step, Text: "below"} },
		Remote: func(i int) string { return fmt.Sprint("URL", i) },
		Mount:  func(i int) string { return fmt.Sprint("/m", i) },
		Secret: func(i int) string { return fmt.Sprint("s", i) },
	}
}

func TestCompare(t *testing.T) {
	changedText := func(f *Facts) { f.SameText = false }
	for _, tc := range []struct {
		old, now []byte
		facts    func(*Facts)
		want     []string
	}{
		{text("arg0=a"), text("arg0=a"), nil, nil},
		{text("arg0=a"), text("arg0=b"), changedText, []string{"instruction: its text changed, was: RUN old"}},
		{text("arg0=a"), text("arg0=b"), nil, []string{"instruction: the SHELL that its command is for changed"}},
		{text("source0=f1"), text("source0=f2"), nil, []string{"argument: $V in it changed, was: RUN old"}},
		{text("env:A=1"), text("env:A=2"), nil, []string{`environment: ENV A is "2", was "1"`}},
		{text("env:A=1"), text("env:A="), nil, []string{`environment: ENV A is "", was "1"`}},
		{text("env:A=1"), text("env:A=2", "note:args=B A"), nil, []string{`argument: build argument A is "2", was "1"`}},
		{text(), text("env:A=2"), nil, []string{`environment: ENV A is "2", was not set`}},
		{text("env:PASSWORD=1"), text("env:PASSWORD=2"), nil, []string{"environment: ENV PASSWORD changed"}},
		{text("env:A=1", "user=x", "context=1"), text("env:A=2", "user=y", "context=2"), nil,
			[]string{`environment: ENV A is "2", was "1"`, "file: files of context", `setting: USER is "y", was "x"`}},
		{text("link=false"), text("link=true"), changedText, []string{`flag: --link is "true", was "false"`}},
		{text("chown="), text("chown=1"), changedText, []string{`flag: --chown is "1", was not set`}},
		{text("platform=linux/amd64", "arg0=a"), text("platform=linux/arm64", "arg0=a"), nil, nil},
		{text("platform=linux/amd64", "user="), text("platform=linux/arm64", "user=1"), nil,
			[]string{"platform: it is for linux/arm64, was for linux/amd64", `setting: USER is "1", was not set`}},
		{text("input0=a\nb\n", "note:base=x", "note:digest=sha256:0123456789abcdef"), text("input0=a\nc\n", "note:base=x", "note:digest=sha256:fedcba9876543210"), nil,
			[]string{"base: base image x is sha256:fedcba987654, was sha256:0123456789ab"}},
		{text("input0=a\n", "note:base=x"), text("input0=b\n", "note:base=y"), nil, []string{"base: base image is y, was x"}},
		{text("input0=a\ncontent:1\n", "note:base=x"), text("input0=a\ncontent:2\n", "note:base=x"), nil, []string{"step: below"}},
		{text("remote0=git 0123456789abcdef x"), text("remote0=git fedcba9876543210 x"), nil, []string{"remote: URL0 is at fedcba987654, was at 0123456789ab"}},
		{text("remote1=http sha256:1 f 2020"), text("remote1=http sha256:1 f 2021"), nil, []string{"remote: URL1 has another modification time"}},
		{text("remote1=http sha256:1 f 2020"), text("remote1=http sha256:2 f 2021"), nil, []string{"remote: URL1 changed"}},
		{text("mount0=tmpfs /t"), text(), changedText, []string{"mount: the mount /m0 is gone"}},
		{text("mount1:context=1"), text("mount1:context=2"), nil, []string{"mount: files of mount1:context, mounted at /m1"}},
		{text("mount1:value=1"), text("mount1:value=2"), nil, []string{"mount: the value of secret s1 changed"}},
		{text("mount1:access=1"), text("mount1:access=2"), nil, []string{"mount: mode or owner of the mount /m1 changed"}},
		{text("file:EOF=1"), text("file:EOF=2"), nil, []string{"instruction: here-document EOF changed"}},
		{text("shm=1"), text("shm=2"), nil, []string{`setting: --shm-size is "2", was "1"`}},
		{text("ulimit7=1:1"), text(), nil, []string{`setting: --ulimit of resource 7 is not set, was "1:1"`}},
		{text("host:db="), text(), nil, []string{"setting: --add-host db is gone"}},
		{text("what=1"), text("what=2"), nil, []string{"unknown: what changed"}},
	} {
		f := facts()
		if tc.facts != nil {
			tc.facts(&f)
		}
		var got []string
		for _, c := range Compare(tc.old, tc.now, f) {
			got = append(got, string(c.Kind)+": "+c.Text)
		}
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s→ %s: got %q, want %q", tc.old, tc.now, got, tc.want)
		}
	}
}

func place(stage string, pos int, text string) Place {
	return Place{Dockerfile: "D", Stage: stage, Pos: pos, Text: text, Title: "[" + stage + " 1/2] " + text}
}

func key(s string) cache.Key { return cache.NewHash(s).Sum() }

func outcomes(places ...Place) []Outcome {
	var out []Outcome
	for i, p := range places {
		out = append(out, Outcome{Place: p, Status: Ran, Keys: Keys{key("d" + p.Text), key(fmt.Sprint("c", i, p.Text))}})
	}
	return out
}

func TestJournal(t *testing.T) {
	j := &Journal{Context: "/c"}
	a, b, c := place("s", 1, "COPY a a"), place("s", 2, "RUN b"), place("s", 3, "RUN c")
	j.Record(outcomes(a, b, c))
	now := outcomes(a, place("s", 2, "RUN new"), place("s", 3, "RUN b"), place("s", 4, "RUN c"))
	if e := j.Same(now[2].Place, now); e == nil || e.Text != "RUN b" {
		t.Errorf("a step that moved: %+v", e)
	}
	if e := j.Same(now[1].Place, now); e != nil {
		t.Errorf("an inserted step is %+v", e)
	}
	edited := outcomes(a, place("s", 2, "RUN b2"), c)
	if e := j.Same(edited[1].Place, edited); e == nil || e.Text != "RUN b" {
		t.Errorf("an edited step: %+v", e)
	}
	if e := j.Same(place("s", 2, "COPY x y"), nil); e != nil {
		t.Errorf("another instruction at the same place: %+v", e)
	}
	if e := j.Elsewhere(place("other", 9, "RUN c")); e == nil || e.Stage != "s" {
		t.Errorf("elsewhere: %+v", e)
	}
	j.Record(edited)
	j.Record(outcomes(place("t", 1, "RUN t")))
	if e := j.Same(edited[1].Place, edited); e == nil || len(e.Keys) != 2 {
		t.Errorf("keys of both texts: %+v", e)
	}
	data, err := j.Encode("mark")
	if err != nil || !Marked(data, "mark") || Marked(data, "mar") {
		t.Fatal(err)
	}
	back, err := Decode(data)
	if err != nil || len(back.Steps) != 4 || len(back.Last) != 1 || !reflect.DeepEqual(back.Steps[0].Keys, j.Steps[0].Keys) {
		t.Errorf("%+v, %v", back, err)
	}
	for range 10 { // branches that take turns
		for _, cmd := range []string{"RUN 1", "RUN 2", "RUN 3", "RUN 4", "RUN 5", "RUN 6"} {
			j.Record(outcomes(place("t", 1, cmd)))
		}
	}
	if e := j.Same(place("t", 1, "RUN 6"), nil); e == nil || len(e.Keys) > maxKeys {
		t.Errorf("%+v", e)
	}
	// A step that failed keeps what it had.
	failed := outcomes(place("t", 1, "RUN 6"))
	failed[0].Status, failed[0].Keys = Failed, Keys{}
	j.Record(failed)
	if e := j.Same(place("t", 1, "RUN 6"), nil); e == nil || len(e.Keys) == 0 || e.Keys[0].Def.IsZero() {
		t.Errorf("after a failure: %+v", e)
	}
}

func FuzzDecode(f *testing.F) {
	j := &Journal{Context: "/c"}
	j.Record(outcomes(place("s", 1, "RUN x")))
	data, _ := j.Encode("mark")
	f.Add(data)
	f.Add([]byte("m\n{\"version\":1,\"steps\":[{\"keys\":[{}]}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if j, err := Decode(b); err == nil {
			j.Record(outcomes(place("s", 1, "RUN x")))
		}
	})
}

func TestLines(t *testing.T) {
	if got := Line("a  b\nc", 100); got != "a b c" {
		t.Errorf("%q", got)
	}
	if got := quote(strings.Repeat("é", 100) + "\x1b"); len(got) > maxValue+10 || strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
	if got := quote("a\x1b[31m\nb"); got != `"a?[31m\nb"` {
		t.Errorf("%q", got)
	}
}
