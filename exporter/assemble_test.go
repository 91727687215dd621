package exporter

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func entry(by string, created *time.Time, empty bool) ocispec.History {
	return ocispec.History{CreatedBy: by, Created: created, EmptyLayer: empty}
}

// short writes a history as name+minutes, with parentheses around empty entries.
func short(h []ocispec.History) string {
	var out []string
	for _, e := range h {
		s := e.CreatedBy + "@"
		if e.Created == nil {
			s += "?"
		} else {
			s += e.Created.Sub(t0).String()
		}
		if e.EmptyLayer {
			s = "(" + s + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestNormalizeHistory(t *testing.T) {
	times := []LayerTime{{*at(10), "one"}, {*at(20), "two"}, {*at(30), "three"}}
	for name, tc := range map[string]struct {
		in   []ocispec.History
		n    int
		want string
	}{
		"complete":             {[]ocispec.History{entry("a", at(1), false), entry("b", at(2), true)}, 1, "a@1m0s (b@2m0s)"},
		"layer times":          {[]ocispec.History{entry("a", nil, false), entry("b", nil, false)}, 2, "a@10m0s b@20m0s"},
		"metadata borrows":     {[]ocispec.History{entry("base", at(1), false), entry("ENV", nil, true), entry("RUN", nil, false)}, 2, "base@1m0s (ENV@20m0s) RUN@20m0s"},
		"metadata at the end":  {[]ocispec.History{entry("RUN", nil, false), entry("CMD", nil, true)}, 1, "RUN@10m0s (CMD@10m0s)"},
		"only metadata":        {[]ocispec.History{entry("base", at(1), false), entry("ENV", nil, true)}, 1, "base@1m0s (ENV@1m0s)"},
		"two gaps":             {[]ocispec.History{entry("b", at(1), false), entry("E", nil, true), entry("R", nil, false), entry("F", nil, true), entry("S", nil, false)}, 3, "b@1m0s (E@20m0s) R@20m0s (F@20m0s) S@30m0s"},
		"too many":             {[]ocispec.History{entry("a", at(1), false), entry("b", at(2), false)}, 1, "a@1m0s (b@2m0s)"},
		"too few":              {[]ocispec.History{entry("a", at(1), false)}, 3, "a@1m0s two@20m0s three@30m0s"},
		"none":                 {nil, 1, "one@10m0s"},
		"no layers, no times":  {[]ocispec.History{entry("CMD", nil, true)}, 0, "(CMD@?)"},
		"more than times know": {nil, 4, "one@10m0s two@20m0s three@30m0s created by build@30m0s"},
	} {
		if got := short(NormalizeHistory(tc.in, tc.n, times)); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tc.want)
		}
	}
}

// Whatever goes in, the number of layers fits and the input is not changed.
func TestNormalizeHistoryProperty(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		in := make([]ocispec.History, r.IntN(8))
		for i := range in {
			in[i].EmptyLayer = r.IntN(2) == 0
			if r.IntN(2) == 0 {
				in[i].Created = at(r.IntN(100))
			}
		}
		before := short(in)
		n := r.IntN(8)
		out := NormalizeHistory(in, n, nil)
		layers, times := 0, 0
		for _, h := range out {
			if !h.EmptyLayer {
				layers++
			}
			if h.Created != nil {
				times++
			}
		}
		if layers != n {
			t.Fatalf("%s for %d layers gives %s", before, n, short(out))
		}
		if times != 0 && times != len(out) {
			t.Fatalf("%s for %d layers leaves gaps: %s", before, n, short(out))
		}
		if short(in) != before {
			t.Fatal("the input was changed")
		}
	}
}

