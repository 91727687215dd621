package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"

	"build/internal/emulator"
	"build/internal/testenv"
)

// warned lists the warnings that hold a word.
func (r *recorder) warned(word string) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.warnings {
		if strings.Contains(w, word) {
			out = append(out, w)
		}
	}
	return out
}

func named(pairs ...string) mod {
	return func(o *Options) {
		for i := 0; i < len(pairs); i += 2 {
			o.NamedContexts = append(o.NamedContexts, KeyValue{pairs[i], pairs[i+1]})
		}
	}
}

func everywhere(o *Options) { o.IgnoreEverywhere = true }

func exists(t *testing.T, path string, want bool) {
	t.Helper()
	if _, err := os.Lstat(path); (err == nil) != want {
		t.Errorf("%s: %v, wanted to be there: %v", path, err, want)
	}
}

// S79: ignore files apply to local directories. To every other context they apply when asked to, and otherwise one warning names the
// first file they would have left out.
func TestS79IgnoreFilesOfOtherContexts(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	files := []string{
		"Dockerfile", "FROM scratch\nCOPY . /\n", ".dockerignore", "dir\nz\n", "a", "1", "dir/secret", "2", "dir/sub/more", "2", "z", "3",
		"other.df", "FROM scratch\nCOPY . /\n", "other.df.dockerignore", "a\n",
	}
	repo, _ := p.repo(t, "r", files...)
	tgz := tarball(t, files...)
	stdin := func(o *Options) { o.Context, o.Stdin = "-", strings.NewReader(tgz) }
	other := func(o *Options) { o.Dockerfile = "other.df" }
	for name, where := range map[string]mod{
		"git":       contextAt(repo),
		"http":      contextAt(p.put(t, "c.tgz", tgz)),
		"stdin":     stdin,
		"named git": func(o *Options) { from("FROM scratch\nCOPY --from=g . /\n")(o); named("g", repo)(o) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, rec := w.out(where)
			has(t, dir+"/dir/secret", "2")
			if list := rec.warned(".dockerignore"); len(list) != 1 || !strings.Contains(list[0], "dir/secret") || !strings.Contains(list[0], "--ignore-everywhere") {
				t.Errorf("warnings: %q", list)
			}
			dir, rec = w.out(where, everywhere)
			has(t, dir+"/a", "1")
			exists(t, dir+"/dir", false)
			exists(t, dir+"/z", false)
			if list := rec.warned(".dockerignore"); len(list) != 0 {
				t.Errorf("warnings: %q", list)
			}
			if name == "named git" {
				return
			}
			// S77: the file of the Dockerfile replaces the other.
			dir, rec = w.out(where, other)
			has(t, dir+"/a", "1")
			if list := rec.warned("other.df.dockerignore"); len(list) != 1 || !strings.Contains(list[0], ": a is part of it") {
				t.Errorf("warnings: %q", list)
			}
			dir, _ = w.out(where, other, everywhere)
			exists(t, dir+"/a", false)
			has(t, dir+"/z", "3")
		})
	}
	if _, rec := w.out(contextAt(repo+"#:dir"), func(o *Options) { o.Dockerfile = p.put(t, "df", "FROM scratch\nCOPY . /\n") }); len(rec.warned("ignore")) != 0 {
		t.Errorf("warned without an ignore file: %q", rec.warned("ignore"))
	}
	bad, _ := p.repo(t, "bad", "Dockerfile", "FROM scratch\nCOPY . /\n", ".dockerignore", "!\n")
	if _, rec := w.out(contextAt(bad)); len(rec.warned("not valid")) != 1 {
		t.Errorf("rules that are not valid: %q", rec.warned(""))
	}
	w.fails(ExitUsage, []string{"illegal exclusion pattern"}, online, contextAt(bad), everywhere)
}

// Named contexts that are local directories have their own ignore file, always.
func TestIgnoreFileOfNamedDirectory(t *testing.T) {
	w := newWorld(t)
	w.write("named/.dockerignore", "out\n", "named/in", "1", "named/out", "2", ".dockerignore", "named/in\n")
	dir, rec := w.out(from("FROM scratch\nCOPY --from=d . /\n"), named("d", w.dir+"/named"))
	has(t, dir+"/in", "1")
	exists(t, dir+"/out", false)
	if list := rec.warned("ignore"); len(list) != 0 {
		t.Errorf("warnings: %q", list)
	}
}

