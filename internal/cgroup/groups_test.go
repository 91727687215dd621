package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"build/internal/testenv"
)

// able skips where no group can be made: the tests of this file run as root, and as a user to whom a group was delegated.
func able(t *testing.T, l Limits) *Groups {
	t.Helper()
	if os.Getenv(nestedVar) == "" {
		testenv.Root(t)
	}
	g, err := Open(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	for _, note := range g.Fallback().Notes {
		t.Fatal(note)
	}
	return g
}

func newGroup(t *testing.T, l Limits) *Group {
	t.Helper()
	group, err := able(t, l).New()
	if err != nil {
		t.Fatal(err)
	}
	if group == nil {
		t.Fatal("no group was made")
	}
	t.Cleanup(func() { group.Remove() })
	return group
}

func gone(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
}

func dirs(g *Group) (out []string) {
	for _, n := range g.nodes {
		out = append(out, n.dir.Name())
	}
	return out
}

func TestMemoryLimit(t *testing.T) {
	g := newGroup(t, Limits{Memory: 64 << 20})
	where := dirs(g)
	if out, err := inGroup(g, "eat 16").CombinedOutput(); err != nil || string(out) != "ate 16\n" {
		t.Fatalf("16 MiB of 64: %v, %s", err, out)
	}
	if u, ok := g.Memory(); !ok || u.OOMKills != 0 || u.Limit != 64<<20 {
		t.Errorf("before: %+v, %v", u, ok)
	}
	_, err := inGroup(g, "eat 200").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("200 MiB of 64: %v", err)
	}
	u, _ := g.Memory()
	if u.OOMKills != 1 {
		t.Errorf("kills: %d", u.OOMKills)
	}
	if _, err := os.Stat(where[0] + "/memory.peak"); (err == nil || !g.nodes[0].h.v2) && (u.Peak < 48<<20 || u.Peak > 65<<20) {
		t.Errorf("peak: %d", u.Peak)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	gone(t, where...)
}

// With the same limit for memory and for memory with swap it still is the step's own that is reached.
func TestMemorySwapLimit(t *testing.T) {
	g := newGroup(t, Limits{Memory: 64 << 20, MemorySwap: 64 << 20})
	if _, err := inGroup(g, "eat 200").CombinedOutput(); err == nil {
		t.Error("200 MiB of 64")
	}
	if u, _ := g.Memory(); u.OOMKills != 1 || u.Limit != 64<<20 || u.Above != "" {
		t.Errorf("%+v", u)
	}
}

// A limit of the parent that is lower than the step's is the one to name.
func TestMemoryLimitAbove(t *testing.T) {
	testenv.Root(t)
	groups, err := Open(Limits{Memory: 1 << 30, Parent: "build-test-low"})
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	g, err := groups.New()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	parent := filepath.Dir(dirs(g)[0])
	file := "/memory.limit_in_bytes"
	if g.nodes[0].h.v2 {
		file = "/memory.max"
	}
	if err := write(parent+file, "67108864"); err != nil {
		t.Fatal(err)
	}
	if _, err := inGroup(g, "eat 200").CombinedOutput(); err == nil {
		t.Error("200 MiB of 64")
	}
	if u, _ := g.Memory(); u.OOMKills != 1 || u.Limit != 64<<20 || u.Above != parent {
		t.Errorf("%+v, not of %s", u, parent)
	}
}

func TestPidsLimit(t *testing.T) {
	g := newGroup(t, Limits{Pids: 20})
	out, err := inGroup(g, "fork 60").CombinedOutput()
	var got int
	if n, _ := fmt.Sscanf(string(out), "got %d", &got); err == nil && (n != 1 || got >= 20) {
		t.Errorf("60 of 20 processes: %s", out)
	} // a Go program that gets no thread ends with an error, which is a limit that holds, too
	if g.Refused() == 0 {
		t.Errorf("nothing was refused: %v, %s", err, out)
	}
}

func TestCPULimit(t *testing.T) {
	g := newGroup(t, Limits{CPUQuota: 20_000, CPUPeriod: 100_000, CPUShares: 512})
	var b []byte
	for range 40 { // on a machine with more to do than CPUs the quota is not reached at once
		if out, err := inGroup(g, "spin 500").CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		var err error
		if b, err = os.ReadFile(g.nodes[0].dir.Name() + "/cpu.stat"); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "nr_throttled") && !strings.Contains(string(b), "nr_throttled 0\n") {
			return
		}
	}
	t.Errorf("never throttled:\n%s", b)
}

