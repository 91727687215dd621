package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/testenv"
)

// The files attack_*_test.go are the attacks of docs/security.md that need the whole program: each is carried out with the
// real command, on the real kernel, and would do harm, or show what it must not, to a builder without the defence.

// isolationVar makes the attacks run once for each of several ways of isolating steps: a list, with commas, of values of
// --isolation. Without it they run once, with what the machine allows.
const isolationVar = "BUILD_TEST_ISOLATION"

// attack runs f once for each isolation wanted. What an arena holds of the host must be unharmed afterwards.
func attack(t *testing.T, f func(t *testing.T, a *arena)) {
	t.Helper()
	modes := strings.Split(os.Getenv(isolationVar), ",")
	for _, mode := range modes {
		if mode == "" {
			f(t, newArena(t, ""))
			continue
		}
		t.Run("isolation="+mode, func(t *testing.T) { f(t, newArena(t, mode)) })
	}
}

// arena is one store and one context, with a piece of the host beside them that no build may touch, show or notice.
type arena struct {
	t        *testing.T
	dir      string
	host     string // the piece of the host: a directory
	token    string // the content of files in it
	mode     string // value of --isolation, or nothing
	contexts []string
	env      []string
	files    []*os.File // descriptors the command inherits, from 3 on
}

func newArena(t *testing.T, mode string) *arena {
	t.Helper()
	dir, err := os.MkdirTemp("", "build-attack-")
	check(t, err)
	a := &arena{t: t, dir: dir, host: dir + "/host", token: "token-" + random(), mode: mode}
	t.Cleanup(func() { removeArena(dir) })
	for _, d := range []string{"ctx", "home", "tmp", "host/stub", "host/dir"} {
		check(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"null", "secret", "dir/file", "passwd", "hosts", "resolv.conf", "Dockerfile", ".dockerignore", "memory.limit"} {
		check(t, os.WriteFile(filepath.Join(a.host, f), []byte(a.token+"\n"), 0o644))
	}
	check(t, syscall.Mkfifo(a.host+"/fifo", 0o644))
	before := fingerprint(t, a.host)
	devices := hostDevices(t)
	t.Cleanup(func() {
		after := fingerprint(t, a.host)
		for _, path := range slices.Sorted(maps.Keys(after)) {
			if before[path] != after[path] {
				t.Errorf("%s of the host is now %s, was %q", path, after[path], before[path])
			}
		}
		for path := range before {
			if after[path] == "" {
				t.Errorf("%s of the host is gone", path)
			}
		}
		for path, now := range hostDevices(t) {
			if was := devices[path]; now != was {
				t.Errorf("%s of the host is now %+v, was %+v", path, now, was)
				_ = os.Chown(path, int(was.uid), int(was.gid))
				_ = os.Chmod(path, was.mode.Perm())
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		check(t, err)
		if bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("a mount is left:\n%s", mounts)
		}
	})
	a.contexts = []string{"base=oci-layout://" + testenv.Base(t, "busybox")}
	return a
}

func removeArena(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// fingerprint describes everything below a directory: type, mode, owner, time of the last change of any kind, content.
func fingerprint(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		what := fmt.Sprintf("%v %d:%d ctime %d.%d links %d", info.Mode(), st.Uid, st.Gid, st.Ctim.Sec, st.Ctim.Nsec, st.Nlink)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		out[path] = what
		return nil
	}))
	return out
}

// node is what a step could change of a device.
type node struct {
	mode     fs.FileMode
	uid, gid uint32
}

// hostDevices are those that steps have, too.
func hostDevices(t *testing.T) map[string]node {
	t.Helper()
	out := map[string]node{}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		info, err := os.Stat("/dev/" + name)
		check(t, err)
		st := info.Sys().(*syscall.Stat_t)
		out["/dev/"+name] = node{info.Mode(), st.Uid, st.Gid}
	}
	return out
}

// write puts a file into the context.
func (a *arena) write(path, content string) {
	a.t.Helper()
	path = filepath.Join(a.dir, "ctx", path)
	check(a.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(a.t, os.WriteFile(path, []byte(content), 0o755))
}

// attempt is how long a build may take: what takes longer hangs.
const attempt = 30 * time.Second

// result is how a build ended.
type result struct {
	out  string
	code int
}

// args are those of a build of the context.
func (a *arena) args(args ...string) []string {
	all := []string{"build", "--progress", "plain"}
	if a.mode != "" {
		all = append(all, "--isolation", a.mode)
	}
	for _, c := range a.contexts {
		all = append(all, "--build-context", c)
	}
	return append(all, args...)
}

func (a *arena) command(ctx context.Context, args ...string) *exec.Cmd {
	a.t.Helper()
	bin, err := exec.LookPath("build")
	check(a.t, err)
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Dir = a.dir + "/ctx"
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + a.dir + "/home", "TMPDIR=" + a.dir + "/tmp", "BUILD_ROOT=" + a.dir + "/store",
		testenv.CacheVar + "=" + os.Getenv(testenv.CacheVar),
	}, a.env...)
	cmd.ExtraFiles = a.files
	cmd.WaitDelay = time.Second
	return cmd
}

// run runs a command line of the program and fails the test where it hangs, dies of a signal, panics, or shows the token.
func (a *arena) run(args ...string) result {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), attempt)
	defer cancel()
	cmd := a.command(ctx, args...)
	out, err := cmd.CombinedOutput()
	r := result{out: string(out)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		a.t.Fatalf("hangs: %q\n%s", args, out)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		a.t.Fatal(err)
	}
	if r.code < 0 || r.code == 1 || strings.Contains(r.out, "goroutine ") || strings.Contains(r.out, "report it") {
		a.t.Errorf("%q broke the builder (exit code %d):\n%s", args, r.code, out)
	}
	if strings.Contains(r.out, a.token) {
		a.t.Errorf("%q shows the host's files:\n%s", args, out)
	}
	return r
}

