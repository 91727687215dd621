package build

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// counts compares what was counted outside of the sandboxes.
func (y *tally) want(t testing.TB, what string, want map[string]int) {
	t.Helper()
	if got := y.take(); !maps.Equal(got, want) {
		t.Errorf("%s: steps counted %v, want %v", what, got, want)
	}
}

// What a change reruns: exactly the steps that can see it.
func TestExactlyWhatSeesAChangeRuns(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("a", "a", "dir/b", "b", "unrelated", "1", "dir/c", "c")
	df := fmt.Sprintf(`FROM base AS first
COPY a /a
RUN %s
FROM base
ENV E=1
WORKDIR /w
COPY dir ./
RUN %s; cat b c > /bc
COPY --from=first /a /first
LABEL l=1
CMD ["true"]
`, y.get("first"), y.get("second"))
	w.write("Dockerfile", df)
	first, rec := w.ok(epoch(1700000000))
	y.want(t, "empty store", map[string]int{"/first": 1, "/second": 1})
	if n := len(rec.ran()); n != 6 || first.Ran != 6 || first.Cached != 0 {
		t.Errorf("ran %q (%d, %d cached)", rec.ran(), first.Ran, first.Cached)
	}
	same := func(what string, mods ...mod) *recorder {
		t.Helper()
		res, rec := w.ok(append([]mod{epoch(1700000000)}, mods...)...)
		y.want(t, what, map[string]int{})
		wantRan(t, what, rec)
		if res.Ran != 0 || res.Cached != 6 {
			t.Errorf("%s: %d ran, %d cached", what, res.Ran, res.Cached)
		}
		if res.Digest != first.Digest {
			t.Errorf("%s: another digest", what)
		}
		return rec
	}
	same("again")
	old := time.Unix(1, 0)
	for _, f := range []string{"a", "dir/b", "dir/c", "dir", "Dockerfile"} {
		must(t, os.Chtimes(filepath.Join(w.dir, f), old, old))
	}
	same("other mtimes")
	w.write("unrelated", "2")
	same("a file nobody copies")
	// The same bytes in another inode: a fresh checkout.
	must(t, os.Rename(filepath.Join(w.dir, "a"), filepath.Join(w.dir, "a.old")))
	w.write("a", "a")
	same("another inode")

	w.write("dir/b", "B")
	changed, rec := w.ok(epoch(1700000000))
	y.want(t, "one byte of dir/b", map[string]int{"/second": 1})
	wantRan(t, "one byte of dir/b", rec, "COPY dir ./", "COPY --from=first /a /first", "RUN "+y.get("second")+"; cat b c > /bc")
	if changed.Digest == first.Digest {
		t.Error("another file and the same image")
	}
	w.write("dir/b", "b")
	same("and back")

	must(t, os.Chmod(filepath.Join(w.dir, "dir/c"), 0o755))
	_, rec = w.ok()
	y.want(t, "the mode of dir/c", map[string]int{"/second": 1})
	must(t, os.Chmod(filepath.Join(w.dir, "dir/c"), 0o644))

	w.write("a", "A")
	_, rec = w.ok()
	y.want(t, "one byte of a", map[string]int{"/first": 1})
	wantRan(t, "one byte of a", rec, "COPY a /a", "RUN "+y.get("first"), "COPY --from=first /a /first")
}

// A stage that changes but gives the same to those who copy from it does not rerun them.
func TestEarlyCutOff(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("src", "1 x")
	df := from(fmt.Sprintf(`
		FROM base AS make
		COPY src /src
		RUN %s; cut -d' ' -f2 /src > /out; cut -d' ' -f1 /src > /seen
		FROM base AS user
		COPY --from=make /out /out
		RUN %s
		FROM base AS last
		COPY --from=user /out /o
		RUN %s
	`, y.get("make"), y.get("user"), y.get("last")))
	first, _ := w.ok(df, epoch(1))
	y.want(t, "first", map[string]int{"/make": 1, "/user": 1, "/last": 1})
	w.write("src", "2 x")
	res, _ := w.ok(df, epoch(1))
	y.want(t, "same output", map[string]int{"/make": 1})
	if res.Digest != first.Digest {
		t.Error("the image changed although nothing that is in it did")
	}
	// The hit by content answers by definition next time: nothing is evaluated any more.
	res, rec := w.ok(df, epoch(1))
	y.want(t, "again", map[string]int{})
	wantRan(t, "again", rec)
	if res.Ran != 0 {
		t.Errorf("%d steps ran", res.Ran)
	}
	w.write("src", "2 y")
	w.ok(df)
	y.want(t, "other output", map[string]int{"/make": 1, "/user": 1, "/last": 1})
}

