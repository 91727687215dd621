package dag

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"build/parser"
)

func amd64() Options {
	return Options{BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
}

func mustParse(t testing.TB, src string) *parser.File {
	t.Helper()
	f, err := parser.Parse("Dockerfile", []byte(src), parser.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Lowering must not change the file, nor depend on the order of maps: many at once give the same graph.
func TestLowerIsPure(t *testing.T) {
	files, err := filepath.Glob("../testdata/dockerfiles/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Dockerfiles: %v", err)
	}
	for _, name := range files {
		ar, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		o := goldenOptions(t, string(ar.Comment))
		var src []byte
		images := map[string]string{}
		for _, f := range ar.Files {
			if f.Name == "Dockerfile" {
				src = f.Data
			} else if n, ok := strings.CutPrefix(f.Name, "image "); ok {
				images[n] = string(f.Data)
			}
		}
		f, err := parser.Parse("Dockerfile", src, parser.Options{})
		if err != nil {
			continue
		}
		results := make([]string, 8)
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() {
				g, _, err := lowerAll(f, o, images)
				if err != nil {
					results[i] = err.Error()
				} else {
					results[i] = Dump(g)
				}
			})
		}
		wg.Wait()
		for _, r := range results {
			if r != results[0] {
				t.Errorf("%s: results differ:\n%s", name, firstDifference(results[0], r))
			}
		}
	}
}

// Every error of lowering has a place in the file, except those about the whole build.
func TestErrorsHavePlaces(t *testing.T) {
	files, err := filepath.Glob("../testdata/dockerfiles/error-*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no Dockerfiles: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, result, found := strings.Cut(string(text), "-- errors --\n")
		if !found || !strings.HasPrefix(result, "Dockerfile:") {
			t.Errorf("%s: expected an error with a place, have %q", name, result)
		}
	}
}

func TestNeedsOfAllStagesAtOnce(t *testing.T) {
	f := mustParse(t, "FROM a AS x\nFROM b AS y\nFROM c AS unused\nFROM scratch\nCOPY --from=x / /\nCOPY --from=y / /\nCOPY --from=d / /\nCOPY --from=d /1 /\n")
	g, needs, err := Lower(f, amd64(), nil)
	if err != nil || g != nil {
		t.Fatalf("%v %v", g, err)
	}
	var names []string
	for _, n := range needs {
		names = append(names, n.Name)
		if n.Pos.Start.Line == 0 {
			t.Errorf("%s has no place", n.Name)
		}
	}
	if !slices.Equal(names, []string{"a", "b", "d"}) {
		t.Errorf("needs %v", names)
	}
}

func TestBuildPlatformIsRequired(t *testing.T) {
	if _, _, err := Lower(mustParse(t, "FROM scratch\n"), Options{}, nil); err == nil {
		t.Error("lowered for no platform")
	}
}

func TestBadImageConfig(t *testing.T) {
	f := mustParse(t, "FROM scratch AS s\nFROM a\n")
	_, _, err := lowerAll(f, amd64(), map[string]string{"a": "{"})
	var pe *parser.Error
	if !errors.As(err, &pe) || pe.Range.Start.Line != 2 {
		t.Errorf("%v", err)
	}
}

// A base image is data from elsewhere: its triggers must not get further than an error.
func TestHostileTriggers(t *testing.T) {
	for _, trigger := range []string{
		"", "\\n", "FROM x", "# check=skip=all\\nRUN x", "ONBUILD RUN x", "RUN a\\nRUN b", "RUN <<EOF", "# escape=`\\nRUN x",
		"COPY --from=99 a b", "COPY --from=-1 a b", "ARG", "\\u0000", "RUN --device=a/b=c x", "COPY --from=self a b", "MAINTAINER x",
	} {
		f := mustParse(t, "FROM a AS self\nRUN x\n")
		config := `{"os":"linux","architecture":"amd64","config":{"OnBuild":["` + trigger + `"]}}`
		_, _, err := lowerAll(f, amd64(), map[string]string{"a": config})
		var pe *parser.Error
		if err != nil && (!errors.As(err, &pe) || pe.Range.Start.Line != 1) {
			t.Errorf("%q: %v", trigger, err)
		}
	}
}

func TestHistoryFitsLayers(t *testing.T) {
	entries := []ocispec.History{{CreatedBy: "1"}, {CreatedBy: "e", EmptyLayer: true}, {CreatedBy: "2"}}
	for layers := range 5 {
		n := 0
		for _, h := range baseHistory(entries, layers, 7) {
			if !h.EmptyLayer {
				n++
			}
			if h.EmptyLayer != (h.Step == None) {
				t.Errorf("%d layers: %+v", layers, h)
			}
		}
		if n != layers {
			t.Errorf("%d layers, %d entries", layers, n)
		}
	}
}

