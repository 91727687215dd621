package executor_test

import (
	"bytes"
	"os/exec"
	"regexp"
	"slices"
	"testing"
)

// A step's first process does its work before the packages it does not need are initialized. The test's own program has such
// packages: those of the tests.
func TestStartsEarly(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env = []string{"build-step-init"}, []string{"GODEBUG=inittrace=1"}
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err == nil {
		t.Fatal("a step without a plan succeeded")
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^init (\S+) @`).FindAllStringSubmatch(out.String(), -1) {
		names = append(names, m[1])
	}
	if !slices.Contains(names, "os") {
		t.Fatalf("no trace of initialization: %q", out.String())
	}
	for _, late := range []string{"net", "os/exec", "regexp", "path/filepath", "build/internal/userns"} {
		if slices.Contains(names, late) {
			t.Errorf("package %s is initialized before the step's first process starts: %q", late, names)
		}
	}
}
