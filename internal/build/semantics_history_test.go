package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// under is the same world for a subtest, which must fail itself rather than the test it is in.
func (w *world) under(t testing.TB) *world {
	c := *w
	c.t = t
	return &c
}

// blob reads a document of the store.
func (w *world) blob(t testing.TB, d string, v any) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.root, "blobs/sha256", strings.TrimPrefix(d, "sha256:")))
	must(t, err)
	if v != nil {
		must(t, json.Unmarshal(b, v))
	}
	return b
}

// made builds and returns the configuration of the image.
func (w *world) made(mods ...mod) ocispec.Image {
	w.t.Helper()
	res, _ := w.ok(mods...)
	var config ocispec.Image
	w.blob(w.t, res.ConfigDigest, &config)
	return config
}

// files lists what a build put into its result, without the directories.
func (w *world) files(t testing.TB, mods ...mod) []string {
	t.Helper()
	dir, _ := w.out(mods...)
	var out []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			out = append(out, rel)
		}
		return err
	}))
	return out
}

func wantFiles(t testing.TB, got []string, want ...string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

const copyAll = "FROM scratch\nCOPY . /\n"

// The rules of .dockerignore: S76 to S79.
func TestSemanticsIgnore(t *testing.T) {
	w := newParallel(t)
	// `dir` excludes everything below; `!dir/keep` re-includes it and its parents are created as needed; the last matching
	// pattern wins.
	t.Run("S76", func(t *testing.T) {
		w := w.under(t)
		w.write("dir/a", "a", "dir/sub/b", "b", "dir/sub/keep", "k", "dir/keep", "k", "other", "o")
		for _, c := range []struct {
			name, rules string
			want        []string
		}{
			{"a directory and all below", "dir\n", []string{".dockerignore", "other"}},
			{"one is brought back", "dir\n!dir/keep\n", []string{".dockerignore", "dir/keep", "other"}},
			{"from deep below", "dir\n!dir/sub/keep\n", []string{".dockerignore", "dir/sub/keep", "other"}},
			{"the last one wins", "dir\n!dir/keep\ndir/k*\n", []string{".dockerignore", "other"}},
			{"either way", "other\n!other\ndir\n", []string{".dockerignore", "other"}},
			{"an exception before the rule is none", "!dir/keep\ndir\n", []string{".dockerignore", "other"}},
		} {
			w.write(".dockerignore", c.rules)
			t.Run(c.name, func(t *testing.T) { wantFiles(t, w.under(t).files(t, from(copyAll)), c.want...) })
		}
		w.write(".dockerignore", "dir\n!dir/sub/keep\n")
		must(t, os.Chmod(filepath.Join(w.dir, "dir/sub"), 0o751))
		dir, _ := w.out(from(copyAll))
		if fi, err := os.Stat(dir + "/dir/sub"); err != nil || fi.Mode().Perm() != 0o751 {
			t.Errorf("a parent made as needed: %v %v", fi, err)
		}
	})
	// `X.dockerignore` next to Dockerfile `X` replaces (does not merge with) root `.dockerignore`.
	t.Run("S77", func(t *testing.T) {
		w := w.under(t)
		w.clear(t)
		named := func(o *Options) { o.Dockerfile = "docker/X" }
		w.write("a", "a", "b", "b", "docker/X", copyAll, ".dockerignore", "a\ndocker\n", "docker/X.dockerignore", "b\ndocker\n")
		wantFiles(t, w.files(t, named), ".dockerignore", "a")
		w.write("docker/X.dockerignore", "")
		wantFiles(t, w.files(t, named), ".dockerignore", "a", "b", "docker/X", "docker/X.dockerignore")
		must(t, os.Remove(filepath.Join(w.dir, "docker/X.dockerignore")))
		wantFiles(t, w.files(t, named), ".dockerignore", "b")
		w.write("X.dockerignore", "b\n") // not next to the Dockerfile
		wantFiles(t, w.files(t, named), ".dockerignore", "X.dockerignore", "b")
		w.write("Dockerfile", copyAll, "Dockerfile.dockerignore", "Dockerfile*\n") // the default name has one, too
		wantFiles(t, w.files(t), ".dockerignore", "X.dockerignore", "a", "b", "docker/X")
	})
	// Ignoring Dockerfile and .dockerignore is allowed; the build still reads them.
	t.Run("S78", func(t *testing.T) {
		w := w.under(t)
		w.clear(t)
		w.write("Dockerfile", copyAll, "a", "a", "b", "b", ".dockerignore", "Dockerfile\n.dockerignore\nb\n")
		wantFiles(t, w.files(t), "a")
		w.write(".dockerignore", "*\n!a\n")
		wantFiles(t, w.files(t), "a")
		w.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
		w.fails(ExitUsage, []string{"Dockerfile:2", "/Dockerfile", "not found"})
	})
	// .dockerignore is not applied to git, http or stdin-tar contexts.
	t.Run("S79", func(t *testing.T) {
		w := w.under(t)
		in := []string{"Dockerfile", copyAll, ".dockerignore", "a\n", "a", "1", "b", "2"}
		stdin := func(o *Options) { o.Context, o.Stdin = "-", strings.NewReader(plainTar(t, in...)) }
		want := []string{".dockerignore", "Dockerfile", "a", "b"}
		wantFiles(t, w.files(t, stdin), want...)
		p := newPlace(t)
		wantFiles(t, w.files(t, contextAt(p.put(t, "c.tar", plainTar(t, in...)))), want...)
		url, _ := p.repo(t, "ignores", in...)
		wantFiles(t, w.files(t, contextAt(url)), want...)
		_, rec := w.out(contextAt(url)) // more about the warning: TestS79IgnoreFilesOfOtherContexts
		if list := rec.warned(".dockerignore"); len(list) != 1 || !strings.Contains(list[0], "a is part of it") {
			t.Errorf("warnings %q", list)
		}
		// The other side: a named context that is a directory has its own rules.
		w.clear(t)
		w.write("n/.dockerignore", "a\n", "n/a", "1", "n/b", "2")
		named := func(o *Options) { o.NamedContexts = append(o.NamedContexts, KeyValue{"n", w.dir + "/n"}) }
		wantFiles(t, w.files(t, from("FROM scratch\nCOPY --from=n / /\n"), named), ".dockerignore", "b")
	})
}

// clear empties the context.
func (w *world) clear(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(w.dir)
	must(t, err)
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(w.dir, e.Name())))
	}
}

