package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"build/internal/explain"
)

// plan asks what a build would do, and checks that asking leaves the store as it was, byte for byte.
func (w *world) plan(mods ...mod) *Plan {
	w.t.Helper()
	before := w.contents()
	p, err := Explained(w.t.Context(), w.options(newRecorder(), mods...))
	must(w.t, err)
	if after := w.contents(); after != before {
		w.t.Errorf("asking changed the store:\n%s\nis now\n%s", before, after)
	}
	return p
}

// contents lists everything in the store, with the digests of files.
func (w *world) contents() string {
	var b strings.Builder
	_ = filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		fi, err := d.Info()
		must(w.t, err)
		fmt.Fprint(&b, strings.TrimPrefix(path, w.root), " ", fi.Mode())
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			must(w.t, err)
			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String()
}

// statuses is the plan in short: "cached COPY f /f".
func statuses(p *Plan) []string {
	var out []string
	for _, s := range p.Steps {
		line := string(s.Status) + " " + bareTitle(s.Name)
		if len(s.DependsOn) > 0 {
			line += " " + strings.Trim(fmt.Sprint(s.DependsOn), "[]")
		}
		out = append(out, line)
	}
	return out
}

func wantPlan(t *testing.T, what string, p *Plan, want ...string) {
	t.Helper()
	if got := statuses(p); !slices.Equal(got, want) {
		t.Errorf("%s: the plan is\n%s\nnot\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	run := slices.ContainsFunc(want, func(s string) bool { return !strings.HasPrefix(s, "cached") })
	if p.WouldRun != run {
		t.Errorf("%s: wouldRun is %v", what, p.WouldRun)
	}
}

// A plan says what the build then does, and what it cannot know.
func TestPlan(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "1", "g", "1")
	df := func() mod {
		return from(`
			FROM base AS make
			COPY f /f
			RUN cat /f > /out
			FROM base
			COPY g /g
			COPY --link f /linked
			COPY --from=make /out /out
			RUN true
		`)
	}
	if p := w.plan(df()); p.Steps[0].Status != WouldRun || len(p.Fetch) != 1 || p.Fetch[0].Layers != 1 || p.Fetch[0].Bytes < 1000 {
		t.Errorf("of an empty store: %q, %+v", statuses(p), p.Fetch)
	}
	if _, err := os.Stat(w.root); err == nil {
		t.Error("asking made a store")
	}
	w.ok(df())
	p := w.plan(df())
	wantPlan(t, "nothing changed", p, "cached COPY f /f", "cached RUN cat /f > /out", "cached COPY g /g", "cached COPY --link f /linked",
		"cached COPY --from=make /out /out", "cached RUN true")
	if len(p.Fetch) != 0 {
		t.Errorf("would fetch %+v", p.Fetch)
	}
	w.write("f", "2")
	p = w.plan(df())
	wantPlan(t, "f changed", p, "runs COPY f /f", "depends RUN cat /f > /out 1", "cached COPY g /g", "runs COPY --link f /linked",
		"depends COPY --from=make /out /out 4 2", "depends RUN true 5")
	if c := p.Steps[0].Changes; len(c) != 1 || c[0].Text != "f changed (content)" || len(c[0].Files) != 1 || c[0].Files[0].What != "content" {
		t.Errorf("changes %+v", c)
	}
	w.ok(df())
	w.write("f", "1")
	p = w.plan(df())
	if p.WouldRun {
		t.Errorf("back again: %q", statuses(p))
	}
	p = w.plan(df(), noCache)
	if got := statuses(p); slices.ContainsFunc(got, func(s string) bool { return !strings.HasPrefix(s, "runs") }) {
		t.Errorf("--no-cache: %q", got)
	}
	w.write("f", "1", "g", "2")
	p = w.plan(df(), func(o *Options) { o.Target = "make" })
	wantPlan(t, "another target", p, "cached COPY f /f", "cached RUN cat /f > /out")
	must(t, os.Remove(w.dir+"/f"))
	if _, err := Explained(t.Context(), w.options(newRecorder(), df())); ExitCode(err) != ExitUsage {
		t.Errorf("a missing file: %v", err)
	}
}

// A secret with a cache key, a download and a mount of a stage leave nothing behind either.
func TestPlanOfSecretsAndDownloads(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { n++; fmt.Fprint(rw, "file") }))
	defer srv.Close()
	const value = "s3cr3t-value-of-the-test"
	mods := []mod{
		from("FROM base\nADD " + srv.URL + "/f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n"),
		func(o *Options) {
			o.Store.Offline = false
			o.Secrets = []Secret{{ID: "s", Data: []byte(value), CacheKey: true}}
		},
	}
	w.ok(from("FROM base\n"))
	for range 2 {
		mods[0] = from("FROM base\nADD " + srv.URL + "/f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n")
		w.plan(mods...)
		mods[0] = from("FROM base\nADD " + srv.URL + "/f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n")
		w.ok(mods...)
	}
	mods[0] = from("FROM base\nADD " + srv.URL + "/f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n")
	if p := w.plan(mods...); p.WouldRun {
		t.Errorf("would run %q", statuses(p))
	}
	mods = append(mods, func(o *Options) { o.Secrets[0].Data = []byte(value + "2") })
	mods[0] = from("FROM base\nADD " + srv.URL + "/f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n")
	p := w.plan(mods...)
	if c := p.Steps[1].Changes; len(c) != 1 || c[0].Text != "the value of secret s changed" {
		t.Errorf("changes %+v", c)
	}
	var b bytes.Buffer
	must(t, p.Explain(&b, FormatJSON, ""))
	if strings.Contains(b.String(), value) {
		t.Errorf("the secret is in %s", &b)
	}
}

