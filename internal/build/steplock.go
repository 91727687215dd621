package build

import (
	"context"
	"fmt"
	"time"

	"build/cache"
	"build/dag"
	"build/internal/progress"
)

// This file is about equal steps, of one build or of several on one store: they run once.

// lockStep takes the lock that makes equal steps of several builds run once. Steps of --no-cache builds take it too, so
// that equal steps within one such build run once; their records are told apart by time.
func (e *evaluator) lockStep(ctx context.Context, step *dag.Step, k cache.Key, id progress.ID) (unlock func(), waited bool, err error) {
	unlock, err = e.store.Lock(ctx, "step-"+k.String(), func(holder string) {
		waited = true
		e.emit(progress.Waiting{ID: id, Name: step.Name, Holder: holder, Time: time.Now()})
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, false, cause
		}
		return nil, false, fmt.Errorf("lock %s: %w", step.Name, err)
	}
	return unlock, waited, nil
}

// alone lets one step of this build at a time work on a key: equal steps of several stages run once.
func (e *evaluator) alone(ctx context.Context, k cache.Key) (leave func(), err error) {
	e.vmu.Lock()
	turn, ok := e.turns[k]
	if !ok {
		turn = make(chan struct{}, 1)
		e.turns[k] = turn
	}
	e.vmu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
