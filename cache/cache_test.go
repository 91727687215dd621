package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
)

func newCache(t testing.TB) *Cache {
	t.Helper()
	st, err := store.Open(t.TempDir()+"/s", store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := New(st)
	t.Cleanup(func() {
		ps, err := st.Check(context.Background(), store.CheckOptions{
			Verify: func(kind store.Kind, key string, data []byte) error {
				if kind != store.KindRecord {
					return nil
				}
				return CheckRecord(key, data)
			},
		})
		if err != nil {
			t.Error(err)
		}
		for _, p := range ps {
			if !p.Harmless() {
				t.Errorf("the store lies: %v", p)
			}
		}
		st.Close()
	})
	return c
}

func key(s string) Key {
	h := NewHash("test")
	h.Field("name", s)
	return h.Sum()
}

func sampleRecord() *Record {
	t0 := time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)
	return &Record{
		Layers: []digest.Digest{digest.FromString("a"), digest.FromString("b")}, Times: []time.Time{{}, t0},
		Base: 1, Own: 1, Created: t0, Took: 1500 * time.Millisecond, Step: "[build 2/5] RUN printf \"x\\n\"", Text: []byte("kind=run\narg0=make\n"),
	}
}

func TestPutGet(t *testing.T) {
	c := newCache(t)
	_, err := c.Get(key("a"))
	var miss *Miss
	if !errors.As(err, &miss) || miss.Reason != ReasonAbsent {
		t.Errorf("got %v", err)
	}
	for name, r := range map[string]*Record{
		"full":  sampleRecord(),
		"empty": {},
		"odd":   {Step: "\x00\xff\n", Text: []byte{0, '\n', 0xff}, Layers: []digest.Digest{digest.FromString("x")}},
	} {
		if err := c.Put(key(name), r); err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(key(name))
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	r := sampleRecord()
	if err := c.Alias(key("alias"), r, []byte("other=text\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Get(key("alias")); err != nil || string(got.Text) != "other=text\n" || got.Step != r.Step || string(r.Text) != string(sampleRecord().Text) {
		t.Errorf("alias: %+v, %v", got, err)
	}
	if err := c.Remove(key("alias")); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(key("alias")); err == nil {
		t.Error("removed and still there")
	}
	for name, bad := range map[string]*Record{
		"digest": {Layers: []digest.Digest{"sha256:../../x"}},
		"times":  {Times: make([]time.Time, 2), Layers: []digest.Digest{digest.FromString("x")}},
		"own":    {Own: 1},
		"took":   {Took: -1},
		"year":   {Created: time.Date(12024, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if err := c.Put(key(name), bad); err == nil {
			t.Errorf("a record with a bad %s was taken", name)
		}
	}
}

// Whatever happens to the file of a record is a miss that says why.
func TestDamagedRecordIsAMiss(t *testing.T) {
	c := newCache(t)
	if err := c.Put(key("a"), sampleRecord()); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(c.st.Dir() + "/record/*/*")
	if len(files) != 1 {
		t.Fatal(files)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte) {
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := c.Get(key("a"))
		var miss *Miss
		if r != nil || !errors.As(err, &miss) || !strings.HasPrefix(miss.Reason, ReasonDamaged) {
			t.Fatalf("%q: %v, %v", b, r, err)
		}
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 4
		try(b)
		try(whole[:i])
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(files[0], 0o700); err != nil {
		t.Fatal(err)
	}
	var miss *Miss
	if _, err := c.Get(key("a")); !errors.As(err, &miss) {
		t.Errorf("a directory: %v", err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	// A whole record of another key, in this one's place and with this one's seal.
	data, err := sampleRecord().encode(key("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.st.Write(store.KindRecord, key("a").String(), data); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(key("a")); !errors.As(err, &miss) {
		t.Errorf("another's record: %v", err)
	}
	if err := c.Remove(key("a")); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	full, _ := sampleRecord().encode(key("a"))
	empty, _ := (&Record{}).encode(key("a"))
	f.Add(full)
	f.Add(empty)
	f.Add(bytes.Replace(full, []byte("layers 2"), []byte("layers 99999999999"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, r, err := decode(b)
		if err != nil {
			return
		}
		again, err := r.encode(k)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q was read as %+v and written as %q, %v", b, r, again, err)
		}
	})
}

func TestAlike(t *testing.T) {
	c := newCache(t)
	if got := c.Alike("i"); got != nil {
		t.Errorf("got %v", got)
	}
	for i := range 3 {
		k := key(fmt.Sprint(i))
		if err := errors.Join(c.Put(k, &Record{Text: []byte(fmt.Sprintf("arg=%d\n", i))}), c.Remember("i", k), c.Remember("i", k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Remove(key("1")); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, r := range c.Alike("i") {
		texts = append(texts, string(r.Text))
	}
	if want := []string{"arg=2\n", "arg=0\n"}; !reflect.DeepEqual(texts, want) {
		t.Errorf("got %q", texts)
	}
	for i := range 20 {
		if err := c.Remember("i", key(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.rememberedKeys("i")); n != remembered {
		t.Errorf("%d keys are remembered", n)
	}
}

func TestFields(t *testing.T) {
	h := NewHash("k")
	h.Field("a=b", "1\n2")
	h.Field("x", "1")
	h.Field("x", "2")
	want := map[string]string{"kind": "k", "a=b": "1\n2", "x": "2"}
	if got := Fields(h.Text()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

// contextText is the text of a COPY of n files, of which one has changed.
func contextText(n, changed int) []byte {
	h := NewHash("copy")
	h.Field("dest", "/src")
	h.Explain(func(add func(name, value string)) {
		for i := range n {
			v := digest.FromString(fmt.Sprint(i)).Encoded()[:16]
			if i == changed {
				v = "changed"
			}
			add(fmt.Sprintf("file:dir%02d/file%05d.go", i%50, i), v)
		}
	})
	return h.Text()
}

func TestLongTextsAreShared(t *testing.T) {
	c := newCache(t)
	a, b := contextText(5000, -1), contextText(5000, 1234)
	if err := c.Put(key("a"), &Record{Text: a}); err != nil {
		t.Fatal(err)
	}
	pieces := func() (n int) {
		for _, err := range c.st.List(store.KindText) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	first := pieces()
	if err := c.Put(key("b"), &Record{Text: b}); err != nil {
		t.Fatal(err)
	}
	if more := pieces() - first; first < 5 || first > 60 || more > 2 {
		t.Errorf("%d pieces, and %d more for one changed file", first, more)
	}
	ra, err := c.Get(key("a"))
	if err != nil || len(ra.Text) > 8<<10 {
		t.Fatalf("the record has %d bytes of text, %v", len(ra.Text), err)
	}
	if !bytes.Equal(c.Text(ra), a) {
		t.Error("the text was not put together again")
	}
	rb, err := c.Get(key("b"))
	if err != nil {
		t.Fatal(err)
	}
	changes := Diff(c.Text(ra), c.Text(rb))
	if len(changes) != 1 || changes[0].Name != "file:dir34/file01234.go" || changes[0].New != "changed" || changes[0].Kind != Changed {
		t.Errorf("changes: %v", changes)
	}
	data, err := ra.encode(key("a"))
	if err != nil {
		t.Fatal(err)
	}
	if refs := References(store.KindRecord, "", data); len(refs) != first {
		t.Errorf("%d references to %d pieces", len(refs), first)
	}
	for _, key := range sharedTexts(ra.Text) { // evicted: the rest is still readable
		if err := c.st.Remove(store.KindText, key); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(c.Text(ra)); got != "kind=copy\ndest=/src\n" {
		t.Errorf("without its pieces: %q", got)
	}
}

func TestReferences(t *testing.T) {
	r := sampleRecord()
	data, err := r.encode(key("a"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ref := range References(store.KindRecord, "", data) {
		got = append(got, ref.String())
	}
	want := []string{"layer " + string(r.Layers[0]), "layer " + string(r.Layers[1])}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	if refs := References(store.KindRecord, "", []byte("x")); refs != nil {
		t.Errorf("of rubbish: %v", refs)
	}
	if refs := References(store.KindLayer, "", data); refs != nil {
		t.Errorf("of another kind: %v", refs)
	}
}

func BenchmarkGet(b *testing.B) {
	c := newCache(b)
	if err := c.Put(key("a"), sampleRecord()); err != nil {
		b.Fatal(err)
	}
	k := key("a")
	for b.Loop() {
		if _, err := c.Get(k); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	c, r, i := newCache(b), sampleRecord(), 0
	for b.Loop() {
		i++
		if err := c.Put(key(fmt.Sprint(i)), r); err != nil {
			b.Fatal(err)
		}
	}
}

// One changed file among 50,000: what a record of it costs beside the first.
func BenchmarkPutLong(b *testing.B) {
	c := newCache(b)
	if err := c.Put(key("a"), &Record{Text: contextText(50_000, -1)}); err != nil {
		b.Fatal(err)
	}
	text := contextText(50_000, 77)
	for b.Loop() {
		if err := c.Put(key("b"), &Record{Text: text}); err != nil {
			b.Fatal(err)
		}
	}
}
