// Command bench measures whole builds side by side: ours, buildah and BuildKit, as far as they are on PATH. Every builder
// gets the same Dockerfiles, the same bases from the same local registry and the same gzip level, and keeps its state on
// a tmpfs. What was exported is read back by skopeo, which verifies every digest. See README.md beside this file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type config struct {
	ours  string
	peers string
	dir   string
	bases string
	out   string
	rows  *regexp.Regexp
	n     int
	level int
	scale scale
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() (*config, error) {
	c := &config{}
	flag.StringVar(&c.ours, "ours", "build", "our program")
	flag.StringVar(&c.peers, "peers", "buildah,buildkit", "other builders to measure, as far as they are on PATH")
	flag.StringVar(&c.dir, "dir", "/dev/shm", "where state, contexts and results go: a tmpfs")
	flag.StringVar(&c.bases, "bases", os.Getenv("BUILD_TEST_CACHE"), "directory with the base images that testdata/setup/bases.sh makes")
	flag.StringVar(&c.out, "json", "out/bench.json", "file for the results")
	flag.IntVar(&c.n, "n", 5, "measured runs of each cell")
	flag.IntVar(&c.level, "level", 6, "gzip level of exports; buildah of Debian knows no other than 6")
	rows := flag.String("rows", ".", "regular expression of the rows to measure")
	small := flag.Bool("small", false, "tiny workloads: only to see that everything works")
	flag.Parse()
	var err error
	if c.rows, err = regexp.Compile(*rows); err != nil {
		return nil, err
	}
	c.scale = full
	if *small {
		c.scale = tiny
	}
	if c.bases == "" {
		c.bases = "/var/cache/build-test"
	}
	if c.ours, err = exec.LookPath(c.ours); err != nil {
		return nil, err
	}
	if c.ours, err = filepath.Abs(c.ours); err != nil {
		return nil, err
	}
	if c.n < 1 {
		return nil, errors.New("-n must be at least 1")
	}
	return c, nil
}

