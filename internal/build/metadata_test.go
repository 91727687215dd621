package build

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

func readJSON(t *testing.T, file string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	m := map[string]any{}
	must(t, json.Unmarshal(data, &m))
	return m
}

// 3.33: the keys are those of docker buildx; an index has no configuration; warnings are those the build told.
func TestMetadata(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	file := w.tmp + "/meta.json"
	meta := func(o *Options) { o.MetadataFile = file }
	res, _ := w.ok(meta, from("FROM scratch\nCOPY f$nope /\n"), tags("example.com/a:1", "b", "example.com/a:1"), output(Output{Type: OutputImage, OCIMediaTypes: true, Names: []string{"b"}}))
	m := readJSON(t, file)
	descriptor := m["containerimage.descriptor"].(map[string]any)
	if m["containerimage.digest"] != res.Digest || descriptor["digest"] != res.Digest || m["containerimage.config.digest"] != res.ConfigDigest ||
		m["image.name"] != "example.com/a:1,docker.io/library/b:latest" {
		t.Errorf("%v", m)
	}
	var warnings struct {
		List []struct {
			Level      int
			Short      []byte
			Detail     [][]byte
			URL        string
			SourceInfo struct {
				Filename string
				Data     []byte
			}
			Range []jsonRange
		} `json:"buildx.build.warnings"`
	}
	data, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(data, &warnings))
	if len(warnings.List) != 1 {
		t.Fatalf("%s", data)
	}
	one := warnings.List[0]
	if one.Level != 1 || string(one.Short) != "UndefinedVar: Usage of undefined variable '$nope' (line 2)" || one.Range[0].Start.Line != 2 ||
		one.SourceInfo.Filename != "Dockerfile" || !strings.HasPrefix(string(one.SourceInfo.Data), "FROM scratch\n") || !strings.Contains(one.URL, "undefined-var") {
		t.Errorf("%+v", one)
	}

	id := w.tmp + "/id"
	res, _ = w.ok(meta, from("FROM scratch\nCOPY f /\n"), arg("BUILDKIT_MULTI_PLATFORM", "1"), func(o *Options) { o.IIDFile = id })
	has(t, id, res.Digest)
	m = readJSON(t, file)
	if _, has := m["containerimage.config.digest"]; has || m["containerimage.digest"] == nil || m["buildx.build.warnings"] != nil {
		t.Errorf("of an index: %v", m)
	}
	// A name in an output of type image is one in the store.
	if _, rec := w.ok(from("FROM b\nCOPY --from=b /f /g\n")); !slices.ContainsFunc(rec.messages, func(s string) bool { return strings.HasPrefix(s, "b:latest → ") }) {
		t.Errorf("messages %q", rec.messages)
	}
}

// With a question the file holds its answer.
func TestMetadataOfCheck(t *testing.T) {
	w := newWorld(t)
	file := w.tmp + "/meta.json"
	for text, status := range map[string]string{"FROM scratch\nCOPY f$nope /\n": "1", "FROM scratch\nCOPY f /\n": "0"} {
		r, _ := w.asks(Inspection{Call: CallCheck}, from(text))
		must(t, r.WriteMetadata(file))
		m := readJSON(t, file)
		var check jsonCheck
		must(t, json.Unmarshal([]byte(m["result.json"].(string)), &check))
		if m["result.statuscode"] != status || len(check.Warnings) != r.Violations() || !strings.Contains(m["result.txt"].(string), "Check complete") {
			t.Errorf("%v", m)
		}
	}
	r, _ := w.asks(Inspection{Call: CallTargets, Format: FormatJSON}, from("FROM scratch AS one\n"))
	must(t, r.WriteMetadata(file))
	if m := readJSON(t, file); m["result.statuscode"] != nil || !strings.Contains(m["result.json"].(string), `"one"`) || !strings.Contains(m["result.txt"].(string), "one") {
		t.Errorf("%v", m)
	}
}