func plainTar(t testing.TB, pairs ...string) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		must(t, tw.WriteHeader(&tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1]))}))
		_, err := io.WriteString(tw, pairs[i+1])
		must(t, err)
	}
	must(t, tw.Close())
	return b.String()
}

// own gives the entries of a history that are not those of busybox.
func own(t testing.TB, w *world, config ocispec.Image) []ocispec.History {
	t.Helper()
	base := w.made(from("FROM base\n"))
	n := len(base.History)
	if len(config.History) < n {
		t.Fatalf("history %v is shorter than that of its base", config.History)
	}
	return config.History[n:]
}

// What history and configuration say: S80 to S84.
func TestSemanticsHistory(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	w.write("a", "a")
	all := from(`
		FROM base
		ARG A=b
		ENV a=b c="d e"
		COPY a b
		ADD --chown=1:2 a /added
		WORKDIR /x
		RUN true
		RUN ["true", "x y"]
		CMD ["a", "b"]
		LABEL a=b l="x y"
		VOLUME /a
		VOLUME ["/v", "/w"]
		USER 1
	`)
	// created_by strings are BuildKit's, and so is the comment of all of them.
	t.Run("S80", func(t *testing.T) {
		w := w.under(t)
		want := []string{
			"- ARG A=b", "- ENV a=b c=d e", "+ COPY a b # buildkit", "+ ADD --chown=1:2 a /added # buildkit", "+ WORKDIR /x",
			"+ RUN |1 A=b /bin/sh -c true # buildkit", "+ RUN |1 A=b true x y # buildkit", `- CMD ["a" "b"]`, "- LABEL a=b l=x y",
			"- VOLUME [/a]", "- VOLUME [/v /w]", "- USER 1",
		}
		config := w.made(all)
		var got []string
		for _, h := range own(t, w, config) {
			mark := "+ "
			if h.EmptyLayer {
				mark = "- "
			}
			if got = append(got, mark+h.CreatedBy); h.Comment != "buildkit.dockerfile.v0" {
				t.Errorf("%s: comment %q", h.CreatedBy, h.Comment)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("history\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if h := own(t, w, w.made(from("FROM base\nRUN echo cmd\n"))); h[0].CreatedBy != "RUN /bin/sh -c echo cmd # buildkit" {
			t.Errorf("without arguments: %q", h[0].CreatedBy)
		}
	})
	// A RUN that changes nothing still makes a non-empty history entry and a (tiny) layer.
	t.Run("S82", func(t *testing.T) {
		w := w.under(t)
		res, _ := w.ok(from("FROM base\nRUN true\nRUN ls /\n"))
		var m ocispec.Manifest
		w.blob(t, res.Digest, &m)
		config := w.made(from("FROM base\nRUN true\nRUN ls /\n"))
		for _, h := range own(t, w, config) {
			if h.EmptyLayer {
				t.Errorf("%q is an empty layer", h.CreatedBy)
			}
		}
		base := w.made(from("FROM base\n"))
		if n := len(m.Layers) - len(base.RootFS.DiffIDs); n != 2 || len(config.RootFS.DiffIDs) != len(m.Layers) {
			t.Fatalf("%d layers for two RUNs, %d in the config, %d in the manifest", n, len(config.RootFS.DiffIDs), len(m.Layers))
		}
		for _, l := range m.Layers[len(base.RootFS.DiffIDs):] {
			if l.Size > 200 {
				t.Errorf("a layer with nothing in it has %d bytes", l.Size)
			}
		}
	})
	// `created` defaults to the last history entry's time; metadata entries borrow the time of the next layer.
	t.Run("S83", func(t *testing.T) {
		w := w.under(t)
		first := "FROM base\nENV a=1\nENV b=2\nCOPY a /early\n"
		before := own(t, w, w.made(from(first)))
		time.Sleep(time.Until(before[2].Created.Add(1100 * time.Millisecond))) // times are whole seconds
		config := w.made(from(first + "LABEL l=1\nRUN true # late\nCMD [\"x\"]\n"))
		h := own(t, w, config)
		if !h[0].Created.Equal(*h[2].Created) || !h[1].Created.Equal(*h[2].Created) || !h[2].Created.Equal(*before[2].Created) {
			t.Errorf("ENV %v and %v, then COPY %v, made at %v", h[0].Created, h[1].Created, h[2].Created, before[2].Created)
		}
		if !h[4].Created.After(*h[2].Created) || !h[5].Created.Equal(*h[4].Created) {
			t.Errorf("COPY %v, RUN %v, CMD %v", h[2].Created, h[4].Created, h[5].Created)
		}
		// As in BuildKit only what comes before the first layer borrows from it; later ones have the time of the one before.
		if !h[3].Created.Equal(*h[2].Created) {
			t.Errorf("LABEL %v between COPY %v and RUN %v", h[3].Created, h[2].Created, h[4].Created)
		}
		if !config.Created.Equal(*h[5].Created) {
			t.Errorf("created %v, the last entry %v", config.Created, h[5].Created)
		}
		base := w.made(from("FROM base\n"))
		alone := w.made(from("FROM base\nENV a=1\n"))
		if last := base.History[len(base.History)-1].Created; !own(t, w, alone)[0].Created.Equal(*last) {
			t.Errorf("without a layer: %v, the base's last entry %v", own(t, w, alone)[0].Created, last)
		}
	})
	// With an epoch, history and created are clamped (only later times lowered), base image entries untouched.
	t.Run("S84", func(t *testing.T) {
		w := w.under(t)
		base := w.made(from("FROM base\n"))
		at := func(sec int64) *time.Time { u := time.Unix(sec, 0).UTC(); return &u }
		check := func(name string, config ocispec.Image, want *time.Time) {
			t.Helper()
			for _, h := range own(t, w, config) {
				if !h.Created.Equal(*want) {
					t.Errorf("%s: %q has %v, want %v", name, h.CreatedBy, h.Created, want)
				}
			}
			if !config.Created.Equal(*want) {
				t.Errorf("%s: created %v, want %v", name, config.Created, want)
			}
			for i, h := range base.History {
				if !config.History[i].Created.Equal(*h.Created) {
					t.Errorf("%s: %v of the base became %v", name, h.Created, config.History[i].Created)
				}
			}
		}
		df := from("FROM base\nENV a=1\nRUN true # S84\nCMD [\"x\"]\n")
		now := own(t, w, w.made(df))[1].Created
		check("a past epoch", w.made(df, epoch(1000000000)), at(1000000000))
		// An epoch of the build is the time of its instructions, whether a cached layer is older or not.
		check("a future epoch", w.made(df, epoch(4102444800)), at(4102444800))
		// That of an output only lowers what is later.
		of := func(sec int64) mod {
			return output(Output{Type: OutputOCI, Tar: true, OCIMediaTypes: true, Dest: w.tmp + "/s84.tar", Epoch: at(sec)})
		}
		w.ok(df, of(1000000000))
		check("a past epoch of the output", readArchive(t, w.tmp+"/s84.tar").config, at(1000000000))
		w.ok(df, of(4102444800))
		check("a future epoch of the output", readArchive(t, w.tmp+"/s84.tar").config, now)
	})
}

// What a result for one platform and for several is: S85 to S87.
func TestSemanticsManifest(t *testing.T) {
	w := newParallel(t)
	w.write("a", "a")
	df := from("FROM scratch\nCOPY a /a\n")
	two := func(o *Options) {
		o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
	}
	// Single-platform output is a plain manifest.
	t.Run("S85", func(t *testing.T) {
		w := w.under(t)
		layout := w.tmp + "/s85"
		res, _ := w.ok(df, output(Output{Type: OutputOCI, Dest: layout, OCIMediaTypes: true}))
		var index ocispec.Index
		b, err := os.ReadFile(layout + "/index.json")
		must(t, err)
		must(t, json.Unmarshal(b, &index))
		if len(index.Manifests) != 1 || index.Manifests[0].MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("the layout has %v", index.Manifests)
		}
		if res.Descriptor.MediaType != ocispec.MediaTypeImageManifest || res.Digest != index.Manifests[0].Digest.String() {
			t.Errorf("the result is %v, the layout has %v", res.Descriptor, index.Manifests)
		}
		// One platform that is asked for is no list either; two are.
		res, _ = w.ok(df, func(o *Options) { o.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "arm64"}} })
		if res.Descriptor.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("for one platform: %v", res.Descriptor)
		}
		res, _ = w.ok(df, two)
		w.blob(t, res.Digest, &index)
		if res.Descriptor.MediaType != ocispec.MediaTypeImageIndex || len(index.Manifests) != 2 {
			t.Errorf("for two platforms: %v with %v", res.Descriptor, index.Manifests)
		}
	})
	// Annotations on index for a single-platform manifest fail. (All levels: TestS86Annotations)
	t.Run("S86", func(t *testing.T) {
		w := w.under(t)
		annotated := func(level Level) mod {
			return func(o *Options) { o.Annotations = []Annotation{{Level: level, Key: "k", Value: "v"}} }
		}
		for _, level := range []Level{OnIndex, OnIndexDescriptor} {
			w.fails(ExitUsage, []string{string(level), "single platform"}, df, annotated(level))
		}
		res, _ := w.ok(df, two, annotated(OnIndex))
		var index ocispec.Index
		if w.blob(t, res.Digest, &index); index.Annotations["k"] != "v" {
			t.Errorf("an index has %v", index.Annotations)
		}
		res, _ = w.ok(df, annotated(OnManifest))
		var m ocispec.Manifest
		if w.blob(t, res.Digest, &m); m.Annotations["k"] != "v" {
			t.Errorf("a manifest has %v", m.Annotations)
		}
	})
	// type=docker refuses multi-platform results.
	t.Run("S87", func(t *testing.T) {
		w := w.under(t)
		to := output(Output{Type: OutputDocker, Dest: w.tmp + "/s87.tar"})
		w.fails(ExitUsage, []string{"docker", "one platform"}, df, two, to)
		if _, err := os.Stat(w.tmp + "/s87.tar"); err == nil {
			t.Error("a refused output was written")
		}
		w.ok(df, to)
	})
}
