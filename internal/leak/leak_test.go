package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand"
	"net/url"
	"slices"
	"strings"
	"testing"

	"build/internal/tree"
)

const pem = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1h0m9kZ3J4c2RmZ2hqa2wxMjM0NTY3ODkwYWJj
ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY3ODkwQUJDREVGR0hJSktM
TU5PUFFSU1RVVldYWVo=
-----END PRIVATE KEY-----
`

// wrapped breaks lines as encoders do.
func wrapped(s string, width int, sep string) string {
	var b strings.Builder
	for i, c := range s {
		if i > 0 && i%width == 0 {
			b.WriteString(sep)
		}
		b.WriteRune(c)
	}
	return b.String()
}

// content searches one file that comes in pieces of a size.
func content(f *Finder, data []byte, piece int) []Hit {
	t := newText(f)
	for rest := data; len(rest) > 0; {
		n := min(piece, len(rest))
		t.write(rest[:n])
		rest = rest[n:]
	}
	return t.end(nil)
}

// Every form of every kind of secret is found, wherever the pieces are cut, at the beginning, in the middle and at the end.
func TestForms(t *testing.T) {
	secrets := map[string]string{
		"shortest": "8 bytes!", "token": "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "odd": "p/a+s=s w~o?r&d>\xff\xfe\x00x", "key": pem, "digits": "0123456789",
		"same": "aaaaaaaaaaaaaaaa", "json": "{\n  \"private_key\": \"abc\\ndef\"\n}\n",
	}
	for name, value := range secrets {
		f := New([]Secret{{"other", []byte("nothing of the kind")}, {name, []byte(value)}})
		v := strings.TrimSpace(value)
		for form, texts := range map[string][]string{
			FormLiteral: {value, v},
			FormBase64: {
				base64.StdEncoding.EncodeToString([]byte(value)), base64.RawURLEncoding.EncodeToString([]byte(v)),
				base64.StdEncoding.EncodeToString([]byte("u" + v)), base64.URLEncoding.EncodeToString([]byte("us" + v)),
				base64.RawStdEncoding.EncodeToString([]byte("use" + v + "r")), base64.RawURLEncoding.EncodeToString([]byte("user:" + v + "more")),
				wrapped(base64.StdEncoding.EncodeToString([]byte(value)), 76, "\n"), wrapped(base64.StdEncoding.EncodeToString([]byte("x"+value)), 64, "\r\n    "),
				wrapped(base64.StdEncoding.EncodeToString([]byte(value)), 64, `\n`),
			},
			FormHex: {
				hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(v))), wrapped(hex.EncodeToString([]byte(value)), 60, "\n"),
			},
			FormURL: {url.QueryEscape(v), url.PathEscape(v), strings.ReplaceAll(url.QueryEscape(v), "+", "%20"), strings.ReplaceAll(url.PathEscape(v), "%2F", "/")},
		} {
			for _, text := range texts {
				want := form
				if strings.Contains(text, v) {
					want = FormLiteral
				}
				for _, in := range []string{text, "before " + text, text + " after", strings.Repeat(" \x00xy", 99) + text + strings.Repeat("ab\n", 77)} {
					for _, piece := range []int{1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 64, 1 << 20} {
						if got := content(f, []byte(in), piece); !slices.Equal(got, []Hit{{name, want}}) {
							t.Fatalf("%s %s in pieces of %d: %v in %q", name, form, piece, got, in)
						}
					}
				}
			}
		}
	}
}

// A secret of several lines is found with other line ends, indented and as a string of JSON.
func TestSpaced(t *testing.T) {
	f := New([]Secret{{"key", []byte(pem)}})
	for _, in := range []string{
		strings.ReplaceAll(pem, "\n", "\r\n"), "key: |\n  " + strings.ReplaceAll(pem, "\n", "\n  "), `{"key":"` + strings.ReplaceAll(pem, "\n", `\n`) + `"}`,
		strings.ReplaceAll(pem, "\n", " "), strings.ReplaceAll(pem, "\n", ""),
	} {
		for _, piece := range []int{1, 6, 1000} {
			if got := content(f, []byte(in), piece); !slices.Equal(got, []Hit{{"key", FormSpaced}}) {
				t.Errorf("%v in %q", got, in)
			}
		}
	}
}

// Wherever a line of base64 ends, the secret in it is found.
func TestWrappedAnywhere(t *testing.T) {
	value := []byte("ghp_16C7e42F292c6912E7710c838347Ae178B4a")
	f := New([]Secret{{"token", value}})
	for before := range 80 {
		in := wrapped(base64.StdEncoding.EncodeToString(append(bytes.Repeat([]byte{'.'}, before), value...)), 76, "\n")
		if got := content(f, []byte(in), 50); !slices.Equal(got, []Hit{{"token", FormBase64}}) {
			t.Errorf("after %d bytes: %v in %q", before, got, in)
		}
	}
}

func TestNotFound(t *testing.T) {
	f := New([]Secret{{"short", []byte(" 7bytes!\n")}, {"empty", nil}, {"other", []byte("password1234")}})
	for _, in := range []string{"7bytes!", "password123", "Password1234", "assword1234", "passwor\nd1234", "cGFzc3dvcmQxMjM", ""} {
		if got := content(f, []byte(in), 100); len(got) > 0 {
			t.Errorf("%v in %q", got, in)
		}
	}
	if Trimmed([]byte(" 7bytes!\n")) != nil || Trimmed([]byte(" 8bytes!!\n")) == nil {
		t.Error("the limit is elsewhere")
	}
	long := bytes.Repeat([]byte("0123456789abcde"), 40000)
	if got := Trimmed(long); len(got) != longest {
		t.Errorf("%d bytes of a long secret are compared", len(got))
	}
}

// The search agrees with the obvious one, for secrets that overlap themselves and each other, in texts full of near misses.
func TestAgainstObvious(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	word := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = "ab"[rng.Intn(2)]
		}
		return b
	}
	for range 3000 {
		var secrets []Secret
		for i := range 1 + rng.Intn(4) {
			secrets = append(secrets, Secret{fmt.Sprint(i), word(8 + rng.Intn(6))})
		}
		in := word(rng.Intn(400))
		var want []Hit
		for _, s := range secrets {
			if bytes.Contains(in, s.Value) {
				want = append(want, Hit{s.ID, FormLiteral})
			}
		}
		got := content(New(secrets), in, 1+rng.Intn(60))
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v\nsecrets %q\nin %q", got, want, secrets, in)
		}
	}
}

// Two values under one id, such as one that was given twice, are one secret.
func TestSameID(t *testing.T) {
	f := New([]Secret{{"a", []byte("value one")}, {"a", []byte("value two")}})
	if got := f.In("value two, value one"); !slices.Equal(got, []Hit{{"a", FormLiteral}}) {
		t.Errorf("%v", got)
	}
}

func TestLayer(t *testing.T) {
	f := New([]Secret{{"tok", []byte("my-secret-value\n")}, {"dir", []byte("one/two-three")}})
	s := f.Search()
	entry := func(path string, typ tree.Type, data string, change func(*tree.Entry)) {
		e := &tree.Entry{Path: path, Type: typ}
		if change != nil {
			change(e)
		}
		s.Entry(e)
		for data != "" {
			n := min(len(data), 5)
			s.Content([]byte(data[:n]))
			data = data[n:]
		}
	}
	entry("a", tree.File, "my-secret-valu", nil)
	entry("b", tree.File, "e is no continuation", nil)
	entry("c", tree.File, "x=my-secret-value and again bXktc2VjcmV0LXZhbHVl", nil)
	entry("d", tree.Dir, "", nil)
	entry("d/is-my-secret-value", tree.Dir, "", nil)
	entry("d/is-my-secret-value/below", tree.File, "", nil)
	entry("e", tree.Symlink, "", func(e *tree.Entry) { e.Link = "../my-secret-value/x" })
	entry("f", tree.File, "", func(e *tree.Entry) {
		e.Xattrs = []tree.Xattr{{Name: "user.note", Value: "6D792D7365637265742D76616C7565"}}
	})
	entry("g", tree.File, "my-secret-value", nil)
	entry("h", tree.File, "my-secret-value", nil)
	entry("one", tree.Dir, "", nil)
	entry("one/two-three", tree.Dir, "", nil)
	entry("z", tree.File, "the last: my-secret-value", nil)
	want := []Finding{
		{Secret: "tok", Others: 2, Places: []Place{
			{"/c", "", FormLiteral}, {"/d/****", PartName, FormLiteral}, {"/e", PartLink, FormLiteral}, {"/f", PartXattr, FormHex}, {"/g", "", FormLiteral},
		}},
		{Secret: "dir", Places: []Place{{"/****", PartName, FormLiteral}}},
	}
	if got := s.End(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("found %+v\nwant  %+v", got, want)
	}
}

// What the search costs beside reading, for files of random bytes (nothing begins like a secret), of zeros and of text that looks
// like tokens (much does).
func BenchmarkContent(b *testing.B) {
	rng := rand.New(rand.NewSource(2))
	piece := make([]byte, 256<<10)
	for _, n := range []int{1, 10, 100} {
		var secrets []Secret
		for i := range n {
			v := make([]byte, 30)
			rng.Read(v)
			secrets = append(secrets, Secret{fmt.Sprint(i), []byte(base64.StdEncoding.EncodeToString(v))})
		}
		f := New(secrets)
		for name, fill := range map[string]func(){
			"random": func() { rng.Read(piece) },
			"zeros":  func() { clear(piece) },
			"base64": func() {
				raw := make([]byte, len(piece)*3/4)
				rng.Read(raw)
				base64.StdEncoding.Encode(piece, raw)
			},
		} {
			b.Run(fmt.Sprintf("%d-secrets/%s", n, name), func(b *testing.B) {
				fill()
				t := newText(f)
				b.SetBytes(int64(len(piece)))
				for b.Loop() {
					t.write(piece)
				}
			})
		}
	}
}

func BenchmarkNew(b *testing.B) {
	v := bytes.Repeat([]byte("0123456789abcdef"), 300)
	for b.Loop() {
		New([]Secret{{"a", v}})
	}
}

// Whatever a secret and a text are, nothing depends on where the text is cut, and the secret itself is found.
func FuzzPieces(f *testing.F) {
	f.Add([]byte("8 bytes!"), []byte("8 bytes?8 bytes!"), 3)
	f.Add([]byte(pem), []byte(strings.ReplaceAll(pem, "\n", `\n`)), 5)
	f.Add([]byte("aaaaaaaab\\ c"), []byte("aaaaaaaaaaaaaaaab\\\\n\\ c"), 1)
	f.Add([]byte("YWFhYWFhYWFhYWFhYWFh"), []byte("WVdGaFlXRmhZV0Zo\nWVdGaFlXRmhZV0Zo"), 7)
	f.Fuzz(func(t *testing.T, secret, in []byte, piece int) {
		if piece < 1 || piece > 100 || len(in) > 1<<12 || len(secret) > 1<<12 {
			return
		}
		finder := New([]Secret{{"a", secret}, {"b", []byte("b" + string(secret))}})
		whole := content(finder, in, len(in)+1)
		if got := content(finder, in, piece); !slices.Equal(got, whole) {
			t.Errorf("in pieces of %d: %v, as a whole: %v", piece, got, whole)
		}
		v := Trimmed(secret)
		if v != nil && !slices.Contains(content(finder, slices.Concat(in, v), piece), Hit{"a", FormLiteral}) {
			t.Errorf("%q is not found behind %q", v, in)
		}
	})
}
