package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// metric is one figure of a point.
type metric struct {
	name  string
	of    func(p *point) float64
	color string
	dash  bool
}

var metrics = []metric{
	{"cold", func(p *point) float64 { return median(p.Cold, func(s sample) float64 { return s.Wall }) }, "#1f5fa8", false},
	{"cold, CPU", func(p *point) float64 { return median(p.Cold, func(s sample) float64 { return s.CPU }) }, "#1f5fa8", true},
	{"no-op", func(p *point) float64 { return median(p.NoOp, func(s sample) float64 { return s.Wall }) }, "#2c8a3d", false},
	{"no-op, CPU", func(p *point) float64 { return median(p.NoOp, func(s sample) float64 { return s.CPU }) }, "#2c8a3d", true},
}

// peerColors are those of other builders' cold and no-op times.
var peerColors = map[string][2]string{buildkitName: {"#c2571a", "#e0a030"}, buildahName: {"#8a2c7d", "#c77bbd"}}

// draw writes a plot for each curve, and the page that shows them and says what they mean.
func (g *growthRun) draw() error {
	var page strings.Builder
	page.WriteString("# How cost grows\n\nWritten by `go run ./bench -growth`; the points are in [growth/growth.csv](growth/growth.csv), every run in " +
		"[growth/growth.json](growth/growth.json).\n\n")
	fmt.Fprintf(&page, "%s, Linux %s, %d cores, load average %.1f at the start; medians of %d runs, store, contexts and results on a tmpfs, gzip level %d. Cold is from an empty "+
		"store to an OCI archive; no-op is the same once more, with nothing changed and no output. Exponents are those of time = fixed + slope · "+
		"x^exponent, fitted to the points with relative errors.\n", g.growth.Report.CPU, g.growth.Report.Kernel, g.growth.Report.Cores, g.growth.Report.Load, g.growth.Report.Runs, g.growth.Report.Level)
	for _, cv := range curves(false) {
		by := g.pointsOf(cv.name)
		if len(by[oursName]) == 0 {
			continue
		}
		p := plot{title: cv.name, xTitle: cv.what, yTitle: "seconds"}
		fmt.Fprintf(&page, "\n## %s%s\n\nx: %s.\n\n![%s](growth/%s.svg)\n\n", strings.ToUpper(cv.name[:1]), cv.name[1:], cv.what, cv.name, cv.name)
		for _, m := range metrics {
			x, y := valuesOf(by[oursName], m)
			p.series = append(p.series, series{name: m.name, x: x, y: y, color: m.color, dash: m.dash})
			fmt.Fprintf(&page, "- %s\n", sentence(m.name, x, y))
		}
		fmt.Fprintf(&page, "- Peak memory: %s.\n", memoryRange(by[oursName]))
		for _, name := range both {
			for i, m := range []metric{metrics[0], metrics[2]} {
				if x, y := valuesOf(by[name], m); len(x) > 0 {
					p.series = append(p.series, series{name: name + ", " + m.name, x: x, y: y, color: peerColors[name][i]})
				}
			}
		}
		picture, err := p.svg()
		if err != nil {
			return err
		}
		if err := replaceFile(filepath.Join(g.c.docs, "growth", cv.name+".svg"), []byte(picture)); err != nil {
			return err
		}
	}
	return replaceFile(filepath.Join(g.c.docs, "growth.md"), []byte(page.String()))
}

// pointsOf are a curve's points by builder, without those that failed.
func (g *growthRun) pointsOf(curve string) map[string][]*point {
	by := map[string][]*point{}
	for _, p := range g.growth.Points {
		if p.Curve == curve && p.Error == "" && len(p.Cold) > 0 && len(p.NoOp) > 0 {
			by[p.Builder] = append(by[p.Builder], p)
		}
	}
	for _, ps := range by {
		slices.SortFunc(ps, func(a, b *point) int { return cmp.Compare(a.X, b.X) })
	}
	return by
}

func valuesOf(points []*point, m metric) (x, y []float64) {
	for _, p := range points {
		x, y = append(x, float64(p.X)), append(y, m.of(p))
	}
	return x, y
}

// sentence says how a figure grows.
func sentence(name string, x, y []float64) string {
	name = strings.ToUpper(name[:1]) + name[1:]
	l, err := fit(x, y)
	if err != nil {
		return fmt.Sprintf("%s: %v.", name, err)
	}
	last := len(x) - 1
	return fmt.Sprintf("%s: %s; %s at %g, %s at %g. Fitted: %s fixed; the points are off by %.0f %%.", name, l.words(),
		seconds(y[0]), x[0], seconds(y[last]), x[last], seconds(l.Fixed), l.Off*100)
}

func memoryRange(points []*point) string {
	first, last := points[0], points[len(points)-1]
	most := slices.MaxFunc(points, func(a, b *point) int { return cmp.Compare(a.PeakMiB, b.PeakMiB) })
	return fmt.Sprintf("%.0f MiB at %d, %.0f MiB at %d, at most %.0f MiB", first.PeakMiB, first.X, last.PeakMiB, last.X, most.PeakMiB)
}
