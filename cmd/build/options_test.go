package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/platforms"

	"build/internal/build"
)

func TestOptionsOfAFullCommandLine(t *testing.T) {
	env := map[string]string{"HOME": "/h", "FROM_ENV": "e", "BUILD_ROOT": "/store"}
	o, notes, err := parse(t, env,
		"-t", "a:1", "--tag=b", "-f", "D", "--build-arg", "K=v=w", "--build-arg", "FROM_ENV", "--build-arg", "UNSET",
		"--target", "t", "--no-cache", "--pull", "--label", "l=1", "--label", "empty", "--build-context", "n=oci-layout:///x",
		"--platform", "linux/arm64", "--network", "none", "--add-host", "h:10.0.0.1", "--add-host", "six=[::1]",
		"--iidfile", "i", "--metadata-file", "m", "--insecure", "r:5000", "--offline", "ctx")
	if err != nil {
		t.Fatal(err)
	}
	if notes != "" {
		t.Errorf("notes without a cause: %s", notes)
	}
	kv := func(s ...string) (out []build.KeyValue) {
		for i := 0; i < len(s); i += 2 {
			out = append(out, build.KeyValue{Key: s[i], Value: s[i+1]})
		}
		return out
	}
	for _, c := range []struct{ got, want any }{
		{o.Context, "ctx"}, {o.Dockerfile, "D"}, {o.Tags, []string{"a:1", "b"}}, {o.Target, "t"}, {o.NoCache, true},
		{o.BuildArgs, kv("K", "v=w", "FROM_ENV", "e")}, {o.Pull, build.PullAlways}, {o.Labels, kv("l", "1", "empty", "")},
		{o.NamedContexts, kv("n", "oci-layout:///x")}, {o.Network, "none"}, {o.IIDFile, "i"}, {o.MetadataFile, "m"},
		{o.Store.Root, "/store"}, {o.Store.Insecure, []string{"r:5000"}}, {o.Store.Offline, true}, {o.Store.DockerConfig, "/h/.docker"},
		{len(o.AddHosts), 2}, {o.AddHosts[0].IP.String(), "10.0.0.1"}, {o.AddHosts[1].IP.String(), "::1"},
		{len(o.Platforms), 1}, {o.Platforms[0].Architecture, "arm64"},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("got %#v, want %#v", c.got, c.want)
		}
	}
}

func TestPullForms(t *testing.T) {
	for arg, want := range map[string]build.PullMode{
		"": build.PullMissing, "--pull": build.PullAlways, "--pull=true": build.PullAlways, "--pull=false": build.PullMissing,
		"--pull=always": build.PullAlways, "--pull=missing": build.PullMissing, "--pull=never": build.PullNever,
	} {
		o, _, err := parse(t, map[string]string{"HOME": "/h"}, append(strings.Fields(arg), ".")...)
		if err != nil || o.Pull != want || o.Context != "." {
			t.Errorf("%q: pull %q, context %q, %v; want %q", arg, o.Pull, o.Context, err, want)
		}
	}
}