// Named contexts that are stages of the file, one of them later than its use. What the stage says about the environment counts as
// that of an image would.
func TestNamedContextTarget(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	df := from(`
		FROM alpine AS app
		RUN echo $WHO > /who
		COPY --from=tools /made /from-tools
		RUN --mount=from=tools,target=/t cat /t/made > /from-mount
		FROM base AS late
		ENV WHO=late
		RUN echo made > /made
		FROM scratch
		COPY --from=app /who /from-tools /from-mount /
	`)
	dir, _ := w.out(df, named("alpine", "target:late", "tools", "target:late"))
	has(t, dir+"/who", "late\n")
	has(t, dir+"/from-tools", "made\n")
	has(t, dir+"/from-mount", "made\n")
	if _, rec := w.out(df, named("alpine", "target:late", "tools", "target:late")); len(rec.ran()) != 0 {
		t.Errorf("ran again: %v", rec.ran())
	}
	w.fails(ExitUsage, []string{"Dockerfile:1", "circular"}, from("FROM alpine AS app\nRUN true\n"), named("alpine", "target:app"))
	w.fails(ExitUsage, []string{`no stage "lat"`, "late"}, df, named("x", "target:lat"))
}

// A stage, a base image and a number: whatever names it is replaced, and of what is replaced nothing is looked up or run.
func TestNamedContextReplaces(t *testing.T) {
	w := newWorld(t)
	w.write("tree/who", "tree")
	df := from(`
		FROM example.com/missing AS old
		RUN false
		FROM scratch
		COPY --from=old /who /by-name
		COPY --from=0 /who /by-number
	`)
	dir, rec := w.out(df, named("old", w.dir+"/tree"))
	has(t, dir+"/by-name", "tree")
	has(t, dir+"/by-number", "tree")
	if got := rec.ran(); len(got) != 2 {
		t.Errorf("ran %v", got)
	}
	layout := "oci-layout://" + testenv.Base(t, "busybox")
	for name, spelled := range map[string]string{
		"alpine": "docker.io/library/alpine:latest", "docker.io/library/alpine:latest": "alpine", "index.docker.io/library/alpine": "alpine:latest",
		"alpine:3": "library/alpine:3",
	} {
		w.ok(from("FROM "+name+"\nRUN true\n"), named(spelled, layout))
	}
	w.fails(ExitNetwork, []string{"alpine:3"}, from("FROM alpine:3\nRUN true\n"), named("alpine", layout)) // another tag is another image
	w.fails(ExitUsage, []string{"neither a directory nor an image"}, from("FROM scratch\n"), named("unused", w.dir+"/missing"))
	dir, _ = w.out(from("FROM nothing\nCOPY tree/who /\n"), named("nothing", "docker-image://scratch"))
	has(t, dir+"/who", "tree")
}

// 2.30: a named context of one platform stands for that platform alone.
func TestNamedContextOfPlatform(t *testing.T) {
	w := newWorld(t)
	w.write("amd/f", "amd64", "arm/f", "arm64", "any/f", "any")
	dest := w.tmp + "/out"
	w.ok(from("FROM scratch\nCOPY --from=src /f /f\n"), named("src::linux/amd64", w.dir+"/amd", "src::linux/arm64", w.dir+"/arm", "src", w.dir+"/any"),
		platformsOfBuild(platforms.MustParse("linux/amd64"), platforms.MustParse("linux/arm64"), platforms.MustParse("linux/s390x")),
		output(Output{Type: OutputLocal, Dest: dest}))
	has(t, dest+"/linux_amd64/f", "amd64")
	has(t, dest+"/linux_arm64/f", "arm64")
	has(t, dest+"/linux_s390x/f", "any")
}

