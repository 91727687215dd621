package build

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// nowhere asks for no result.
var nowhere = output(Output{Type: OutputNone})

// copies lists the records of steps that copy: for each whether it has a layer of its own.
func (w *world) copies(t *testing.T) (written, unwritten int) {
	t.Helper()
	for _, rec := range w.records(t) {
		switch {
		case !strings.Contains(rec.Step, "COPY") && !strings.Contains(rec.Step, "ADD"):
		case rec.Own == 0:
			unwritten++
		default:
			written++
		}
	}
	return written, unwritten
}

func wantCopies(t *testing.T, what string, w *world, written, unwritten int) {
	t.Helper()
	if a, b := w.copies(t); a != written || b != unwritten {
		t.Errorf("%s: %d records of copies with a layer and %d without, not %d and %d", what, a, b, written, unwritten)
	}
}

// A COPY that nobody asked for writes no layer and is cached; one that is asked for then gives what it gives in a new store.
func TestNobodyAsksForTheLayer(t *testing.T) {
	for _, line := range []string{
		"COPY . /x", "COPY --chown=daemon:daemon --chmod=u+x src /bin/", "COPY --link --chown=daemon . /y/", "ADD src/d* /etc/", "COPY <<EOF big /x/\nhere\nEOF",
	} {
		t.Run(line, func(t *testing.T) {
			w := newWorld(t)
			w.randomContext(5)
			df, early := from("FROM base\n"+line+"\n"), epoch(1500000000) // what a COPY makes has the time of the build
			fresh, _ := w.ok(df, early)
			want := w.layersOf(fresh)
			must(t, os.Rename(w.root, w.root+".first"))

			if p := w.plan(df, nowhere); p.Steps[0].Status == WouldCached {
				t.Errorf("of an empty store: %q", statuses(p))
			}
			_, rec := w.ok(df, nowhere)
			wantRan(t, "the first", rec, strings.SplitN(line, "\n", 2)[0])
			wantCopies(t, "nobody asked", w, 0, 2)
			_, rec = w.ok(df, nowhere)
			wantRan(t, "the second", rec)
			wantPlan(t, "nobody asks", w.plan(df, nowhere), "cached "+bareName(line))
			wantPlan(t, "somebody asks", w.plan(df), "runs "+bareName(line))

			res, rec := w.ok(df, early)
			reasons(t, "asked for", rec, map[string]string{bareName(line): "unwritten: its layer was not needed before"})
			if got := w.layersOf(res); !slices.Equal(got, want) {
				t.Errorf("asked for later it is %v, at once %v", got, want)
			}
			wantCopies(t, "somebody asked", w, 2, 0)
			_, rec = w.ok(df, nowhere)
			wantRan(t, "with a layer there", rec)
			wantCopies(t, "with a layer there", w, 2, 0)
			removeAll(w.root + ".first")
		})
	}
}

// bareName is the first line of an instruction, as a step is called.
func bareName(line string) string { return strings.SplitN(line, "\n", 2)[0] }

// What is wrong with a COPY is wrong whether its layer is written or not.
func TestUnwrittenCopyFails(t *testing.T) {
	for df, words := range map[string]string{
		"COPY missing /":           `"/missing": not found`,
		"COPY f /bin":              "",
		"COPY d /bin/sh":           "cannot copy to non-directory: /bin/busybox",
		"COPY f /bin/sh/x":         "mkdir /bin/busybox: not a directory",
		"COPY n /":                 "cannot replace to directory /bin with file",
		"COPY --chown=nobodyx f /": "nobodyx",
		"COPY --chmod=u f /":       "chmod",
		"COPY w /w/":               "layers cannot hold names that begin with .wh.",
	} {
		w := newWorld(t)
		w.write("f", "f", "d/x", "x", "n/bin", "x", "w/.wh.x", "x")
		_, _, want := w.build(from("FROM base\n" + df + "\n"))
		w.ok(from("FROM base\nCOPY f /other\n")) // so that files are known
		_, _, got := w.build(from("FROM base\n"+df+"\n"), nowhere)
		switch {
		case words == "" && (got != nil || want != nil):
			t.Errorf("%s: %v, %v", df, got, want)
		case words == "":
		case got == nil || want == nil || got.Error() != want.Error() || !strings.Contains(got.Error(), words):
			t.Errorf("%s: unwritten %v\nwritten %v", df, got, want)
		}
	}
}

// The next step gets the layer that nobody wanted before.
func TestStepOnUnwrittenCopy(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "f", "g", "g")
	w.ok(from("FROM base\nCOPY f /f\n"), nowhere)
	_, rec := w.ok(from("FROM base\nCOPY f /f\nRUN cp /f /h\nCOPY g /h\n"), nowhere)
	wantRan(t, "a RUN on it", rec, "COPY f /f", "RUN cp /f /h", "COPY g /h")
	if got := rec.because["COPY f /f"].Text; got != "its layer was not needed before" {
		t.Errorf("the reason of the COPY is %q", got)
	}
	wantCopies(t, "a RUN on it", w, 2, 2)
	_, rec = w.ok(from("FROM base\nCOPY f /f\nRUN cp /f /h\nCOPY g /h\n"), nowhere)
	wantRan(t, "again", rec)
}