// The limit of the group above is seen by a process in one that sets none.
func TestCPUsOfGroups(t *testing.T) {
	g := newGroup(t, Limits{CPUQuota: 150_000})
	inner := g.nodes[0].dir.Name() + "/inner"
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	procs, err := os.OpenFile(inner+"/cgroup.procs", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer procs.Close()
	cmd := child("cpus")
	cmd.ExtraFiles = []*os.File{procs}
	cmd.Env = append(cmd.Env, enterVar+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "1.5\n" {
		t.Errorf("%v, %q", err, out)
	}
}

func TestCPUSet(t *testing.T) {
	g := newGroup(t, Limits{CPUs: "0", Mems: "0"})
	out, err := inGroup(g, "cat /proc/self/status").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Cpus_allowed_list:\t0\n") {
		t.Errorf("%v, %s", err, out)
	}
}

// All controllers together, as a step has them, several groups at a time.
func TestAllLimits(t *testing.T) {
	groups := able(t, Limits{Memory: 64 << 20, MemorySwap: 64 << 20, CPUQuota: 150_000, CPUs: "0", Pids: 100})
	for range 3 {
		g, err := groups.New()
		if err != nil {
			t.Fatal(err)
		}
		defer g.Remove()
		out, err := inGroup(g, "cat /proc/self/cgroup").CombinedOutput()
		if err != nil || strings.Count(string(out), groupPrefix) != len(g.nodes) {
			t.Errorf("%v, %s", err, out)
		}
	}
}

// What a step leaves running goes with its group, at once where the kernel has cgroup.kill.
func TestRemoveKills(t *testing.T) {
	g := newGroup(t, Limits{Pids: 100})
	if out, err := inGroup(g, "tree").CombinedOutput(); err != nil || string(out) != "planted\n" {
		t.Fatalf("%v, %s", err, out)
	}
	where := dirs(g)
	if n := len(words(where[0] + "/cgroup.procs")); n != 3 {
		t.Fatalf("%d processes are in the group", n)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	gone(t, where...)
}

// The group of a build that was killed is removed by the next, with what runs in it; that of one that lives is not touched.
func TestSweep(t *testing.T) {
	able(t, Limits{Pids: 10})
	start := func() (*exec.Cmd, string) {
		cmd := child("open")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		line, _ := bufio.NewReader(out).ReadString('\n')
		dir, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
		if !ok {
			t.Fatalf("the other build says %q", line)
		}
		return cmd, dir
	}
	dead, left := start()
	_, kept := start()
	dead.Process.Kill()
	dead.Wait()
	if len(words(left+"/cgroup.procs")) == 0 {
		t.Fatal("the killed build left no process behind")
	}
	able(t, Limits{Pids: 10})
	gone(t, left)
	if len(words(kept+"/cgroup.procs")) == 0 {
		t.Error("the group of a build that lives was emptied")
	}
}

func TestParent(t *testing.T) {
	testenv.Root(t)
	groups, err := Open(Limits{Pids: 30, Parent: "build-test-parent/inner"})
	if err != nil {
		t.Fatal(err)
	}
	g, err := groups.New()
	if err != nil {
		t.Fatal(err)
	}
	out, err := inGroup(g, "cat /proc/self/cgroup").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/build-test-parent/inner/"+groupPrefix) {
		t.Errorf("%v, %s", err, out)
	}
	top := filepath.Dir(filepath.Dir(dirs(g)[0]))
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	groups.Close()
	gone(t, top)
}

// A parent without limits still is the parent.
func TestParentAlone(t *testing.T) {
	testenv.Root(t)
	groups, err := Open(Limits{Parent: "build-test-alone.slice"})
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	g, err := groups.New()
	if err != nil || g == nil {
		t.Fatal(g, err)
	}
	defer g.Remove()
	out, err := inGroup(g, "cat /proc/self/cgroup").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/build.slice/build-test.slice/build-test-alone.slice/"+groupPrefix) {
		t.Errorf("%v, %s", err, out)
	}
}

func TestBadValue(t *testing.T) {
	testenv.Root(t)
	for _, l := range []Limits{{CPUs: "8000"}, {Mems: "900"}, {CPUs: "0,8000", Pids: 5}} {
		g, err := Open(l)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.What, "--cpuset") {
			t.Errorf("%+v: %v", l, err)
		}
		if err == nil {
			g.Close()
		}
	}
}

func TestProbe(t *testing.T) {
	for _, f := range Probe() {
		switch {
		case f.OK && (f.Where == "" || f.Blocker != ""):
			t.Errorf("%+v", f)
		case !f.OK && f.Blocker == "":
			t.Errorf("%s: nobody is in the way", f.Controller)
		case !f.OK && os.Geteuid() == 0 && os.Getenv(nestedVar) == "":
			t.Errorf("blocked for root: %+v", f)
		}
	}
}
