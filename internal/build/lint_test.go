package build

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/progress"
	"build/parser"
)

// asks carries out an inspection of the context's Dockerfile and returns what it prints.
func (w *world) asks(in Inspection, mods ...mod) (*Report, string) {
	w.t.Helper()
	o := w.options(progress.Discard, append(mods, func(o *Options) { o.NamedContexts = nil })...)
	r, err := Inspect(w.t.Context(), o, in)
	must(w.t, err)
	var b bytes.Buffer
	must(w.t, r.Print(&b))
	return r, b.String()
}

// sarifOf reads a SARIF report back.
func (w *world) sarifOf(mods ...mod) sarifRun {
	w.t.Helper()
	_, text := w.asks(Inspection{Call: CallCheck, Format: FormatSARIF, Version: "1.2.3"}, mods...)
	var log sarifLog
	must(w.t, json.Unmarshal([]byte(text), &log))
	if log.Version != "2.1.0" || log.Schema == "" || len(log.Runs) != 1 {
		w.t.Fatalf("no log of one run:\n%s", text)
	}
	run := log.Runs[0]
	if run.Tool.Driver.Name == "" || run.Tool.Driver.Version != "1.2.3" {
		w.t.Errorf("driver %+v", run.Tool.Driver)
	}
	for _, res := range run.Results {
		rule := run.Tool.Driver.Rules[res.RuleIndex]
		if rule.ID != res.RuleID || res.Message.Text == "" || len(res.Locations) != 1 || res.Fingerprints["primaryLocationLineHash"] == "" {
			w.t.Errorf("incomplete result %+v", res)
		}
	}
	return run
}

func TestSARIF(t *testing.T) {
	w := newWorld(t)
	must(t, os.Mkdir(w.tmp+"/.git", 0o755))
	must(t, os.Mkdir(w.dir+"/sub dir", 0o755))
	const text = "FROM scratch AS Ä\n  LABEL a ä\nCOPY $x \\\n  y /é\nCMD a\nCMD a\n"
	w.write("sub dir/a:b#.Dockerfile", strings.Replace(text, "AS Ä", "AS Ab", 1))
	file := func(o *Options) { o.Dockerfile = filepath.Join(w.dir, "sub dir", "a:b#.Dockerfile") }
	run := w.sarifOf(file)
	want := map[string]sarifRegion{ // columns count characters, the end is after the last
		"StageNameCasing":                {StartLine: 1, StartColumn: 1, EndLine: 1, EndColumn: 19},
		"LegacyKeyValueFormat":           {StartLine: 2, StartColumn: 3, EndLine: 2, EndColumn: 12},
		"UndefinedVar":                   {StartLine: 3, StartColumn: 1, EndLine: 4, EndColumn: 7},
		"MultipleInstructionsDisallowed": {StartLine: 5, StartColumn: 1, EndLine: 5, EndColumn: 6},
	}
	prints := map[string]bool{}
	for _, res := range run.Results {
		place := res.Locations[0].Physical
		if place.Artifact != (sarifAt{URI: "ctx/sub%20dir/a%3Ab%23.Dockerfile", BaseID: "%SRCROOT%"}) {
			t.Errorf("artifact %+v", place.Artifact)
		}
		if res.Level != "warning" {
			t.Errorf("level %s", res.Level)
		}
		prints[res.Fingerprints["primaryLocationLineHash"]] = true
		region := place.Region
		region.Snippet = nil
		if r, ok := want[res.RuleID]; ok && region != r {
			t.Errorf("%s: region %+v, want %+v", res.RuleID, region, r)
		}
		delete(want, res.RuleID)
	}
	if len(want) > 0 || len(run.Results) != 6 || len(prints) != 6 || !run.Invocations[0].Successful {
		t.Errorf("not found: %v; %d results, %d fingerprints", want, len(run.Results), len(prints))
	}

	// Lines added above change no fingerprint.
	w.write("sub dir/a:b#.Dockerfile", "# one\n# two\n"+strings.Replace(text, "AS Ä", "AS Ab", 1))
	for _, res := range w.sarifOf(file).Results {
		if !prints[res.Fingerprints["primaryLocationLineHash"]] {
			t.Errorf("%s has another fingerprint", res.RuleID)
		}
	}
}

