// Command bench measures whole builds side by side: ours, buildah and BuildKit, as far as they are on PATH, and how the cost
// of ours grows. Every builder gets the same Dockerfiles, the same bases from the same local registry and the same gzip
// level, and keeps its state on a tmpfs. What was exported is read back by skopeo, which verifies every digest, and compared
// path by path. See README.md beside this file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

type config struct {
	ours   string
	self   string // this program
	peers  []string
	dir    string
	bases  string
	json   string
	md     string
	docs   string
	rows   *regexp.Regexp
	some   bool // not all rows are asked for
	resume bool
	n      int
	slow   float64 // seconds
	slowN  int
	level  int
	keep   int64 // bytes of memory that stay free, and are written to before each row
	small  bool
	growth bool
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == probeCommand {
		if err := probe(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench probe:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags() (*config, error) {
	c := &config{}
	flag.StringVar(&c.ours, "ours", "build", "our program")
	flag.StringVar(&c.dir, "dir", "/dev/shm", "where state, contexts and results go: a tmpfs")
	flag.StringVar(&c.bases, "bases", os.Getenv("BUILD_TEST_CACHE"), "directory with the base images that testdata/setup/bases.sh makes (default $BUILD_TEST_CACHE, else /var/cache/build-test)")
	flag.StringVar(&c.json, "json", "out/bench.json", "file for the results of the table; written after each row")
	flag.StringVar(&c.md, "md", "out/bench.md", "file for the table as markdown")
	flag.StringVar(&c.docs, "docs", "docs", "directory for growth.md and growth/")
	flag.IntVar(&c.n, "n", 5, "measured runs of each cell")
	flag.Float64Var(&c.slow, "slow", 30, "a peer whose first run takes longer, in seconds, is only run -slow-n times")
	flag.IntVar(&c.slowN, "slow-n", 5, "measured runs of slow peers")
	flag.IntVar(&c.level, "level", 6, "gzip level of exports; buildah knows no other than 6")
	flag.Int64Var(&c.keep, "keep", 8<<10, "MiB of memory to keep free: with less, what finished runs left is deleted between runs. So much is written to before each row")
	flag.BoolVar(&c.resume, "resume", false, "measure only what the results file does not have yet")
	flag.BoolVar(&c.small, "small", false, "tiny workloads: only to see that everything works")
	flag.BoolVar(&c.growth, "growth", false, "measure how cost grows instead, and write plots")
	rows := flag.String("rows", "", "regular expression of the rows (or curves) to measure; the others stay as they are in the results file")
	peers := flag.String("peers", "buildkit,buildah", "other builders to measure, as far as they are on PATH; none for none")
	flag.Parse()
	return c, c.complete(*rows, *peers)
}

func (c *config) complete(rows, peers string) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var err error
	if c.rows, err = regexp.Compile(rows); err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	c.some = rows != ""
	c.keep <<= 20
	if c.bases == "" {
		c.bases = "/var/cache/build-test"
	}
	for _, p := range strings.Split(peers, ",") {
		switch {
		case p == "" || p == "none":
		case slices.Contains(both, p):
			c.peers = append(c.peers, p)
		default:
			return fmt.Errorf("-peers: no such builder: %q (there are %s)", p, strings.Join(both, ", "))
		}
	}
	if c.n < 1 || c.slowN < 1 {
		return errors.New("-n and -slow-n must be at least 1")
	}
	if c.ours, err = exec.LookPath(c.ours); err != nil {
		return err
	}
	if c.ours, err = filepath.Abs(c.ours); err != nil {
		return err
	}
	c.self, err = os.Executable()
	return err
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
	r := newReport(c)
	if ok, err := isTmpfs(c.dir); err != nil {
		return err
	} else if !ok {
		r.note(c.dir + " is no tmpfs: deletions make later creations slow, and figures depend on the disk")
		c.keep = 0 // of memory
	}
	dir, err := os.MkdirTemp(c.dir, "build-bench-")
	if err != nil {
		return err
	}
	err = c.measure(ctx, dir, r)
	return errors.Join(err, os.RemoveAll(dir))
}

// measure does what was asked for, below a directory of its own.
func (c *config) measure(ctx context.Context, dir string, r *report) error {
	size := full
	if c.small {
		size, c.keep = tiny, 0
	}
	reg, err := startRegistry(ctx, filepath.Join(dir, "registry"), c.bases, size.layers)
	if err != nil {
		return err
	}
	defer reg.stop()
	builders, missing := findBuilders(c, reg.addr)
	for _, b := range builders {
		r.Versions[b.name()] = b.version(ctx)
	}
	if len(builders) > 1 {
		r.Versions["runc, which both peers start"] = firstOutput(ctx, "runc", "--version")
	}
	for _, m := range missing {
		r.note(m)
		fmt.Fprintln(os.Stderr, "bench:", m)
	}
	states := newStates(dir, c.keep, r.note)
	if c.growth {
		g := &growthRun{c: c, reg: reg, states: states, builders: builders, growth: &growth{Report: r}}
		return errors.Join(g.all(ctx), states.closeAll())
	}
	return errors.Join(c.table(ctx, table(size), reg, states, builders, r), states.closeAll())
}

func (c *config) table(ctx context.Context, p plan, reg *registry, states *states, builders []builder, r *report) error {
	r.Targets = p.targets
	for _, row := range p.rows {
		r.Rows = append(r.Rows, row.name)
	}
	if c.some || c.resume {
		if err := r.adopt(c.json); err != nil {
			return err
		}
	}
	t := &tableRun{c: c, reg: reg, states: states, builders: builders, report: r, made: map[string]string{}, exported: map[string]bool{}}
	err := t.all(ctx, p)
	if werr := r.publish(c.json, c.md); werr != nil {
		err = errors.Join(err, werr)
	}
	return errors.Join(err, r.failures())
}