// build builds a Dockerfile with the context.
func (a *arena) build(dockerfile string, args ...string) result {
	a.t.Helper()
	file := filepath.Join(a.dir, "Dockerfile")
	check(a.t, os.WriteFile(file, []byte(dockerfile), 0o644))
	return a.run(append(a.args(args...), "-f", file, a.dir+"/ctx")...)
}

// ok is build for one that must succeed, and in which no attack says that it did: scripts print BREACH then.
func (a *arena) ok(dockerfile string, args ...string) string {
	a.t.Helper()
	r := a.build(dockerfile, args...)
	if r.code != 0 {
		a.t.Errorf("exit code %d:\n%s\n%s", r.code, dockerfile, r.out)
	}
	a.noBreach(r)
	return r.out
}

// stepOutput is how a line that a step printed is shown.
var stepOutput = regexp.MustCompile(`(?m)^#\d+ \d+\.\d+ .*(BREACH.*)$`)

func (a *arena) noBreach(r result) {
	a.t.Helper()
	for _, m := range stepOutput.FindAllStringSubmatch(r.out, -1) {
		a.t.Error(m[1])
	}
}

// refused is build for one that must fail and say so with a word.
func (a *arena) refused(word, dockerfile string, args ...string) {
	a.t.Helper()
	r := a.build(dockerfile, args...)
	if r.code == 0 || !strings.Contains(r.out, word) {
		a.t.Errorf("exit code %d, want a refusal with %q:\n%s\n%s", r.code, word, dockerfile, r.out)
	}
	a.noBreach(r)
}

// entry is one of a layer.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(data))}, data}
}

func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

func directory(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func special(kind byte, name string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: 1, Devminor: 5}, ""}
}

// archive is a tar of entries. A size that is not that of the data is written as it is: the rest is a hole.
func archive(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		check(t, w.WriteHeader(&e.Header))
		if len(e.data) > 0 {
			_, err := w.Write([]byte(e.data))
			check(t, err)
		}
	}
	check(t, w.Close())
	return b.Bytes()
}

// config is what of an image's configuration is not layers.
type config map[string]any

// image makes a layout of an image that stands on busybox and gives it a name in Dockerfiles.
func (a *arena) image(name string, c config, layers ...[]entry) {
	a.t.Helper()
	from := testenv.Base(a.t, "busybox")
	manifest, image := readImage(a.t, from)
	var conf map[string]any
	check(a.t, json.Unmarshal(image, &conf))
	if len(c) > 0 {
		conf["config"] = c
	}
	diffs := conf["rootfs"].(map[string]any)
	ids := diffs["diff_ids"].([]any)
	dir := filepath.Join(a.dir, "images", name)
	check(a.t, os.MkdirAll(dir+"/blobs/sha256", 0o755))
	for _, l := range manifest.Layers {
		data, err := os.ReadFile(filepath.Join(from, "blobs/sha256", l.Digest.Encoded()))
		check(a.t, err)
		putBlob(a.t, dir, data)
	}
	for _, l := range layers {
		data := archive(a.t, l)
		d := putBlob(a.t, dir, data)
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data))})
		ids = append(ids, d.String())
	}
	diffs["diff_ids"] = ids
	delete(conf, "history")
	data, err := json.Marshal(conf)
	check(a.t, err)
	manifest.Config.Digest, manifest.Config.Size = putBlob(a.t, dir, data), int64(len(data))
	data, err = json.Marshal(manifest)
	check(a.t, err)
	writeLayout(a.t, dir, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: putBlob(a.t, dir, data), Size: int64(len(data))})
	a.contexts = append(a.contexts, name+"=oci-layout://"+dir)
}

func putBlob(t testing.TB, dir string, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	check(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Encoded()), data, 0o644))
	return d
}

func writeLayout(t testing.TB, dir string, d ocispec.Descriptor) {
	t.Helper()
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []ocispec.Descriptor{d}})
	check(t, err)
	check(t, os.WriteFile(dir+"/index.json", data, 0o644))
	check(t, os.WriteFile(dir+"/oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

// readImage reads the only image of a layout.
func readImage(t testing.TB, dir string) (m ocispec.Manifest, config []byte) {
	t.Helper()
	var index ocispec.Index
	blob := func(d digest.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", d.Encoded()))
		check(t, err)
		return data
	}
	data, err := os.ReadFile(dir + "/index.json")
	check(t, err)
	check(t, json.Unmarshal(data, &index))
	check(t, json.Unmarshal(blob(index.Manifests[0].Digest), &m))
	return m, blob(m.Config.Digest)
}

// up leads from any directory of a root filesystem to the host's root, if it leads anywhere.
const up = "../../../../../../../../../../../.."

// waysOut are targets of links in an image that lead to a path of the host.
func waysOut(path string) map[string]string {
	return map[string]string{"absolute": path, "relative": up + path, "through proc": "/proc/1/root" + path, "through a thread": "/proc/self/task/1/root" + path}
}

// compress writes data into the context, compressed by a program of the machine. Without that program the file is missing.
func (a *arena) compress(name string, tool []string, data []byte) {
	a.t.Helper()
	path, err := exec.LookPath(tool[0])
	if err != nil {
		return
	}
	cmd := exec.Command(path, tool[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	check(a.t, err)
	a.write(name, string(out))
}

// pattern matches the token, and not itself: a Dockerfile with it is shown in errors.
func (a *arena) pattern() string { return "[t]" + a.token[1:] }
