package build

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Early cut-off: a step that ran again and gave the same content does not rerun what stands on it, by whatever way that
// sees it. docs/cache.md says when this holds.
func TestCutOffHolds(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("src", "1 x")
	// make always writes the same files for the same second word, at another time and from another input.
	const mk = "RUN cut -d' ' -f2 /src > /out; mkdir -p /d; cut -d' ' -f2 /src > /d/x; rm /src"
	df := func() mod {
		return from(`
			FROM base AS make
			COPY src /src
			` + mk + `
			FROM base AS bound
			RUN --mount=from=make,source=/d,target=/d cat /d/x
			FROM base AS linked
			COPY --from=make --link /out /linked
			RUN cat /linked
			FROM scratch
			COPY --from=make /d /d
			COPY --from=bound /etc/passwd /p
			COPY --from=linked /linked /l
		`)
	}
	w.ok(df())
	w.write("src", "2 x")
	_, rec := w.ok(df())
	wantRan(t, "another input, the same output", rec, "COPY src /src", mk)
	old := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(filepath.Join(w.dir, "src"), old, old))
	_, rec = w.ok(df())
	wantRan(t, "another time", rec)
	_, rec = w.ok(df(), func(o *Options) { o.NoCacheStages = []string{"make"} })
	wantRan(t, "the stage alone again", rec, "COPY src /src", mk)
}

// --no-cache reaches what stands above a step that it does not concern itself, such as a WORKDIR.
func TestNoCacheReachesUpward(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	df := func() mod {
		return from("FROM base AS make\nRUN echo x > /x\nWORKDIR /w\nFROM base AS user\nCOPY --from=make /x /x\nFROM make\nCOPY --from=user /x /y\n")
	}
	w.ok(df())
	_, rec := w.ok(df(), noCache, func(o *Options) { o.Target = "make" })
	wantRan(t, "--no-cache", rec, "RUN echo x > /x")
	_, rec = w.ok(df(), func(o *Options) { o.NoCacheStages = []string{"make"} })
	wantRan(t, "--no-cache-filter", rec, "RUN echo x > /x")
	reasons(t, "--no-cache-filter", rec, map[string]string{"RUN echo x > /x": "no-cache: --no-cache-filter=make was given"})
}

// It does not hold where a difference can be seen: modes and owners are content, and so is the layer that a file came from and
// went with, when a step stands on both.
func TestCutOffDoesNotHold(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("mode", "600", "f", "f")
	df := func() mod {
		return from(`
			FROM base AS make
			COPY mode /mode
			RUN echo x > /out; chmod $(cat /mode) /out; rm /mode
			FROM base
			COPY --from=make /out /out
			RUN true
		`)
	}
	const mk = "RUN echo x > /out; chmod $(cat /mode) /out; rm /mode"
	w.ok(from("FROM base\nCOPY mode /mode\nRUN rm /mode\nRUN echo stands on both\n"))
	w.ok(df())
	w.write("mode", "644")
	_, rec := w.ok(df())
	wantRan(t, "another mode", rec, "COPY mode /mode", mk, "COPY --from=make /out /out", "RUN true")
	_, rec = w.ok(from("FROM base\nCOPY mode /mode\nRUN rm /mode\nRUN echo stands on both\n"))
	wantRan(t, "a file that came and went", rec, "RUN rm /mode", "RUN echo stands on both")

	// Layers of an image count by diffID: the same files in an image that was made again, with other times, are other layers.
	base := func(name string) mod {
		dest := filepath.Join(w.tmp, name)
		w.ok(from("FROM base\nRUN echo same > /same; touch -d @"+name+" /same\n"), noCache,
			output(Output{Type: OutputOCI, Dest: dest, OCIMediaTypes: true}))
		return named("mine", "oci-layout://"+dest)
	}
	one, two := base("1000000000"), base("1000000001")
	on := func() mod { return from("FROM mine\nRUN cat /same\nCOPY --link f /f\n") }
	w.ok(one, on())
	_, rec = w.ok(two, on())
	wantRan(t, "a base with other times", rec, "RUN cat /same")
}
