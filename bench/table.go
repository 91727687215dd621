package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// tableRun measures rows.
type tableRun struct {
	c        *config
	reg      *registry
	states   *states
	builders []builder
	report   *report
	made     map[string]string // workload → its context
	exported map[string]bool   // states that have made an archive of what they built
}

// contender is one builder in one row.
type contender struct {
	b     builder
	cell  *cell
	want  int // samples
	outs  []string
	limit bool // not a builder
}

// longEnough is how many seconds a cold build lasts that looking at memory does not disturb: it counts as a sample.
const longEnough = 1.0

// firstCounts reports whether the first run, in which memory is looked at, is a sample. Where builds find what the one before
// has left, it is not: that one may have been of another row. Only for slow peers it has to do.
func (t *tableRun) firstCounts(r row, c *contender, wall float64) bool {
	if c.limit || r.begin == cold && wall >= longEnough {
		return true
	}
	return c.b.name() != oursName && wall > t.c.slow
}

// missedLooks is how often a run of milliseconds is repeated because its memory was not seen.
const missedLooks = 10

// all measures the rows that were asked for, and writes the report after each.
func (t *tableRun) all(ctx context.Context, p plan) error {
	for i, r := range p.rows {
		if t.c.rows.MatchString(r.name) && !(t.c.resume && t.done(r)) {
			if err := t.row(ctx, r, p.workload(r.work)); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if err := t.report.write(t.c.json); err != nil {
				return err
			}
		}
		if last := !slices.ContainsFunc(p.rows[i+1:], func(other row) bool { return other.work == r.work }); last {
			if err := t.endWorkload(r.work); err != nil {
				return err
			}
		}
	}
	return nil
}

// done reports whether an earlier run has measured everything of a row, with the same programs.
func (t *tableRun) done(r row) bool {
	for _, b := range t.builders {
		cl := t.report.cell(r.name, b.name())
		if r.measures(b.name()) && (cl == nil || cl.Error != "" || len(cl.Samples) == 0 || cl.Version != t.report.Versions[b.name()]) {
			return false
		}
	}
	return true
}

func (t *tableRun) endWorkload(work string) error {
	if dir, ok := t.made[work]; ok {
		t.states.discard(dir)
		delete(t.made, work)
	}
	return t.states.endWorkload(work)
}

// context makes a workload's context, once.
func (t *tableRun) context(ctx context.Context, w workload) (string, error) {
	if dir, ok := t.made[w.name]; ok {
		return dir, nil
	}
	base, err := t.reg.ref(ctx, w.base)
	if err != nil {
		return "", err
	}
	dir := t.states.file("context")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	t.made[w.name] = dir
	return dir, w.make(dir, base)
}

func (t *tableRun) contenders(ctx context.Context, r row, w workload) ([]*contender, error) {
	var in []*contender
	add := func(b builder, limit bool) {
		version := t.report.Versions[b.name()]
		if limit {
			version = b.version(ctx)
		}
		cl := &cell{Row: r.name, Builder: b.name(), Version: version, When: time.Now().UTC().Truncate(time.Second), LoadBefore: load()}
		in = append(in, &contender{b: b, cell: cl, want: t.c.n, limit: limit})
	}
	for _, b := range t.builders {
		if r.measures(b.name()) {
			add(b, false)
		}
	}
	if r.name == rowBigCold {
		blobs, err := t.reg.blobs(ctx, w.base)
		if err != nil {
			return nil, err
		}
		add(&floor{self: t.c.self, blobs: blobs}, true)
	}
	if w.alone != nil {
		add(&alone{argv: w.alone}, true)
	}
	return in, nil
}

