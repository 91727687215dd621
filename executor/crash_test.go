package executor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"build/executor"
	"build/internal/userns"
)

// crashVar makes the test binary a front process that runs one step (given as JSON) and waits to be killed.
const crashVar = "EXECUTOR_TEST_CRASH"

func crashMain() {
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var spec executor.Spec
	if err := json.Unmarshal([]byte(os.Getenv(crashVar)), &spec); err != nil {
		fail(err)
	}
	h, _, _, err := userns.Open(context.Background(), fullNamespaces)
	if err != nil {
		fail(err)
	}
	fmt.Println("holder", h.Pid())
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		fail(err)
	}
	fail(h.Call(context.Background(), "run", &spec, nil, null, null, null))
}

// TestKill kills the front process, or the holder, while a step with processes of several users runs.
func TestKill(t *testing.T) {
	for _, victim := range []string{"front", "holder"} {
		for _, user := range []string{"", "app"} {
			t.Run(victim+" "+user, func(t *testing.T) { testKill(t, victim, user) })
		}
	}
}

func testKill(t *testing.T, victim, user string) {
	testKillStep(t, victim, func(s *executor.Spec) { s.User = user }, func(int) {})
}

// testKillStep calls running, with the holder's pid, before it kills.
func testKillStep(t *testing.T, victim string, change func(*executor.Spec), running func(holder int)) {
	r := newRootfs(t)
	marker := fmt.Sprint(100000 + time.Now().UnixNano()%1e6)
	s := r.spec("setsid sleep " + marker + " & sleep " + marker + " & wait; wait")
	change(s)
	in, err := json.Marshal(s)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{crashVar + "=" + string(in), "PATH=" + os.Getenv("PATH")}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid int
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if _, err := fmt.Sscanf(line, "holder %d", &pid); err != nil {
		t.Fatal(line)
	}
	waitFor(t, "the step to run", func() bool { return countProcesses(t, marker) >= 2 })
	running(pid)
	if victim == "front" {
		must(t, cmd.Process.Kill())
	} else {
		p, err := os.FindProcess(pid)
		must(t, err)
		must(t, p.Kill())
	}
	start := time.Now()
	waitFor(t, "the step to be gone", func() bool { return countProcesses(t, marker) == 0 })
	t.Logf("gone after %v", time.Since(start))
	cmd.Wait()
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), r.dir) {
		t.Errorf("mounts left:\n%s", b)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestProbe(t *testing.T) {
	r := newRootfs(t)
	var report executor.Report
	must(t, holder(t).Call(t.Context(), "probe", r.dir, &report))
	if !report.OK() {
		t.Errorf("%+v", report)
	}
	if es, _ := os.ReadDir(r.dir); len(es) != 3 {
		t.Errorf("left behind: %v", es)
	}
	report = executor.Report{}
	must(t, holder(t).Call(t.Context(), "probe", "/proc", &report))
	if report.OK() || report.Checks[0].OK || report.Checks[0].Errno == 0 {
		t.Errorf("an overlay on /proc: %+v", report.Checks[0])
	}
}

// BenchmarkRun is one step of an idle command; BenchmarkExec is the command without a step.
func BenchmarkRun(b *testing.B) {
	for _, network := range []executor.Network{executor.NetworkHost, executor.NetworkNone, executor.NetworkPrivate} {
		b.Run([]string{"host", "none", "private"}[network], func(b *testing.B) {
			r := newRootfs(b)
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			must(b, err)
			defer null.Close()
			h := holder(b)
			s := r.spec("")
			s.Args, s.Network = []string{"/bin/true"}, network
			s.Resolv, s.Hosts = []byte("r"), []byte("h")
			for b.Loop() {
				b.StopTimer()
				r.reset(b)
				b.StartTimer()
				must(b, h.Call(context.Background(), "run", s, nil, null, null, null))
			}
		})
	}
}

func BenchmarkExec(b *testing.B) {
	r := newRootfs(b)
	for b.Loop() {
		must(b, exec.Command(r.lower+"/bin/true").Run())
	}
}