// Secrets are in no reason, record or journal; one that is given as a build argument is masked.
func TestReasonsHaveNoSecrets(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	const value = "s3cr3t-value-of-the-test"
	mods := func(v, plain string) []mod {
		return []mod{
			from("FROM base\nARG A\nRUN --mount=type=secret,id=s true\n"), arg("A", plain),
			func(o *Options) {
				o.Secrets = []Secret{{ID: "s", Data: []byte(v), CacheKey: true}}
				o.Mask = func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(v), []byte("***")) }
				o.ProxyArgs = []KeyValue{{"HTTP_PROXY", "http://user:" + v + "@proxy"}}
			},
		}
	}
	w.ok(mods(value, "x")...)
	_, rec := w.ok(mods(value+"2", "x")...)
	reasons(t, "the secret changed", rec, map[string]string{"RUN --mount=type=secret,id=s true": "mount: the value of secret s changed"})
	for line := range strings.Lines(w.filesWith("record", value) + w.filesWith("link", value) + w.filesWith("text", value)) {
		t.Errorf("the secret is in %s", line)
	}
	_, rec = w.ok(mods(value+"2", "has "+value+"2")...)
	reasons(t, "as an argument", rec, map[string]string{"RUN --mount=type=secret,id=s true": `argument: build argument A is "has ***", was "x"`})
	if found := w.filesWith("link", value); found != "" {
		t.Errorf("the secret is in %s", found)
	}
}

// filesWith lists the files of a kind that hold a word.
func (w *world) filesWith(kind, word string) string {
	files, _ := filepath.Glob(filepath.Join(w.root, kind, "*", "*"))
	var b strings.Builder
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte(word)) {
			b.WriteString(f + "\n")
		}
	}
	return b.String()
}

// What was told is remembered, for the last build only, and a build that changes nothing writes nothing.
func TestExplainLast(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "1", "Dockerfile", "FROM base AS build\nCOPY f /f\nRUN cat /f\n")
	last := func() *LastBuild {
		t.Helper()
		l, err := ExplainLast(StoreOptions{Root: w.root}, w.dir)
		must(t, err)
		return l
	}
	if _, err := ExplainLast(StoreOptions{Root: w.root}, w.dir); ExitCode(err) != ExitUsage {
		t.Errorf("without a store: %v", err)
	}
	w.ok()
	w.write("f", "2")
	w.ok()
	l := last()
	if len(l.Steps) != 2 || l.Steps[0].Status != explain.Ran || len(l.Steps[0].Changes) != 1 || l.Steps[0].Changes[0].Text != "f changed (content)" || l.Steps[1].Changes[0].Kind != explain.Step {
		t.Errorf("last: %+v", l)
	}
	var b bytes.Buffer
	must(t, l.Print(&b, FormatText, ":2"))
	if want := "1  [1/3] COPY f /f\n   ran because\n   - f changed (content)\n"; b.String() != want {
		t.Errorf("printed %q", &b)
	}
	var back LastBuild
	b.Reset()
	must(t, l.Print(&b, FormatJSON, "cat"))
	must(t, json.Unmarshal(b.Bytes(), &back))
	if len(back.Steps) != 1 || back.Steps[0].Number != 2 {
		t.Errorf("%+v", back)
	}
	if err := l.Print(&b, FormatText, "nothing"); ExitCode(err) != ExitUsage {
		t.Errorf("a step that is none: %v", err)
	}
	w.ok()
	if l := last(); l.Steps[0].Status != explain.Cached || l.Steps[1].Status != explain.Cached {
		t.Errorf("last: %+v", l)
	}
	file := filepath.Join(w.root, w.journalFile(t))
	before, err := os.Stat(file)
	must(t, err)
	w.ok()
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) { // what is written comes as another file
		t.Errorf("the journal was written again: %v", err)
	}
	w.write("Dockerfile", "FROM base AS build\nCOPY f /f\nRUN exit 3\nRUN true\n")
	w.fails(ExitStep, nil)
	if l := last(); l.Steps[1].Status != explain.Failed || l.Steps[2].Status != explain.NotRun {
		t.Errorf("after a failure: %+v", l)
	}
}

func (w *world) journalFile(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(w.filesWith("link", "\"journal ")) {
		rel, err := filepath.Rel(w.root, strings.TrimSpace(line))
		must(t, err)
		return rel
	}
	t.Fatal("there is no journal")
	return ""
}

func TestChooseStep(t *testing.T) {
	steps := []StepID{{3, "linux/arm64", "build", "[linux/arm64 build  2/10] RUN make", 12}}
	for choice, want := range map[string]bool{
		"": true, "3": true, "4": false, ":12": true, ":13": false, "build/2": true, "build/3": false, "BUILD/2": true, "other/2": false,
		"make": true, "RUN MAKE": true, "install": false,
	} {
		if got, err := chooseFrom(steps, choice); (err == nil) != want || len(got) == 1 != want {
			t.Errorf("%q: %v, %v", choice, got, err)
		}
	}
}
