package main

import (
	"errors"
	"fmt"
)

// verdict is what became of a target.
type verdict struct {
	target
	value   float64 // in the target's unit
	reached bool
	text    string // how it came about
}

// errNotMeasured says that cells are missing or have failed.
var errNotMeasured = errors.New("not measured")

// judge computes what a target is about.
func (r *report) judge(t target) (verdict, error) {
	switch t.Against {
	case againstSize:
		return r.judgeMemory(t)
	case againstTime, againstFloor, againstPath:
		return r.judgeLimit(t)
	}
	ours, theirs := r.cell(t.Row, oursName), r.cell(t.Row, t.Against)
	if !ours.ok() || !theirs.ok() {
		return verdict{}, errNotMeasured
	}
	metric := (*cell).wall
	if t.Metric == "cpu" {
		metric = (*cell).cpu
	}
	a, b := metric(ours), metric(theirs)
	if t.Minus != "" {
		ours0, theirs0 := r.cell(t.Minus, oursName), r.cell(t.Minus, t.Against)
		if !ours0.ok() || !theirs0.ok() {
			return verdict{}, errNotMeasured
		}
		a, b = (a-metric(ours0))/float64(t.Steps), (b-metric(theirs0))/float64(t.Steps)
	}
	if a <= 0 {
		return verdict{}, fmt.Errorf("ours took %s, which no ratio can be made of: measure again on a quieter machine", seconds(a))
	}
	v := verdict{target: t, value: b / a, text: fmt.Sprintf("%s / %s", seconds(b), seconds(a))}
	v.reached = v.value >= t.Reach
	return v, nil
}

func (r *report) judgeLimit(t target) (verdict, error) {
	ours := r.cell(t.Row, oursName)
	if !ours.ok() {
		return verdict{}, errNotMeasured
	}
	v := verdict{target: t, value: ours.wall(), text: seconds(ours.wall())}
	switch t.Against {
	case againstFloor:
		f := r.cell(t.Row, floorName)
		if !f.ok() {
			return verdict{}, errNotMeasured
		}
		v.value /= f.wall()
		v.text = fmt.Sprintf("%s / %s; CPU %s / %s", seconds(ours.wall()), seconds(f.wall()), seconds(ours.cpu()), seconds(f.cpu()))
	case againstPath:
		path := r.cell(t.Row, aloneName)
		if !path.ok() {
			return verdict{}, errNotMeasured
		}
		perCore := ours.cpu() / float64(r.Cores)
		least := max(path.wall(), perCore)
		v.value = (ours.wall() - pathSlack) / least
		v.text = fmt.Sprintf("(%s − %g s) / %s; longest chain %s, CPU / cores %s", seconds(ours.wall()), pathSlack, seconds(least), seconds(path.wall()), seconds(perCore))
	}
	v.reached = v.value <= t.Reach
	return v, nil
}

func (r *report) judgeMemory(t target) (verdict, error) {
	v := verdict{target: t}
	for _, row := range r.Rows {
		if c := r.cell(row, oursName); c.ok() && c.PeakMiB > v.value {
			v.value, v.text = c.PeakMiB, fmt.Sprintf("%.0f MiB in %q", c.PeakMiB, row)
		}
	}
	if v.value == 0 {
		return v, errNotMeasured
	}
	v.reached = v.value <= t.Reach
	return v, nil
}
