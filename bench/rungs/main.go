// Command rungs measures what a step costs on each rung of the isolation ladder, beside container runtimes that start the same
// command: go run ./bench/rungs -ours ./build. As root it measures all of them; as an ordinary user those that are open to it.
//
// For ours a row is the difference between builds with many RUN steps and with one, divided by the steps: reading, keys, sandbox,
// layer and record of `RUN true`. The first step is the difference between a build with one RUN and one with none: starting the
// holder, trying what works, unpacking the base. For runtimes a row is one start of `true` in the same root filesystem, which makes
// no layer. Medians.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	ours := flag.String("ours", "./build", "the program to measure")
	base := flag.String("base", "/var/cache/build-test/busybox", "OCI layout of the base image")
	dir := flag.String("dir", "/dev/shm", "where stores lie")
	n := flag.Int("n", 5, "repetitions")
	steps := flag.Int("steps", 20, "RUN steps of the long build")
	flag.Parse()
	program, err := filepath.Abs(*ours)
	if err == nil {
		err = run(context.Background(), &bench{program: program, base: *base, dir: *dir, n: *n, steps: *steps})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rungs:", err)
		os.Exit(1)
	}
}

type bench struct {
	program, base, dir string
	n, steps           int
	work               string
}

// rungs are what --isolation is given, in the order of the ladder.
var rungs = []string{
	"overlay", "overlay,ids=range", "overlay,ids=single", "overlay,proc=bound", "tree", "chroot",
}

func run(ctx context.Context, b *bench) error {
	var err error
	if b.work, err = os.MkdirTemp(b.dir, "rungs-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	defer w.Flush()
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(w, "load %.4s, medians of %d\n\nrung\tfirst RUN\tevery further RUN\tdoctor\n", load, b.n)
	for _, r := range rungs {
		if err := b.rung(ctx, w, r); err != nil {
			return err
		}
	}
	fmt.Fprintln(w, "\nruntime\tone start")
	return b.runtimes(ctx, w)
}

// rung measures one value of --isolation; one that is closed here is said to be.
func (b *bench) rung(ctx context.Context, w *tabwriter.Writer, isolation string) error {
	doctor, ok, err := b.doctor(ctx, isolation)
	if err != nil {
		return err
	}
	if !ok {
		fmt.Fprintf(w, "%s\tclosed here\n", isolation)
		return nil
	}
	var first, further []time.Duration
	for range b.n {
		var took [3]time.Duration
		for i, steps := range []int{0, 1, b.steps} {
			if took[i], err = b.build(ctx, isolation, steps); err != nil {
				return err
			}
		}
		first = append(first, took[1]-took[0])
		further = append(further, (took[2]-took[1])/time.Duration(b.steps-1))
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", isolation, ms(median(first)), ms(median(further)), ms(doctor))
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// doctor returns how long trying everything takes, and whether a RUN can run.
func (b *bench) doctor(ctx context.Context, isolation string) (time.Duration, bool, error) {
	var all []time.Duration
	for range b.n {
		out, err := exec.CommandContext(ctx, b.program, "doctor", "--root", b.work+"/doctor", "--isolation", isolation, "--format=json").Output()
		var d struct {
			Rung int
			Took time.Duration
		}
		if json.Unmarshal(out, &d) != nil {
			return 0, false, fmt.Errorf("doctor: %w", err)
		}
		if d.Rung == 3 {
			return 0, false, nil
		}
		all = append(all, d.Took)
	}
	return median(all), true, nil
}

// build builds with an empty store and returns how long it took.
func (b *bench) build(ctx context.Context, isolation string, steps int) (time.Duration, error) {
	var df strings.Builder
	df.WriteString("FROM base\nCOPY Dockerfile /\n")
	for i := range steps {
		fmt.Fprintf(&df, "RUN true %d\n", i)
	}
	dir, err := os.MkdirTemp(b.work, "build-")
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(dir+"/Dockerfile", []byte(df.String()), 0o644); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, b.program, "--root", dir+"-store", "--isolation", isolation, "-q", "--build-context", "base=oci-layout://"+b.base, dir)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return time.Since(began), nil
}

// runtimes measures what else starts a command in a root filesystem.
func (b *bench) runtimes(ctx context.Context, w *tabwriter.Writer) error {
	rootfs := b.work + "/rootfs"
	cmd := exec.CommandContext(ctx, b.program, "--root", b.work+"/rootfs-store", "-q", "-o", "type=local,dest="+rootfs,
		"--build-context", "base=oci-layout://"+b.base, "-")
	cmd.Stdin = strings.NewReader("FROM base\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make a root filesystem: %w\n%s", err, out)
	}
	for _, name := range []string{"runc", "crun"} {
		if err := b.oci(ctx, w, name); err != nil {
			return err
		}
	}
	return b.start(ctx, w, "bwrap", "--unshare-all", "--bind", rootfs, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true")
}

// oci measures an OCI runtime with the bundle that it describes itself.
func (b *bench) oci(ctx context.Context, w *tabwriter.Writer, name string) error {
	if _, err := exec.LookPath(name); err != nil {
		fmt.Fprintf(w, "%s\tnot on PATH\n", name)
		return nil
	}
	args := []string{"spec"}
	if os.Geteuid() != 0 {
		args = append(args, "--rootless")
	}
	_ = os.Remove(b.work + "/config.json")
	spec := exec.CommandContext(ctx, name, args...)
	spec.Dir = b.work
	if out, err := spec.CombinedOutput(); err != nil {
		return fmt.Errorf("%s spec: %w\n%s", name, err, out)
	}
	text, err := os.ReadFile(b.work + "/config.json")
	if err != nil {
		return err
	}
	s := strings.Replace(strings.Replace(string(text), `"sh"`, `"/bin/true"`, 1), `"terminal": true`, `"terminal": false`, 1)
	if err := os.WriteFile(b.work+"/config.json", []byte(s), 0o644); err != nil {
		return err
	}
	return b.start(ctx, w, name, "--root", b.work+"/state-"+name, "run", "--bundle", b.work, "bench")
}

func (b *bench) start(ctx context.Context, w *tabwriter.Writer, name string, args ...string) error {
	if _, err := exec.LookPath(name); err != nil {
		fmt.Fprintf(w, "%s\tnot on PATH\n", name)
		return nil
	}
	var all []time.Duration
	for range 4 * b.n {
		began := time.Now()
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			fmt.Fprintf(w, "%s\tfails here: %s\n", name, strings.TrimSpace(string(out)))
			return nil
		}
		all = append(all, time.Since(began))
	}
	fmt.Fprintf(w, "%s\t%s\n", name, ms(median(all)))
	return nil
}