// A record with a layer stays what it is, and a change is explained by its files, whether the run before wrote a layer or not.
func TestWhyUnwritten(t *testing.T) {
	w := newWorld(t)
	w.write("src/a", "1", "src/b", "1")
	df := from("FROM base\nCOPY src /app\n")
	because := func(text string) map[string]string { return map[string]string{"COPY src /app": "file: " + text} }
	w.ok(df, nowhere)
	w.write("src/a", "2")
	_, rec := w.ok(df, nowhere)
	reasons(t, "no layer was ever written", rec, because("src/a changed (content)"))
	w.ok(df)
	w.write("src/a", "3")
	if p := w.plan(df, nowhere); len(p.Steps[0].Changes) != 1 || p.Steps[0].Changes[0].Text != "src/a changed (content)" {
		t.Errorf("the plan says %+v", p.Steps[0].Changes)
	}
	_, rec = w.ok(df, nowhere)
	reasons(t, "since the layer", rec, because("src/a changed (content)"))
	w.write("src/b", "2")
	_, rec = w.ok(df, nowhere)
	reasons(t, "since a run without", rec, because("src/b changed (content)"))
	must(t, os.Remove(w.dir+"/src/a"))
	_, rec = w.ok(df)
	reasons(t, "a layer since a run without", rec, because("src/a was removed"))
	w.write("src/a", "2", "src/b", "1")
	_, rec = w.ok(df)
	wantRan(t, "as it was", rec)
}

// What --no-cache makes run again is written; a record without a layer answers no build that is told to run its steps.
func TestUnwrittenNoCache(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	df := from("FROM base\nCOPY f /f\n")
	w.ok(df, nowhere)
	wantCopies(t, "the first", w, 0, 2)
	_, rec := w.ok(df, nowhere, noCache)
	wantRan(t, "--no-cache", rec, "COPY f /f")
	wantCopies(t, "--no-cache", w, 2, 0)
}

// An archive is unpacked whether somebody asks for it or not, and a secret is searched for.
func TestAlwaysWritten(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(t, tw.WriteHeader(&tar.Header{Name: "in", Mode: 0o644, Size: 1}))
	_, _ = tw.Write([]byte("x"))
	must(t, tw.Close())
	w.write("a.tar", b.String(), "f", "hunter2hunter2")
	w.ok(from("FROM base\nADD a.tar /\n"), nowhere)
	wantCopies(t, "an archive", w, 2, 0)
	secret := func(o *Options) {
		o.Secrets = []Secret{{ID: "s", Data: []byte("hunter2hunter2")}}
		o.SecretLeak = LeakError
	}
	w.fails(ExitStep, []string{"secret s is in the layer of this step: /f"}, from("FROM base\nRUN --mount=type=secret,id=s true\nCOPY f /f\n"), secret, nowhere)
}

// Each platform has its own last step, and one of them may answer the other.
func TestUnwrittenPlatforms(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	df := from("FROM scratch\nCOPY f /f\n")
	two := func(o *Options) {
		o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
	}
	w.ok(df, two, nowhere)
	if written, _ := w.copies(t); written != 0 {
		t.Errorf("%d layers were written", written)
	}
	_, rec := w.ok(df, two, nowhere)
	wantRan(t, "again", rec)
	later, _ := w.ok(df, two, epoch(1700000000))
	must(t, os.Rename(w.root, w.root+".first"))
	if at, _ := w.ok(df, two, epoch(1700000000)); at.Digest != later.Digest {
		t.Errorf("asked for later it is %s, at once %s", later.Digest, at.Digest)
	}
	removeAll(w.root + ".first")
}

// Builds that want the layer and builds that do not may make one step at the same time.
func TestSomeAskForTheLayer(t *testing.T) {
	w := newWorld(t)
	w.randomContext(5)
	df, early := from("FROM base\nCOPY . /x\n"), epoch(1500000000)
	fresh, _ := w.ok(df, early)
	want := w.layersOf(fresh)
	for round := range 3 {
		must(t, os.Rename(w.root, fmt.Sprint(w.root, round)))
		var asked [3]*Result
		var g errgroup.Group
		for i := range asked {
			g.Go(func() error {
				_, _, err := w.build(df, nowhere)
				return err
			})
			g.Go(func() (err error) {
				asked[i], _, err = w.build(df, early)
				return err
			})
		}
		must(t, g.Wait())
		for _, res := range asked {
			if got := w.layersOf(res); !slices.Equal(got, want) {
				t.Errorf("round %d: %v, alone %v", round, got, want)
			}
		}
		wantCopies(t, "after all", w, 2, 0)
		removeAll(fmt.Sprint(w.root, round))
	}
}
