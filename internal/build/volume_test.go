package build

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"build/internal/store"
)

// A step that prints far more than anybody wants to hold in memory, and fails: every byte is in the file it leaves, and neither the
// build nor its holder grows.
func TestLongLog(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	const lines, width = 170_000, 1200
	pad := strings.Repeat("x", width)
	j := w.job(fmt.Sprintf("FROM base\nRUN seq %d | sed 's/$/ %s/'; exit 9\n", lines, pad))
	p := w.start(j)
	holder := make(chan int)
	stop := make(chan struct{})
	go func() { // the holder's peak, while it lives
		peak := 0
		for {
			select {
			case <-stop:
				holder <- peak
				return
			case <-time.After(20 * time.Millisecond):
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Process.Pid, p.Process.Pid))
				for _, pid := range append(strings.Fields(string(b)), childrenOf(p.Process.Pid)...) {
					peak = max(peak, memoryPeak("/proc/"+pid+"/status"))
				}
			}
		}
	}()
	r := p.result(t)
	close(stop)
	peak := <-holder
	if r.Code != ExitStep {
		t.Fatal(r.Code, r.Text)
	}
	logs, err := filepath.Glob(filepath.Join(w.root, store.LogsDir, "*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("%d logs, %v", len(logs), err)
	}
	f, err := os.Open(logs[0])
	must(t, err)
	defer f.Close()
	next := 1
	for sc := bufio.NewScanner(f); sc.Scan(); next++ {
		if sc.Text() != fmt.Sprintf("%d %s", next, pad) {
			t.Fatalf("line %d of the log is %.100q", next, sc.Text())
		}
	}
	if next != lines+1 {
		t.Errorf("%d lines arrived", next-1)
	}
	t.Logf("peaks: build %d KiB, holder %d KiB", r.HWM, peak)
	if peak == 0 {
		t.Error("the holder was not seen")
	}
	if limit := 256 << 10; r.HWM+peak > limit {
		t.Errorf("build %d KiB and holder %d KiB are more than %d", r.HWM, peak, limit)
	}
}

// childrenOf lists the processes that any thread of a process started.
func childrenOf(pid int) []string {
	var out []string
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		out = append(out, strings.Fields(string(b))...)
	}
	return out
}
