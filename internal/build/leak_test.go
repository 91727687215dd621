package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"build/internal/leak"
	"build/snapshot"
)

const leakValue = "p@ss/word+for?tests=1"

func leakOK(o *Options) {
	for i := range o.Secrets {
		o.Secrets[i].LeakOK = true
	}
}

func onLeak(m LeakMode) mod { return func(o *Options) { o.SecretLeak = m } }

// leaks are the warnings of a build that are about secrets, without their common beginning.
func leaks(rec *recorder) []string {
	var out []string
	for _, w := range rec.warnings {
		if strings.HasPrefix(w, "secret ") {
			out = append(out, strings.TrimPrefix(w, "secret "))
		}
	}
	slices.Sort(out)
	return out
}

func wantLeaks(t *testing.T, what string, rec *recorder, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := leaks(rec); !slices.Equal(got, want) {
		t.Errorf("%s: told %q\nwant %q", what, got, want)
	}
}

// What a RUN writes is searched, whatever it is: contents in every form, wherever in a file and whatever the writer's buffers
// cut, names and targets of links.
func TestLeaksOfRun(t *testing.T) {
	needIDs(t)
	for _, root := range []RootKind{"", RootTree} {
		leaksOfRun(t, newWorld(t), func(o *Options) { o.Isolation.Root = root })
	}
}

func leaksOfRun(t *testing.T, w *world, isolation mod) {
	t.Helper()
	_, rec := w.ok(isolation, secret("tok", leakValue+"\n"), from(`
		FROM base
		RUN --mount=type=secret,id=tok cp /run/secrets/tok /plain
		RUN --mount=type=secret,id=tok base64 /run/secrets/tok > /base64; echo -n user:$(cat /run/secrets/tok) | base64 > /basic
		RUN --mount=type=secret,id=tok hexdump -v -e '/1 "%02x"' /run/secrets/tok > /hex
		RUN x=p%40ss; echo https://${x}%2Fword%2Bfor%3Ftests%3D1@host > /url
		RUN --mount=type=secret,id=tok { head -c 262138 /dev/zero; cat /run/secrets/tok; } > /cut; { head -c 262144 /dev/zero; cat /run/secrets/tok; } > /after; { head -c 524267 /dev/zero; echo -n $(cat /run/secrets/tok); } > /last
		RUN --mount=type=secret,id=tok ln -s "$(cat /run/secrets/tok)" /link; mkdir -p "/d/$(cat /run/secrets/tok)"
		RUN --mount=type=secret,id=tok gzip -c /run/secrets/tok > /packed; head -c 20 /run/secrets/tok > /part; echo nothing > /else
	`))
	wantLeaks(t, "every form", rec,
		"tok is in the layer of this step: /plain (as it is)",
		"tok is in the layer of this step: /base64 (in base64), /basic (in base64)",
		"tok is in the layer of this step: /hex (in hex)",
		"tok is in the layer of this step: /url (URL-encoded)",
		"tok is in the layer of this step: /after (as it is), /cut (as it is), /last (as it is)",
		"tok is in the layer of this step: /**** (its name, as it is), /link (what it links to, as it is)",
	)
}

