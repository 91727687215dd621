package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"build/internal/testenv"
)

func TestOpenMakesAnImageLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Open(dir, Options{})
	must(t, err)
	fi, err := os.Stat(dir)
	must(t, err)
	if fi.Mode().Perm() != 0o700 {
		t.Errorf("made with mode %v", fi.Mode())
	}
	for name, want := range map[string]string{"oci-layout": layoutContent, "index.json": emptyIndex, "version": formatVersion} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	must(t, s.Close())
	if left, _ := os.ReadDir(filepath.Join(dir, tmpDir)); len(left) > 0 {
		t.Errorf("Close left %v", left)
	}
	again, err := Open(dir, Options{})
	must(t, err)
	mustBeSound(t, again)
}

func TestOpenByManyAtOnce(t *testing.T) {
	for range 20 {
		dir := t.TempDir() + "/s"
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				s, err := Open(dir, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := putBlob(s, []byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func TestOpenRefuses(t *testing.T) {
	file := func(dir, name, content string) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	for name, tc := range map[string]struct {
		prepare func(dir string)
		want    string
	}{
		"writable by the group": {func(d string) { must(t, os.Chmod(d, 0o770)) }, "others may write"},
		"writable by all":       {func(d string) { must(t, os.Chmod(d, 0o777)) }, "others may write"},
		"unknown version":       {func(d string) { file(d, "version", "build store 2\n") }, "format \"build store 2\""},
		"somebody's files":      {func(d string) { file(d, "thesis.tex", "") }, "thesis.tex"},
		"a foreign layout":      {func(d string) { file(d, "index.json", "{}"); file(d, "oci-layout", "{}") }, "not a store"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Chmod(dir, 0o700))
			tc.prepare(dir)
			before, _ := os.ReadDir(dir)
			_, err := Open(dir, Options{})
			var se *Error
			if !errors.As(err, &se) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "--root") {
				t.Errorf("got %v", err)
			}
			if after, _ := os.ReadDir(dir); len(after) != len(before) {
				t.Errorf("a refused directory was changed: %v", after)
			}
		})
	}
	t.Run("a file", func(t *testing.T) {
		dir := t.TempDir()
		file(dir, "f", "")
		if _, err := Open(dir+"/f", Options{}); err == nil {
			t.Error("opened a file")
		}
	})
	t.Run("not its owner", func(t *testing.T) {
		testenv.Root(t)
		dir := t.TempDir()
		must(t, os.Chmod(dir, 0o700))
		must(t, os.Chown(dir, 12345, 12345))
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "uid 12345") {
			t.Errorf("got %v", err)
		}
	})
}

// A store whose making was interrupted at any point is made to the end by the next process.
func TestOpenFinishesAnInterruptedMaking(t *testing.T) {
	type stop struct{}
	for _, at := range []string{"create.dirs", "create.oci-layout", "create.index.json"} {
		dir := t.TempDir() + "/s"
		func() {
			defer func() {
				if r := recover(); r != (stop{}) {
					t.Errorf("%s was never reached: %v", at, r)
				}
			}()
			_, _ = Open(dir, Options{Point: func(p string) {
				if p == at {
					panic(stop{})
				}
			}})
		}()
		s, err := Open(dir, Options{})
		if err != nil {
			t.Errorf("after %s: %v", at, err)
			continue
		}
		mustBeSound(t, s)
	}
}

func TestCommandLineHidesValues(t *testing.T) {
	args := os.Args
	t.Cleanup(func() { os.Args = args })
	os.Args = []string{"/usr/bin/build", "--build-arg", "TOKEN=secret1", "--build-arg=PASS=secret2", "--target=final", "-t", "x"}
	got := commandLineOf(os.Args)
	if strings.Contains(got, "secret") || !strings.Contains(got, "TOKEN=") || !strings.Contains(got, "--target=final") {
		t.Errorf("got %q", got)
	}
}
