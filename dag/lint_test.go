package dag

import (
	"reflect"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"build/parser"
)

// judged lowers all stages of a file and returns what lint and outline have to say, until the first error.
func judged(f *parser.File) (ws []parser.Warning, o *Outline, err error) {
	opts := amd64()
	opts.AllStages, opts.Outline = true, true
	opts.Ignored = func(path string) bool { return strings.Contains(path, "ignored") }
	have := map[NeedKey]Resolved{}
	for range 10 {
		g, needs, err := Lower(f, opts, have)
		if g != nil {
			return g.Warnings, g.Outline, err
		}
		for _, n := range needs {
			have[n.Key()] = Resolved{Image: &ImageInfo{Ref: n.Name, Config: []byte(baseConfig)}}
		}
	}
	return nil, nil, nil
}

// FuzzLint checks that whatever is in a file, findings are the same twice, each is there once, and all are inside the source.
func FuzzLint(f *testing.F) {
	for _, seed := range []string{
		"FROM scratch AS A\nENV a b\nARG TOKEN=$x\nCMD a\nCMD b\n",
		"ARG V\nFROM x:$V$W\nWORKDIR a\nCOPY $b ignored /\nEXPOSE 1:2/TCP\n",
		"# check=experimental=all;error=true\n# d\nARG a=$a\nFROM --platform=$TARGETPLATFORM x\nRUN --mount=type=ssh --mount=type=cache,target=$z true\n",
		"from x as y\n# check=skip=all\nENTRYPOINT a\nONBUILD RUN $q\nFROM y\nCOPY --from=z <<E $q\n$p\nE\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		file, err := parser.Parse("D", src, parser.Options{})
		if err != nil {
			return
		}
		ws, o, err := judged(file)
		again, p, err2 := judged(file)
		if !reflect.DeepEqual(ws, again) || !reflect.DeepEqual(o, p) || (err == nil) != (err2 == nil) {
			t.Fatalf("not the same twice:\n%v\n%v\n%+v\n%+v", ws, again, o, p)
		}
		lines := strings.Count(string(src), "\n") + 1
		seen := map[parser.Warning]bool{}
		for _, w := range append(ws, file.Warnings...) {
			if w.Msg == "" || w.Range.Start.Line > lines || w.Range.End.Line > lines || w.Range.End.Line < w.Range.Start.Line {
				t.Errorf("%+v in %d lines", w, lines)
			}
			seen[w] = true
		}
		if len(seen) < len(ws) {
			t.Errorf("told twice: %v", ws)
		}
	})
}

// Names of arguments and variables that look like secrets, and those that only nearly do.
func TestSecretNames(t *testing.T) {
	for name, want := range map[string]bool{
		"TOKEN": true, "npm_token": true, "Api_Key": true, "APIKEY": true, "auth": true, "DB_PASSWORD_DEV": true, "pword": true,
		"AWS_CREDENTIALS": true, "credential": true, "SECRET_": true,
		"TOKENS": false, "keyboard": false, "MONKEY": false, "apikeys": false, "author": false,
		"PUBLIC_KEY": false, "TOKEN_FILE": false, "KEY_VERSION": false, "versioned_key": true,
	} {
		f := mustParse(t, "FROM scratch\nARG "+name+"\nENV "+name+"=1\n")
		ws, _, err := judged(f)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, w := range ws {
			if w.Rule == linter.RuleSecretsUsedInArgOrEnv.Name {
				found++
			}
		}
		if want && found != 2 || !want && found != 0 {
			t.Errorf("%s: %d warnings", name, found)
		}
	}
}

// What was found before a mistake is not lost with it.
func TestWarningsComeWithErrors(t *testing.T) {
	g, needs, err := Lower(mustParse(t, "FROM scratch\nENV a b\nSTOPSIGNAL x\n"), amd64(), nil)
	if err == nil || needs != nil || g == nil || len(g.Warnings) != 1 || g.Target != None || len(g.Steps) != 0 {
		t.Errorf("graph %+v, needs %v, error %v", g, needs, err)
	}
	var told []string
	_, err = parser.Parse("D", []byte("FROM scratch AS A\nRUNN\n"), parser.Options{Warn: func(w parser.Warning) { told = append(told, w.Rule) }})
	if err == nil || !reflect.DeepEqual(told, []string{"StageNameCasing"}) {
		t.Errorf("%v, told %v", err, told)
	}
}
