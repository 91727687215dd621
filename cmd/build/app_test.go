package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"build/internal/build"
)

// fakeApp is an app with the given environment whose standard streams are files of the test.
func fakeApp(t *testing.T, env map[string]string, argv ...string) (*app, func() string) {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	a := &app{
		args:  argv,
		env:   func(k string) (string, bool) { v, ok := env[k]; return v, ok },
		stdin: open("stdin"), stdout: open("stdout"), stderr: open("stderr"),
	}
	return a, func() string {
		data, err := os.ReadFile(a.stderr.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

// parse runs a command line through the flags and their meaning.
func parse(t *testing.T, env map[string]string, args ...string) (build.Options, string, error) {
	t.Helper()
	env = maps.Clone(env)
	if env == nil {
		env = map[string]string{}
	}
	if _, ok := env["BUILD_ROOT"]; !ok {
		env["BUILD_ROOT"] = "/store" // not one that has to be found, which is told
	}
	a, stderr := fakeApp(t, env)
	g, f := &globalFlags{}, &buildFlags{}
	fs := pflag.NewFlagSet("build", pflag.ContinueOnError)
	f.define(fs)
	g.define(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	o, err := f.options(a, g, fs.Arg(0))
	return o, stderr(), err
}

func wantUsage(t *testing.T, err error, words ...string) {
	t.Helper()
	var usage *build.UsageError
	if !errors.As(err, &usage) {
		t.Fatalf("error %v is not one of usage", err)
	}
	if got := build.ExitCode(err); got != build.ExitUsage {
		t.Errorf("exit code %d for %v, want %d", got, err, build.ExitUsage)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestWithBuildWord(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{".", "."},
		{"images", "images"},
		{"-t x images", "build -t x images"},
		{"--root /r images", "--root /r images"},
		{"--root=/r --offline -t x push", "--root=/r --offline build -t x push"},
		{"--insecure h push name", "--insecure h push name"},
		{"--help", "--help"},
		{"-v", "-v"},
		{"-", "-"},
		{"--root", "--root"},
		{"", ""},
	} {
		got := strings.Join(withBuildWord(strings.Fields(tc.in)), " ")
		if got != tc.want {
			t.Errorf("withBuildWord(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestUnknownFlags(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"build", "--taag", "x", "."}, "--tag"},
		{[]string{"build", "--no-cach", "."}, "--no-cache"},
		{[]string{"build", "build", "--plaform=linux/amd64", "."}, "--platform"},
		{[]string{"build", "images", "--quite"}, "--quiet"},
		{[]string{"build", "--metadata", "f", "."}, "--metadata-file"},
		{[]string{"docker", "buildx", "build", "--iidfle", "f", "."}, "--iidfile"},
	} {
		a, stderr := fakeApp(t, map[string]string{"HOME": "/nowhere"}, tc.args...)
		if code := a.run(); code != build.ExitUsage {
			t.Errorf("%q: exit code %d, want %d", tc.args, code, build.ExitUsage)
		}
		if out := stderr(); !strings.Contains(out, "unknown flag") || !strings.Contains(out, "did you mean "+tc.want+"?") {
			t.Errorf("%q: %q does not suggest %s", tc.args, out, tc.want)
		}
	}
}

func TestContextArgument(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, tc := range []struct {
		args string
		want string
	}{
		{"build", "the context is missing"},
		{"build a b", "one context is expected"},
		{"build imagess", `did you mean "build images"?`},
		{"build push", "build ./push"},
		{"build tag one", "an image and its new name"},
		{"build rmi", "the name of an image"},
		{"build version extra", "no arguments"},
	} {
		a, stderr := fakeApp(t, map[string]string{"HOME": "/nowhere"}, strings.Fields(tc.args)...)
		if code := a.run(); code != build.ExitUsage {
			t.Errorf("%q: exit code %d, want %d", tc.args, code, build.ExitUsage)
		}
		if out := stderr(); !strings.Contains(out, tc.want) {
			t.Errorf("%q: %q does not say %q", tc.args, out, tc.want)
		}
	}
}

func TestHelpTellsExitCodesAndVariables(t *testing.T) {
	a, _ := fakeApp(t, nil, "build", "--help")
	if code := a.run(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	data, err := os.ReadFile(a.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"130", "Dockerfile or on the command line", "SOURCE_DATE_EPOCH", "--build-context", "completion"} {
		if !bytes.Contains(data, []byte(w)) {
			t.Errorf("help does not say %q", w)
		}
	}
}

func TestDockerRouting(t *testing.T) {
	t.Setenv("PATH", "")
	for _, tc := range []struct {
		in, want string
		config   string
	}{
		{"build -t x .", "build -t x .", ""},
		{"build push", "build push", ""},
		{"buildx build --load .", "build --load .", ""},
		{"buildx b .", "build .", ""},
		{"buildx --builder x build .", "build .", ""},
		{"buildx -D --builder=x build .", "build .", ""},
		{"image build .", "build .", ""},
		{"builder build .", "build .", ""},
		{"--config /c login", "login", "/c"},
		{"--config=/c -H tcp://x push n", "push n", "/c"},
		{"-D image ls -q", "images -q", ""},
		{"rmi a b", "rmi a b", ""},
		{"image tag a b", "tag a b", ""},
	} {
		a, _ := fakeApp(t, nil, append([]string{"/usr/bin/docker"}, strings.Fields(tc.in)...)...)
		args, g, err := a.route()
		if err != nil {
			t.Errorf("docker %s: %v", tc.in, err)
			continue
		}
		if got := strings.Join(args, " "); got != tc.want || g.dockerConfig != tc.config {
			t.Errorf("docker %s: %q with config %q, want %q with %q", tc.in, got, g.dockerConfig, tc.want, tc.config)
		}
	}
	for in, want := range map[string]string{
		"ps":                  "what we do",
		"pull x":              "--pull",
		"buildx create --use": "leave the command out",
		"buildx imagetools":   "no command of ours",
		"save -o f x":         "type=docker",
		"--version":           "what we do",
		"":                    "what we do",
		"--config":            "needs a value",
		"buildx --builder":    "needs a value",
	} {
		a, _ := fakeApp(t, nil, append([]string{"docker"}, strings.Fields(in)...)...)
		_, _, err := a.route()
		wantUsage(t, err, want)
	}
}

func TestFindDockerSkipsItself(t *testing.T) {
	first, second, third := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.Symlink("/proc/self/exe", filepath.Join(first, "docker")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "docker"), nil, 0o644); err != nil { // not a program
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(third, "docker"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := strings.Join([]string{".", first, second, third}, ":")
	a, _ := fakeApp(t, map[string]string{"PATH": path}, "docker")
	if got, want := a.findDocker(), filepath.Join(third, "docker"); got != want {
		t.Errorf("findDocker = %q, want %q", got, want)
	}
	a, _ = fakeApp(t, map[string]string{"PATH": first + ":" + second}, "docker")
	if got := a.findDocker(); got != "" {
		t.Errorf("findDocker = %q, want none", got)
	}
}

// The store is in the first of the usual places that can be written to, and what was passed over is told.
func TestStoreRoot(t *testing.T) {
	dir := t.TempDir()
	own := fmt.Sprintf("/var/tmp/build-%d", os.Geteuid())
	for _, tc := range []struct {
		flag  string
		env   map[string]string
		want  string // for a user; root has one default
		notes string
	}{
		{"/flag", map[string]string{"BUILD_ROOT": "/env"}, "/flag", ""},
		{"", map[string]string{"BUILD_ROOT": "/env", "HOME": dir}, "/env", ""},
		{"", map[string]string{"XDG_DATA_HOME": dir + "/data", "HOME": dir}, dir + "/data/build", ""},
		{"", map[string]string{"XDG_DATA_HOME": "relative", "HOME": dir}, dir + "/.local/share/build", ""},
		{"", map[string]string{"HOME": "/proc/1"}, own, "/proc/1"},
		{"", map[string]string{"HOME": "/"}, own, ""},
		{"", nil, own, ""},
	} {
		want := tc.want
		if os.Geteuid() == 0 && tc.flag == "" && tc.env["BUILD_ROOT"] == "" {
			want, tc.notes = "/var/lib/build", ""
		}
		a, stderr := fakeApp(t, tc.env)
		got, err := a.storeRoot(tc.flag)
		if err != nil || got != want {
			t.Errorf("storeRoot(%q) with %v = %q, %v, want %q", tc.flag, tc.env, got, err, want)
		}
		if said := stderr(); (said != "") != (tc.notes != "") || !strings.Contains(said, tc.notes) {
			t.Errorf("with %v it said %q, want %q", tc.env, said, tc.notes)
		}
	}
	stranger := t.TempDir() + "/file"
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := usable(stranger); err == nil {
		t.Error("a file was taken for a place for the store")
	}
}

func TestSignalEndsContextWithItsCause(t *testing.T) {
	ctx, stop := withSignals(context.Background(), io.Discard)
	defer stop()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if code := build.ExitCode(context.Cause(ctx)); code != 130 {
		t.Errorf("exit code %d after SIGINT, want 130 (cause %v)", code, context.Cause(ctx))
	}
}

func TestWithName(t *testing.T) {
	rows := []build.ImageRow{{Name: "docker.io/library/app:1"}, {Name: "docker.io/library/app:latest"}, {Name: "localhost:5000/app:1"}}
	for name, want := range map[string][]int{
		"app": {0, 1}, "app:1": {0}, "docker.io/library/app:latest": {1}, "localhost:5000/app": {2}, "other": nil,
	} {
		var got, exp []build.ImageRow
		got = withName(rows, name)
		for _, i := range want {
			exp = append(exp, rows[i])
		}
		if !reflect.DeepEqual(got, exp) {
			t.Errorf("withName(%q) = %v, want %v", name, got, exp)
		}
	}
}
