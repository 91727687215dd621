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
	inputs := make([][]int, len(e.graph.Steps))
	took := make([]time.Duration, len(e.graph.Steps))
	for i := range e.graph.Steps {
		step := &e.graph.Steps[i]
		for _, in := range step.Inputs {
			inputs[i] = append(inputs[i], int(in))
		}
		if isWork(step) {
			took[i] = turns.Unknown
			if d, ok := e.cache.Took(identity(step)); ok {
				took[i] = d
			}
		}
	}
	return turns.Remaining(inputs, took)
}
