package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// grid is a table that can be drawn as text and as markdown.
type grid struct {
	head []string
	rows [][]string
}

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range append([][]string{g.head}, g.rows...) {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func (g *grid) markdown(w io.Writer) error {
	var b bytes.Buffer
	for i, r := range append([][]string{g.head}, g.rows...) {
		var safe []string
		for _, c := range r {
			safe = append(safe, strings.ReplaceAll(c, "|", "\\|"))
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(safe, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(r)))
		}
	}
	_, err := b.WriteTo(w)
	return err
}

// targetsGrid is the table of what was promised, with all or only those that something was measured for.
func (r *report) targetsGrid(all bool) *grid {
	g := &grid{head: []string{"workload", "against", "measured", "reach", "reached", "how"}}
	for _, t := range r.Targets {
		v, err := r.judge(t)
		if errors.Is(err, errNotMeasured) && !all {
			continue
		}
		if err != nil {
			g.add(t.Row, t.against(), "–", t.reach(), "–", err.Error())
			continue
		}
		answer := "no"
		if v.reached {
			answer = "yes"
		}
		g.add(t.Row, t.against(), t.unit(v.value), t.reach(), answer, v.text)
	}
	return g
}

func (t target) against() string {
	what := map[string]string{"wall": "wall", "cpu": "CPU"}[t.Metric]
	if t.Minus != "" {
		what += " per step"
	}
	switch t.Against {
	case againstTime:
		return "an idle core, wall"
	case againstFloor:
		return "decompression + file creation, wall"
	case againstPath:
		return "critical path or CPU / cores, wall"
	case againstWaits:
		return "waits, then CPU / cores, wall"
	case againstSize:
		return "peak memory"
	case buildkitName:
		return "BuildKit warm, " + what
	}
	return t.Against + ", " + what
}

func (t target) unit(v float64) string {
	switch t.Against {
	case againstTime:
		return seconds(v)
	case againstSize:
		return fmt.Sprintf("%.0f MiB", v)
	}
	return fmt.Sprintf("%.3gx", v)
}

func (t target) reach() string {
	switch t.Against {
	case againstTime, againstSize:
		return "at most " + t.unit(t.Reach)
	case againstFloor:
		return "at most " + t.unit(t.Reach)
	case againstPath, againstWaits:
		return fmt.Sprintf("at most %s + %g s", t.unit(t.Reach), pathSlack)
	}
	return t.unit(t.Reach) + " less"
}

// cellsGrid is the table of what was measured.
func (r *report) cellsGrid() *grid {
	g := &grid{head: []string{"workload", "builder", "wall", "fastest", "CPU", "peak MiB", "exported MB", "runs", "load", "wall / ours", "CPU / ours"}}
	for _, row := range r.Rows {
		ours := r.cell(row, oursName)
		for _, c := range r.Cells {
			if c.Row != row {
				continue
			}
			if !c.ok() {
				said := strings.TrimSpace(c.Error)
				g.add(row, c.Builder, "failed", "", "", "", "", "", "", "", said[strings.LastIndexByte(said, '\n')+1:])
				continue
			}
			wall, cpu, peak, size := "", "", "", ""
			if ours.ok() && c != ours {
				wall, cpu = fmt.Sprintf("%.3g", c.wall()/ours.wall()), fmt.Sprintf("%.3g", c.cpu()/max(ours.cpu(), 1e-4))
			}
			if c.PeakMiB > 0 {
				peak = fmt.Sprintf("%.0f", c.PeakMiB)
			}
			if c.Bytes > 0 {
				size = fmt.Sprintf("%.1f", float64(c.Bytes)/1e6)
			}
			g.add(row, c.Builder, seconds(c.wall()), seconds(c.fastest()), seconds(c.cpu()), peak, size, fmt.Sprint(len(c.Samples)), fmt.Sprintf("%.1f", c.maxLoad()), wall, cpu)
		}
	}
	return g
}

// preamble says under which conditions the figures came about.
func (r *report) preamble() []string {
	lines := []string{
		fmt.Sprintf("%s, Linux %s, %d cores, load average %.1f at the start (%s).", r.CPU, r.Kernel, r.Cores, r.Load, r.Started.Format("2006-01-02 15:04 MST")),
		fmt.Sprintf("Medians of %d runs unless a row says otherwise; state, contexts and results on a tmpfs, all bases in a registry on this machine.", r.Runs),
		fmt.Sprintf("gzip level %d for ours and BuildKit; buildah cannot be told one and uses its own (6). A base's layers stay as they are.", r.Level),
		"CPU: user and system seconds of every process of a build, what RUN executes included; for BuildKit those of daemon, its children and client.",
		"Peak memory: the largest sum of VmHWM of a builder's own processes (client and daemon; build, holder and steps before they become their command).",
		"BuildKit's daemon runs before the clock starts. Without output means type=cacheonly for ours, no --output for BuildKit; buildah has nothing like it and commits to its storage.",
	}
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		lines = append(lines, name+": "+r.Versions[name])
	}
	return append(lines, r.Notes...)
}

func (r *report) text(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n\n", strings.Join(r.preamble(), "\n"))
	if err := r.cellsGrid().text(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return r.targetsGrid(false).text(w)
}

func (r *report) markdown(w io.Writer) error {
	fmt.Fprintf(w, "# Benchmark\n\n- %s\n\n## What was promised\n\n", strings.Join(r.preamble(), "\n- "))
	if err := r.targetsGrid(true).markdown(w); err != nil {
		return err
	}
	fmt.Fprint(w, "\n## What was measured\n\n")
	return r.cellsGrid().markdown(w)
}