func TestClampHistory(t *testing.T) {
	base := []ocispec.History{entry("b1", at(50), false), entry("b2", at(60), true)}
	in := append(append([]ocispec.History(nil), base...), entry("own", at(5), false), entry("late", at(90), false), entry("none", nil, true))
	if got, want := short(ClampHistory(in, base, *at(10))), "b1@50m0s (b2@1h0m0s) own@5m0s late@10m0s (none@10m0s)"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// An entry that differs from the base's ends the base.
	changed := append([]ocispec.History(nil), in...)
	changed[0].CreatedBy = "other"
	if got, want := short(ClampHistory(changed, base, *at(10))), "other@10m0s (b2@10m0s) own@5m0s late@10m0s (none@10m0s)"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestAssemble(t *testing.T) {
	im := testImage(t, false)
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(im.Config, &conf); err != nil {
		t.Fatal(err)
	}
	if got := string(conf["created"]); got != `"2024-05-01T12:03:00Z"` {
		t.Errorf("created %s", got)
	}
	if !strings.HasPrefix(string(im.Config), `{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["/hello","a\u003cb"]},"created":`) {
		t.Errorf("config %s", im.Config)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(im.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.MediaType != ocispec.MediaTypeImageManifest || m.Config.MediaType != ocispec.MediaTypeImageConfig || m.Layers[1].MediaType != ocispec.MediaTypeImageLayerGzip {
		t.Errorf("types %s", im.Manifest)
	}
	if !strings.HasPrefix(string(im.Manifest), "{\n  \"schemaVersion\": 2,\n  \"mediaType\"") {
		t.Errorf("manifest %s", im.Manifest)
	}
	docker := testImage(t, true)
	if !strings.Contains(string(docker.Manifest), dockerLayerGzip) || strings.Contains(string(docker.Manifest), "oci") || docker.MediaType != dockerManifest {
		t.Errorf("docker manifest %s", docker.Manifest)
	}
	if string(docker.Config) != string(im.Config) {
		t.Error("the media types of the manifest change the config")
	}
}

func TestAssembleEpoch(t *testing.T) {
	layers := []Layer{gzipLayer(t, "a=1")}
	im, err := Assemble(testConfig(entry("RUN", at(99), false)), layers, AssembleOptions{Epoch: at(-5)})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(im.Config), `"created":"2024-05-01T11:55:00Z"`); n != 2 {
		t.Errorf("config %s", im.Config)
	}
}

func TestAssembleEmpty(t *testing.T) {
	im, err := Assemble(testConfig(), nil, AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"null"} {
		if strings.Contains(string(im.Config)+string(im.Manifest), bad) {
			t.Errorf("%s in %s %s", bad, im.Config, im.Manifest)
		}
	}
}

func TestAssembleRefuses(t *testing.T) {
	good := gzipLayer(t, "a=1")
	badType, badDiff := good, good
	badType.MediaType = "text/plain"
	badDiff.DiffID = "sha256:short"
	noPlatform := testConfig()
	noPlatform.OS = ""
	for name, f := range map[string]func() error{
		"layer type": func() error { _, err := Assemble(testConfig(), []Layer{badType}, AssembleOptions{}); return err },
		"diffID":     func() error { _, err := Assemble(testConfig(), []Layer{badDiff}, AssembleOptions{}); return err },
		"platform":   func() error { _, err := Assemble(noPlatform, nil, AssembleOptions{}); return err },
		"annotations": func() error {
			_, err := Assemble(testConfig(), nil, AssembleOptions{Docker: true, Annotations: map[string]string{"a": "b"}})
			return err
		},
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLayerAnnotations(t *testing.T) {
	l := gzipLayer(t, "a=1")
	l.Annotations = map[string]string{"containerd.io/uncompressed": "x", "containerd.io/distribution.source.docker.io": "y", "buildkit/createdat": "z", "org.example": "kept"}
	im, err := Assemble(testConfig(), []Layer{l}, AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s := string(im.Manifest); !strings.Contains(s, "org.example") || strings.Contains(s, "containerd.io") || strings.Contains(s, "createdat") {
		t.Errorf("manifest %s", s)
	}
}
