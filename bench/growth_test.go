package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestFit(t *testing.T) {
	x := []float64{1, 3, 10, 30, 100, 300}
	for _, tc := range []struct {
		law   law
		words string
	}{
		{law{Fixed: 0.02, Slope: 0.001, Exponent: 1}, "linearly (exponent 1.00)"},
		{law{Fixed: 0.02, Slope: 0.0001, Exponent: 2}, "quadratically or worse (exponent 2.00)"},
		{law{Fixed: 0, Slope: 0.01, Exponent: 0.5}, "less than linearly (exponent 0.50)"},
		{law{Fixed: 1, Slope: 0.01, Exponent: 1.3}, "somewhat more than linearly (exponent 1.30)"},
		{law{Fixed: 0.5, Slope: 0, Exponent: 1}, "does not grow"},
	} {
		var y []float64
		for i, v := range x {
			noise := 1 + 0.001*float64(i%3-1)
			y = append(y, tc.law.at(v)*noise)
		}
		got, err := fit(x, y)
		if err != nil {
			t.Fatal(err)
		}
		if tc.law.Slope > 0 && (math.Abs(got.Exponent-tc.law.Exponent) > 0.05 || math.Abs(got.Fixed-tc.law.Fixed) > 0.02*y[0]) {
			t.Errorf("%+v becomes %+v", tc.law, got)
		}
		if got.Off > 0.01 {
			t.Errorf("%+v: off by %v", tc.law, got.Off)
		}
		if words := got.words(); !strings.Contains(words[:min(len(words), 30)], tc.words[:8]) {
			t.Errorf("%+v: %q, want %q", tc.law, words, tc.words)
		}
	}
	if l, err := fit(x, []float64{1, 9, 1, 9, 1, 9}); err != nil || !strings.Contains(l.words(), "no such law") {
		t.Errorf("noise is a law: %+v, %v", l, err)
	}
	if _, err := fit([]float64{1, 2}, []float64{1, 2}); err == nil {
		t.Error("two points are enough")
	}
}

func TestSVG(t *testing.T) {
	p := plot{title: "a < b", xTitle: "x", yTitle: "y", series: []series{
		{name: "one", x: []float64{1, 10, 100}, y: []float64{0.01, 0, 10}, color: "#123456"},
		{name: "two & three", x: []float64{5}, y: []float64{5}, color: "#654321", dash: true},
	}}
	text, err := p.svg()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			names = append(names, e.Name.Local)
		}
	}
	count := func(name string) (n int) {
		for _, s := range names {
			if s == name {
				n++
			}
		}
		return n
	}
	if count("circle") != 3 {
		t.Errorf("%d points, want 3: one is not above zero", count("circle"))
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error("places that are no numbers")
	}
	if _, err := (plot{}).svg(); err == nil {
		t.Error("a plot of nothing is drawn")
	}
	a := newAxis([]float64{3, 16}, 0, 100)
	if a.lo != 2 || a.hi != 20 || a.at(2) != 0 || a.at(20) != 100 || !slices.Equal(a.ticks(), []float64{2, 5, 10, 20}) {
		t.Errorf("axis %+v has 20 at %v, ticks %v", a, a.at(20), a.ticks())
	}
	if b := newAxis([]float64{0.001, 500}, 0, 1); !slices.Equal(b.ticks(), []float64{0.001, 0.01, 0.1, 1, 10, 100}) || b.hi != 500 {
		t.Errorf("axis %+v, ticks %v", b, b.ticks())
	}
	if c := newAxis([]float64{10}, 0, 1); c.lo != 10 || c.hi != 20 {
		t.Errorf("axis of one value: %+v", c)
	}
}
