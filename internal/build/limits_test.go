package build

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"build/executor"
	"build/internal/cgroup"
	"build/internal/testenv"
)

// A process that may use half a CPU works at one thing at a time, though Go would use two threads.
func TestDefaultJobs(t *testing.T) {
	const inside = "BUILD_TEST_JOBS_INSIDE"
	if os.Getenv(inside) != "" {
		fmt.Println("jobs:", processors())
		return
	}
	testenv.Root(t)
	groups, err := cgroup.Open(Limits{CPUQuota: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	g, err := groups.New()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `echo 0 >&3; exec "$0" -test.run='^TestDefaultJobs$'`, self)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.ExtraFiles = g.Procs()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "jobs: 1\n") {
		t.Errorf("%v, %s", err, out)
	}
}

// What takes the place of a limit does not raise one of --ulimit.
func TestLowered(t *testing.T) {
	have := []executor.Rlimit{{Resource: 2, Soft: 5, Hard: 10}, {Resource: 6, Soft: 1, Hard: 1}}
	for most, want := range map[uint64]executor.Rlimit{
		100: {Resource: 2, Soft: 5, Hard: 10}, 7: {Resource: 2, Soft: 5, Hard: 7}, 3: {Resource: 2, Soft: 3, Hard: 3},
	} {
		if got := lowered(have, 2, most); len(got) != 2 || got[0] != have[1] || got[1] != want {
			t.Errorf("%d: %+v", most, got)
		}
	}
	if got := lowered(nil, 2, 3); len(got) != 1 || got[0].Hard != 3 {
		t.Errorf("%+v", got)
	}
}