// A RUN that gives the same tree again, but for times, does not rerun what stands on it.
func TestCutOffByContentOfARun(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	df := from(fmt.Sprintf(`
		FROM base
		ARG X=1
		RUN %s; echo made > /made # $X
		RUN %s; cp /made /copy
	`, y.get("one"), y.get("two")))
	w.ok(df)
	y.take()
	time.Sleep(1100 * time.Millisecond) // another mtime in the tar
	w.ok(df, arg("X", "2"))
	// The arg is in the environment of both, so both run: BuildKit's rule.
	y.want(t, "arg", map[string]int{"/one": 1, "/two": 1})
	w.ok(df, arg("X", "2"))
	y.want(t, "arg again", map[string]int{})

	two := func(comment string) mod {
		return from(fmt.Sprintf(`
			FROM base
			RUN %s; echo made > /made # %s
			RUN %s; cp /made /copy
		`, y.get("one"), comment, y.get("two")))
	}
	w.ok(two("x"))
	y.take()
	time.Sleep(1100 * time.Millisecond)
	w.ok(two("y"))
	y.want(t, "the same tree at another time", map[string]int{"/one": 1})
}

func TestConfigurationRunsNothing(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("f", "f")
	df := func(env, config string) mod {
		return from(fmt.Sprintf(`
			FROM base
			ENV E=%s
			COPY f /f
			RUN %s
			%s
		`, env, y.get("run"), config))
	}
	first, _ := w.ok(df("1", ""))
	y.take()
	res, rec := w.ok(df("1", "LABEL a=b\nCMD [\"x\"]\nUSER 7\nEXPOSE 80\nVOLUME /v\nSTOPSIGNAL 9\nENTRYPOINT [\"e\"]\nENV LATER=1"),
		func(o *Options) { o.Labels = []KeyValue{{"more", "1"}} })
	y.want(t, "configuration", map[string]int{})
	wantRan(t, "configuration", rec)
	if res.Digest == first.Digest {
		t.Error("the configuration is not in the image")
	}
	_, rec = w.ok(df("2", ""))
	y.want(t, "ENV", map[string]int{"/run": 1})
	wantRan(t, "ENV", rec, "RUN "+y.get("run"))
}

// An ARG changes the steps after its first mention that can see it, and only when its value changes.
func TestArgSemantics(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("f", "f")
	df := from(fmt.Sprintf(`
		ARG GLOBAL=g
		FROM base AS other
		RUN %s
		FROM base
		RUN %s
		ARG A=1
		COPY f /f
		RUN %s; echo "A=$A"
		ARG B
		RUN %s; echo "A=$A B=$B GLOBAL=$GLOBAL"
		ENV A=env
		RUN echo "A=$A"
		COPY --from=other /bin/busybox /o
	`, y.get("other"), y.get("before"), y.get("a"), y.get("ab")))
	_, rec := w.ok(df)
	y.want(t, "first", map[string]int{"/other": 1, "/before": 1, "/a": 1, "/ab": 1})
	if got := rec.log("GLOBAL"); got != "A=1 B= GLOBAL=\n" {
		t.Errorf("a step saw %q", got)
	}
	w.ok(df, arg("A", "1"))
	y.want(t, "the default given", map[string]int{})
	w.ok(df, arg("B", "2"))
	y.want(t, "B", map[string]int{"/ab": 1})
	_, rec = w.ok(df, arg("A", "3", "B", "2"))
	y.want(t, "A", map[string]int{"/a": 1, "/ab": 1})
	if got := rec.log("GLOBAL"); got != "A=3 B=2 GLOBAL=\n" {
		t.Errorf("a step saw %q", got)
	}
	w.ok(df, arg("GLOBAL", "x", "UNKNOWN", "x"))
	y.want(t, "an ARG no stage declares", map[string]int{})
	// Proxies reach the command and no key.
	_, rec = w.ok(from("FROM base\nRUN echo \"[$http_proxy]\"\n"), func(o *Options) { o.ProxyArgs = []KeyValue{{"http_proxy", "http://one"}} })
	if got := rec.log("http_proxy"); got != "[http://one]\n" {
		t.Errorf("a step saw %q", got)
	}
	_, rec = w.ok(from("FROM base\nRUN echo \"[$http_proxy]\"\n"), func(o *Options) { o.ProxyArgs = []KeyValue{{"http_proxy", "http://two"}} })
	wantRan(t, "another proxy", rec)
}

// A stage the target does not need is neither resolved nor run.
func TestUnreachableStage(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	df := fmt.Sprintf(`
		FROM base AS wanted
		RUN %s
		FROM %s/no/such:image AS lost
		RUN %s
		COPY no-such-file /
		FROM wanted AS after
		RUN %s
		FROM lost
		RUN %s
	`, y.get("wanted"), freePort(t), y.get("lost"), y.get("after"), y.get("last"))
	w.ok(from(df), func(o *Options) { o.Target, o.Store.Offline = "wanted", false })
	y.want(t, "--target=wanted", map[string]int{"/wanted": 1})
	w.ok(from(df), func(o *Options) { o.Target, o.Store.Offline = "after", false })
	y.want(t, "--target=after", map[string]int{"/after": 1})
	w.fails(ExitNetwork, []string{"no/such"}, from(df), func(o *Options) { o.Store.Offline = false })
	y.want(t, "the last stage", map[string]int{})
}

