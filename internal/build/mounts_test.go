package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// What a Dockerfile says about a secret or an agent decides whether a step runs again, as in BuildKit; what they are does
// not (S92, S95), unless a secret was given with cachekey.
func TestPrivateMountsInKeys(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	one, two := sshKey(t, "-t", "ed25519"), sshKey(t, "-t", "ed25519")
	keyed := func(v string) mod {
		return func(o *Options) { o.Secrets = append(o.Secrets, Secret{ID: "s", Data: []byte(v), CacheKey: true}) }
	}
	for _, c := range []struct {
		mount string
		given []mod
		runs  bool
		why   string
	}{
		{"type=secret,id=s,target=/x", []mod{secret("s", "v1")}, true, "the first time"},
		{"type=secret,id=s,target=/x", []mod{secret("s", "v2")}, false, "another value"},
		{"type=secret,id=s,target=/x", nil, false, "no value"},
		{"type=secret,id=t,target=/x", []mod{secret("t", "v1")}, true, "another secret at the same place"},
		{"type=secret,id=s,target=/x,mode=0444", []mod{secret("s", "v1")}, true, "another mode"},
		{"type=secret,id=s,target=/x,uid=1", []mod{secret("s", "v1")}, true, "another owner"},
		{"type=secret,id=s,target=/x,required", []mod{secret("s", "v1")}, true, "required"},
		{"type=secret,id=s,target=/x", []mod{keyed("v1")}, true, "its value counts from now on"},
		{"type=secret,id=s,target=/x", []mod{keyed("v1")}, false, "the same value"},
		{"type=secret,id=s,target=/x", []mod{keyed("v2")}, true, "another value that counts"},
		{"type=secret,id=s,target=/x", []mod{keyed("v1")}, false, "the first value again"},
		{"type=secret,id=s,target=/x", []mod{secret("s", "v3")}, false, "a value that does not count"},
		{"type=secret,id=s,target=/x", []mod{secret("s", "v3"), keyed("v1")}, false, "of two the last counts"},
		{"type=secret,id=other,target=/x", []mod{secret("other", "v"), keyed("v9")}, true, "another one's value"},
		{"type=secret,id=other,target=/x", []mod{secret("other", "v"), keyed("v8")}, false, "another one's value again"},
		{"type=ssh,target=/x", []mod{sshAuth(t, "default", one)}, true, "the first agent"},
		{"type=ssh,target=/x", []mod{sshAuth(t, "default", two)}, false, "another key"},
		{"type=ssh,target=/x", nil, false, "no agent"},
		{"type=ssh,target=/x,id=deploy", []mod{sshAuth(t, "deploy", one)}, true, "another agent at the same place"},
		{"type=ssh,target=/x,gid=1", []mod{sshAuth(t, "default", one)}, true, "another group"},
	} {
		_, rec := w.ok(append(c.given, from("FROM base\nRUN --mount="+c.mount+" true\n"))...)
		if ran := len(rec.ran()) == 1; ran != c.runs {
			t.Errorf("%s (%s): ran: %v, want %v", c.why, c.mount, ran, c.runs)
		}
	}
}

// A key that a value is part of says nothing about the value to whoever does not have the store's own key: the same build in
// another store has another one.
func TestSecretInKeyIsTheStoresOwn(t *testing.T) {
	needIDs(t)
	const value = "guess me if you can"
	records := func(counts bool) []string {
		w := newWorld(t)
		w.ok(from("FROM base\nRUN --mount=type=secret,id=s true\n"), func(o *Options) {
			o.Secrets = []Secret{{ID: "s", Data: []byte(value), CacheKey: counts}}
		})
		w.noTrace(value)
		sum := sha256.Sum256([]byte(value))
		w.noTrace(hex.EncodeToString(sum[:]))
		if _, err := os.Lstat(w.root + "/secret-key"); (err == nil) != counts {
			t.Errorf("the store's key, where the value counts: %v: %v", counts, err)
		}
		files, err := filepath.Glob(w.root + "/record/*/*")
		must(t, err)
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		slices.Sort(files)
		if len(files) == 0 {
			t.Fatal("no records")
		}
		return files
	}
	if a, b := records(false), records(false); !slices.Equal(a, b) {
		t.Errorf("without cachekey two stores have different keys: %q, %q", a, b)
	}
	a, b := records(true), records(true)
	for _, k := range a {
		if slices.Contains(b, k) {
			t.Errorf("with cachekey two stores share the key %s", k)
		}
	}
}

// A mount inside a cache mount is a directory of the cache, which steps running at the same time all want to make and none may
// take away.
func TestMountsInsideSharedCache(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	df := "FROM base AS b\n"
	for i := range 4 {
		df += fmt.Sprintf("FROM b AS s%d\nRUN --mount=type=cache,target=/c --mount=type=cache,id=in,target=/c/in "+
			"sleep 0.%d && grep -q ' /c/in ' /proc/self/mountinfo && echo %d > /c/in/%d && echo %d > /o%d\n", i, 1+2*i, i, i, i, i)
	}
	df += "FROM b\n"
	for i := range 4 {
		df += fmt.Sprintf("COPY --from=s%d /o%d /\n", i, i)
	}
	// Beside the inner cache its place in the outer one is empty.
	df += "RUN --mount=type=cache,target=/c --mount=type=cache,id=in,target=/i [ $(ls /c/in | wc -l) = 0 ] && [ $(ls /i | wc -l) = 4 ]\n"
	w.ok(from(df))
}
