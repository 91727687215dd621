package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// growth is what growth.json holds.
type growth struct {
	Report *report  `json:"conditions"` // without cells
	Points []*point `json:"points"`
}

// point is one x of one curve by one builder.
type point struct {
	Curve   string    `json:"curve"`
	X       int       `json:"x"`
	Builder string    `json:"builder"`
	When    time.Time `json:"when"`
	Cold    []sample  `json:"cold"` // from an empty state, exported as an OCI archive
	NoOp    []sample  `json:"noop"` // once more, nothing changed, no output
	PeakMiB float64   `json:"peakMiB"`
	Error   string    `json:"error,omitempty"`
}

// growthRun measures curves.
type growthRun struct {
	c        *config
	reg      *registry
	states   *states
	builders []builder
	growth   *growth
}

func (g *growthRun) file() string { return filepath.Join(g.c.docs, "growth", "growth.json") }

// all measures the curves that were asked for, writing what there is after each point, and draws.
func (g *growthRun) all(ctx context.Context) error {
	var old growth
	if err := readJSON(g.file(), &old); err == nil && (g.c.resume || g.c.some) {
		g.growth.Points = old.Points
	} else if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, cv := range curves(g.c.small) {
		if !g.c.rows.MatchString(cv.name) {
			continue
		}
		for _, x := range cv.xs {
			if err := g.measure(ctx, cv, x); err != nil {
				return fmt.Errorf("%s, %d: %w", cv.name, x, err)
			}
			if err := g.write(); err != nil {
				return err
			}
		}
	}
	return g.draw()
}

func (g *growthRun) measure(ctx context.Context, cv curve, x int) error {
	w := cv.work(x)
	n := 1
	if cv.builds != nil {
		n = cv.builds(x)
	}
	contexts, err := g.contexts(ctx, w, n)
	if err != nil {
		return err
	}
	defer func() {
		for _, dir := range contexts {
			g.states.discard(dir)
		}
	}()
	for _, b := range g.builders {
		if b.name() != oursName && x > cv.peers {
			continue
		}
		if old := g.find(cv.name, x, b.name()); old != nil && g.c.resume && old.Error == "" {
			continue
		}
		p := &point{Curve: cv.name, X: x, Builder: b.name(), When: time.Now().UTC().Truncate(time.Second)}
		if err := g.one(ctx, b, contexts, w.name, p); err != nil {
			p.Error = err.Error()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.growth.Points = slices.DeleteFunc(g.growth.Points, func(q *point) bool { return q.Curve == p.Curve && q.X == p.X && q.Builder == p.Builder })
		g.growth.Points = append(g.growth.Points, p)
		fmt.Fprintf(os.Stderr, "%s\n", p)
	}
	return g.states.endWorkload(w.name)
}

// contexts are n of the same shape, of which none shares a file with another.
func (g *growthRun) contexts(ctx context.Context, w workload, n int) ([]string, error) {
	base, err := g.reg.ref(ctx, w.base)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for i := range n {
		dir := g.states.file("context")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
		if err := w.make(dir, base); err != nil {
			return dirs, err
		}
		if i > 0 {
			if err := w.other(dir, i); err != nil {
				return dirs, err
			}
		}
	}
	return dirs, nil
}

// one measures a point: cold builds, each from an empty state, and then the last of them again.
func (g *growthRun) one(ctx context.Context, b builder, contexts []string, work string, p *point) error {
	run := func(kind outKind, fresh bool, w *watch) (sample, error) {
		if err := g.states.makeRoom(); err != nil {
			return sample{}, err
		}
		state, daemon, _, err := g.states.get(ctx, b, work, fresh)
		if err != nil {
			return sample{}, err
		}
		var all []invocation
		for _, dir := range contexts {
			dest := g.states.file("image")
			g.states.discard(dest)
			all = append(all, b.command(ctx, state, build{context: dir, kind: kind, dest: dest}))
		}
		return measure(ctx, all, daemon, w)
	}
	for i := range g.c.n {
		var w *watch
		if i == 0 {
			w = &watch{programs: b.programs()}
		}
		s, err := run(ociTar, true, w)
		if err != nil {
			return err
		}
		p.Cold = append(p.Cold, s)
		if w != nil {
			p.PeakMiB = float64(w.peak) / 1024
		}
	}
	for i := range g.c.n + 1 {
		s, err := run(noOutput, false, nil)
		if err != nil {
			return err
		}
		if i > 0 { // the first rewrites what the builder knows about files that were new
			p.NoOp = append(p.NoOp, s)
		}
	}
	return nil
}

func (g *growthRun) find(curve string, x int, builder string) *point {
	for _, p := range g.growth.Points {
		if p.Curve == curve && p.X == x && p.Builder == builder {
			return p
		}
	}
	return nil
}

func (p *point) String() string {
	if p.Error != "" {
		return fmt.Sprintf("%s %d: %s: FAILED: %s", p.Curve, p.X, p.Builder, p.Error)
	}
	wall := func(s sample) float64 { return s.Wall }
	cpu := func(s sample) float64 { return s.CPU }
	return fmt.Sprintf("%s %d: %s: cold %s (CPU %s), no-op %s (CPU %s), %.0f MiB", p.Curve, p.X, p.Builder,
		seconds(median(p.Cold, wall)), seconds(median(p.Cold, cpu)), seconds(median(p.NoOp, wall)), seconds(median(p.NoOp, cpu)), p.PeakMiB)
}

// write keeps the points as JSON and as CSV.
func (g *growthRun) write() error {
	order := curves(false)
	slices.SortStableFunc(g.growth.Points, func(a, b *point) int {
		at := func(p *point) int {
			return slices.IndexFunc(order, func(c curve) bool { return c.name == p.Curve })
		}
		if d := at(a) - at(b); d != 0 {
			return d
		}
		if d := strings.Compare(a.Builder, b.Builder); d != 0 {
			return d
		}
		return a.X - b.X
	})
	if err := writeJSON(g.file(), g.growth); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("curve,x,builder,cold_wall_s,cold_cpu_s,noop_wall_s,noop_cpu_s,peak_mib\n")
	for _, p := range g.growth.Points {
		if p.Error == "" {
			fmt.Fprintf(&b, "%s,%d,%s", p.Curve, p.X, p.Builder)
			for _, m := range metrics {
				fmt.Fprintf(&b, ",%.4f", m.of(p))
			}
			fmt.Fprintf(&b, ",%.1f\n", p.PeakMiB)
		}
	}
	return replaceFile(filepath.Join(g.c.docs, "growth", "growth.csv"), []byte(b.String()))
}