func TestWrongValues(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ args, want string }{
		{"--pull=sometimes .", "always, missing and never"},
		{"--platform l!nux .", "invalid --platform"},
		{"--network bridge .", "default, host, none and private"},
		{"--add-host nonsense .", "NAME:ADDRESS"},
		{"--add-host h:not.an.ip .", "not an IP address"},
		{"--build-arg =x .", "no name"},
		{"--label =x .", "no name"},
		{"--build-context x .", "NAME=PLACE"},
		{"--build-context x= .", "NAME=PLACE"},
		{"-t Upper .", "invalid tag"},
		{"-t a@sha256:0123456789012345678901234567890123456789012345678901234567890123 .", "digest"},
		{"--push .", "needs a name"},
		{"--push -o out .", "needs a name"},
		{"--push -o type=image .", "needs a name"},
		{"-f - -", "both come from standard input"},
		{"--load .", "type=docker"},
		{"--annotation a .", "the form is"},
		{"--annotation =b .", "the form is"},
		{"--annotation manifset:a=b .", "did you mean manifest?"},
		{"--annotation index[linux/amd64]:a=b .", "not for one platform"},
		{"--annotation manifest[l!nux]:a=b .", "is no level"},
		{"-o type=oci,dest=x,annotation-foo.a=b .", "unknown level"},
		{"--secret id=x,src=/nonexistent/x .", "--secret id=x: open /nonexistent/x"},
		{"--secret src=x .", "id= is missing"},
		{"--secret id=x,evn=Y .", "did you mean env?"},
		{"--shm-size lots .", "invalid --shm-size"},
		{"--squash .", "--squash: " + notYet},
		{"--provenance=true .", notYet},
		{"--provenance=mode=max .", notYet},
		{"--attest type=sbom .", notYet},
		{"--ulimit nofiles=1 .", "invalid --ulimit"},
		{"-o type=tarball,dest=x .", `unknown type "tarball"`},
		{"-o dest=x,name=y .", "type= is missing"},
		{"-o type=oci,dest .", "KEY=VALUE"},
		{"--rm=maybe .", "flag --rm=maybe: the choices are true and false"},
		{"--compress=2 .", "flag --compress=2: the choices are true and false"},
		{"--insecure http://reg.example .", `invalid --insecure "http://reg.example": the form is HOST or HOST:PORT`},
		{"--insecure reg.example/app .", "HOST or HOST:PORT"},
		{"--insecure 10.0.0.0/8 .", "HOST or HOST:PORT"},
		{"--insecure a,b .", "HOST or HOST:PORT"},
		{"--insecure= .", "HOST or HOST:PORT"},
		{"--insecure reg.example:http .", "HOST or HOST:PORT"},
		{"--inflate=pigz .", "the choices are auto and builtin"},
		{"--secret-leak=maybe .", "the choices are warn, error and off"},
		{"-t h/x -o type=oci,dest=x,push=true .", "push=true is for type=image"},
		{"-o type=local,dest=x,platform-split=true .", "one platform is " + notYet},
		{"--platform linux/amd64,linux/arm64 -o type=local,dest=x,platform-split=false .", "several platforms is " + notYet},
		{"-o type=oci,dest=x,source-date-epoch=253402300800 .", "years 0 to 9999"},
		{"-o type=oci,dest=x,compresion=zstd .", "did you mean compression?"},
		{"-o type=oci,dest=x,compression=lz4 .", "gzip, zstd and uncompressed"},
		{"-o type=oci,dest=x,compression=estargz .", notYet},
		{"-o type=oci,dest=x,compression-level=10 .", "levels 0 to 9"},
		{"-o type=oci,dest=x,compression-level=-1 .", "number from 0"},
		{"-o type=oci,dest=x,push-by-digest=true .", notYet},
		{"-o type=oci,dest=x,tar=perhaps .", "neither true nor false"},
		{"-o type=oci,tar=false .", "dest= is missing"},
		{"-o type=docker,tar=false,dest=x .", "for type=oci"},
		{"-o type=docker .", "docker load"},
		{"-o type=local .", "dest= is missing"},
		{"-o type=local,dest=- .", "type=tar"},
		{"-o type=local,dest=" + file + " .", "not a directory"},
		{"-o type=oci,dest=" + dir + " .", "is a directory"},
		{"-o type=image,dest=x .", "has no dest"},
		{"-o type=registry .", "needs a name"},
		{"-o - -o type=oci .", "only one output"},
		{"-o type=registry,name=UPPER .", "name"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			_, _, err := parse(t, map[string]string{"HOME": "/h"}, strings.Fields(tc.args)...)
			wantUsage(t, err, tc.want)
		})
	}
}

