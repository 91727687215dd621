package main

import (
	"bytes"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

func timed(row, builder string, wall, cpu float64) *cell {
	return &cell{Row: row, Builder: builder, Samples: []sample{{Wall: wall, CPU: cpu}}, PeakMiB: 10}
}

func TestJudge(t *testing.T) {
	r := &report{Cores: 2, Rows: []string{"a", "b", "none"}, Cells: []*cell{
		timed("a", oursName, 2, 3), timed("a", "buildkit", 10, 6), timed("a", floorName, 1, 1), timed("a", aloneName, 1.2, 0),
		timed("b", oursName, 1, 1), timed("b", "buildkit", 5, 1),
		{Row: "b", Builder: "buildah", Error: "broken"},
	}}
	r.Cells[0].PeakMiB = 300
	for _, tc := range []struct {
		name    string
		target  target
		value   float64
		reached bool
	}{
		{"wall", target{Row: "a", Against: "buildkit", Metric: "wall", Reach: 5}, 5, true},
		{"cpu", target{Row: "a", Against: "buildkit", Metric: "cpu", Reach: 2.1}, 2, false},
		{"difference", target{Row: "a", Against: "buildkit", Metric: "wall", Minus: "b", Steps: 20, Reach: 5}, 5, true},
		{"time", target{Row: "a", Against: againstTime, Metric: "wall", Reach: 1}, 2, false},
		{"floor", target{Row: "a", Against: againstFloor, Metric: "wall", Reach: 2}, 2, true},
		{"path", target{Row: "a", Against: againstPath, Metric: "wall", Reach: 1.2}, 1.2, true},
		{"waits", target{Row: "a", Against: againstWaits, Metric: "wall", Reach: 1.2}, 1.8 / 2.7, true},
		{"memory", target{Row: rowAny, Against: againstSize, Metric: "mib", Reach: 256}, 300, false},
	} {
		v, err := r.judge(tc.target)
		if err != nil || math.Abs(v.value-tc.value) > 1e-9 || v.reached != tc.reached {
			t.Errorf("%s: %v, reached %v, %v; want %v, %v", tc.name, v.value, v.reached, err, tc.value, tc.reached)
		}
	}
	for _, missing := range []target{{Row: "b", Against: "buildah"}, {Row: "none", Against: "buildkit"}, {Row: "b", Against: againstFloor}, {Row: "b", Against: "buildkit", Minus: "none"}} {
		if _, err := r.judge(missing); !errors.Is(err, errNotMeasured) {
			t.Errorf("%+v: %v", missing, err)
		}
	}
	if err := r.failures(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("failures: %v", err)
	}
}

func TestReportIsContinued(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out", "bench.json")
	first := &report{Rows: []string{"a", "b"}, Cores: 2, Level: 6, Cells: []*cell{timed("b", oursName, 1, 1), timed("a", oursName, 1, 1)}, Notes: []string{"note"}}
	if err := first.write(file); err != nil {
		t.Fatal(err)
	}
	second := &report{Rows: first.Rows, Cores: 2, Level: 6}
	if err := second.adopt(file); err != nil {
		t.Fatal(err)
	}
	second.set(timed("b", oursName, 7, 7))
	if got := second.cell("b", oursName).wall(); got != 7 || len(second.Cells) != 2 || second.Cells[0].Row != "a" || len(second.Notes) != 1 {
		t.Errorf("%v, %d cells, notes %v", got, len(second.Cells), second.Notes)
	}
	other := &report{Cores: 2, Level: 1}
	if err := other.adopt(file); err == nil {
		t.Error("results at another gzip level are mixed with these")
	}
	if err := other.adopt(filepath.Join(t.TempDir(), "none")); err != nil || len(other.Cells) > 0 {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestTables(t *testing.T) {
	p := table(tiny)
	r := &report{Targets: p.targets, Versions: map[string]string{oursName: "1"}, Cores: 2}
	for _, row := range p.rows {
		r.Rows = append(r.Rows, row.name)
		r.Cells = append(r.Cells, timed(row.name, oursName, 1, 1), timed(row.name, "buildkit", 4, 2))
	}
	r.Cells[1].Samples, r.Cells[1].Error = nil, "a | b\nlast line"
	var text, md bytes.Buffer
	if err := errors.Join(r.text(&text), r.markdown(&md)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(md.String(), "not measured") || strings.Contains(text.String(), "not measured") {
		t.Error("what was not measured belongs into the page, not into the text")
	}
	for _, want := range []string{"last line", "at most 256 MiB", "4x less"} {
		if !strings.Contains(text.String(), want) || !strings.Contains(md.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
		}
	}
	for line := range strings.Lines(md.String()) {
		if strings.HasPrefix(line, "| ") && strings.Count(line, "|") != 7 && strings.Count(line, "|") != 12 {
			t.Errorf("columns of %q", line)
		}
	}
}
