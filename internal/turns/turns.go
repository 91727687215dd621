// Package turns decides who goes first where not all can go at once. It owns a queue for a bounded number of places, and the rule of
// which step of a graph is the most urgent: the one with the longest way to the end. It knows neither what a step does nor how long
// that takes; its callers say so. It refuses nobody: a place is had, sooner or later, or the context ends.
package turns

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Queue gives out places. It is safe for concurrent use.
type Queue struct {
	mu      sync.Mutex
	free    int
	waiting []*waiter // in the order in which they came
}

type waiter struct {
	urgency time.Duration
	ready   chan struct{} // closed when the place is theirs
}

// New returns a queue for so many places, at least one.
func New(places int) *Queue { return &Queue{free: max(places, 1)} }

// Take waits for a place. When one becomes free, the most urgent of those who wait gets it, and of equals the one that came first.
// Urgency is asked only if there is a need to wait. The error is the cause of ctx.
func (q *Queue) Take(ctx context.Context, urgency func() time.Duration) (leave func(), err error) {
	q.mu.Lock()
	if q.free > 0 {
		q.free--
		q.mu.Unlock()
		return sync.OnceFunc(q.leave), nil
	}
	q.mu.Unlock()
	w := &waiter{urgency: urgency(), ready: make(chan struct{})}
	q.mu.Lock()
	if q.free > 0 { // meanwhile
		q.free--
		q.mu.Unlock()
		return sync.OnceFunc(q.leave), nil
	}
	q.waiting = append(q.waiting, w)
	q.mu.Unlock()
	select {
	case <-w.ready:
		return sync.OnceFunc(q.leave), nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	at := slices.Index(q.waiting, w)
	if at >= 0 {
		q.waiting = slices.Delete(q.waiting, at, at+1)
	}
	q.mu.Unlock()
	if at < 0 { // it was given the place at the same moment
		q.leave()
	}
	return nil, context.Cause(ctx)
}

func (q *Queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.free++
		return
	}
	first := 0
	for i, w := range q.waiting {
		if w.urgency > q.waiting[first].urgency {
			first = i
		}
	}
	close(q.waiting[first].ready)
	q.waiting = slices.Delete(q.waiting, first, first+1)
}

// Unknown is the duration of a step of which nobody knows how long it takes.
const Unknown time.Duration = -1

// Remaining returns for each step how long it will take from its beginning until the last step that needs it has ended, if nothing has
// to wait. A step's inputs come before it. Took is how long each takes; one that is Unknown counts as much as the known ones do on average,
// or as a second: when nothing is known, the longest row of steps is the longest way.
func Remaining(inputs [][]int, took []time.Duration) []time.Duration {
	guess := time.Second
	var sum time.Duration
	known := 0
	for _, d := range took {
		if d > 0 {
			sum, known = sum+d, known+1
		}
	}
	if known > 0 {
		guess = sum / time.Duration(known)
	}
	left := make([]time.Duration, len(took))
	for i, d := range slices.Backward(took) {
		if d < 0 {
			d = guess
		}
		left[i] += d // of what needs it the longest, so far
		for _, in := range inputs[i] {
			left[in] = max(left[in], left[i])
		}
	}
	return left
}
