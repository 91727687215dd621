package snapshot

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestOwner(t *testing.T) {
	ctx := context.Background()
	l := testLayers(t)
	id := writeTree(t, l, baseTree())
	chain := chainOf(t, l, id)
	for spec, want := range map[string]Owner{
		"":             {0, 0},
		"0":            {0, 0},
		"root":         {0, 0},
		"1000":         {1000, 1000}, // not the user of that name
		"app":          {100, 101},
		"app:":         {100, 0},
		"5:":           {5, 0},
		"app:staff":    {100, 50},
		"app:0":        {100, 0},
		"1000:staff":   {1000, 50},
		"5:6":          {5, 6},
		":staff":       {0, 50},
		"2147483647:1": {2147483647, 1},
	} {
		if got, err := l.Owner(ctx, chain, []digest.Digest{id}, spec); err != nil || got != want {
			t.Errorf("%q: %v, %v", spec, got, err)
		}
	}
	for _, spec := range []string{
		"nobody", "app:nogroup", "-1", "+1", "00", "01", "0x0", "0X10", "2147483648", "4294967295", "4294967296", "2147483648:0", "5:-1",
		"99999999999999999999", "5:6:7", "app\n", " app", "1e3",
	} {
		var oe *OwnerError
		if got, err := l.Owner(ctx, chain, []digest.Digest{id}, spec); !errors.As(err, &oe) {
			t.Errorf("%q: %v, %v", spec, got, err)
		}
	}
}

func TestOwnerFiles(t *testing.T) {
	files := func(passwd string) func(string) ([]byte, error) {
		return func(path string) ([]byte, error) {
			if path == "etc/passwd" {
				return []byte(passwd), nil
			}
			return nil, nil
		}
	}
	for passwd, want := range map[string]Owner{
		"u:x:1:2":                    {1, 2},
		"\n#u:x:9:9\n  u:x:1:2:::\n": {1, 2},
		"u:x:1:2::\nu:x:3:4::":       {1, 2},
		"v:x:" + strings.Repeat("9", 1<<20) + ":0\nu:x:1:2": {1, 2},
		"u:x:4294967294:2::": {4294967294, 2},
	} {
		if got, err := parseOwner("u", files(passwd)); err != nil || got != want {
			t.Errorf("%.40q: %v, %v", passwd, got, err)
		}
	}
	for _, passwd := range []string{"", "u", "u:x:1", "u:x::2", "u:x:-1:2", "u:x:1:x", "u:x:4294967295:0", "u:x:4294967296:0", "U:x:1:2"} {
		var oe *OwnerError
		if got, err := parseOwner("u", files(passwd)); !errors.As(err, &oe) {
			t.Errorf("%.40q: %v, %v", passwd, got, err)
		}
	}
	broken := errors.New("broken")
	if _, err := parseOwner("u", func(string) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestOwnerInSymlinkedEtc follows links inside the root only, and refuses what is no file or too large.
func TestOwnerInSymlinkedEtc(t *testing.T) {
	ctx := context.Background()
	l := testLayers(t)
	for name, c := range map[string]struct {
		tree memSource
		ok   bool
	}{
		"linked":     {memSource{}.link("etc", "/../conf").file("conf/passwd", "app:x:3:4"), true},
		"outside":    {memSource{}.link("etc/passwd", "/proc/self/../../etc/passwd"), false},
		"directory":  {memSource{}.dir("etc/passwd", 0o755, 0), false},
		"fifo-like":  {memSource{}.link("etc/passwd", "passwd"), false},
		"huge":       {memSource{}.file("etc/passwd", "app:x:3:4\n"+strings.Repeat("x", maxUserFile)), false},
		"just right": {memSource{}.file("etc/passwd", strings.Repeat("x", 300<<10)+"\napp:x:3:4\n"), true},
	} {
		id := writeTree(t, l, c.tree)
		got, err := l.Owner(ctx, chainOf(t, l, id), []digest.Digest{id}, "app")
		if c.ok && (err != nil || got != Owner{3, 4}) || !c.ok && err == nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
