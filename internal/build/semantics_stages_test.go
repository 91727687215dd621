package build

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/progress"
	"build/internal/testenv"
)

// Of the statements about stages and the environment these are the ones that a graph does not show: what is done, by whom
// and where. The others are testdata/dockerfiles/S29 to S57.

// configured is a layout with busybox and another configuration.
func (w *world) configured(edit func(*ocispec.ImageConfig)) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.tmp, "layout-")
	must(w.t, err)
	must(w.t, os.CopyFS(dir, os.DirFS(testenv.Base(w.t, "busybox"))))
	blobs := filepath.Join(dir, "blobs/sha256")
	read := func(file string, v any) {
		w.t.Helper()
		b, err := os.ReadFile(file)
		must(w.t, err)
		must(w.t, json.Unmarshal(b, v))
	}
	put := func(d *ocispec.Descriptor, v any) {
		w.t.Helper()
		b, err := json.Marshal(v)
		must(w.t, err)
		d.Digest, d.Size = digest.FromBytes(b), int64(len(b))
		must(w.t, os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), b, 0o644))
	}
	var index ocispec.Index
	var m ocispec.Manifest
	var image ocispec.Image
	read(filepath.Join(dir, "index.json"), &index)
	read(filepath.Join(blobs, index.Manifests[0].Digest.Encoded()), &m)
	read(filepath.Join(blobs, m.Config.Digest.Encoded()), &image)
	edit(&image.Config)
	put(&m.Config, image)
	put(&index.Manifests[0], m)
	b, err := json.Marshal(index)
	must(w.t, err)
	must(w.t, os.WriteFile(filepath.Join(dir, "index.json"), b, 0o644))
	return "oci-layout://" + dir
}

func TestSemanticsStages(t *testing.T) {
	all := newParallel(t)

	// Unreached stages are never executed, pulled or resolved: a broken unused stage must not fail the build (except under
	// --check, which evaluates all).
	t.Run("S34", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "f")
		df := from(`
			FROM missing.example/never:1 AS broken
			RUN exit 3
			FROM base AS failing
			COPY nothing /
			COPY --from=missing.example/neither:1 / /
			RUN exit 4
			FROM scratch
			COPY f /
		`)
		root, rec := w.rootfsOf(df)
		root.only(t, "f")
		wantRan(t, "only the target", rec, "COPY f /")
		for _, name := range rec.names {
			if strings.Contains(name, "missing.example") || strings.Contains(name, "FROM") {
				t.Errorf("%q was looked at", name)
			}
		}
		report, err := Inspect(t.Context(), w.options(progress.Discard, df), Inspection{Call: CallCheck})
		must(t, err)
		if err := report.Failure(); err == nil || !strings.Contains(err.Error(), "missing.example/") {
			t.Errorf("a check does not look at all stages: %v", err)
		}
	})

	// A name is resolved: named build context, then earlier stage, then image.
	t.Run("S30", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("stage/who", "the stage", "context/who", "the context")
		df := from("FROM scratch AS a\nCOPY stage /\nFROM a AS busybox\nCOPY --from=a / /copied/\nFROM busybox\n")
		w.rootfs(df).has(t, "who", "the stage", "copied/who", "the stage")
		w.rootfs(df, named("a", w.dir+"/context")).has(t, "who", "the context", "copied/who", "the context")
	})

	// FROM of an image without PATH gets the default PATH added to the config.
	t.Run("S40", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		app := named("app", w.configured(func(c *ocispec.ImageConfig) { c.Env = []string{"A=b"} }))
		dest := filepath.Join(w.dir, "out.tar")
		_, rec := w.ok(from("FROM app\nRUN echo \"PATH=$PATH\"\n"), app, ociTo(dest))
		const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
		if got := rec.log("RUN"); got != path+"\n" {
			t.Errorf("RUN has %q", got)
		}
		if env := readArchive(t, dest).config.Config.Env; !slices.Equal(env, []string{"A=b", path}) {
			t.Errorf("the image has %q", env)
		}
	})

	// The base image's WorkingDir is used but not created; only a WORKDIR instruction creates directories.
	t.Run("S41", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("f", "f")
		app := named("app", w.configured(func(c *ocispec.ImageConfig) { c.WorkingDir = "/srv/app" }))
		w.rootfs(from("FROM app\nCOPY f /f\n"), app).is(t, "f", "f 0644 0:0 =f", "srv", "", "srv/app", "")
		w.rootfs(from("FROM app\nCOPY f sub/f\n"), app).is(t, "srv/app/sub/f", "f 0644 0:0 =f")
		w.rootfs(from("FROM app\nUSER 5:6\nWORKDIR sub\n"), app).is(t, "srv/app/sub", "d 0755 5:6")
		needIDs(t)
		root := w.rootfs(from("FROM app\nUSER 5:6\nRUN pwd > /tmp/pwd\n"), app) // a command must be somewhere: this makes it
		root.is(t, "tmp/pwd", "f 0644 5:6 =/srv/app\n", "srv/app", "d 0755 5:6")
	})
}

