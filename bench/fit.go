package main

import (
	"errors"
	"fmt"
	"math"
)

// law is y = fixed + slope · x^exponent.
type law struct {
	Fixed    float64 `json:"fixed"`
	Slope    float64 `json:"slope"`
	Exponent float64 `json:"exponent"`
	Off      float64 `json:"off"`   // root of the mean of the squares of the relative errors
	First    float64 `json:"first"` // y at the first and at the last x, by the law
	Last     float64 `json:"last"`
}

// The exponents that are tried.
const (
	exponentMin, exponentMax = 0.3, 3.0
	exponentStep             = 0.01
)

// fit finds the law that comes nearest to the points, errors being counted relative to y, as on logarithmic axes. A fixed
// part is what the plain slope of a log-log plot gets wrong: it makes anything look cheaper than linear. Exponents below
// 0.3 are not tried, since nothing tells them from a fixed part.
func fit(x, y []float64) (law, error) {
	if len(x) < 3 || len(x) != len(y) {
		return law{}, errors.New("too few points")
	}
	best := law{Off: math.Inf(1)}
	for i := range int(math.Round((exponentMax-exponentMin)/exponentStep)) + 1 {
		l := law{Exponent: exponentMin + float64(i)*exponentStep}
		l.solve(x, y)
		if l.Off < best.Off {
			best = l
		}
	}
	best.First, best.Last = best.at(x[0]), best.at(x[len(x)-1])
	return best, nil
}

func (l law) at(x float64) float64 { return l.Fixed + l.Slope*math.Pow(x, l.Exponent) }

// solve chooses the fixed part and the slope for the exponent by least squares with weights 1/y²; neither is negative.
func (l *law) solve(x, y []float64) {
	var s1, sp, spp, t1, tp float64
	for i := range x {
		w, p := 1/(y[i]*y[i]), math.Pow(x[i], l.Exponent)
		s1, sp, spp = s1+w, sp+w*p, spp+w*p*p
		t1, tp = t1+w*y[i], tp+w*p*y[i]
	}
	det := s1*spp - sp*sp
	if math.Abs(det) > 1e-12*s1*spp {
		l.Fixed, l.Slope = (t1*spp-tp*sp)/det, (tp*s1-t1*sp)/det
	} else {
		l.Fixed, l.Slope = t1/s1, 0
	}
	switch {
	case l.Fixed < 0:
		l.Fixed, l.Slope = 0, tp/spp
	case l.Slope < 0:
		l.Fixed, l.Slope = t1/s1, 0
	}
	var sum float64
	for i := range x {
		e := l.at(x[i])/y[i] - 1
		sum += e * e
	}
	l.Off = math.Sqrt(sum / float64(len(x)))
}

// farOff is how wrong a law may be before it says nothing.
const farOff = 0.4

// words say what the law means.
func (l law) words() string {
	if l.Off > farOff {
		return "follows no such law"
	}
	if l.Last < 1.5*l.First {
		return "does not grow"
	}
	switch e := l.Exponent; {
	case e < 0.85:
		return fmt.Sprintf("grows less than linearly (exponent %.2f)", e)
	case e <= 1.15:
		return fmt.Sprintf("grows linearly (exponent %.2f)", e)
	case e <= 1.5:
		return fmt.Sprintf("grows somewhat more than linearly (exponent %.2f)", e)
	case e < 1.85:
		return fmt.Sprintf("grows much more than linearly (exponent %.2f)", e)
	default:
		return fmt.Sprintf("grows quadratically or worse (exponent %.2f)", e)
	}
}