func TestFlagsWithoutEffectAreNotedOnce(t *testing.T) {
	_, notes, err := parse(t, map[string]string{"HOME": "/h"},
		"--builder", "x", "--rm", "--rm=true", "--force-rm", "--provenance=false", "--sbom=false",
		"--cache-from", "type=gha", "--cache-to=type=inline", "--cache-from", "y", "--compress",
		"--attest", "type=provenance,disabled=true", "--squash=false", "-D", ".")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(notes), "\n")
	if want := 10; len(lines) != want {
		t.Errorf("%d notes, want %d:\n%s", len(lines), want, notes)
	}
	for _, w := range []string{"--builder=x", "--rm ", "--force-rm", "--provenance=false", "--sbom=false", "--cache-from=type=gha", "--cache-to=type=inline"} {
		if !strings.Contains(notes, "build: "+w) {
			t.Errorf("nothing said about %s:\n%s", w, notes)
		}
	}
}

// Every flag of docker buildx build is known: with an effect, with a note, or with a refusal that names it.
func TestEveryDockerFlagIsKnown(t *testing.T) {
	const flags = `add-host allow annotation attest build-arg build-context builder cache-from cache-to call cgroup-parent
		check compress cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems debug disable-content-trust file force-rm
		iidfile isolation label load memory memory-swap metadata-file network no-cache no-cache-filter output platform
		policy progress provenance pull push quiet resource rm sbom secret security-opt shm-size squash ssh tag target ulimit`
	a, _ := fakeApp(t, nil)
	cmd := a.buildCommand(&globalFlags{})
	for _, name := range strings.Fields(flags) {
		if cmd.Flags().Lookup(name) == nil {
			t.Errorf("--%s is unknown", name)
		}
	}
	for short, name := range map[string]string{"t": "tag", "f": "file", "o": "output", "q": "quiet", "D": "debug", "m": "memory", "c": "cpu-shares"} {
		if f := cmd.Flags().ShorthandLookup(short); f == nil || f.Name != name {
			t.Errorf("-%s is not --%s", short, name)
		}
	}
}

func TestOutputForms(t *testing.T) {
	epoch := time.Unix(7, 0).UTC()
	level := 19
	for _, tc := range []struct {
		in   string
		want build.Output
	}{
		{"out", build.Output{Type: build.OutputLocal, Dest: "out"}},
		{"a=b", build.Output{Type: build.OutputLocal, Dest: "a=b"}},
		{"type=local,dest=out", build.Output{Type: build.OutputLocal, Dest: "out"}},
		{"type=tar,dest=x.tar", build.Output{Type: build.OutputTar, Dest: "x.tar"}},
		{"type=cacheonly", build.Output{Type: build.OutputNone}},
		{"type=image,push=true", build.Output{Type: build.OutputImage, Push: true}},
		{`type=registry,"name=h/a:1,h/b"`, build.Output{Type: build.OutputRegistry, Push: true, Names: []string{"h/a:1", "h/b"}}},
		{"type=oci,dest=d,tar=false,compression=zstd,compression-level=19,force-compression=true", build.Output{
			Type: build.OutputOCI, Dest: "d", Compression: "zstd", CompressionLevel: &level, ForceCompression: true}},
		{"type=docker,dest=x,oci-mediatypes=false,source-date-epoch=7,rewrite-timestamp=1,annotation.org.Key=v", build.Output{
			Type: build.OutputDocker, Dest: "x", Epoch: &epoch, RewriteTimestamp: true, Annotations: []build.Annotation{{Level: build.OnManifest, Key: "org.Key", Value: "v"}}}},
	} {
		// The defaults of what the case does not mention.
		tc.want.Tar = !strings.Contains(tc.in, "tar=false")
		tc.want.OCIMediaTypes = !strings.Contains(tc.in, "oci-mediatypes=false")
		a, _ := fakeApp(t, nil)
		out, err := a.parseOutput(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if !reflect.DeepEqual(out.Output, tc.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.in, out.Output, tc.want)
		}
	}
}

