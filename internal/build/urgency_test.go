package build

import (
	"slices"
	"strings"
	"testing"
	"time"

	"build/dag"
	"build/internal/progress"
	"build/internal/turns"
)

// With one job no two steps are carried out at the same time.
func TestOneJob(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "x")
	rec := newRecorder()
	working, most := map[progress.ID]bool{}, 0
	rec.watch = func(e progress.Event) { // with the recorder locked
		switch e := e.(type) {
		case progress.Started:
			if name := rec.names[e.ID]; strings.Contains(name, "] RUN ") || strings.Contains(name, "] COPY ") {
				working[e.ID] = true
			}
		case progress.Done:
			delete(working, e.ID)
		}
		most = max(most, len(working))
	}
	o := w.options(rec, func(o *Options) { o.Jobs = 1 }, from(`
		FROM base AS a
		RUN echo a >/a
		FROM base AS b
		RUN echo b >/b
		FROM base AS c
		COPY f /c
		FROM base
		COPY --from=a /a /
		COPY --from=b /b /
		COPY --from=c /c /`))
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if most != 1 {
		t.Errorf("%d steps at the same time", most)
	}
}

// How urgent a step is follows from how long it and those behind it took before; of one that never ran the average of the others
// is believed, and contexts and images take no time.
func TestUrgency(t *testing.T) {
	before := map[string]time.Duration{}
	run := func(name string, took time.Duration, inputs ...dag.ID) dag.Step {
		before[name] = took
		return dag.Step{Op: dag.Run{}, Name: name, Inputs: inputs}
	}
	g := &dag.Graph{Steps: []dag.Step{
		{Op: dag.Image{}},
		run("short", time.Second, 0),
		run("long", 8*time.Second, 0),
		run("new", turns.Unknown, 1),
		run("join", turns.Unknown, 2, 3),
	}, Target: 4}
	const guess = 9 * time.Second / 2
	want := []time.Duration{8*time.Second + guess, time.Second + 2*guess, 8*time.Second + guess, 2 * guess, guess}
	if got := remaining(g, func(s *dag.Step) time.Duration { return before[s.Name] }); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