// row measures one row. The builders take turns, so that what else the machine does meets all of them.
func (t *tableRun) row(ctx context.Context, r row, w workload) error {
	fmt.Fprintf(os.Stderr, "%s\n", r.name)
	dir, err := t.context(ctx, w)
	if err != nil {
		return err
	}
	in, err := t.contenders(ctx, r, w)
	if err != nil {
		return err
	}
	if err := t.warmUp(ctx, r, dir, in); err != nil {
		return err
	}
	if err := t.states.touch(); err != nil {
		return err
	}
	for turn := 0; ; turn++ {
		if turn > 0 && !slices.ContainsFunc(in, (*contender).wants) {
			break
		}
		if r.begin == changed {
			if err := w.change(dir, fmt.Sprintf("%s, turn %d", r.name, turn)); err != nil {
				return err
			}
		}
		for i := range in {
			c := in[(i+turn)%len(in)]
			if turn > 0 && !c.wants() || c.cell.Error != "" {
				continue
			}
			if err := t.turn(ctx, r, dir, c, turn == 0); err != nil {
				c.cell.Error = err.Error()
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	if err := t.verify(ctx, r, w, in); err != nil {
		return err
	}
	for _, c := range in {
		for _, out := range c.outs {
			t.states.discard(out)
		}
		t.report.set(c.cell)
		fmt.Fprintf(os.Stderr, "  %s\n", c.cell)
	}
	return nil
}

func (c *contender) wants() bool { return c.cell.Error == "" && len(c.cell.Samples) < c.want }

// warmUp builds once, without being measured, what the row expects to find built. What was exported before counts too, so
// that rows without output find the same state as those with.
func (t *tableRun) warmUp(ctx context.Context, r row, dir string, in []*contender) error {
	if r.begin == cold {
		return nil
	}
	for _, c := range in {
		if c.limit {
			continue
		}
		state, daemon, known, err := t.states.get(ctx, c.b, r.work, false)
		if err != nil {
			return err
		}
		forgets := c.b.name() == buildahName // it compresses anew for each export: nothing to warm up
		if known && (r.out == noOutput || t.exported[state] || forgets) {
			continue
		}
		b := build{context: dir, kind: r.out, dest: t.states.file("image")}
		if _, err := measure(ctx, []invocation{c.b.command(ctx, state, b)}, daemon, nil); err != nil {
			c.cell.Error = err.Error()
		}
		t.exported[state] = t.exported[state] || r.out != noOutput
		t.states.discard(b.dest)
	}
	return ctx.Err()
}

// turn is one run. In the first, memory is looked at.
func (t *tableRun) turn(ctx context.Context, r row, dir string, c *contender, first bool) error {
	if err := t.states.makeRoom(); err != nil {
		return err
	}
	state, daemon, _, err := t.states.get(ctx, c.b, r.work, r.begin == cold)
	if err != nil {
		return err
	}
	b := build{context: dir, kind: r.out, dest: t.states.file("image")}
	var w *watch
	if first && !c.limit {
		w = &watch{programs: c.b.programs()}
		if daemon != 0 {
			if err := forgetPeak(daemon); err != nil {
				return err
			}
		}
	}
	s, err := measure(ctx, []invocation{c.b.command(ctx, state, b)}, daemon, w)
	if err != nil {
		return err
	}
	for range missedLooks {
		if w == nil || w.peak > 0 || r.begin != same {
			break
		}
		// The run was over before anybody looked; what changes nothing can be done again.
		t.states.discard(b.dest)
		b.dest = t.states.file("image")
		if s, err = measure(ctx, []invocation{c.b.command(ctx, state, b)}, daemon, w); err != nil {
			return err
		}
	}
	t.exported[state] = t.exported[state] || r.out != noOutput
	t.keepOut(r, c, b.dest, first)
	if w != nil {
		c.cell.PeakMiB = float64(w.peak) / 1024
	}
	if first && c.b.name() != oursName && !c.limit && s.Wall > t.c.slow {
		c.want = min(c.want, t.c.slowN)
		c.cell.Notes = append(c.cell.Notes, fmt.Sprintf("slower than %g s: %d runs", t.c.slow, c.want))
	}
	if !first || t.firstCounts(r, c, s.Wall) {
		c.cell.Samples = append(c.cell.Samples, s)
	}
	return nil
}

// keepOut keeps what will be verified: all of ours, and the first of others.
func (t *tableRun) keepOut(r row, c *contender, dest string, first bool) {
	switch {
	case r.out == noOutput || c.limit:
	case first || c.b.name() == oursName:
		c.outs = append(c.outs, dest)
	default:
		t.states.discard(dest)
	}
}

// sizeOf is the size of a file, or of all files below a directory.
func sizeOf(path string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			sum += st.Size()
		}
		return err
	})
	return sum, err
}
