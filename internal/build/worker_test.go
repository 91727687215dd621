package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"build/internal/progress"
	"build/internal/testenv"
)

// job is what a second process builds.
type job struct {
	Root, Context, Dockerfile, Base string
	Args                            map[string]string
	Epoch                           int64
	Dest, Plain                     string // an OCI archive; a file for the plain display
	Tag                             string
	None                            bool // no output
	Isolation                       Isolation
}

func (j job) options() Options {
	o := Options{
		Store: StoreOptions{Root: j.Root, Offline: true}, Context: j.Context,
		NamedContexts: []KeyValue{{"base", "oci-layout://" + j.Base}}, Progress: progress.Discard,
		Isolation: j.Isolation,
	}
	from(j.Dockerfile)(&o)
	for k, v := range j.Args {
		o.BuildArgs = append(o.BuildArgs, KeyValue{k, v})
	}
	if j.Epoch != 0 {
		epoch(j.Epoch)(&o)
	}
	if j.Dest != "" {
		ociTo(j.Dest)(&o)
	}
	if j.None {
		output(Output{Type: OutputNone})(&o)
	}
	if j.Tag != "" {
		o.Tags = []string{j.Tag}
	}
	return o
}

// jobResult is what a second process prints.
type jobResult struct {
	Result
	Code int
	Text string
	HWM  int // of the process itself and of its holder, KiB
}

func workerMain(spec string) int {
	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o := j.options()
	closeDisplay := func() error { return nil }
	if j.Plain != "" {
		f, err := os.Create(j.Plain)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		d, err := progress.New(progress.Plain, f, progress.Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		o.Progress, closeDisplay = d, d.Close
	}
	var out jobResult
	res, err := Run(context.Background(), o)
	if cerr := closeDisplay(); err == nil {
		err = cerr
	}
	if res != nil {
		out.Result = *res
	}
	if err != nil {
		var b bytes.Buffer
		Explain(&b, err)
		out.Code, out.Text = ExitCode(err), b.String()
	}
	out.HWM = memoryPeak("/proc/self/status")
	if err := json.NewEncoder(os.Stdout).Encode(&out); err != nil {
		return 1
	}
	return 0
}

func memoryPeak(status string) int {
	b, _ := os.ReadFile(status)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	return 0
}

// worker is a second process with a job.
type worker struct {
	*exec.Cmd
	out, err bytes.Buffer
}

func (w *world) job(dockerfile string) job {
	return job{Root: w.root, Context: w.dir, Dockerfile: dedent(dockerfile), Base: testenv.Base(w.t, "busybox")}
}

func (w *world) start(j job) *worker {
	w.t.Helper()
	return w.startWith(j, func(*exec.Cmd) {})
}

func (w *world) startWith(j job, how func(*exec.Cmd)) *worker {
	w.t.Helper()
	spec, err := json.Marshal(j)
	must(w.t, err)
	p := &worker{Cmd: exec.Command("/proc/self/exe")}
	p.Env = append(os.Environ(), workerVar+"="+string(spec))
	p.Stdout, p.Stderr = &p.out, &p.err
	p.WaitDelay = 5 * time.Second
	how(p.Cmd)
	must(w.t, p.Start())
	w.t.Cleanup(func() { _ = p.Process.Kill() })
	return p
}

// result waits for the worker and returns what it built.
func (p *worker) result(t testing.TB) jobResult {
	t.Helper()
	if err := p.Wait(); err != nil {
		t.Fatalf("worker: %v\n%s", err, &p.err)
	}
	var r jobResult
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		t.Fatalf("worker: %v: %s", err, &p.out)
	}
	return r
}

// killed waits for the worker and reports whether it was killed.
func (p *worker) killed() bool {
	var exit *exec.ExitError
	if !errors.As(p.Wait(), &exit) {
		return false
	}
	ws := exit.Sys().(syscall.WaitStatus)
	return ws.Signaled() && ws.Signal() == syscall.SIGKILL
}
