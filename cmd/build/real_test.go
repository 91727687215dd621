package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"build/internal/testenv"
)

// realBases are the images that the Dockerfiles of testdata/real stand on, by the names they use, and the layouts that
// testdata/setup/bases.sh makes for them.
var realBases = map[string]string{
	"busybox:1.35":             "busybox",
	"debian:bookworm-slim":     "debian",
	"gcc:12-bookworm":          "cpp",
	"golang:1.19-bookworm":     "golang",
	"maven:3.8-jdk-17":         "java",
	"node:18-bookworm":         "node",
	"openjdk:17-slim-bookworm": "java",
	"python:3.11-bookworm":     "python",
}

// wantRefusals are the Dockerfiles in which one user is to be refused what is another's. With a single id users are recorded, not
// enforced.
var wantRefusals = []string{"capabilities", "fixed-ids"}

// TestReal builds every Dockerfile of testdata/real, compares its configuration and runs commands in the image. The README
// there describes the file "check" that says what to expect. All builds share one store, as those of one machine do.
func TestReal(t *testing.T) {
	if testing.Short() {
		t.Skip("builds 20 images, and some install packages from the network")
	}
	for _, layout := range realBases {
		testenv.Base(t, layout)
	}
	dirs, err := filepath.Glob(filepath.Join("..", "..", "testdata", "real", "*", "Dockerfile"))
	if err != nil || len(dirs) < 20 {
		t.Fatalf("%d Dockerfiles in testdata/real: %v", len(dirs), err)
	}
	// Not TempDir: what a user's steps wrote may belong to ids of the range, and is removed as far as possible.
	work, err := os.MkdirTemp("", "build-real-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		removeStore(work)
		_ = os.RemoveAll(work)
	})
	var podman sync.Mutex
	for _, dockerfile := range dirs {
		dir, err := filepath.Abs(filepath.Dir(dockerfile))
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(dir)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if os.Geteuid() != 0 && !testenv.HasRange(t) && slices.Contains(wantRefusals, name) {
				t.Skip("permissions between users need a range of subordinate ids; the other pass of make test has one")
			}
			r := &realImage{t: t, dir: dir, work: work, name: "real.example/" + name + ":1"}
			r.check = readRealCheck(t, filepath.Join(dir, "check.txtar"))
			r.build()
			r.compareConfig()
			r.runs()
			if r.check.podman != nil && os.Geteuid() == 0 {
				podman.Lock()
				defer podman.Unlock()
				r.podman()
			}
		})
	}
}

// realCheck is what a file check.txtar says.
type realCheck struct {
	flags  []string                   // of the build
	config map[string]json.RawMessage // fields the image's configuration must have
	run    []transcript               // in the image, as its user, by its /bin/sh
	bare   []transcript               // the same for an image without a shell: by busybox
	root   []transcript               // in the image, as root
	files  []transcript               // beside the image, which is at /image
	podman []transcript               // the arguments of podman run IMAGE
}

// transcript is one command with the output it must give: the lines up to the next command, the last of which is [N] when
// it must end with another code than 0.
type transcript struct{ command, want string }

func readRealCheck(t *testing.T, file string) realCheck {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c realCheck
	for _, f := range a.Files {
		switch f.Name {
		case "flags":
			c.flags = strings.Fields(string(f.Data))
		case "config":
			if err := json.Unmarshal(f.Data, &c.config); err != nil {
				t.Fatalf("%s: config: %v", file, err)
			}
		case "run":
			c.run = parseTranscripts(t, f.Data)
		case "bare":
			c.bare = parseTranscripts(t, f.Data)
		case "root":
			c.root = parseTranscripts(t, f.Data)
		case "files":
			c.files = parseTranscripts(t, f.Data)
		case "podman":
			c.podman = parseTranscripts(t, f.Data)
		default:
			t.Fatalf("%s: unknown part %q", file, f.Name)
		}
	}
	if c.config == nil || c.run == nil && c.bare == nil && c.files == nil {
		t.Fatalf("%s says nothing about the configuration, or nothing about the files", file)
	}
	return c
}