// Image archives are told by their content, compressed or not, and read under the name they were given.
func TestCompressedImageArchive(t *testing.T) {
	w := newWorld(t)
	plain := w.tmp + "/plain.tar"
	w.ok(from("FROM base\nLABEL a=b\n"), ociTo(plain))
	data, err := os.ReadFile(plain)
	must(t, err)
	var z, zst bytes.Buffer
	gz := gzip.NewWriter(&z)
	_, err = gz.Write(data)
	must(t, err)
	must(t, gz.Close())
	zw, err := zstd.NewWriter(&zst)
	must(t, err)
	_, err = zw.Write(data)
	must(t, err)
	must(t, zw.Close())
	df := from("FROM arch\nRUN echo x > /x\n")
	want, _ := w.ok(df, named("arch", plain))
	for name, content := range map[string][]byte{"a.bin": z.Bytes(), "b.bin": zst.Bytes()} {
		file := w.tmp + "/" + name
		must(t, os.WriteFile(file, content, 0o644))
		res, rec := w.ok(df, named("arch", file))
		if res.Digest != want.Digest || len(rec.ran()) != 0 {
			t.Errorf("%s: %s instead of %s, ran %v", name, res.Digest, want.Digest, rec.ran())
		}
		must(t, os.WriteFile(file, content[:len(content)/2], 0o644))
		w.fails(ExitUsage, []string{file}, df, named("arch", file))
	}
	file := w.tmp + "/no-image.gz"
	z.Reset()
	gz = gzip.NewWriter(&z)
	_, err = gz.Write([]byte("hello"))
	must(t, err)
	must(t, gz.Close())
	must(t, os.WriteFile(file, z.Bytes(), 0o644))
	w.fails(ExitUsage, []string{file}, df, named("arch", file))
}

// 1.117: the time of a named context or of a stage that is one remote source.
func TestEpochOfSources(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	repo, _ := p.repo(t, "r", "a", "1")
	file := p.put(t, "f.txt", "x")
	w.write("Dockerfile", "FROM base AS run\nARG SOURCE_DATE_EPOCH\nRUN echo ${SOURCE_DATE_EPOCH:-unset} > /e\nFROM scratch\nCOPY --from=run /e /e\n")
	stage := func(add string) mod {
		return from("FROM scratch AS src\nADD " + add + " /\nFROM base AS run\nARG SOURCE_DATE_EPOCH\nRUN echo ${SOURCE_DATE_EPOCH:-unset} > /e\nFROM scratch\nCOPY --from=run /e /e\n")
	}
	tgz := tarball(t, "x", "y")
	for name, c := range map[string]struct {
		mods []mod
		want string
	}{
		"named git":       {[]mod{named("src", repo)}, "1600000000\n"},
		"named file":      {[]mod{named("src", file)}, "1700000000\n"},
		"named directory": {[]mod{named("src", w.dir)}, "unset\n"},
		"named image":     {[]mod{named("src", "docker-image://scratch")}, "unset\n"},
		"stage git":       {[]mod{stage(repo)}, "1600000000\n"},
		"stage file":      {[]mod{stage(file)}, "1700000000\n"},
		"stage target":    {[]mod{stage(file), named("other", "target:src"), arg("SOURCE_DATE_EPOCH", "other")}, "1700000000\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := w.out(append([]mod{arg("SOURCE_DATE_EPOCH", "src")}, c.mods...)...)
			has(t, dir+"/e", c.want)
		})
	}
	// Without Last-Modified the newest file of an archive decides.
	p.untimed = true
	dir, _ := w.out(stage(p.put(t, "c.tgz", tgz)), arg("SOURCE_DATE_EPOCH", "src"))
	has(t, dir+"/e", "0\n")
	dir, _ = w.out(stage(p.put(t, "g.txt", "z")), arg("SOURCE_DATE_EPOCH", "src"))
	has(t, dir+"/e", "unset\n")
	// And of a tar on standard input: its newest file is from 1970.
	dir, _ = w.out(func(o *Options) {
		o.Context, o.Stdin = "-", strings.NewReader(tarball(t, "Dockerfile", "FROM base AS run\nARG SOURCE_DATE_EPOCH\nRUN echo ${SOURCE_DATE_EPOCH:-unset} > /e\nFROM scratch\nCOPY --from=run /e /e\n"))
	}, arg("SOURCE_DATE_EPOCH", "context"))
	has(t, dir+"/e", "0\n")
	w.fails(ExitUsage, []string{"neither a number"}, online, arg("SOURCE_DATE_EPOCH", "nobody"))
}