// COPY and ADD bring secrets in as well, and so does what the Dockerfile says itself.
func TestLeaksOfCopyAndConfig(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	must(t, tw.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.note": leakValue}, Format: tar.FormatPAX}))
	must(t, tw.Close())
	w.write("npmrc", "token="+leakValue+"\n", "a.tar", archive.String(), "clean", "nothing")
	_, rec := w.ok(secret("tok", leakValue), arg("GIVEN", leakValue), from(`
		FROM base
		ARG GIVEN
		ENV VAR=x`+leakValue+`
		LABEL l1=`+leakValue+`
		COPY npmrc clean /
		ADD a.tar /
		RUN --mount=type=secret,id=tok true
	`))
	wantLeaks(t, "", rec,
		"tok is in the configuration of the image: config.Env[1] (as it is), config.Labels.l1 (as it is)",
		"tok is in the history of the image: history[1].created_by (as it is)",
		"tok is in the history of the image: history[2].created_by (as it is)",
		"tok is in the history of the image: history[3].created_by (as it is)",
		"tok is in the history of the image: history[6].created_by (as it is)",
		"tok is in the layer of this step: /npmrc (as it is)",
		"tok is in the layer of this step: /f (an extended attribute, as it is)",
	)
	w.fails(ExitStep, []string{"secret tok is in the configuration of the image: config.Env[1]", "leak=ok"}, onLeak(LeakError), secret("tok", leakValue), from(`
		FROM base
		ENV VAR=`+leakValue+`
		RUN --mount=type=secret,id=tok touch /never
	`))
	w.fails(ExitStep, []string{":2:1: secret tok is in the layer of this step: /npmrc (as it is)", ">>> COPY npmrc /"}, onLeak(LeakError), secret("tok", leakValue), from(`
		FROM base
		COPY npmrc /
		RUN --mount=type=secret,id=tok true
	`))
}

// What is not searched for: secrets that no step mounts, short ones, and those that may leak.
func TestLeaksThatAreNone(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	dockerfile := from(`
		FROM base
		RUN --mount=type=secret,id=short --mount=type=secret,id=empty cat /run/secrets/short > /s; echo p@ss/word+for?tests=1 > /o
	`)
	_, rec := w.ok(secret("short", "7bytes!\n"), secret("empty", ""), secret("other", leakValue), onLeak(LeakError), dockerfile)
	wantLeaks(t, "short", rec)
	if want := "secret short has fewer than 8 bytes: layers are not searched for it"; !slices.Contains(rec.messages, want) {
		t.Errorf("%q is not told, only %q", want, rec.messages)
	}
	for what, mods := range map[string][]mod{"off": {onLeak(LeakOff)}, "leak=ok": {leakOK}, "leak=ok beside error": {leakOK, onLeak(LeakError)}} {
		_, rec := w.ok(append([]mod{secret("tok", leakValue), from(`
			FROM base
			RUN --mount=type=secret,id=tok cp /run/secrets/tok "/` + what + `"
		`)}, mods...)...)
		wantLeaks(t, what, rec)
	}
}

const leaking = `
	FROM base AS first
	RUN --mount=type=secret,id=tok cp /run/secrets/tok /kept; echo -n RAN
	FROM base
	COPY --from=first /kept /got
	RUN true
`

const (
	firstLeak  = "tok is in the layer of this step: /kept (as it is)"
	secondLeak = "tok is in the layer of this step: /got (as it is)"
)

// A cached layer is no way around the gate, whatever was asked for when it was made.
func TestCachedLeaks(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	given, file := secret("tok", leakValue), from(leaking)
	_, rec := w.ok(given, file)
	wantLeaks(t, "made", rec, firstLeak, secondLeak)
	for _, c := range []struct {
		what string
		mods []mod
		want []string
	}{
		{"cached", []mod{given}, []string{firstLeak, secondLeak}},
		{"and may be there", []mod{given, leakOK}, nil},
		{"and may be there, in spite of error", []mod{given, leakOK, onLeak(LeakError)}, nil},
		{"and nobody looks", []mod{given, onLeak(LeakOff)}, nil},
		{"with the secret changed", []mod{secret("tok", "another-value")}, []string{firstLeak, secondLeak}},
		{"without the secret", nil, []string{firstLeak, secondLeak}},
	} {
		_, rec := w.ok(append(c.mods, from(leaking))...)
		wantLeaks(t, c.what, rec, c.want...)
		wantRan(t, c.what, rec)
	}
	for _, m := range []mod{given, secret("tok", "another-value"), func(*Options) {}} {
		w.fails(ExitStep, []string{"secret tok is in the layer of this step"}, m, from(leaking), onLeak(LeakError))
	}
	// The image's own layers are clean, those of the stage it copies from are not.
	harmless := strings.Replace(leaking, "/kept /got", "/etc/passwd /got", 1)
	_, rec = w.ok(given, from(harmless))
	wantLeaks(t, "in a stage", rec, firstLeak)
	w.fails(ExitStep, []string{":2:1: secret tok is in the layer of this step: /kept"}, given, from(harmless), onLeak(LeakError))
}

// A layer that was made when nobody looked is searched when it is met again, once.
func TestLeaksMadeUnseen(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	given := secret("tok", leakValue)
	_, rec := w.ok(given, from(leaking), onLeak(LeakOff))
	wantLeaks(t, "off", rec)
	_, rec = w.ok(given, from(leaking))
	wantLeaks(t, "met again", rec, firstLeak, secondLeak)
	wantRan(t, "met again", rec)

	searched := 0
	s, _, err := openSession(t.Context(), &Options{Store: StoreOptions{Root: w.root, Offline: true}, Progress: newRecorder()}, false)
	must(t, err)
	defer s.close()
	for _, d := range w.ownLayers(t) {
		searched += len(s.leakNote(digest.Digest(d)).Searched)
	}
	if searched != 3 { // each layer for the one secret
		t.Errorf("%d searches are noted", searched)
	}
}

// What is told and noted of one secret does not have another in it, whenever each of them was searched for.
func TestLeaksOfSeveralSecrets(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	const other = "another-secret-value"
	both := "FROM base\nRUN --mount=type=secret,id=tok --mount=type=secret,id=other cp /run/secrets/tok /another-secret-\"value\"\nRUN true\n"
	w.ok(secret("tok", leakValue), onLeak(LeakOff), from(both))
	w.ok(secret("other", other), from(strings.Replace(both, "RUN true", "RUN :", 1)))
	_, rec := w.ok(secret("tok", leakValue), secret("other", other), from(both))
	wantLeaks(t, "both", rec,
		"tok is in the layer of this step: /**** (as it is)",
		"other is in the layer of this step: /**** (its name, as it is)",
	)
	for _, text := range []string{other, leakValue} {
		for _, warning := range rec.warnings {
			if strings.Contains(warning, text) {
				t.Errorf("%q is shown: %s", text, warning)
			}
		}
	}
}

// ownLayers lists the layers that the records of a store name as made here.
func (w *world) ownLayers(t *testing.T) []string {
	var out []string
	for _, rec := range w.records(t) {
		for _, d := range rec.Layers[rec.Base:] {
			if !slices.Contains(out, d.String()) {
				out = append(out, d.String())
			}
		}
	}
	return out
}

// With error, a leaking layer gets no further than the step: it is in no form in the store, no record answers for it.
func TestRefusedLeakLeavesNothing(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	given := secret("tok", leakValue)
	for _, root := range []RootKind{"", "", RootTree, RootTree} {
		_, rec, err := w.build(given, from(leaking), onLeak(LeakError), func(o *Options) { o.Isolation.Root = root })
		w.failed(ExitStep, []string{":2:1: secret tok is in the layer of this step: /kept (as it is)", ">>> RUN --mount=type=secret,id=tok cp"}, rec, err)
		if got := rec.log("RUN"); got != "RAN" {
			t.Errorf("the step printed %q: it was not carried out", got)
		}
		w.without(leakValue)
	}
}

// without fails the test where the store has a text.
func (w *world) without(text string) {
	w.t.Helper()
	must(w.t, filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(text)) {
			w.t.Errorf("%s holds %q", path, text)
		}
		return err
	}))
}

