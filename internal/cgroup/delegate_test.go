package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// unified skips where the controllers do not belong to cgroup v2. TestOldKernel in cmd/build boots a kernel where they do and
// runs these tests there, as root.
func unified(t *testing.T) *hierarchy {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("for root, which plays the administrator who delegates")
	}
	lay, err := look("/proc")
	if err != nil {
		t.Fatal(err)
	}
	if lay.v2 == nil || !has(lay.v2.mount, memory) {
		t.Skip("the controllers are those of cgroup v1 here")
	}
	return lay.v2
}

// delegate makes a group with all controllers for a user, as systemd does for a scope with Delegate=yes.
func delegate(t *testing.T, h *hierarchy, uid int) string {
	t.Helper()
	dir := h.mount + "/delegated-" + strings.ToLower(path.Base(t.Name()))
	for _, c := range Controllers {
		if err := write(h.mount+"/cgroup.subtree_control", "+"+c); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeGroup(dir); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := os.Chown(filepath.Join(dir, name), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// in starts a helper as a user in a group.
func in(t *testing.T, dir, what string, uid int) *exec.Cmd {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd := child(what)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(f.Fd()), Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)},
	}
	return cmd
}

// The tests that need a group of their own, as a user who owns it.
func TestDelegated(t *testing.T) {
	h := unified(t)
	for _, name := range []string{
		"TestMemoryLimit", "TestPidsLimit", "TestCPULimit", "TestCPUSet", "TestAllLimits", "TestRemoveKills", "TestProbe", "TestRestored", "TestUserNamespace",
	} {
		t.Run(name, func(t *testing.T) {
			dir := delegate(t, h, 1000)
			out, err := in(t, dir, "tests "+name, 1000).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: "+name) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// A process that opens groups is moved aside, and stands where it was once they are closed: others can be started there again.
func TestRestored(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		t.Skip("run by TestDelegated")
	}
	before, err := look("/proc")
	if err != nil {
		t.Fatal(err)
	}
	first := able(t, Limits{Memory: 64 << 20})
	moved, _ := look("/proc")
	if moved.v2.own != before.v2.own+"/"+mainGroup {
		t.Errorf("while open: in %s, before in %s", moved.v2.own, before.v2.own)
	}
	second := able(t, Limits{Pids: 64})
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	g, err := second.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.nodes[0].dir.Name() + "/pids.max"); err != nil {
		t.Error("a build that ended took the controllers of another:", err)
	}
	g.Remove()
	second.Close()
	after, _ := look("/proc")
	if after.v2.own != before.v2.own {
		t.Errorf("afterwards: in %s, before in %s", after.v2.own, before.v2.own)
	}
	if left := words(before.v2.own + "/cgroup.subtree_control"); len(left) > 0 {
		t.Errorf("controllers stay enabled: %v", left)
	}
}

// A process in a user namespace, as the holder is, starts others inside of the group with what it was handed.
func TestUserNamespace(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		t.Skip("run by TestDelegated")
	}
	g := newGroup(t, Limits{Memory: 64 << 20, Pids: 100})
	cmd := child("holder")
	cmd.ExtraFiles = append([]*os.File{g.Dir()}, g.Procs()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), groupPrefix) != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

// A group with somebody else in it cannot be used; the error says who is there, and what to do.
func TestNotAlone(t *testing.T) {
	h := unified(t)
	dir := delegate(t, h, 1000)
	if err := write(dir+"/pids.max", "500"); err != nil { // nothing to be escaped to the group above
		t.Fatal(err)
	}
	other := in(t, dir, "sleep", 1000)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	out, err := in(t, dir, "tests TestBlocked", 1000).CombinedOutput()
	for _, want := range []string{"other processes", "Delegate=yes", "--- PASS"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %q: %v\n%s", want, err, out)
		}
	}
	if _, err := os.Stat(dir + "/" + mainGroup); err == nil {
		t.Error("the group of the build itself stays")
	}
}

