package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the floor, which is this program once more.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == probeCommand {
		main()
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var err error
	if scratch, err = os.MkdirTemp("", "bench-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch)
	os.Exit(code)
}

// scratch is a directory for what all tests use.
var scratch string

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{7}, 7}} {
		if got := median(tc.of, func(f float64) float64 { return f }); got != tc.want {
			t.Errorf("median of %v is %v, want %v", tc.of, got, tc.want)
		}
	}
}

// busy is a shell command that computes for a while.
const busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"

func TestMeasureCountsChildren(t *testing.T) {
	s, err := measure(t.Context(), []invocation{{exec.Command("true"), exec.Command("sh", "-c", "sh -c '"+busy+"'")}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU <= 0.005 || s.Wall <= 0.005 {
		t.Errorf("a busy loop took %+v", s)
	}
	_, err = measure(t.Context(), []invocation{{exec.Command("true")}, {exec.Command("sh", "-c", "echo why; exit 3")}}, 0, nil)
	if err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("error %v does not tell what was printed", err)
	}
}

func TestMeasureWaitsForStrays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "done")
	stray := fmt.Sprintf("(sleep 0.2; %s; : > %s) >/dev/null 2>&1 & exit 0", busy, file)
	s, err := measure(t.Context(), []invocation{{exec.Command("sh", "-c", stray)}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("measured before the process that was left behind had ended")
	}
	if s.CPU <= 0.005 {
		t.Errorf("what was left behind is not counted: %+v", s)
	}
}

func TestMeasureCountsTheDaemon(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	daemon := exec.Command("sh", "-c", "read x; "+busy+"; sleep 60")
	daemon.Stdin = in
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	pid := daemon.Process.Pid
	staying.add(pid)
	defer func() {
		staying.drop(pid)
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	var s sample
	for range 100 { // until the loop is over
		if s, err = measure(t.Context(), []invocation{{exec.Command("sh", "-c", "echo >&3; sleep 0.1")}}, pid, nil); err == nil && s.CPU > 0.005 {
			return
		}
		if _, werr := out.WriteString("go\n"); werr != nil {
			t.Fatal(werr)
		}
	}
	t.Errorf("a daemon that computes took %+v, %v", s, err)
}

func TestChildTicks(t *testing.T) {
	line := "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 250 50 20 0 1"
	got, err := childTicks(line)
	if want := 3 * time.Second; err != nil || got != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 x 50"} {
		if _, err := childTicks(bad); err == nil {
			t.Errorf("%q is read without error", bad)
		}
	}
}

func TestFieldOf(t *testing.T) {
	status := "Name:\tx\nPPid:\t42\nVmHWM:\t   1234 kB\nVmRSS:\t     5 kB\n"
	for name, want := range map[string]int64{"PPid:": 42, "VmHWM:": 1234, "VmSwap:": 0} {
		if got := fieldOf(status, name); got != want {
			t.Errorf("%s %d, want %d", name, got, want)
		}
	}
}

// Only the named programs count, and only where we started them.
func TestWatch(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	peak := func(programs ...string) int64 {
		w := &watch{programs: programs}
		// Three at a time, so that a sum shows.
		if _, err := measure(t.Context(), []invocation{{exec.Command(sleep, "0.3")}, {exec.Command(sleep, "0.3")}, {exec.Command(sleep, "0.3")}}, 0, w); err != nil {
			t.Fatal(err)
		}
		return w.peak
	}
	cmd := exec.Command(sleep, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	staying.add(cmd.Process.Pid)
	one := int64(0)
	for range 1000 { // until it has become sleep
		if one = memoryOf([]string{resolved(sleep)}); one > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	staying.drop(cmd.Process.Pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if got := peak(resolved(sleep)); one == 0 || got < 2*one {
		t.Errorf("one process has %d KiB, three have %d", one, got)
	}
	if got := peak("/bin/none"); got != 0 {
		t.Errorf("another program's memory counts: %d KiB", got)
	}
	if descendant(1) {
		t.Error("init descends from this process")
	}
	if !sameMemory(os.Getpid(), os.Getpid()) || sameMemory(os.Getpid(), os.Getppid()) {
		t.Error("cannot tell address spaces apart")
	}
}
