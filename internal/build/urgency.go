package build

import (
	"time"

	"build/dag"
	"build/internal/turns"
)

// urgency is how long it will take from the beginning of a step to the end of the build, as far as can be told. Of the steps that could
// go on at once the one with the longest way goes first.
func (e *evaluator) urgency(id dag.ID) time.Duration { return e.urgencies()[id] }

// estimate is what urgency answers, for all steps. It reads the records of earlier runs, so it is left until steps have to wait.
func (e *evaluator) estimate() []time.Duration {
	return remaining(e.graph, func(step *dag.Step) time.Duration {
		if rec := e.latest(step); rec != nil {
			return rec.Took
		}
		return turns.Unknown
	})
}

// remaining is the longest way from each step of a graph to its end, by what steps that make layers took before.
func remaining(g *dag.Graph, before func(*dag.Step) time.Duration) []time.Duration {
	inputs := make([][]int, len(g.Steps))
	took := make([]time.Duration, len(g.Steps))
	for i := range g.Steps {
		step := &g.Steps[i]
		for _, in := range step.Inputs {
			inputs[i] = append(inputs[i], int(in))
		}
		if isWork(step) {
			took[i] = before(step)
		}
	}
	return turns.Remaining(inputs, took)
}
