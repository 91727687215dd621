package build

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"build/internal/explain"
	"build/internal/testenv"
)

// reasons compares what a build said about why steps ran: the kind and the text for each instruction, and no other.
func reasons(t testing.TB, what string, rec *recorder, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for step, b := range rec.because {
		got[step] = b.Kind + ": " + b.Text
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: the reasons are\n%v\nnot\n%v", what, lined(got), lined(want))
	}
}

func lined(m map[string]string) string {
	var b strings.Builder
	for k, v := range m {
		fmt.Fprintf(&b, "\t%s\n\t\t%s\n", k, v)
	}
	return b.String()
}

// A change of the context is explained by the file that changed and how.
func TestWhyFilesOfTheContext(t *testing.T) {
	w := newWorld(t)
	w.write("src/a", "a", "src/b", "b", "src/sub/c", "c", "other", "o")
	df := from("FROM base\nCOPY src /app\nCOPY other /other\n")
	path := func(p string) string { return filepath.Join(w.dir, p) }
	_, rec := w.ok(df)
	reasons(t, "the first build", rec, nil)
	_, rec = w.ok(df)
	reasons(t, "nothing changed", rec, nil)
	const next = "[1/3] COPY src /app before it gave something else"
	for _, c := range []struct {
		what   string
		change func()
		reason string
	}{
		{"content", func() { w.write("src/sub/c", "C") }, "file: src/sub/c changed (content)"},
		{"mode", func() { must(t, os.Chmod(path("src/a"), 0o755)) }, "file: src/a changed (mode 644 → 755)"},
		{"added", func() { w.write("src/new", "n") }, "file: src/new was added"},
		{"added with its directory", func() { w.write("src/dir/deep/x", "x") }, "file: src/dir/deep/x was added"},
		{"removed", func() { must(t, os.Remove(path("src/new"))) }, "file: src/new was removed"},
		{"type", func() { must(t, os.Remove(path("src/b"))); must(t, os.Symlink("a", path("src/b"))) }, "file: src/b changed (file → symlink)"},
		{"target", func() { must(t, os.Remove(path("src/b"))); must(t, os.Symlink("c", path("src/b"))) }, "file: src/b changed (target)"},
		{"attribute", func() {
			if err := unix.Setxattr(path("src/a"), "user.x", []byte("1"), 0); err != nil {
				testenv.Skip(t, "extended attributes: "+err.Error())
			}
		}, "file: src/a changed (extended attributes)"},
		{"several", func() { w.write("src/a", "1", "src/sub/c", "2", "src/z", "3") }, "file: src/a changed (content), and 2 more"},
	} {
		c.change()
		_, rec := w.ok(df)
		want := map[string]string{"COPY src /app": c.reason, "COPY other /other": "step: " + next}
		reasons(t, c.what, rec, want)
	}
	if os.Getuid() == 0 {
		w.write("Dockerfile.tar", "FROM base\nADD x.tar /\n")
		tarOf := func(uid int) { // a context has no owners, an archive has
			must(t, os.WriteFile(path("x.tar"), []byte(ownedTar(t, uid)), 0o644))
		}
		add := func(o *Options) { o.Dockerfile = path("Dockerfile.tar") }
		tarOf(1)
		w.ok(add)
		tarOf(2)
		_, rec = w.ok(add)
		reasons(t, "owner", rec, map[string]string{"ADD x.tar /": "file: /owned changed (owner 1:1 → 2:2)"})
	}
}

