package buildctx

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExcludes(t *testing.T) {
	for _, tc := range []struct {
		rules    string
		out, not string // sources, separated by blanks
	}{
		{"Dockerfile\n", "Dockerfile", "/Dockerfile other . /"},
		{"dir\n*.log\n", "dir dir/below dir/below/deep a.log", "sub/a.log . dirs"},
		{"**/*.log\n", "a.log sub/a.log", "log"},
		{"*\n", ". x", ""},
		{"**\n", ". x/y", ""},
		{"**/*\n", ". x/y", ""},
		{".*\n", ".git", ". /"},            // the root is no hidden file
		{"*\n!kept\n", "", "x kept . x/y"}, // exceptions: nothing is certain
		{"# nothing\n", "", "x ."},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(tc.rules), 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := OpenDir(dir, DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{true, false} {
			list := tc.not
			if want {
				list = tc.out
			}
			for _, src := range strings.Fields(list) {
				if got, err := d.Excludes(src); err != nil || got != want {
					t.Errorf("%q: Excludes(%q) = %v, %v", tc.rules, src, got, err)
				}
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestExcludesWithoutRules(t *testing.T) {
	d, err := OpenDir(t.TempDir(), DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if out, err := d.Excludes("x"); out || err != nil {
		t.Errorf("%v %v", out, err)
	}
}