func TestSemanticsWorkdirAndUser(t *testing.T) {
	all := newParallel(t)

	// WORKDIR creates every missing parent 0755 owned by the current USER; an existing directory's owner is left alone.
	t.Run("S42", func(t *testing.T) {
		w := all.inPlace(t)
		w.write("etc/passwd", "app:x:77:88::/:\n", "etc/group", "team:x:99:\n", "old/there/f", "")
		w.mode(0o700, "old/there")
		w.symlink("/old", "link")
		root := w.rootfs(from(`
			FROM scratch
			COPY etc /etc
			COPY --chown=1:2 old /old
			COPY --chown=1:2 old /base/old
			WORKDIR /root/only
			USER app
			WORKDIR /by/name
			USER app:team
			WORKDIR /by/group
			USER 5
			WORKDIR /by-number/new
			WORKDIR /old/there
			WORKDIR /base/old/there/new
		`))
		root.is(t, "root", "d 0755 0:0", "root/only", "d 0755 0:0", "by", "d 0755 77:88", "by/name", "d 0755 77:88", "by/group", "d 0755 77:99",
			"by-number", "d 0755 5:5", "by-number/new", "d 0755 5:5", "old/there", "d 0700 1:2", "base/old/there", "d 0700 1:2", "base/old/there/new", "d 0755 5:5")
	})

	// Every WORKDIR other than / adds a layer to the history (empty_layer false), even if the directory already exists;
	// WORKDIR / is an empty layer.
	t.Run("S43", func(t *testing.T) {
		w := all.inPlace(t)
		dest := filepath.Join(w.dir, "out.tar")
		w.ok(from("FROM scratch\nWORKDIR /a\nWORKDIR /a\nWORKDIR /\nWORKDIR /a/..\n"), ociTo(dest))
		a := readArchive(t, dest)
		var got []string
		for _, h := range a.config.History {
			word := h.CreatedBy
			if h.EmptyLayer {
				word += " (empty)"
			}
			got = append(got, word)
		}
		if want := []string{"WORKDIR /a", "WORKDIR /a", "WORKDIR / (empty)", "WORKDIR /a/.."}; !slices.Equal(got, want) {
			t.Errorf("history %q, want %q", got, want)
		}
		if len(a.manifest.Layers) != 3 {
			t.Errorf("%d layers", len(a.manifest.Layers))
		}
	})

	// USER u:g gives only group g; supplementary groups apply only when no group is given.
	t.Run("S46", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		w.write("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:77:88::/:/bin/sh\n", "etc/group", "root:x:0:\nown:x:88:\nteam:x:99:app\nmore:x:100:other,app\nlone:x:101:\n")
		_, rec := w.ok(from(`
			FROM base
			COPY etc /etc
			USER app
			RUN echo name $(id -u):$(id -g) $(id -G)
			USER app:lone
			RUN echo group $(id -u):$(id -g) $(id -G)
			USER app:team
			RUN echo member $(id -u):$(id -g) $(id -G)
			USER 77
			RUN echo number $(id -u):$(id -g) $(id -G)
			USER 77:5
			RUN echo numbers $(id -u):$(id -g) $(id -G)
			USER 1234
			RUN echo unknown $(id -u):$(id -g) $(id -G)
		`))
		for step, want := range map[string]string{
			"echo name": "name 77:88 88 99 100", "echo group": "group 77:101 101", "echo member": "member 77:99 99",
			"echo number ": "number 77:88 88 99 100", "echo numbers": "numbers 77:5 5", "echo unknown": "unknown 1234:0 0",
		} {
			if got := strings.TrimSpace(rec.log(step)); got != want {
				t.Errorf("%s: %q, want %q", step, got, want)
			}
		}
	})

	// RUN after VOLUME keeps its changes (the legacy builder discarded them); VOLUME creates no directory and no layer.
	t.Run("S47", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		dest := filepath.Join(w.dir, "out.tar")
		w.ok(from("FROM base\nVOLUME /made /never\nRUN test ! -e /made && mkdir /made && echo kept > /made/f\n"), ociTo(dest))
		a := readArchive(t, dest)
		if n := len(a.manifest.Layers); n != 2 {
			t.Errorf("%d layers, want that of the base and that of RUN", n)
		}
		if v := a.config.Config.Volumes; len(v) != 2 {
			t.Errorf("volumes %v", v)
		}
		if made := a.entries(t, len(a.manifest.Layers)-1); made["made/f"] == "" || made["never"] != "" || made["never/"] != "" {
			t.Errorf("the layer of RUN has %q", made)
		}
	})

	// ENV and ARG of the same name: the later instruction wins for following RUNs. The reference says ENV always overrides;
	// BuildKit applies them in order, so ARG after ENV wins when it has a value.
	t.Run("S48", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		_, rec := w.ok(from(`
			FROM base
			ENV A=env B=env
			ARG A=arg B
			RUN echo "first $A $B"
			ENV A=again
			RUN echo "second $A $B"
		`))
		for step, want := range map[string]string{"first": "first arg env\n", "second": "second again env\n"} {
			if got := rec.log(step); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		if w := rec.warned("ARG A replaces the ENV of the same name"); len(w) != 1 || len(rec.warnings) != 1 {
			t.Errorf("warnings %q", rec.warnings)
		}
	})

	// ARG A with no value and no build-arg does not define A in RUN's environment; ARG A= defines it empty.
	t.Run("S49", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		df := from("FROM base\nARG NONE\nARG EMPTY=\nRUN echo NONE=${NONE-undefined} EMPTY=${EMPTY-undefined}\n")
		for _, c := range []struct {
			args []string
			want string
		}{{nil, "NONE=undefined EMPTY=\n"}, {[]string{"NONE", ""}, "NONE= EMPTY=\n"}, {[]string{"NONE", "n", "EMPTY", "e"}, "NONE=n EMPTY=e\n"}} {
			_, rec := w.ok(df, arg(c.args...))
			if got := rec.log("RUN"); got != c.want {
				t.Errorf("with %q: %q, want %q", c.args, got, c.want)
			}
		}
	})

	// Secrets mounted as env are masked **** in progress names.
	t.Run("S54", func(t *testing.T) {
		needIDs(t)
		w := all.inPlace(t)
		_, rec := w.ok(from(`
			FROM base
			RUN --mount=type=secret,id=token,env=TOKEN test "$TOKEN" = sesame
		`), secret("token", "sesame"))
		var names []string
		for _, n := range rec.names {
			names = append(names, n)
		}
		// What the shell of the step expands has no value here; the variable's place shows what it is.
		if all := strings.Join(names, "\n"); strings.Contains(all, `= "sesame"`) || !strings.Contains(all, `test "****" = sesame`) {
			t.Errorf("names %q", names)
		}
	})
}