// A hit touches nothing above it: neither the records nor the layers' directories of what it stands on.
func TestHitTouchesNothingAbove(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	df := from(fmt.Sprintf(`
		FROM base
		RUN %s; date +%%s%%N > /when
		RUN %s; cp /when /then
	`, y.get("one"), y.get("two")))
	first, _ := w.ok(df, epoch(1))
	y.take()
	w.forget(t, y.get("one"))
	w.moveDirsAway(t)
	res, rec := w.ok(df, epoch(1))
	y.want(t, "without the first record", map[string]int{})
	wantRan(t, "without the first record", rec)
	if res.Digest != first.Digest {
		t.Error("another image")
	}
}

// When the record of a step that gives something else each time is gone, nothing made on its old result may land on its new one.
func TestOldDiffNeverOnNewBase(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	dest := w.tmp + "/out"
	df := func(last string) mod {
		return from(fmt.Sprintf(`
			FROM base
			RUN %s; date +%%s%%N > /when
			RUN %s; cp /when /then
			%s
		`, y.get("one"), y.get("two"), last))
	}
	read := func() (when, then string) {
		t.Helper()
		a, err := os.ReadFile(dest + "/when")
		must(t, err)
		b, err := os.ReadFile(dest + "/then")
		must(t, err)
		must(t, os.RemoveAll(dest))
		return string(a), string(b)
	}
	local := output(Output{Type: OutputLocal, Dest: dest})
	w.ok(df(""), local)
	if when, then := read(); when != then {
		t.Fatalf("%q, %q", when, then)
	}
	w.forget(t, y.get("one"))
	// A step after both: whatever is found or made again, the two files must be of one run.
	w.ok(df("RUN echo 1 > /x"), local)
	if when, then := read(); when != then {
		t.Errorf("mixed: %q, %q", when, then)
	}
	// The first is made again for another target; the second, asked for by definition or by content, stands on what it stood on.
	w.ok(from(fmt.Sprintf("FROM base\nRUN %s; date +%%s%%N > /when\n", y.get("one"))), noCache)
	w.ok(df("RUN echo 2 > /x"), local)
	if when, then := read(); when != then {
		t.Errorf("mixed: %q, %q", when, then)
	}
	w.forget(t, y.get("two"))
	w.ok(df("RUN echo 3 > /x"), local)
	if when, then := read(); when != then {
		t.Errorf("mixed: %q, %q", when, then)
	}
	if n := y.take()["/one"]; n != 2 {
		t.Errorf("the first step ran %d times", n)
	}
}

// forget removes every record of the steps whose name has word in it, as if it had been evicted.
func (w *world) forget(t testing.TB, word string) {
	t.Helper()
	n := 0
	for k, rec := range w.records(t) {
		if strings.Contains(rec.Step, word) {
			must(t, os.Remove(k))
			n++
		}
	}
	if n == 0 {
		t.Fatalf("no record of %q", word)
	}
}

func TestNoCacheRunsEverythingOnce(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("f", "f")
	df := from(fmt.Sprintf(`
		FROM base AS a
		RUN %[1]s
		FROM base AS b
		RUN %[1]s
		FROM base
		COPY f /f
		COPY --from=a /bin/busybox /a
		COPY --from=b /bin/busybox /b
		RUN %[2]s
	`, y.get("equal"), y.get("run")))
	_, rec := w.ok(df)
	y.want(t, "equal steps of one build", map[string]int{"/equal": 1, "/run": 1})
	if n := len(rec.ran()); n != 5 {
		t.Errorf("ran %q", rec.ran())
	}
	w.ok(df)
	y.want(t, "cached", map[string]int{})
	_, rec = w.ok(df, noCache)
	y.want(t, "--no-cache", map[string]int{"/equal": 1, "/run": 1})
	if n := len(rec.ran()); n != 5 {
		t.Errorf("--no-cache ran %q", rec.ran())
	}
	w.ok(df)
	y.want(t, "after --no-cache", map[string]int{})
}

// Stages that do not depend on each other run at the same time, each waiting for the others.
func TestStagesOverlap(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	df := "FROM base AS s0\nRUN " + y.get("meet/4/0") + "\n"
	last := "FROM base\n"
	for i := 1; i < 4; i++ {
		df += fmt.Sprintf("FROM base AS s%d\nRUN %s\n", i, y.get(fmt.Sprintf("meet/4/%d", i)))
	}
	for i := range 4 {
		last += fmt.Sprintf("COPY --from=s%d /etc/passwd /p%d\n", i, i)
	}
	w.ok(from(df + last))
}

// moveDirsAway takes the directory form of every layer out of the store.
func (w *world) moveDirsAway(t testing.TB) {
	t.Helper()
	dirs, err := filepath.Glob(w.root + "/local/*/dir/*")
	must(t, err)
	if len(dirs) == 0 {
		t.Fatal("no layer has a directory")
	}
	for i, d := range dirs {
		must(t, os.Rename(d, fmt.Sprintf("%s/away-%d-%s", w.tmp, i, filepath.Base(d))))
	}
}