func parseTranscripts(t *testing.T, data []byte) []transcript {
	t.Helper()
	var out []transcript
	for line := range strings.Lines(string(data)) {
		if command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "$"); ok {
			out = append(out, transcript{command: strings.TrimPrefix(command, " ")})
		} else if len(out) == 0 {
			t.Fatalf("output %q comes before any command", line)
		} else {
			out[len(out)-1].want += line
		}
	}
	return out
}

// realImage is one Dockerfile of testdata/real on its way.
type realImage struct {
	t         *testing.T
	dir, work string
	name      string
	check     realCheck
	config    struct {
		Entrypoint, Cmd []string
	}
}

// command is the program with the flags that every build here has.
func (r *realImage) command(args ...string) *exec.Cmd {
	cmd := exec.Command("build", "--progress=plain")
	for ref, layout := range realBases {
		cmd.Args = append(cmd.Args, "--build-context", ref+"=oci-layout://"+filepath.Join(testenv.CacheDir(), layout))
	}
	cmd.Args = append(cmd.Args, args...)
	cmd.Dir = r.dir // secrets are named relative to it
	cmd.Env = append(os.Environ(), "BUILD_ROOT="+filepath.Join(r.work, ".store"), "HOME="+r.work)
	return cmd
}

// must runs a build and returns what it showed.
func (r *realImage) must(cmd *exec.Cmd) string {
	r.t.Helper()
	var shown bytes.Buffer
	cmd.Stderr = &shown
	if err := cmd.Run(); err != nil {
		r.t.Fatalf("%q: %v\n%s", cmd.Args[1:], err, &shown)
	}
	return shown.String()
}

func (r *realImage) build() {
	r.t.Helper()
	args := append([]string{"-t", r.name, "--metadata-file", r.metadata()}, r.check.flags...)
	if r.check.podman != nil {
		args = append(args, "-o", "type=image", "-o", "type=docker,dest="+r.archive())
	}
	if r.check.files != nil {
		args = append(args, "-o", "type=image", "-o", "type=local,dest="+r.tree())
	}
	r.must(r.command(append(args, ".")...))
}

func (r *realImage) metadata() string { return filepath.Join(r.work, filepath.Base(r.dir)+".json") }
func (r *realImage) archive() string  { return filepath.Join(r.work, filepath.Base(r.dir)+".tar") }
func (r *realImage) tree() string     { return filepath.Join(r.work, filepath.Base(r.dir)+".tree") }

