package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A plan is about the build that the same flags make: one without a name or an output leaves nothing to do for the next like it, and
// something for one that wants the image.
func TestPlanGoesByWhatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "f"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"BUILD_ROOT": filepath.Join(t.TempDir(), "store"), "HOME": "/nowhere"}
	for i, step := range []struct {
		want int
		args []string
	}{
		{exitWouldRun, []string{"plan", dir}},
		{0, []string{dir}},
		{0, []string{"plan", dir}},
		{0, []string{"plan", "-o", "type=cacheonly", dir}},
		{exitWouldRun, []string{"plan", "-t", "app", dir}},
		{exitWouldRun, []string{"plan", "--iidfile", "id", dir}},
		{exitWouldRun, []string{"plan", "-q", dir}},
		{0, []string{"-t", "app", dir}},
		{0, []string{"plan", "-t", "app", dir}},
		{0, []string{"plan", dir}},
	} {
		a, stderr := fakeApp(t, env, append([]string{"build"}, step.args...)...)
		if got := a.run(); got != step.want {
			t.Errorf("%d: %q ends with %d, not %d: %s", i, step.args, got, step.want, stderr())
		}
	}
}