func TestSARIFErrors(t *testing.T) {
	w := newWorld(t)
	results := func(dockerfile string, mods ...mod) string {
		w.write("Dockerfile", dockerfile)
		var got []string
		for _, r := range w.sarifOf(mods...).Results {
			got = append(got, r.RuleID+":"+r.Level)
		}
		return strings.Join(got, " ")
	}
	if got := results("FROM scratch AS A\nRUNN\nCOPPY\n"); got != "StageNameCasing:warning BuildError:error BuildError:error" {
		t.Error(got)
	}
	if got := results("# check=error=true\nFROM scratch AS A\n"); got != "StageNameCasing:error" {
		t.Error(got)
	}
	w.write("Dockerfile", "FROM example.invalid/x\n")
	run := w.sarifOf()
	if inv := run.Invocations[0]; len(run.Results) != 0 || inv.Successful || len(inv.Notifications) != 1 {
		t.Errorf("no network is nobody's mistake: %+v", run)
	}
	stdin := func(o *Options) { o.Dockerfile, o.Stdin = "-", strings.NewReader("FROM scratch AS A\n") }
	if at := w.sarifOf(stdin).Results[0].Locations[0].Physical.Artifact; at != (sarifAt{URI: "Dockerfile"}) {
		t.Errorf("standard input is %+v", at)
	}
}

// Every rule the linter can report is described.
func TestSARIFRules(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range lintRules() {
		if seen[r.ID] || r.ID == "" || r.Short.Text == "" || r.Help.Text == "" {
			t.Errorf("rule %+v", r)
		}
		seen[r.ID] = true
	}
	if len(seen) != 23 { // 22 of BuildKit, 1 for errors
		t.Errorf("%d rules", len(seen))
	}
}

func TestCheckJSON(t *testing.T) {
	w := newWorld(t)
	w.write("Dockerfile", "FROM scratch AS A\nENV a \\\n b\n")
	r, text := w.asks(Inspection{Call: CallCheck, Format: FormatJSON})
	var got jsonCheck
	must(t, json.Unmarshal([]byte(text), &got))
	if r.Violations() != 2 || len(got.Warnings) != 2 || got.Error != nil || string(got.Sources[0].Data) != "FROM scratch AS A\nENV a \\\n b\n" {
		t.Errorf("%s", text)
	}
	if lines := got.Warnings[1].Location.Ranges; len(lines) != 2 || lines[0].Start.Line != 2 || lines[1].End.Line != 3 {
		t.Errorf("an instruction of two lines has %+v", lines)
	}
	w.write("Dockerfile", "FROM scratch\nSTOPSIGNAL none\n")
	r, text = w.asks(Inspection{Call: CallCheck, Format: FormatJSON})
	got = jsonCheck{}
	must(t, json.Unmarshal([]byte(text), &got))
	if ExitCode(r.Failure()) != ExitUsage || got.Error == nil || got.Error.Message != "invalid signal: none" || got.Error.Location.Ranges[0].Start.Line != 2 {
		t.Errorf("%s", text)
	}
	if !strings.Contains(text, `"warnings": []`) {
		t.Errorf("no warnings are no list:\n%s", text)
	}
}

// A build for several platforms finds the same things for each of them, and says them once.
func TestWarningsAreToldOnce(t *testing.T) {
	w := newWorld(t)
	w.write("Dockerfile", "FROM scratch AS A\nENV a b\nENV a b\nARG TOKEN=$x$x\n")
	two := func(o *Options) {
		o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
		o.NamedContexts = nil
	}
	var told []string
	sink := sinkFunc(func(e progress.Event) {
		if x, ok := e.(progress.Warning); ok {
			told = append(told, x.Pos+" "+x.Text)
		}
	})
	o := w.options(sink, two)
	res, err := Run(t.Context(), o)
	must(t, err)
	if len(res.Warnings) != 5 || len(told) != 5 {
		t.Errorf("told %q, result %v", told, res.Warnings)
	}
	var b bytes.Buffer
	must(t, PrintWarnings(&b, res.Warnings[:1]))
	if got := b.String(); !strings.Contains(got, "1 warning found") || !strings.Contains(got, "(Dockerfile:1)") {
		t.Error(got)
	}
	b.Reset()
	must(t, PrintWarnings(&b, nil))
	must(t, PrintWarnings(&b, []parser.Warning{}))
	if b.Len() > 0 {
		t.Errorf("nothing to say: %q", &b)
	}
}

// syncSink calls a function for each event, one at a time.
type syncSink struct {
	emit func(progress.Event)
	lock chan struct{}
}

func sinkFunc(f func(progress.Event)) *syncSink { return &syncSink{f, make(chan struct{}, 1)} }

func (s *syncSink) Emit(e progress.Event) {
	s.lock <- struct{}{}
	s.emit(e)
	<-s.lock
}

// Words of a Dockerfile must not reach the terminal as they are.
func TestReportsAreHarmless(t *testing.T) {
	w := newWorld(t)
	w.write("Dockerfile", "# one \x1b[31mred\nFROM scratch AS one\nARG A=\x1b[2J\nCOPY \x1b[1mx /\nENV API_KEY=\x1b[31m\n", ".dockerignore", "*x\n")
	for _, call := range []string{CallCheck, CallOutline, CallTargets, CallDescribe} {
		if _, text := w.asks(Inspection{Call: call}); strings.Contains(text, "\x1b") || text == "" {
			t.Errorf("%s: %q", call, text)
		}
	}
}
