package main

import (
	"os"
	"testing"
)

// The fastest program on an absolute PATH is taken, if it can be executed.
func TestFindInflater(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/unpigz": 0o755, "b/igzip": 0o755, "c/igzip": 0o644, "d/igzip": os.ModeDir} {
		if err := os.MkdirAll(dir+"/"+name[:1], 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if mode.IsDir() {
			err = os.Mkdir(dir+"/"+name, 0o755)
		} else {
			err = os.WriteFile(dir+"/"+name, nil, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for path, want := range map[string]string{
		"": "", "b": "", "./b": "", dir + "/c:" + dir + "/d": "",
		dir + "/a": dir + "/a/unpigz", "b:" + dir + "/c:" + dir + "/a": dir + "/a/unpigz",
		dir + "/a:" + dir + "/b": dir + "/b/igzip",
	} {
		if got := findInflater(path); got != want {
			t.Errorf("PATH=%s: %q, want %q", path, got, want)
		}
	}
}
