package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder stands in for a test and notes how it was ended.
type recorder struct {
	testing.TB
	fatal, skipped bool
}

type ended struct{}

func (r *recorder) Helper()               {}
func (r *recorder) Fatalf(string, ...any) { r.fatal = true; panic(ended{}) }
func (r *recorder) Skipf(string, ...any)  { r.skipped = true; panic(ended{}) }

func run(f func(testing.TB)) (r *recorder) {
	r = &recorder{}
	defer func() {
		if v := recover(); v != nil {
			if _, ok := v.(ended); !ok {
				panic(v)
			}
		}
	}()
	f(r)
	return r
}

func TestSkipFailsWhenRequired(t *testing.T) {
	for _, tc := range []struct {
		require     string
		fatal, skip bool
	}{{"1", true, false}, {"", false, true}} {
		t.Setenv(RequireVar, tc.require)
		r := run(func(t testing.TB) { Tool(t, "no-such-program-anywhere") })
		if r.fatal != tc.fatal || r.skipped != tc.skip {
			t.Errorf("%s=%q: failed %v, skipped %v", RequireVar, tc.require, r.fatal, r.skipped)
		}
	}
}

func TestBaseFollowsTheCacheVariable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(CacheVar, dir)
	t.Setenv(RequireVar, "")
	if r := run(func(t testing.TB) { Base(t, "busybox") }); !r.skipped {
		t.Error("a base that is not there was not skipped")
	}
	if err := os.MkdirAll(filepath.Join(dir, "busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox", "index.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Base(t, "busybox"); !strings.HasPrefix(got, dir+"/") {
		t.Errorf("Base = %q, not in %q", got, dir)
	}
}