func run() error {
	c, err := parseFlags()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Processes that outlive the one we started come to us, and so does the account of their CPU time.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	dir, err := os.MkdirTemp(c.dir, "build-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	reg, err := startRegistry(ctx, c, filepath.Join(dir, "registry"))
	if err != nil {
		return err
	}
	defer reg.stop()
	builders := findBuilders(c, dir, reg.addr)
	defer func() {
		for _, b := range builders {
			b.stop()
		}
	}()
	report, err := measureAll(ctx, c, dir, reg, builders)
	if report != nil {
		report.print(os.Stdout)
		if werr := report.write(c.out); err == nil {
			err = werr
		}
	}
	return err
}

// report is what the JSON file holds.
type report struct {
	Time     time.Time         `json:"time"`
	Machine  string            `json:"machine"`
	Cores    int               `json:"cores"`
	Runs     int               `json:"runs"`
	Level    int               `json:"gzipLevel"`
	Versions map[string]string `json:"versions"`
	Cells    []*cell           `json:"cells"`
}

// cell is one workload by one builder.
type cell struct {
	Row     string   `json:"row"`
	Builder string   `json:"builder"`
	Samples []sample `json:"samples"`
	PeakMiB float64  `json:"peakMiB"`
	Digest  string   `json:"digest,omitempty"`
	Size    int64    `json:"size,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func measureAll(ctx context.Context, c *config, dir string, reg *registry, builders []builder) (*report, error) {
	r := &report{Time: time.Now().UTC(), Cores: runtime.NumCPU(), Runs: c.n, Level: c.level, Versions: map[string]string{}}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		r.Machine = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	}
	for _, b := range builders {
		r.Versions[b.name()] = b.version(ctx)
	}
	for _, row := range rows(c.scale) {
		if !c.rows.MatchString(row.name) {
			continue
		}
		cells, err := measureRow(ctx, c, dir, reg, row, builders)
		r.Cells = append(r.Cells, cells...)
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// measureRow measures one workload. The builders take turns, so that what else the machine does hits all of them.
func measureRow(ctx context.Context, c *config, dir string, reg *registry, row row, builders []builder) ([]*cell, error) {
	fmt.Fprintf(os.Stderr, "%s\n", row.name)
	var cells []*cell
	jobs := map[string]*job{}
	defer func() {
		for _, j := range jobs {
			os.RemoveAll(j.dir)
		}
	}()
	for _, b := range builders {
		cl := &cell{Row: row.name, Builder: b.name()}
		cells = append(cells, cl)
		j, err := newJob(filepath.Join(dir, "job-"+b.name()), reg, row)
		if err != nil {
			return cells, err
		}
		jobs[b.name()] = j
		// The first run fills caches and is where memory is looked at, which costs time.
		if err := oneRun(ctx, b, j, row, cl, true); err != nil {
			cl.Error = err.Error()
		}
	}
	for range c.n {
		for i, b := range builders {
			if cells[i].Error != "" {
				continue
			}
			if err := oneRun(ctx, b, jobs[b.name()], row, cells[i], false); err != nil {
				cells[i].Error = err.Error()
			}
			if ctx.Err() != nil {
				return cells, ctx.Err()
			}
		}
	}
	for i, b := range builders {
		if cells[i].Error == "" && row.export {
			if err := verify(ctx, jobs[b.name()], cells[i]); err != nil {
				cells[i].Error = err.Error()
			}
		}
		if cells[i].Error != "" {
			fmt.Fprintf(os.Stderr, "  %s: %s\n", b.name(), cells[i].Error)
		}
	}
	return cells, nil
}

func oneRun(ctx context.Context, b builder, j *job, row row, cl *cell, first bool) error {
	if row.cold {
		if err := b.reset(ctx); err != nil {
			return err
		}
	}
	if err := j.prepare(row); err != nil {
		return err
	}
	if first && row.warm {
		if _, err := b.build(ctx, j, false); err != nil { // what is measured is the second build
			return err
		}
	}
	s, err := b.build(ctx, j, first)
	if err != nil {
		return err
	}
	if first {
		cl.PeakMiB = s.PeakMiB
		return nil
	}
	cl.Samples = append(cl.Samples, *s)
	return nil
}

// verify has skopeo read what was exported, which checks the digest of every blob.
func verify(ctx context.Context, j *job, cl *cell) error {
	copyTo := filepath.Join(j.dir, "verify")
	defer os.RemoveAll(copyTo)
	src := "oci-archive:" + j.out
	out, err := exec.CommandContext(ctx, "skopeo", "copy", "--quiet", src, "dir:"+copyTo).CombinedOutput()
	if err != nil {
		return fmt.Errorf("skopeo does not accept %s: %w\n%s", j.out, err, out)
	}
	digest, err := exec.CommandContext(ctx, "skopeo", "inspect", "--format", "{{.Digest}}", src).Output()
	if err != nil {
		return fmt.Errorf("skopeo inspect %s: %w", j.out, err)
	}
	st, err := os.Stat(j.out)
	if err != nil {
		return err
	}
	cl.Digest, cl.Size = strings.TrimSpace(string(digest)), st.Size()
	return nil
}

func (r *report) write(file string) error {
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// print writes the table: wall time [fastest] (CPU seconds) peak memory, and how many times ours a peer needs.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %d cores; medians of %d runs, [fastest], CPU s, peak MiB; gzip level %d\n", r.Machine, r.Cores, r.Runs, r.Level)
	for name, v := range r.Versions {
		fmt.Fprintf(w, "  %s: %s\n", name, v)
	}
	fmt.Fprintln(w, "\n| workload | builder | wall | CPU | peak | archive | wall / ours | CPU / ours |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")
	ours := map[string]*cell{}
	for _, c := range r.Cells {
		if c.Builder == oursName {
			ours[c.Row] = c
		}
		if c.Error != "" {
			fmt.Fprintf(w, "| %s | %s | failed: %s |\n", c.Row, c.Builder, strings.ReplaceAll(lastLine(c.Error), "|", "/"))
			continue
		}
		ratio, cpuRatio := "", ""
		if o := ours[c.Row]; o != nil && o.Error == "" && o != c {
			ratio = fmt.Sprintf("%.1f", c.wall()/o.wall())
			cpuRatio = fmt.Sprintf("%.1f", c.cpu()/max(o.cpu(), 0.0001))
		}
		size := ""
		if c.Size > 0 {
			size = fmt.Sprintf("%.1f MB", float64(c.Size)/1e6)
		}
		fmt.Fprintf(w, "| %s | %s | %s [%s] | %s | %.0f | %s | %s | %s |\n", c.Row, c.Builder,
			seconds(c.wall()), seconds(c.fastest()), seconds(c.cpu()), c.PeakMiB, size, ratio, cpuRatio)
	}
	r.printRunOverhead(w)
}

// printRunOverhead derives what one RUN costs from the two workloads that differ in nothing else.
func (r *report) printRunOverhead(w io.Writer) {
	with, without := map[string]*cell{}, map[string]*cell{}
	for _, c := range r.Cells {
		switch {
		case c.Error != "" || len(c.Samples) == 0:
		case c.Row == rowRuns:
			with[c.Builder] = c
		case c.Row == rowNoRuns:
			without[c.Builder] = c
		}
	}
	for name, c := range with {
		if base := without[name]; base != nil {
			fmt.Fprintf(w, "one RUN of %s: %s wall, %s CPU\n", name, seconds((c.wall()-base.wall())/runSteps), seconds((c.cpu()-base.cpu())/runSteps))
		}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func seconds(s float64) string {
	if s < 0.9995 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}

func (c *cell) wall() float64 { return median(c.Samples, func(s sample) float64 { return s.Wall }) }
func (c *cell) cpu() float64  { return median(c.Samples, func(s sample) float64 { return s.CPU }) }
func (c *cell) fastest() float64 {
	best := c.Samples[0].Wall
	for _, s := range c.Samples {
		best = min(best, s.Wall)
	}
	return best
}

func median(samples []sample, f func(sample) float64) float64 {
	var v []float64
	for _, s := range samples {
		v = append(v, f(s))
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
