package reference

import (
	"math/rand/v2"
	"strings"
	"testing"

	reference "github.com/distribution/reference"
)

const sum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

var seeds = []string{
	"", "a", "debian", "debian:12", "library/debian", "user/app:tag", "docker.io/debian", "index.docker.io/debian", "docker.io/library/a/b",
	"index.docker.io/a/b:1", "localhost/a", "localhost:5000/a", "localhost", "example.com/a", "example.com", "127.0.0.1:5000/a/b/c:x", "[::1]:5000/a",
	"[::1]/a", "[]/a", "[::1]x/a", "[::1]:/a", "[::1/a", "host:/a", "host:80x/a", "Host/a", "-host.x/a", "host-.x/a", "a..b/c", "a_b.c/d", "A/b", "a/B", "a/B:c",
	"a//b", "/a", "a/", "a/b/", "a_b", "a__b", "a___b", "a-b", "a----b", "a.b", "a..b", "a.-b", "a-", "-a", "_a", ".a", "a_", "a:", "a:-x", "a:.x", "a:_x", "a:X.y-z_",
	"a:é", "é", "É", "a:b:c", "a:b/c", "a/b:c/d", "x.y/a:b/c", "a@sha256:" + sum, "a:b@sha256:" + sum, "a@sha256:" + sum + ":b", "a@sha256:" + sum[1:], "a@sha512:" + sum,
	"a@sha512:" + sum + sum, "a@SHA256:" + sum, "a@sha256:" + strings.ToUpper(sum), "a@md5:" + sum[:32], "a@", "@sha256:" + sum, "a@x", "a@sha256+b64:" + sum, sum, sum + "a", sum[1:], "x/" + sum,
	"a\n", "a:b\n", " a", "a b", "a:" + strings.Repeat("x", 128), "a:" + strings.Repeat("x", 129), strings.Repeat("a", 255), strings.Repeat("a", 247), strings.Repeat("a", 248),
	"x.y/" + strings.Repeat("a", 255), "x.y/" + strings.Repeat("a", 256),
}

// same checks that a name means to us what it means to the library whose grammar this is.
func same(t *testing.T, s string) {
	t.Helper()
	want, wantErr := reference.ParseNormalizedNamed(s)
	if wantErr == nil && reference.Domain(want) == "" {
		// A domain that is none but would do as the first element of a path (a_b.c/d): no registry can have such an image.
		wantErr = reference.ErrReferenceInvalidFormat
	}
	got, err := Parse(s)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%q: %v; the library: %v", s, err, wantErr)
	}
	if err != nil {
		return
	}
	tag, sum := "", ""
	if r, ok := want.(reference.Tagged); ok {
		tag = r.Tag()
	}
	if r, ok := want.(reference.Digested); ok {
		sum = r.Digest().String()
	}
	if got.Domain != reference.Domain(want) || got.Path != reference.Path(want) || got.Tag != tag || got.Digest.String() != sum {
		t.Errorf("%q is %#v; the library: %#v", s, got, want)
	}
	for _, pair := range [][2]string{
		{got.String(), want.String()}, {got.Name(), want.Name()}, {got.Familiar(), reference.FamiliarString(want)},
		{got.Tagged().String(), reference.TagNameOnly(want).String()},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%q gives %q; the library: %q", s, pair[0], pair[1])
		}
	}
}

func TestAsTheLibrary(t *testing.T) {
	for _, s := range seeds {
		same(t, s)
	}
	// All short names made of what matters.
	const letters = "a1B.:-_/@[]"
	var all func(prefix string, left int)
	all = func(prefix string, left int) {
		same(t, prefix)
		if left > 0 {
			for _, c := range letters {
				all(prefix+string(c), left-1)
			}
		}
	}
	all("", 4)
	for range 20_000 {
		var b strings.Builder
		for range 1 + rand.IntN(4) {
			s := seeds[rand.IntN(len(seeds))]
			i := rand.IntN(len(s) + 1)
			b.WriteString(s[i : i+rand.IntN(len(s)-i+1)])
			b.WriteString([]string{"", "", "/", ":", "@", ".", "localhost/"}[rand.IntN(7)])
		}
		same(t, b.String())
	}
}

func TestErrors(t *testing.T) {
	for s, want := range map[string]string{
		"a/B:c":                  "invalid reference format: repository name (a/B) must be lowercase",
		sum:                      "invalid repository name (" + sum + "), cannot specify 64-byte hexadecimal strings",
		"a//b":                   "invalid reference format",
		"a@md5:" + sum[:32]:      "invalid reference format: unsupported digest algorithm",
		strings.Repeat("a", 256): "repository name must not be more than 255 characters",
	} {
		if _, err := Parse(s); err == nil || err.Error() != want {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(same)
}
