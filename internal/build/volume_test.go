package build

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A step that prints far more than anybody wants to hold in memory: every byte arrives in the plain display's file, and
// neither the build nor its holder grows.
func TestLongLog(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	const lines, width = 170_000, 1200
	pad := strings.Repeat("x", width)
	j := w.job(fmt.Sprintf("FROM base\nRUN seq %d | sed 's/$/ %s/'\n", lines, pad))
	j.Plain = w.tmp + "/log"
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
	if r.Code != 0 {
		t.Fatal(r.Text)
	}
	f, err := os.Open(j.Plain)
	must(t, err)
	defer f.Close()
	fi, err := f.Stat()
	must(t, err)
	if fi.Size() < 200e6 {
		t.Errorf("the log has %d bytes", fi.Size())
	}
	next := 1
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		i := strings.Index(sc.Text(), " xxx")
		if i < 0 || strings.Contains(sc.Text(), "RUN") {
			continue
		}
		f := strings.Fields(sc.Text())
		if len(f) != 4 || f[2] != fmt.Sprint(next) || f[3] != pad {
			t.Fatalf("line %d of the log is %q", next, sc.Text())
		}
		next++
	}
	must(t, sc.Err())
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