// What the command line and the Dockerfile say is explained by what they say.
func TestWhyInstructions(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f1", "same", "f2", "same")
	base := func(v map[string]string) mod {
		df := `
			FROM base
			ARG V=1
			ARG DB_PASSWORD
			COPY{copy} f$V /f
			ENV E={env}
			{user}
			RUN{flags} {cmd}
		`
		for _, k := range []string{"copy", "env", "user", "flags", "cmd"} {
			val := v[k]
			if val == "" {
				val = map[string]string{"env": "1", "cmd": "true"}[k]
			}
			df = strings.ReplaceAll(df, "{"+k+"}", val)
		}
		return from(df)
	}
	none := map[string]string{}
	with := func(k, v string) map[string]string { return map[string]string{k: v} }
	const run, cp, cp2 = "RUN true", "COPY f1 /f", "COPY f2 /f"
	w.ok(base(none))
	for _, c := range []struct {
		what string
		mods []mod
		want map[string]string
	}{
		{"environment", []mod{base(with("env", "2"))}, map[string]string{run: `environment: ENV E is "2", was "1"`}},
		{"argument", []mod{base(none), arg("V", "2")}, map[string]string{
			run: `argument: build argument V is "2", was "1"`, cp2: "argument: $V in it changed, was: COPY f1 /f",
		}},
		{"secret argument", []mod{base(none), arg("DB_PASSWORD", "hunter2")}, map[string]string{run: "argument: build argument DB_PASSWORD is new"}},
		{"text", []mod{base(with("cmd", "true one"))}, map[string]string{"RUN true one": "instruction: its text changed, was: RUN true"}},
		{"user", []mod{base(with("user", "USER 7"))}, map[string]string{run: `setting: USER is "7", was not set`}},
		{"directory", []mod{base(with("user", "WORKDIR /tmp"))}, map[string]string{run: `setting: working directory is "/tmp", was "/"`}},
		{"shell", []mod{base(with("user", `SHELL ["/bin/sh", "-xc"]`))}, map[string]string{run: "instruction: the SHELL that its command is for changed"}},
		{"network", []mod{base(none), func(o *Options) { o.Network = "none" }}, map[string]string{run: `setting: --network is "none", was "default"`}},
		{"shm", []mod{base(none), func(o *Options) { o.ShmSize = 1 << 20 }}, map[string]string{run: `setting: --shm-size is "1048576", was not set`}},
		{"host", []mod{base(none), func(o *Options) { o.AddHosts = []Host{{"db", netip.MustParseAddr("10.0.0.1")}} }}, map[string]string{run: "setting: --add-host db is new"}},
		{"chmod", []mod{base(with("copy", " --chmod=600"))}, map[string]string{
			"COPY --chmod=600 f1 /f": `flag: --chmod is "600", was not set`,
			run:                      "step: [1/3] COPY --chmod=600 f1 /f before it gave something else",
		}},
		{"mount", []mod{base(with("flags", " --mount=type=tmpfs,target=/t"))}, map[string]string{"RUN --mount=type=tmpfs,target=/t true": "mount: the mount /t is new"}},
		{"no cache", []mod{base(none), noCache}, map[string]string{run: "no-cache: --no-cache was given", cp: "no-cache: --no-cache was given"}},
		{"no cache of a stage", []mod{base(none), func(o *Options) { o.NoCacheStages = []string{"stage-0"} }}, map[string]string{}}, // it has no name
	} {
		_, rec := w.ok(c.mods...)
		reasons(t, c.what, rec, c.want)
		if strings.Contains(fmt.Sprint(rec.because), "hunter2") {
			t.Errorf("%s: the value of a secret is shown: %v", c.what, rec.because)
		}
		w.ok(base(none)) // back: the next change is one from here
	}
}

// Here-documents, bases, platforms, stages, mounts, downloads and collected records have their own words.
func TestWhySources(t *testing.T) {
	needIDs(t)
	t.Run("here-document", func(t *testing.T) {
		w := newWorld(t)
		df := func(doc string) mod {
			return from("FROM base\nRUN <<EOF\n" + doc + "\nEOF\nCOPY <<f /f\n" + doc + "\nf\n")
		}
		w.ok(df("true one"))
		_, rec := w.ok(df("true two"))
		if len(rec.because) != 2 {
			t.Errorf("reasons: %v", rec.because)
		}
		for step, b := range rec.because {
			if b.Kind != string(explain.Instruction) {
				t.Errorf("%s: %+v", step, b)
			}
		}
	})
	t.Run("stage and mount", func(t *testing.T) {
		w := newWorld(t)
		w.write("f", "1", "d/x", "1")
		df := from(`
			FROM base AS make
			COPY f /in
			RUN cp /in /out; mkdir /d; cp /in /d/y
			FROM base AS a
			COPY --from=make /out /o
			FROM base AS b
			RUN --mount=from=make,source=/d,target=/m true
			RUN --mount=source=d,target=/c true
			FROM scratch
			COPY --from=a /o /o
			COPY --from=b /etc/passwd /p
		`)
		w.ok(df)
		w.write("f", "2")
		_, rec := w.ok(df)
		reasons(t, "stage", rec, map[string]string{
			"COPY f /in":                                     "file: f changed (content)",
			"RUN cp /in /out; mkdir /d; cp /in /d/y":         "step: [make 1/3] COPY f /in before it gave something else",
			"COPY --from=make /out /o":                       "file: /out of stage make changed (content)",
			"RUN --mount=from=make,source=/d,target=/m true": "mount: /d/y of stage make changed (content), mounted at /m",
			"COPY --from=a /o /o":                            "file: /o of stage a changed (content)",
			"COPY --from=b /etc/passwd /p":                   "step: [stage-3 1/2] COPY --from=a /o /o before it gave something else",
		})
		w.write("d/x", "2")
		_, rec = w.ok(df)
		reasons(t, "context", rec, map[string]string{"RUN --mount=source=d,target=/c true": "mount: d/x changed (content), mounted at /c"})
	})
	t.Run("base", func(t *testing.T) {
		w := newWorld(t)
		w.write("f", "f")
		make := func(what string) mod {
			dest := filepath.Join(w.tmp, what)
			w.ok(from("FROM base\nRUN echo "+what+" > /what\n"), output(Output{Type: OutputOCI, Dest: dest, OCIMediaTypes: true}))
			return named("mine", "oci-layout://"+dest)
		}
		one, two := make("one"), make("two")
		df := from("FROM mine\nRUN cat /what\nCOPY --link f /f\n")
		w.ok(one, df)
		_, rec := w.ok(two, from("FROM mine\nRUN cat /what\nCOPY --link f /f\n"))
		b := rec.because["RUN cat /what"]
		if len(rec.because) != 1 || b.Kind != string(explain.Base) || !strings.Contains(b.Text, "base image") || !strings.Contains(b.Text, "one") || !strings.Contains(b.Text, "two") {
			t.Errorf("reasons: %v", rec.because)
		}
	})
	t.Run("platform", func(t *testing.T) {
		w := newWorld(t)
		w.write("f", "f")
		build := func(base string, p ...ocispec.Platform) *recorder {
			_, rec := w.ok(from("FROM mine\nCOPY f /f\n"), named("mine", "oci-layout://"+testenv.Base(t, base)), platformsOfBuild(p...))
			return rec
		}
		build("busybox", hostPlatform())
		reasons(t, "platform", build("busybox-arm64", linuxARM64), map[string]string{"COPY f /f": "platform: it is for linux/arm64, was for linux/amd64"})
	})
	t.Run("download", func(t *testing.T) {
		w := newWorld(t)
		var n atomic.Int32
		n.Store(1)
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, n.Load()) }))
		defer srv.Close()
		online := func(o *Options) { o.Store.Offline = false }
		df := "FROM base\nADD " + srv.URL + "/f /f\n"
		w.ok(from(df), online)
		n.Add(1)
		_, rec := w.ok(from(df), online)
		reasons(t, "download", rec, map[string]string{"ADD " + srv.URL + "/f /f": "remote: " + srv.URL + "/f changed"})
	})
}