// A RUN whose base is for another machine ends the build before anything is done, unless that is not so by its own account or the
// kernel executes such programs.
func TestForeignRun(t *testing.T) {
	w := newWorld(t)
	arm := platforms.MustParse("linux/arm64")
	if emulator.Executes("arm64") {
		t.Skip("this machine executes programs for arm64")
	}
	foreign, liar := w.tmp+"/foreign", w.tmp+"/liar"
	w.write("sh", string(emulator.Program("arm64")), "script", "#!/bin/sh -e\n")
	must(t, os.Chmod(w.dir+"/script", 0o755))
	w.ok(from("FROM scratch\nCOPY --chmod=755 sh /usr/bin/sh\nADD "+filepath.Base(symlinkTar(t, w.dir))+" /\nCOPY script /usr/bin/\n"), platformsOfBuild(arm),
		output(Output{Type: OutputOCI, Dest: foreign, OCIMediaTypes: true}))
	w.ok(from("FROM base AS x\nFROM scratch\nCOPY --from=x / /\n"), platformsOfBuild(arm), output(Output{Type: OutputOCI, Dest: liar, OCIMediaTypes: true}))
	w.fails(ExitEnvironment, []string{"Dockerfile:4", "linux/arm64", "emulator"}, platformsOfBuild(arm), named("foreign", "oci-layout://"+foreign), from(`
		FROM --platform=$BUILDPLATFORM base AS build
		RUN echo must not run
		FROM foreign
		RUN echo hi
		COPY --from=build /f /f
	`))
	if _, rec, err := w.build(platformsOfBuild(arm), named("foreign", "oci-layout://"+foreign), from("FROM foreign\nWORKDIR /x\nRUN echo hi\n")); err == nil || len(rec.ran()) != 0 {
		t.Errorf("%v, ran %v", err, rec.ran())
	}
	// Nothing of it runs.
	w.ok(platformsOfBuild(arm), named("foreign", "oci-layout://"+foreign), from("FROM foreign\nWORKDIR /x\nENV a=b\n"))
	for _, run := range []string{`["script"]`, `["sh", "-c", "true"]`, "--mount=type=tmpfs,target=/t true"} {
		w.fails(ExitEnvironment, []string{"linux/arm64"}, platformsOfBuild(arm), named("foreign", "oci-layout://"+foreign), from("FROM foreign\nENV PATH=/usr/bin\nRUN "+run+"\n"))
	}
	// One that calls itself what it is not is executed, as the kernel does it.
	w.ok(platformsOfBuild(arm), named("liar", "oci-layout://"+liar), from("FROM liar\nWORKDIR /x\nRUN echo hi\n"))
	// "base" is for this machine, whatever is asked for.
	w.ok(platformsOfBuild(arm), from("FROM base\nRUN echo hi\n"))
	if runtime.GOARCH == "amd64" && emulator.Executes("386") {
		w.ok(platformsOfBuild(platforms.MustParse("linux/386")), from("FROM base\nRUN echo hi\n"))
	}
}

// A download that was damaged on the disk is fetched again.
func TestDamagedDownload(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	url := p.put(t, "f", "good")
	w.out(from("FROM scratch\nADD " + url + " /a\n"))
	files, err := filepath.Glob(w.root + "/http/sha256-*")
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	must(t, os.WriteFile(files[0], []byte("evil"), 0o600))
	dir, rec := w.out(from("FROM scratch\nADD " + url + " /b\n"))
	has(t, dir+"/b", "good")
	if len(rec.warned("starting over")) != 1 || p.sent["/f"] != 2 {
		t.Errorf("%q, sent %v", rec.warned(""), p.sent)
	}
}

// symlinkTar makes an archive with the link /bin -> usr/bin in the context.
func symlinkTar(t *testing.T, dir string) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	must(t, tw.WriteHeader(&tar.Header{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777}))
	must(t, tw.Close())
	file := filepath.Join(dir, "links.tar")
	must(t, os.WriteFile(file, b.Bytes(), 0o644))
	return file
}
