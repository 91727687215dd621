package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
			if !counts {
				o.SecretLeak = LeakOff // the other reason for a key
			}
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

// What a step sees of its mounts, as in BuildKit: a directory has its own owner and mode, that of a cache with source= too; an
// owner or mode given to a cache together with from= makes it begin empty; ro and the mode of a secret are kept to.
func TestMountsSeen(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("d/y", "y")
	must(t, os.Chmod(filepath.Join(w.dir, "d"), 0o700))
	for _, c := range []struct{ mount, command, want string }{
		{"type=cache,target=/c,from=a,source=/dd", "stat -c %a:%u:%g /c; ls /c", "751:11:12 q"},
		{"type=cache,target=/c,from=a,source=/link,id=l", "stat -c %a:%u:%g /c; ls /c", "751:11:12 q"},
		{"type=cache,target=/c,from=a,source=/dd,id=own,mode=0711,uid=3", "stat -c %a:%u:%g /c", "751:11:12"},
		{"type=cache,target=/c,from=a,source=/dd/q,id=file", "stat -c %a:%u:%g /c", "640:11:12"},
		{"type=cache,target=/c,from=a,id=empty,mode=0750,gid=4", "stat -c %a:%u:%g /c; ls /c", "750:0:4"},
		{"type=cache,target=/c,id=sub", "mkdir -p /c/sub && touch /c/sub/x && echo made", "made"},
		{"type=cache,target=/c,id=sub,source=sub", "ls /c", "x"},
		{"type=bind,target=/c,source=d", "stat -c %a:%u:%g /c; ls /c", "700:0:0 y"},
		{"type=bind,target=/c,from=a,source=/dd", "stat -c %a:%u:%g /c", "751:11:12"},
		{"type=tmpfs,target=/c,ro", "touch /c/x 2>/dev/null || echo refused", "refused"},
		{"type=secret,id=s,target=/c,mode=0", "stat -c %a /c", "0"},
	} {
		_, rec := w.ok(secret("s", "v"), from(`
			FROM base AS a
			RUN mkdir -m 751 /dd && touch /dd/q && chmod 640 /dd/q && chown -R 11:12 /dd && ln -s dd /link
			FROM base
			RUN --mount=`+c.mount+` `+c.command+"\n"))
		if got := strings.Join(strings.Fields(rec.log("--mount")), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.mount, got, c.want)
		}
	}
	w.fails(3, []string{"Dockerfile:2:1", "nothing to mount at source /other"}, from("FROM base\nRUN --mount=type=cache,target=/c,id=sub,source=other ls /c\n"))
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

// One id seeded with the same files from two paths is two caches: each is looked into at its own path.
func TestCacheSeededFromTwoPaths(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	_, rec := w.ok(from(`
		FROM base AS s
		RUN mkdir /a /b && echo seed > /a/f && cp -p /a/f /b/f
		FROM base
		RUN --mount=type=cache,id=z,from=s,source=/a/f,target=/x cat /x
		RUN --mount=type=cache,id=z,from=s,source=/b/f,target=/x cat /x
	`))
	for _, from := range []string{"source=/a/f", "source=/b/f"} {
		if got := rec.log(from); got != "seed\n" {
			t.Errorf("%s: %q", from, got)
		}
	}
}
