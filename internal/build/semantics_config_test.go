package build

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// What testdata/dockerfiles cannot show of S58 to S75: what a real image's JSON says, and what a real command sees.
func TestSemanticsConfig(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	// `ENTRYPOINT []` stores null, `CMD []` stores an empty list. In the image's JSON both mean that there is none, over what the
	// base has (the graph's side: dag/semantics_test.go).
	t.Run("S59", func(t *testing.T) {
		w := w.under(t)
		for _, df := range []string{"ENTRYPOINT []\nCMD []\n", "CMD []\nENTRYPOINT []\n"} {
			res, _ := w.ok(from("FROM base AS below\nENTRYPOINT [\"e\"]\nCMD [\"c\"]\nFROM below\n" + df))
			var config struct{ Config map[string]json.RawMessage }
			w.blob(t, res.ConfigDigest, &config)
			for _, key := range []string{"Entrypoint", "Cmd"} {
				if v, ok := config.Config[key]; ok {
					t.Errorf("%q: %s is %s", df, key, v)
				}
			}
		}
	})
	// Shell form prepends the stage's SHELL (inherited from the base image config too), then one joined string.
	t.Run("S61", func(t *testing.T) {
		w := w.under(t)
		w.ok(from(`
			FROM base
			SHELL ["/bin/sh", "-c", "echo \"$# arguments: $1\"", "sh"]
		`), tags("s61:1"))
		_, rec := w.ok(from("FROM s61:1\nRUN one  \"two\" \\\n  three\n"))
		if got := rec.log("RUN"); got != "1 arguments: one  \"two\"   three\n" {
			t.Errorf("the shell of the base printed %q", got)
		}
	})
	// ONBUILD adds no history entry and no layer; triggers run immediately after FROM in the child, in order, then `OnBuild` is
	// cleared for grandchildren.
	t.Run("S65", func(t *testing.T) {
		w := w.under(t)
		w.write("f", "f")
		plain := w.made(from("FROM base\n"))
		with := w.made(from("FROM base\nONBUILD COPY f /f\nONBUILD RUN cat /f > /ran && echo first\n"), tags("s65:1"))
		if len(with.History) != len(plain.History) || !slices.Equal(with.RootFS.DiffIDs, plain.RootFS.DiffIDs) {
			t.Errorf("history %v, layers %v", with.History, with.RootFS.DiffIDs)
		}
		child := from("FROM s65:1\nRUN cat /ran > /own\n")
		res, rec := w.ok(child, tags("s65:child"))
		if got := rec.log("ONBUILD RUN"); res.Ran != 3 || got != "first\n" {
			t.Errorf("%d steps ran, the trigger printed %q", res.Ran, got)
		}
		wantRan(t, "the child's own", rec, "RUN cat /ran > /own")
		var config struct {
			Config struct{ OnBuild []string }
		}
		w.blob(t, res.ConfigDigest, &config)
		if len(config.Config.OnBuild) > 0 {
			t.Errorf("the child has triggers: %q", config.Config.OnBuild)
		}
		if res, _ = w.ok(from("FROM s65:child\nRUN echo grandchild\n")); res.Ran != 1 {
			t.Errorf("for the grandchild %d steps ran", res.Ran)
		}
	})
	// ONBUILD of an earlier stage in the same file also fires for `FROM <stage>`, and a trigger from an image fires once even if
	// that stage is a base of another.
	t.Run("S66", func(t *testing.T) {
		w := w.under(t)
		w.ok(from("FROM base\nONBUILD RUN echo image >> /fired\n"), tags("s66:1"))
		dir, _ := w.out(from(`
			FROM s66:1 AS below
			ONBUILD RUN echo stage >> /fired
			FROM below AS child
			FROM child
			RUN echo own >> /fired
		`))
		has(t, dir+"/fired", "image\nstage\nown\n")
	})
	// RUN heredoc bodies are never expanded by the builder, even unquoted; COPY/ADD bodies are unless any part of the delimiter is
	// quoted; quotes inside the body are preserved.
	t.Run("S69", func(t *testing.T) {
		w := w.under(t)
		dir, _ := w.out(from(`
			FROM base
			ARG V=arg
			RUN <<EOF
			V=shell
			echo "$V" '$V' > /ran
			EOF
			COPY <<plain <<"quoted" /c/
			"$V" '$V'
			plain
			"$V" '$V'
			quoted
		`))
		has(t, dir+"/ran", "shell $V\n")
		has(t, dir+"/c/plain", "\"arg\" 'arg'\n")
		has(t, dir+"/c/quoted", "\"$V\" '$V'\n")
	})
	// `RUN <<EOF` runs the body with the default shell; a body that starts with `#!` is executed as a file from `/dev/pipes/`.
	t.Run("S70", func(t *testing.T) {
		w := w.under(t)
		_, rec := w.ok(from(`
			FROM base
			RUN <<EOF
			echo "shell $0"
			EOF
			RUN <<script
			#!/bin/cat
			the body is shown by its interpreter
			script
			RUN <<where
			#!/bin/sh
			echo "I am $0"
			where
			RUN test ! -e /dev/pipes && echo gone
		`))
		for word, want := range map[string]string{
			"<<EOF": "shell /bin/sh\n", "<<script": "#!/bin/cat\nthe body is shown by its interpreter\n", "<<where": "I am /dev/pipes/where\n", "gone": "gone\n",
		} {
			if got := rec.log(word); got != want {
				t.Errorf("%s printed %q, want %q", word, got, want)
			}
		}
	})
	// `<<-` strips tabs, not spaces, from body and terminator.
	t.Run("S71", func(t *testing.T) {
		w := w.under(t)
		df := strings.NewReplacer("T", "\t").Replace("FROM scratch\nCOPY <<-f <<g /\nTtab\nTT two\n  spaces\nTf\nTtab\ng\n")
		dir, _ := w.out(from(df))
		has(t, dir+"/f", "tab\n two\n  spaces\n")
		has(t, dir+"/g", "\ttab\n")
	})
	// Escapes are not processed in RUN except at end of line.
	t.Run("S73", func(t *testing.T) {
		_, rec := w.under(t).ok(from("FROM base\nRUN printf '%s|' 'a\\b' \"c\\$d\" \\\n  e\\\\f\n"))
		if got := rec.log("printf"); got != `a\b|c$d|e\f|` {
			t.Errorf("the command printed %q", got)
		}
	})
}
