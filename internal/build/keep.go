package build

import (
	"build/dag"
	"build/internal/store"
)

// keepRecord notes a use of the record of a step that a hit below it made unnecessary to ask for. Collection would otherwise take
// the records of a Dockerfile's beginning for unused as long as nothing but its end is looked up, and a change of the end would
// run all of it again.
func (e *evaluator) keepRecord(step *dag.Step) {
	e.mu.Lock()
	f := e.keys[step.ID]
	e.mu.Unlock()
	if f == nil {
		return // nobody asked for its definition
	}
	select {
	case <-f.done:
		if f.err == nil {
			e.store.Touch(store.KindRecord, f.val.key.String())
		}
	default:
	}
}
