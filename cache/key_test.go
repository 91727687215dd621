package cache

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
)

type field struct{ Name, Value string }

func hashOf(fields []field) (Key, []byte) {
	h := NewHash("k")
	for _, f := range fields {
		h.Field(f.Name, f.Value)
	}
	return h.Sum(), h.Text()
}

// Different fields give different keys and texts, and a text gives its fields back, whatever bytes are in them.
func TestFieldsDoNotRunTogether(t *testing.T) {
	seen := make(map[Key][]field)
	texts := make(map[string][]field)
	for _, fs := range [][]field{
		nil, {{"", ""}}, {{"a", "bc"}}, {{"ab", "c"}}, {{"a", "b"}, {"c", ""}}, {{"a", "b\nc="}}, {{"a=b", "c"}}, {{"a", "b=c"}},
		{{"a", `\n`}}, {{"a", "\n"}}, {{`a\`, "b"}}, {{"a", ""}, {"b", ""}}, {{"b", ""}, {"a", ""}}, {{"a", "x"}, {"a", "x"}}, {{"\\@0", ""}},
	} {
		k, text := hashOf(fs)
		if old, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", old, fs)
		}
		if old, ok := texts[string(text)]; ok {
			t.Errorf("%q and %q have one text", old, fs)
		}
		seen[k], texts[string(text)] = fs, fs
	}
	back := func(fs []field) bool {
		_, text := hashOf(fs)
		got := []field{}
		for name, value := range fields(text) {
			got = append(got, field{name, value})
		}
		return reflect.DeepEqual(got[1:], append([]field{}, fs...)) && got[0] == field{"kind", "k"} && !bytes.HasPrefix(text, []byte(sharedMark))
	}
	if err := quick.Check(back, nil); err != nil {
		t.Error(err)
	}
	odd := func(names, values []string) bool {
		fs := []field{}
		alphabet := strings.NewReplacer("a", "\n", "b", "\\", "c", "=", "d", "@")
		for i := range min(len(names), len(values)) {
			fs = append(fs, field{alphabet.Replace(names[i]), alphabet.Replace(values[i])})
		}
		return back(fs)
	}
	if err := quick.Check(odd, nil); err != nil {
		t.Error(err)
	}
}

func TestHashKinds(t *testing.T) {
	if NewHash("a").Sum() == NewHash("b").Sum() {
		t.Error("two kinds have one key")
	}
	h := NewHash("a")
	before := h.Sum()
	h.Explain(func(add func(name, value string)) { add("file:x", "1") })
	if h.Sum() != before || !strings.Contains(string(h.Text()), "file:x=1\n") {
		t.Error("Explain changes the key, or not the text")
	}
	h.Key("input0", before)
	h.Bytes("data", []byte{0})
	if h.Sum() == before {
		t.Error("fields do not count")
	}
}

// The key of given fields may change only together with the salt: every cache in the world depends on it.
func TestKeyStaysTheSame(t *testing.T) {
	h := NewHash("definition")
	h.Field("op", "run")
	h.Bytes("arg0", []byte("make"))
	h.Key("input0", Key{1, 2, 3})
	const want = "03d305011780a644837374af977e6bc2f6869f96d7441b8d2154ffb5b3d43b66"
	if got := h.Sum().String(); got != want {
		t.Errorf("got %s", got)
	}
}

func TestParseKey(t *testing.T) {
	k := NewHash("x").Sum()
	if got, err := ParseKey(k.String()); err != nil || got != k || k.IsZero() {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("g", 64), strings.ToUpper(k.String()), k.String() + "00", k.String()[1:] + "\n"} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q passed for a key", bad)
		}
	}
}

func TestDiff(t *testing.T) {
	for _, tc := range []struct {
		old, new string
		want     []Change
	}{
		{"", "", nil},
		{"a=1\nb=2\n", "a=1\nb=2\n", nil},
		{"a=1\nb=2\n", "b=2\na=1\n", nil},
		{"a=1\n", "a=2\n", []Change{{"a", "1", "2", Changed}}},
		{"", "a=1\n", []Change{{"a", "", "1", Added}}},
		{"a=1\nb=2\n", "", []Change{{"a", "1", "", Removed}, {"b", "2", "", Removed}}},
		{"x=1\nx=2\n", "x=1\nx=3\nx=4\n", []Change{{"x", "2", "3", Changed}, {"x", "", "4", Added}}},
		{"x=1\nx=2\n", "x=1\n", []Change{{"x", "2", "", Removed}}},
		{`a\=b=1` + "\n", `a\=b=l1\nl2` + "\n", []Change{{"a=b", "1", "l1\nl2", Changed}}},
		{"rubbish\n\\q=1\n", "a=1\n", []Change{{"a", "", "1", Added}}},
	} {
		if got := Diff([]byte(tc.old), []byte(tc.new)); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q → %q: got %v", tc.old, tc.new, got)
		}
	}
}

func FuzzDiff(f *testing.F) {
	f.Add([]byte("a=1\n"), []byte("a=2\nb\\=c=3\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if d := Diff(a, a); len(d) != 0 {
			t.Errorf("a text differs from itself: %v", d)
		}
		Diff(a, b)
	})
}
