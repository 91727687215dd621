package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// series is one line of a plot.
type series struct {
	name  string
	x, y  []float64
	color string
	dash  bool
}

// plot is drawn with logarithmic axes.
type plot struct {
	title, xTitle, yTitle string
	series                []series
}

const (
	plotWidth, plotHeight = 760, 460
	plotLeft, plotRight   = 70, 200
	plotTop, plotBottom   = 40, 50
)

// axis maps values to places, logarithmically, between two steps.
type axis struct {
	lo, hi   float64
	from, to float64 // places
}

func newAxis(values []float64, from, to float64) axis {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		lo, hi = min(lo, v), max(hi, v)
	}
	a := axis{from: from, to: to}
	for _, v := range steps(lo, hi) {
		if v <= lo {
			a.lo = v
		}
		if a.hi < hi || a.hi <= a.lo {
			a.hi = v
		}
	}
	return a
}

// steps are 1, 2 and 5 times powers of ten, from below one value to above another.
func steps(lo, hi float64) []float64 {
	var all []float64
	for e := int(math.Floor(math.Log10(lo))) - 1; e <= int(math.Ceil(math.Log10(hi)))+1; e++ {
		for _, m := range []float64{1, 2, 5} {
			v, err := strconv.ParseFloat(fmt.Sprintf("%ge%d", m, e), 64)
			if err == nil { // such a number is always one
				all = append(all, v)
			}
		}
	}
	return all
}

func (a axis) at(v float64) float64 {
	return a.from + math.Log(v/a.lo)/math.Log(a.hi/a.lo)*(a.to-a.from)
}

// ticks are the steps in between; of many, only the powers of ten.
func (a axis) ticks() []float64 {
	var all []float64
	for _, v := range steps(a.lo, a.hi) {
		power := math.Abs(math.Log10(v)-math.Round(math.Log10(v))) < 1e-9
		if v >= a.lo && v <= a.hi && (power || a.hi/a.lo <= 200) {
			all = append(all, v)
		}
	}
	return all
}

// svg draws the plot. Points that are not above zero have no place and are left out.
func (p plot) svg() (string, error) {
	var xs, ys []float64
	for _, s := range p.series {
		for i := range s.x {
			if s.x[i] > 0 && s.y[i] > 0 {
				xs, ys = append(xs, s.x[i]), append(ys, s.y[i])
			}
		}
	}
	if len(xs) == 0 {
		return "", fmt.Errorf("plot %q: no points", p.title)
	}
	x := newAxis(xs, plotLeft, plotWidth-plotRight)
	y := newAxis(ys, plotHeight-plotBottom, plotTop)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", plotWidth, plotHeight)
	label(&b, (x.from+x.to)/2, 22, "middle", `font-size="15"`, p.title)
	label(&b, (x.from+x.to)/2, plotHeight-12, "middle", "", p.xTitle)
	label(&b, 16, (y.from+y.to)/2, "middle", fmt.Sprintf(`transform="rotate(-90 16 %.0f)"`, (y.from+y.to)/2), p.yTitle)
	for _, v := range x.ticks() {
		fmt.Fprintf(&b, `<path d="M%.1f %.1fV%.1f" stroke="#ddd"/>`+"\n", x.at(v), y.from, y.to)
		label(&b, x.at(v), y.from+18, "middle", "", fmt.Sprintf("%.10g", v))
	}
	for _, v := range y.ticks() {
		fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/>`+"\n", x.from, y.at(v), x.to)
		label(&b, x.from-6, y.at(v)+4, "end", "", fmt.Sprintf("%.10g", v))
	}
	for i, s := range p.series {
		s.draw(&b, x, y)
		at := plotTop + 10 + 18*float64(i)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fh22" stroke="%s" stroke-width="2"%s/>`+"\n", x.to+12, at-4, s.color, s.dashes())
		label(&b, x.to+40, at, "start", "", s.name)
	}
	b.WriteString("</svg>\n")
	return b.String(), nil
}

func label(b *strings.Builder, x, y float64, anchor, more, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, more, html.EscapeString(text))
}

func (s series) dashes() string {
	if s.dash {
		return ` stroke-dasharray="6 4"`
	}
	return ""
}

func (s series) draw(b *strings.Builder, x, y axis) {
	var path, dots strings.Builder
	for i := range s.x {
		if s.x[i] <= 0 || s.y[i] <= 0 {
			continue
		}
		move := "L"
		if path.Len() == 0 {
			move = "M"
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", move, x.at(s.x[i]), y.at(s.y[i]))
		fmt.Fprintf(&dots, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x.at(s.x[i]), y.at(s.y[i]), s.color)
	}
	fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"%s/>`+"\n%s", path.String(), s.color, s.dashes(), dots.String())
}