// Not delegated: the weaker means, with their reasons.
func TestNotDelegated(t *testing.T) {
	h := unified(t)
	dir := delegate(t, h, 0)
	out, err := in(t, dir, "tests TestBlocked", 1000).CombinedOutput()
	for _, want := range []string{"not delegated", "Delegate=yes", "RLIMIT_DATA", "--- PASS"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %q: %v\n%s", want, err, out)
		}
	}
}

func TestBlocked(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		t.Skip("run by others")
	}
	g, err := Open(Limits{Memory: 64 << 20, Pids: 50, CPUQuota: 50_000})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	f := g.Fallback()
	if f.Data != 64<<20 || f.Procs != 50 || len(f.CPUs()) != 1 || len(f.Notes) != 3 {
		t.Errorf("%+v", f)
	}
	t.Log(strings.Join(f.Notes, "\n"))
	var e *Error
	if g, err := Open(Limits{CPUShares: 100}); !errors.As(err, &e) || !strings.Contains(e.Error(), "--cpu-shares") || !strings.Contains(e.Fix, "Delegate=yes") {
		t.Errorf("shares: %v, %v", g, err)
	}
}

// Root in a group with others, as in a login shell, uses the group above when nothing is escaped by it.
func TestAbove(t *testing.T) {
	h := unified(t)
	top := delegate(t, h, 0)
	for _, c := range Controllers {
		if err := write(top+"/cgroup.subtree_control", "+"+c); err != nil {
			t.Fatal(err)
		}
	}
	session := top + "/session"
	if err := os.Mkdir(session, 0o755); err != nil {
		t.Fatal(err)
	}
	other := in(t, session, "sleep", 0)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	out, err := in(t, session, "tests TestMemoryLimit", 0).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := write(session+"/memory.max", "100000000"); err != nil {
		t.Fatal(err)
	}
	out, err = in(t, session, "tests TestMemoryLimit", 0).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "other processes") {
		t.Errorf("a limit was escaped: %v\n%s", err, out)
	}
}

// A controller that is not handed down is named.
func TestMissingController(t *testing.T) {
	h := unified(t)
	top := delegate(t, h, 0)
	if err := write(top+"/cgroup.subtree_control", "+memory"); err != nil {
		t.Fatal(err)
	}
	inner := top + "/inner"
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := in(t, inner, "tests TestOnlyMemory", 0).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestOnlyMemory(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		t.Skip("run by TestMissingController")
	}
	var missing []string
	for _, f := range Probe() {
		if !f.OK {
			missing = append(missing, f.Controller)
			if !strings.Contains(f.Blocker, "was not given it") || !strings.Contains(f.Fix, "Delegate="+f.Controller) {
				t.Errorf("%+v", f)
			}
		}
	}
	if !slices.Equal(missing, []string{cpu, cpuset, pids}) {
		t.Errorf("missing: %v", missing)
	}
}

// A step whose limit is that of a group above is seen by the counters of the group it shares with the build.
func TestWatch(t *testing.T) {
	h := unified(t)
	dir := delegate(t, h, 1000)
	if err := write(dir+"/memory.max", "67108864"); err != nil {
		t.Fatal(err)
	}
	out, err := in(t, dir, "tests TestWatched", 1000).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestWatched(t *testing.T) {
	if os.Getenv(nestedVar) == "" {
		t.Skip("run by TestWatch")
	}
	w := NewWatch()
	if n, _, _ := w.Killed(); n != 0 {
		t.Errorf("killed before: %d", n)
	}
	eater := child("eat 300")
	eater.SysProcAttr = nil
	if err := eater.Run(); err == nil {
		t.Error("300 MiB of 64")
	}
	n, limit, where := w.Killed()
	if n != 1 || limit != 64<<20 || !strings.Contains(where, "/delegated-") {
		t.Errorf("killed %d, limit %d of %s", n, limit, where)
	}
	if n, _, _ := w.Killed(); n != 0 {
		t.Errorf("counted twice: %d", n)
	}
}