// compareConfig reads the image from the store, which is an OCI layout, and compares the fields that the check names. A
// field that is absent is equal to null and to what is empty.
func (r *realImage) compareConfig() {
	r.t.Helper()
	var manifest struct{ Config struct{ Digest string } }
	var config struct{ Config map[string]json.RawMessage }
	var written struct {
		Digest string `json:"containerimage.digest"`
	}
	r.decode(r.metadata(), &written)
	blob := func(digest string) string {
		return filepath.Join(r.work, ".store", "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	r.decode(blob(written.Digest), &manifest)
	r.decode(blob(manifest.Config.Digest), &config)
	for field, into := range map[string]*[]string{"Entrypoint": &r.config.Entrypoint, "Cmd": &r.config.Cmd} {
		if raw := config.Config[field]; raw != nil {
			if err := json.Unmarshal(raw, into); err != nil {
				r.t.Fatalf("%s: %v", field, err)
			}
		}
	}
	for field, want := range r.check.config {
		if got := config.Config[field]; !reflect.DeepEqual(anyOf(r.t, got), anyOf(r.t, want)) {
			r.t.Errorf("config: %s is %s, want %s", field, got, want)
		}
	}
}

func (r *realImage) decode(file string, into any) {
	r.t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		r.t.Fatalf("%s: %v", file, err)
	}
}

func anyOf(t *testing.T, raw json.RawMessage) any {
	t.Helper()
	var v any
	if raw != nil {
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
	}
	if v == "" {
		return nil
	}
	return v
}

// runs has the commands of the check run in images made from the image.
func (r *realImage) runs() {
	r.t.Helper()
	const busybox = "RUN --network=none --mount=from=busybox:1.35,target=/.test %s [\"/.test/bin/busybox\",\"sh\",\"-c\",%s]\n"
	if r.check.run != nil {
		r.inside("run", r.check.run, "FROM "+r.name+"\nRUN --network=none [\"/bin/sh\",\"-c\",%s]\n")
	}
	if r.check.root != nil {
		r.inside("root", r.check.root, "FROM "+r.name+"\nUSER 0\nRUN --network=none [\"/bin/sh\",\"-c\",%s]\n")
	}
	if r.check.bare != nil {
		r.inside("bare", r.check.bare, "FROM "+r.name+"\n"+fmt.Sprintf(busybox, "", "%s"))
	}
	if r.check.files != nil {
		mount := "--mount=from=tree,target=/image"
		r.inside("files", r.check.files, "FROM busybox:1.35\n"+fmt.Sprintf(busybox, mount, "%s"), "--build-context", "tree="+r.tree())
	}
}

// inside has one shell run the commands, each in a subshell, its output followed by its exit code. The Dockerfile has a %s
// for the script. In the script, start does what starting a container does, with other arguments if it is given some.
func (r *realImage) inside(what string, commands []transcript, dockerfile string, flags ...string) {
	r.t.Helper()
	var script strings.Builder
	fmt.Fprintf(&script, "start() { [ $# != 0 ] || set --%s;%s \"$@\"; }\n", quoted(r.config.Cmd), quoted(r.config.Entrypoint))
	for i, c := range commands {
		fmt.Fprintf(&script, "( %s\n) 2>&1; echo \"@%d=$?\"\n", c.command, i)
	}
	arg, err := json.Marshal(script.String())
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := r.command(append(flags, "--no-cache", "-o", "type=cacheonly", "-")...)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(dockerfile, arg))
	for i, got := range outputs(r.must(cmd), len(commands)) {
		r.compare(what, commands[i], got)
	}
}

// plainOutput is a line of what a step prints, as plain progress shows it.
var plainOutput = regexp.MustCompile(`(?m)^#\d+ \d+\.\d+ (.*)$`)

// outputs takes what each of n commands printed out of what a build showed.
func outputs(shown string, n int) []string {
	out, next := make([]string, n), 0
	for _, m := range plainOutput.FindAllStringSubmatch(shown, -1) {
		code, ended := strings.CutPrefix(m[1], fmt.Sprintf("@%d=", next))
		if next == n {
			break
		}
		switch {
		case !ended:
			out[next] += m[1] + "\n"
		case code == "0":
			next++
		default:
			out[next] += "[" + code + "]\n"
			next++
		}
	}
	for ; next < n; next++ {
		out[next] += "it was not reached\n"
	}
	return out
}

func (r *realImage) compare(what string, c transcript, got string) {
	r.t.Helper()
	if strings.TrimRight(got, "\n") != strings.TrimRight(c.want, "\n") {
		r.t.Errorf("%s: $ %s\n%swant:\n%s", what, c.command, got, c.want)
	}
}

// quoted writes words so that a shell reads them back.
func quoted(words []string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString(" '" + strings.ReplaceAll(w, "'", `'\''`) + "'")
	}
	return b.String()
}

// podman has another engine load the image and run it.
func (r *realImage) podman() {
	r.t.Helper()
	podman := testenv.Tool(r.t, "podman")
	testenv.Tool(r.t, "runc")
	store := filepath.Join(r.work, "podman")
	common := []string{"--root", store, "--runroot", store + "-run", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"}
	if out, err := exec.Command(podman, append(common, "load", "-q", "-i", r.archive())...).CombinedOutput(); err != nil {
		r.t.Fatalf("podman load: %v\n%s", err, out)
	}
	for _, c := range r.check.podman {
		args := append(common, "run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", r.name)
		out, err := exec.Command(podman, append(args, strings.Fields(c.command)...)...).CombinedOutput()
		got := string(out)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			got += "[" + strconv.Itoa(exit.ExitCode()) + "]\n"
		} else if err != nil {
			r.t.Fatal(err)
		}
		r.compare("podman run", c, got)
	}
}