func TestOutputToStdout(t *testing.T) {
	for _, in := range []string{"-", "type=tar", "type=oci", "type=oci,dest=-", "type=docker,dest=-", "type=tar,dest=/dev/stdout"} {
		a, _ := fakeApp(t, nil)
		out, err := a.parseOutput(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if out.Dest != "-" || out.Stdout != a.stdout {
			t.Errorf("%s: dest %q, stdout %v", in, out.Dest, out.Stdout)
		}
	}
}

// Keys that change nothing about an output are not ignored in silence.
func TestOutputKeysWithoutEffect(t *testing.T) {
	for in, want := range map[string]string{
		"type=tar,dest=x,compression=gzip":                                "type=tar: compression has no effect",
		"type=local,dest=x,name=n,push=true":                              "type=local: push has no effect",
		"type=oci,dest=x,compression=uncompressed,compression-level=5":    "compression-level=5 has no effect",
		"type=local,dest=x,platform-split=false":                          "",
		"type=oci,dest=x,compression=zstd,compression-level=5,name=h/a:1": "",
	} {
		_, notes, err := parse(t, map[string]string{"HOME": "/h"}, "-o", in, ".")
		if err != nil || !strings.Contains(notes, want) || want == "" && notes != "" {
			t.Errorf("%s: noted %q, %v; want %q", in, notes, err, want)
		}
	}
}

// Beside -o, --push means push=true for the outputs that are images, and a push of its own where none is.
func TestPushBesideOutputs(t *testing.T) {
	for args, want := range map[string][2]bool{ // does the first output push; is there another push
		"--push -o type=image,name=h/x":                {true, false},
		"--push -t h/x -o type=image,compression=zstd": {true, false},
		"--push -t h/x -o type=registry":               {true, false},
		"--push -t h/x -o out":                         {false, true},
		"--push -t h/x -o type=oci,dest=x.tar":         {false, true},
	} {
		o, _, err := parse(t, map[string]string{"HOME": "/h"}, append(strings.Fields(args), ".")...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if got := [2]bool{o.Outputs[0].Push, o.Push}; got != want {
			t.Errorf("%s: %v, want %v", args, got, want)
		}
	}
}

func TestInsecureOutputNamesItsHosts(t *testing.T) {
	o, _, err := parse(t, map[string]string{"HOME": "/h"}, "-t", "r.example:5000/a", "-o", "type=registry,registry.insecure=true", ".")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"r.example:5000"}; !reflect.DeepEqual(o.Store.Insecure, want) {
		t.Errorf("insecure hosts %v, want %v", o.Store.Insecure, want)
	}
}

func TestEpoch(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		args []string
		want int64 // -1: none
	}{
		{map[string]string{"HOME": "/h"}, nil, -1},
		{map[string]string{"HOME": "/h", epochName: "5"}, nil, 5},
		{map[string]string{"HOME": "/h", epochName: "5"}, []string{"--build-arg", epochName + "=6"}, 6},
		{map[string]string{"HOME": "/h", epochName: "5"}, []string{"--build-arg", epochName + "="}, -1},
		{map[string]string{"HOME": "/h", epochName: "5"}, []string{"--build-arg", epochName + "=context"}, -1},
		{map[string]string{"HOME": "/h", epochName: "stage"}, nil, -1},
	} {
		o, _, err := parse(t, tc.env, append(tc.args, ".")...)
		if err != nil {
			t.Fatal(err)
		}
		got := int64(-1)
		if o.Epoch != nil {
			got = o.Epoch.Unix()
		}
		if got != tc.want {
			t.Errorf("%v %q: epoch %d, want %d", tc.env, tc.args, got, tc.want)
		}
		if n := len(o.BuildArgs); n > 1 || tc.want >= 0 && n != 1 {
			t.Errorf("%v %q: build args %v", tc.env, tc.args, o.BuildArgs)
		}
	}
}

