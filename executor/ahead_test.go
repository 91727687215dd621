package executor_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
)

// A process that waited becomes the step's: it is older than the call that ran the step.
func TestAheadIsTaken(t *testing.T) {
	t.Setenv(aheadVar, "1")
	r := newRootfs(t)
	for range 3 {
		s := r.spec("cat /proc/1/stat")
		s.Hostname = "early"
		called := sinceBoot(t)
		res := runFresh(t, r, s)
		if res.err != nil {
			t.Fatal(res.err, res.out)
		}
		_, rest, _ := strings.Cut(res.out, ") ")
		started, err := strconv.Atoi(strings.Fields(rest)[19]) // field 22, in hundredths of a second (proc(5))
		must(t, err)
		if age := called + aheadSleep - time.Duration(started)*10*time.Millisecond; age < aheadSleep/2 {
			t.Errorf("the step's first process was started when the step was: %v before it could run", age)
		}
	}
}

// runFresh runs a step on a fresh upper.
func runFresh(t *testing.T, r *rootfs, s *executor.Spec) result {
	t.Helper()
	r.reset(t)
	return run(t, t.Context(), s)
}

func sinceBoot(t *testing.T) time.Duration {
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return time.Duration(ts.Nano())
}

// What needs other namespaces, or more rights, is not served by a process that was made before.
func TestAheadOnlyForPlainSteps(t *testing.T) {
	t.Setenv(aheadVar, "1")
	r := newRootfs(t)
	s := r.spec("cat /sys/class/net/*/address | wc -l; ls /sys/class/net")
	s.Network = executor.NetworkNone
	if res := runFresh(t, r, s); res.err != nil || strings.TrimSpace(res.out) != "1\nlo" {
		t.Errorf("without a network: %q, %v", res.out, res.err)
	}
	s = r.spec("grep CapEff /proc/self/status; cat /proc/kcore >/dev/null 2>&1; df /dev/shm | grep -c 1024")
	s.Security = executor.Insecure
	s.ShmSize = 1 << 20
	if res := runFresh(t, r, s); strings.Contains(res.out, "00000000a80425fb") || !strings.HasSuffix(strings.TrimSpace(res.out), "1") {
		t.Errorf("insecure: %q, %v", res.out, res.err)
	}
	s = r.spec("df -k /dev/shm | grep -c ' 2048 '")
	s.ShmSize = 2 << 20
	if res := runFresh(t, r, s); res.err != nil || strings.TrimSpace(res.out) != "1" {
		t.Errorf("another size of /dev/shm: %q, %v", res.out, res.err)
	}
}

// The table of descriptors of a process that waits does not grow, for which the kernel would let it wait: see awaitFiles.
func TestAheadTableStaysSmall(t *testing.T) {
	t.Setenv(aheadVar, "1")
	r := newRootfs(t)
	s := r.spec("cat /proc/1/status; true")
	for i := range 5 {
		s.Mounts = append(s.Mounts, executor.Mount{Target: "/mnt/" + strconv.Itoa(i), Source: executor.File{Data: []byte("x"), Mode: 0o600}})
		s.Mounts = append(s.Mounts, executor.Mount{Target: "/tmp/" + strconv.Itoa(i), Source: executor.Tmpfs{}})
	}
	res := runFresh(t, r, s)
	must(t, res.err)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(holder(t).Pid()) + "/status")
	must(t, err)
	if got, inherited := fdSize(t, res.out), fdSize(t, string(status)); got > max(64, inherited) {
		t.Errorf("the step's first process had room for %d descriptors, the holder that started it has for %d", got, inherited)
	}
}

// fdSize is the size of a table of descriptors, from /proc/PID/status.
func fdSize(t *testing.T, status string) int {
	_, rest, _ := strings.Cut(status, "FDSize:")
	n, err := strconv.Atoi(strings.Fields(rest + " none")[0])
	must(t, err)
	return n
}

// A process that was killed while it waited is replaced, and nobody notices.
func TestAheadKilled(t *testing.T) {
	t.Setenv(aheadVar, "1")
	r := newRootfs(t)
	must(t, runFresh(t, r, r.spec("true")).err)
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		killed := killWaiting(t)
		if res := runFresh(t, r, r.spec("echo ran")); res.err != nil || res.out != "ran\n" {
			t.Fatalf("after %d waiting processes were killed: %q, %v", killed, res.out, res.err)
		}
	}
}

// killWaiting kills the children of the holder that wait for a step.
func killWaiting(t *testing.T) (killed int) {
	kids, err := exec.Command("pgrep", "-P", strconv.Itoa(holder(t).Pid())).Output()
	if err != nil {
		return 0 // none
	}
	for _, f := range strings.Fields(string(kids)) {
		name, _ := os.ReadFile("/proc/" + f + "/cmdline")
		if pid, err := strconv.Atoi(f); err == nil && strings.HasPrefix(string(name), "build-step-ahead") && unix.Kill(pid, unix.SIGKILL) == nil {
			killed++
			for alive := true; alive; time.Sleep(time.Millisecond) { // else it is the step that is killed
				stat, err := os.ReadFile("/proc/" + f + "/stat")
				threads, _ := os.ReadDir("/proc/" + f + "/task") // which keep its socket open when the first is gone
				alive = err == nil && (!strings.Contains(string(stat), ") Z ") || len(threads) > 1)
			}
		}
	}
	return killed
}

const sandboxTests = "^Test(Identity|Environment|AnyBytes|ProcessState|NoInheritedFiles|ExitStatus|Signalled|NothingSurvives|Cancel|Scratch|" +
	"TreeRoot|FileTypes|Rlimits|View|StdoutAsUser|Setuid|DeviceNodesDoNotWork|OwnProgramIsProtected|Mounts|StubsGoOnlyWhenOurs|" +
	"DirectoryChangedBesideStub|SymlinkedTargets|SymlinkedBaseDirectories|NoMountsLeft|Socket|HostSockets)$"

// The tests of the sandbox hold for steps whose process was started before them, too.
func TestSandboxAhead(t *testing.T) {
	if os.Getenv(aheadVar) != "" {
		t.Skip("this is the run that TestSandboxAhead started")
	}
	holder(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", sandboxTests, "-test.v")
	cmd.Env = append(os.Environ(), aheadVar+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS"); n < 20 {
		t.Errorf("only %d tests ran:\n%s", n, out)
	}
}

// Whoever starts such a process by hand must not get the machine's /proc hidden: it mounts before it is told anything.
func TestAheadStartedByHand(t *testing.T) {
	before := mountTable(t)
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"build-step-ahead"}, SysProcAttr: &syscall.SysProcAttr{}}
	if os.Geteuid() == 0 { // were it to mount nevertheless, the machine would not notice
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "only a build can start") {
		t.Errorf("%v: %s", err, out)
	}
	if after := mountTable(t); after != before {
		t.Errorf("mounts were\n%s\nand are\n%s", before, after)
	}
}

func mountTable(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	return string(table)
}
