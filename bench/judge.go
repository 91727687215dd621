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
	case againstTime, againstFloor, againstPath, againstWaits:
		return r.judgeLimit(t)
	}
	ours, theirs := r.cell(t.Row, oursName), r.cell(t.Row, t.Against)
	if !ours.ok() || !theirs.ok() {
		return verdict{}, errNotMeasured
	}
	wall, err := r.pair(t, ours, theirs, (*cell).wall)
	if err != nil {
		return verdict{}, err
	}
	cpu, err := r.pair(t, ours, theirs, (*cell).cpu)
	if err != nil {
		return verdict{}, err
	}
	asked, other, names := wall, cpu, [2]string{"wall", "CPU"}
	if t.Metric == "cpu" {
		asked, other, names = cpu, wall, [2]string{"CPU", "wall"}
	}
	if asked[0] <= 0 {
		return verdict{}, fmt.Errorf("ours took %s, which no ratio can be made of: measure again on a quieter machine", seconds(asked[0]))
	}
	v := verdict{target: t, value: asked[1] / asked[0]}
	v.text = fmt.Sprintf("%s %s / %s; %s %s / %s", names[0], seconds(asked[1]), seconds(asked[0]), names[1], seconds(other[1]), seconds(other[0]))
	v.reached = v.value >= t.Reach
	return v, nil
}

// pair is a figure of ours and of theirs, or what one step adds to it.
func (r *report) pair(t target, ours, theirs *cell, metric func(*cell) float64) (p [2]float64, err error) {
	for i, c := range []*cell{ours, theirs} {
		p[i] = metric(c)
		if t.Minus == "" {
			continue
		}
		without := r.cell(t.Minus, c.Builder)
		if !without.ok() {
			return p, errNotMeasured
		}
		p[i] = (p[i] - metric(without)) / float64(t.Steps)
	}
	return p, nil
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
	case againstPath, againstWaits:
		path := r.cell(t.Row, aloneName)
		if !path.ok() {
			return verdict{}, errNotMeasured
		}
		perCore := ours.cpu() / float64(r.Cores)
		least, of := max(path.wall(), perCore), fmt.Sprintf("longest chain %s", seconds(path.wall()))
		if t.Against == againstWaits {
			waits := path.wall() - path.cpu()
			least, of = waits+perCore, fmt.Sprintf("waits %s", seconds(waits))
		}
		v.value = (ours.wall() - pathSlack) / least
		v.text = fmt.Sprintf("(%s − %g s) / %s; %s, CPU / cores %s", seconds(ours.wall()), pathSlack, seconds(least), of, seconds(perCore))
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