// What is noted of a search gives no secret away: neither it nor a hash of it that could be tried.
func TestLeakNotesTellNothing(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.ok(secret("tok", leakValue+"\n"), from(`
		FROM base
		RUN --mount=type=secret,id=tok touch /none
	`))
	noted := false
	for _, d := range w.ownLayers(t) {
		data, err := os.ReadFile(filepath.Join(w.root, "layer", lookFor(t, w.root+"/layer", d)))
		must(t, err)
		noted = noted || bytes.Contains(data, []byte(`"searched"`))
	}
	if !noted {
		t.Error("no layer is noted as searched")
	}
	w.without(leakValue)
	for _, v := range []string{leakValue, leakValue + "\n", "tok\x00" + leakValue} {
		sum := sha256.Sum256([]byte(v))
		w.without(hex.EncodeToString(sum[:]))
	}
}

// lookFor finds the file below dir whose name is, or whose text has, a key.
func lookFor(t *testing.T, dir, key string) (found string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Contains(data, []byte(key)) {
			found = strings.TrimPrefix(path, dir+"/")
		}
		return err
	}))
	if found == "" {
		t.Fatalf("nothing below %s is about %s", dir, key)
	}
	return found
}

// Notes of several searches of one layer add up.
func TestLeakNotesAddUp(t *testing.T) {
	w := newWorld(t)
	s, _, err := openSession(t.Context(), &Options{Store: StoreOptions{Root: w.root, Offline: true}, Progress: newRecorder()}, false)
	must(t, err)
	defer s.close()
	lw, err := s.layers.NewWriter(t.Context())
	must(t, err)
	l, err := lw.Commit()
	must(t, err)
	one := leak.Finding{Secret: "a", Places: []leak.Place{{Path: "/1", Form: leak.FormHex}}}
	two := leak.Finding{Secret: "a", Places: []leak.Place{{Path: "/1", Form: leak.FormHex}, {Path: "/2", Form: leak.FormHex}}}
	must(t, s.remember(t.Context(), l.DiffID, []string{"x"}, []leak.Finding{one}))
	must(t, s.remember(t.Context(), l.DiffID, []string{"y", "x"}, []leak.Finding{two, {Secret: "b"}}))
	n := s.leakNote(l.DiffID)
	if !slices.Equal(n.Searched, []string{"x", "y"}) || len(n.Found) != 2 || len(n.Found[0].Places) != 2 {
		t.Errorf("%+v", n)
	}
	blobs, err := s.layers.Blobs(l.DiffID)
	if err != nil || len(blobs) != 1 {
		t.Errorf("the layer's blobs are %v, %v", blobs, err)
	}
	var _ snapshot.Inspector = &layerSearch{}
}