// A record or a layer that was collected is the reason, although nothing changed.
func TestWhyEvicted(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	df := from("FROM base\nCOPY f /f\n")
	build := func(more ...mod) *recorder { _, rec := w.ok(append(more, df)...); return rec }
	build(nowhere)
	for file := range w.records(t) {
		must(t, os.Remove(file))
	}
	reasons(t, "records", build(nowhere), map[string]string{"COPY f /f": "evicted: its record was evicted from the cache"})
	build()
	var layer string
	for _, r := range w.records(t) {
		layer = string(r.Layers[len(r.Layers)-1])
	}
	for _, pattern := range []string{"layer/*/" + layer, "index/*/" + layer, "blobs/sha256/" + strings.TrimPrefix(layer, "sha256:")} {
		files, _ := filepath.Glob(filepath.Join(w.root, pattern))
		for _, f := range files {
			must(t, os.Remove(f))
		}
	}
	reasons(t, "layer", build(), map[string]string{"COPY f /f": "evicted: the layer it made was evicted from the cache"})
	reasons(t, "nothing", build(), nil)
}

// Steps that came, went and moved.
func TestWhyStepsMove(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	df := func(cmds ...string) mod {
		text := "FROM base\n"
		for _, c := range cmds {
			text += "RUN echo " + c + " > /" + c + "\n"
		}
		return from(text)
	}
	w.ok(df("a", "c"))
	_, rec := w.ok(df("a", "b", "c"))
	reasons(t, "inserted", rec, map[string]string{"RUN echo c > /c": "step: [2/4] RUN echo b > /b is new before it"})
	w.ok(df("x", "a", "b", "c"))
	_, rec = w.ok(df("b", "c"))
	if k := rec.because["RUN echo b > /b"].Kind; k != string(explain.Step) {
		t.Errorf("removed: %v", rec.because)
	}
}

// Two projects with the same lines say nothing about each other; a project that moved is still itself.
func TestWhyTwoProjects(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	one, two, moved := w.dir+"/one", w.dir+"/two", w.dir+"/moved"
	w.write("one/a", "1", "one/b", "1", "one/c", "1", "two/x", "1", "two/y", "1", "two/z", "1")
	w.write("moved/a", "1", "moved/b", "1", "moved/c", "2")
	in := func(dir string) mod { return func(o *Options) { o.Context = dir } }
	df := "FROM base\nCOPY . .\nRUN ls\n"
	w.ok(in(one), from(df))
	_, rec := w.ok(in(two), from(df))
	reasons(t, "another project", rec, nil)
	_, rec = w.ok(in(moved), from(df))
	reasons(t, "the same project elsewhere", rec, map[string]string{
		"COPY . .": "file: c changed (content)", "RUN ls": "step: [1/3] COPY . . before it gave something else",
	})
}

// ownedTar is an archive of one file that belongs to a user.
func ownedTar(t testing.TB, uid int) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(t, tw.WriteHeader(&tar.Header{Name: "owned", Typeflag: tar.TypeReg, Mode: 0o644, Uid: uid, Gid: uid}))
	must(t, tw.Close())
	return b.String()
}