func TestSourceKind(t *testing.T) {
	for src, want := range map[string]Place{
		"a": "", "./http://x": "", "../x.git": "", "github.com/moby/buildkit": "", "x.git": "",
		"user@host": "", "ftp://x/y": "", "file:///x.git": "", "C:/x": "", "http:/x": "",
		"http://x/y": HTTP, "https://x/y.git/z": HTTP, "https://x/y?z=a.git": HTTP, "https://x.git": HTTP,
		"https://x/y.git": Git, "https://x/y.git#ref:dir": Git, "https://x/y.git?ref=1": Git, "HTTPS://x/y.git": Git,
		"git://x/y": Git, "ssh://x/y": Git, "git@x:y": Git, "git@x:y/z.git#a": Git,
	} {
		if got := kindOf(src); got != want {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
}

func TestSignal(t *testing.T) {
	for s, ok := range map[string]bool{
		"SIGTERM": true, "term": true, "9": true, "SIGRTMIN": true, "SIGRTMIN+1": true, "RTMIN+15": true, "sigrtmax-14": true, "SIGCLD": true,
		"": false, "0": false, "SIG": false, "SIGFOO": false, "SIGRTMIN+16": false, "SIGRTMAX-15": false, "SIGRTMIN+01": false, "SIGRTMIN+0": false,
		"RTMIN-1": false, " TERM": false, "HUP INT": false,
	} {
		if err := checkSignal(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestChmod(t *testing.T) {
	for s, ok := range map[string]bool{
		"": true, "0": true, "755": true, "07777": true, "u=rwX,go=rX": true, "+x": true, "a-w,u+s": true, "u=g": true, "o=": true, "u+rw-x": true,
		"10000": false, "8": false, "64a": false, "u": false, "u+": true, "rwx": false, "u+q": false, "u=rw,": false, "-1": false,
	} {
		if err := checkChmod(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestPorts(t *testing.T) {
	for spec, want := range map[string]string{
		"80": "80/tcp", "80/UDP": "80/udp", "1-3/sctp": "1/sctp 2/sctp 3/sctp", "5-5": "5/tcp", "8080:80": "80/tcp", "127.0.0.1:1:2": "2/tcp",
		"[::1]:1:2": "2/tcp", "::1:1:2": "2/tcp", "127.0.0.1::2": "2/tcp", "1000-1005:7": "7/tcp", "80/": "80/tcp",
		"": "", "/tcp": "", "a": "", "3-1": "", "65536": "", "-1": "", "1/foo": "", "x:1:2": "", "[::1:1:2": "", "1-2:3-5": "", "1:": "",
	} {
		got, err := parsePorts(spec)
		if strings.Join(got, " ") != want || (err != nil) != (want == "") {
			t.Errorf("%q: %v %v", spec, got, err)
		}
	}
}

func TestAbsolute(t *testing.T) {
	for _, c := range []struct {
		parent, p string
		keep      bool
		want      string
	}{
		{"/a", "b", false, "/a/b"}, {"/a", "/b/../c", false, "/b/../c"}, {"", "b", false, "/b"}, {"rel", "b", false, "/rel/b"}, {"/a", "", false, "/a"},
		{"/a", "b/", true, "/a/b/"}, {"/a", "./", true, "/a/"}, {"/", "./", true, "/"}, {"/a", "b/.", true, "/a/b/."}, {"/", "/.", true, "/."},
		{"/a", "/b/", true, "/b/"}, {"/a", "../..", true, "/"},
	} {
		if got := absolute(c.parent, c.p, c.keep); got != c.want {
			t.Errorf("%q %q %v: %q, want %q", c.parent, c.p, c.keep, got, c.want)
		}
	}
}

func TestCleanDest(t *testing.T) {
	for in, want := range map[string]string{"/": "/", "/.": "/", "/a": "/a", "/a/": "/a/", "/a/.": "/a/.", "/a//b/../": "/a/", "/..": "/", "/../x": "/x"} {
		if got := cleanDest(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestEnvOrder(t *testing.T) {
	e := newEnv()
	e.set("a", "1")
	e.set("b", "2")
	c := e.clone()
	e.set("a", "3")
	if got := e.list(); !slices.Equal(got, []string{"b=2", "a=3"}) {
		t.Errorf("%v", got)
	}
	if got := c.list(); !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("the clone changed: %v", got)
	}
	if got := setEnv([]string{"a=1", "b=2"}, "a", "3"); !slices.Equal(got, []string{"a=3", "b=2"}) {
		t.Errorf("%v", got)
	}
}

// FuzzLower: no panic, no endless asking, a well-formed graph, the same twice.
func FuzzLower(f *testing.F) {
	files, err := filepath.Glob("../testdata/dockerfiles/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		ar, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range ar.Files {
			if file.Name == "Dockerfile" {
				f.Add(file.Data, "RUN trigger")
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, trigger string) {
		file, err := parser.Parse("Dockerfile", src, parser.Options{})
		if err != nil {
			return
		}
		o := amd64()
		o.BuildArgs = map[string]string{"A": "$B", "http_proxy": "p"}
		o.Contexts = map[string]string{"ctx": "./dir", "img": "docker-image://base"}
		images := map[string]string{"trigger": `{"os":"linux","architecture":"amd64","config":{"OnBuild":[` + quoteJSON(trigger) + `]}}`}
		g, _, err := lowerAll(file, o, images)
		if err != nil {
			var pe *parser.Error
			if !errors.As(err, &pe) {
				t.Fatalf("an error without a place: %v", err)
			}
			pe.Render(nil)
			return
		}
		checkGraph(t, g, src)
		again, _, err := lowerAll(file, o, images)
		if err != nil || Dump(again) != Dump(g) {
			t.Fatalf("a second time it is different: %v", err)
		}
	})
}

func quoteJSON(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "?") {
		switch {
		case r == '"' || r == '\\':
			b.WriteString("\\" + string(r))
		case r == '\n':
			b.WriteString("\\n")
		case r < 0x20:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}