func TestProxyPrecedence(t *testing.T) {
	dir := t.TempDir()
	config := `{"proxies":{"default":{"httpProxy":"http://config","noProxy":"localhost"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"HOME": "/h", "DOCKER_CONFIG": dir, "HTTP_PROXY": "http://env", "https_proxy": "http://env2"}
	o, _, err := parse(t, env, "--build-arg", "no_proxy=arg", ".")
	if err != nil {
		t.Fatal(err)
	}
	want := []build.KeyValue{
		{Key: "HTTP_PROXY", Value: "http://config"}, {Key: "http_proxy", Value: "http://config"},
		{Key: "https_proxy", Value: "http://env2"},
		{Key: "NO_PROXY", Value: "localhost"}, {Key: "no_proxy", Value: "arg"},
	}
	if !reflect.DeepEqual(o.ProxyArgs, want) {
		t.Errorf("proxies %v\nwant %v", o.ProxyArgs, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := parse(t, env, "."); build.ExitCode(err) != build.ExitEnvironment {
		t.Errorf("a broken config.json: %v, want an error of the environment", err)
	}
}

func TestProgressMode(t *testing.T) {
	for _, tc := range []struct {
		f       buildFlags
		env     map[string]string
		mode    string
		printID bool
	}{
		{buildFlags{}, nil, "auto", false},
		{buildFlags{}, map[string]string{"BUILDKIT_PROGRESS": "plain"}, "plain", false},
		{buildFlags{progress: "rawjson"}, map[string]string{"BUILDKIT_PROGRESS": "plain"}, "rawjson", false},
		{buildFlags{quiet: true, progress: "plain"}, nil, "quiet", true},
		{buildFlags{progress: "quiet"}, nil, "quiet", true},
		{buildFlags{progress: "none"}, nil, "quiet", false},
	} {
		a, _ := fakeApp(t, tc.env)
		mode, printID, err := tc.f.progressMode(a)
		if err != nil || mode != tc.mode || printID != tc.printID {
			t.Errorf("%+v %v: %q, %v, %v; want %q, %v", tc.f, tc.env, mode, printID, err, tc.mode, tc.printID)
		}
	}
	a, _ := fakeApp(t, map[string]string{"BUILDKIT_PROGRESS": "loud"})
	_, _, err := (&buildFlags{}).progressMode(a)
	wantUsage(t, err, "BUILDKIT_PROGRESS=loud")
}

func TestAnnotationForms(t *testing.T) {
	arm := platforms.MustParse("linux/arm64")
	for given, want := range map[string][]build.Annotation{
		"a=b":                         {{Level: build.OnManifest, Key: "a", Value: "b"}},
		"org.x/y=b=c:d":               {{Level: build.OnManifest, Key: "org.x/y", Value: "b=c:d"}},
		"index:a=":                    {{Level: build.OnIndex, Key: "a"}},
		"manifest[linux/arm64]:a=b":   {{Level: build.OnManifest, Platform: &arm, Key: "a", Value: "b"}},
		"index,manifest-descriptor:a": nil,
		"index-descriptor,manifest-descriptor[linux/arm64]:a=b": {
			{Level: build.OnIndexDescriptor, Key: "a", Value: "b"}, {Level: build.OnManifestDescriptor, Platform: &arm, Key: "a", Value: "b"}},
	} {
		o, _, err := parse(t, map[string]string{"HOME": "/h"}, "--annotation", given, ".")
		if (err != nil) != (want == nil) {
			t.Errorf("%s: %v", given, err)
		}
		if err == nil && !reflect.DeepEqual(o.Annotations, want) {
			t.Errorf("%s: %+v, want %+v", given, o.Annotations, want)
		}
	}
	a, _ := fakeApp(t, nil)
	out, err := a.parseOutput("type=oci,dest=x,annotation-manifest[linux/arm64].org.k=v,annotation-index-descriptor.i=j")
	if err != nil {
		t.Fatal(err)
	}
	want := []build.Annotation{{Level: build.OnManifest, Platform: &arm, Key: "org.k", Value: "v"}, {Level: build.OnIndexDescriptor, Key: "i", Value: "j"}}
	if !reflect.DeepEqual(out.Annotations, want) {
		t.Errorf("%+v", out.Annotations)
	}
}

func TestInlineCacheIsNoted(t *testing.T) {
	_, notes, err := parse(t, map[string]string{"HOME": "/h"}, "--build-arg", "BUILDKIT_INLINE_CACHE=1", ".")
	if err != nil || !strings.Contains(notes, "no effect") {
		t.Errorf("%v %q", err, notes)
	}
}
