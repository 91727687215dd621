package turns

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

const s = time.Second

func TestRemaining(t *testing.T) {
	for name, c := range map[string]struct {
		inputs     [][]int
		took, want []time.Duration
	}{
		"nothing": {},
		"a row":   {[][]int{{}, {0}, {1}}, []time.Duration{1 * s, 2 * s, 3 * s}, []time.Duration{6 * s, 5 * s, 3 * s}},
		"two ways, the longer counts": {
			[][]int{{}, {0}, {0}, {2}, {1, 3}}, []time.Duration{1 * s, 5 * s, 1 * s, 1 * s, 2 * s},
			[]time.Duration{8 * s, 7 * s, 4 * s, 3 * s, 2 * s},
		},
		"nothing is known: steps are counted": {
			[][]int{{}, {}, {1}, {2}, {0, 3}}, []time.Duration{Unknown, Unknown, Unknown, Unknown, Unknown},
			[]time.Duration{2 * s, 4 * s, 3 * s, 2 * s, 1 * s},
		},
		"the unknown is like the known, and no work is none": {
			[][]int{{}, {0}, {0}}, []time.Duration{0, 6 * s, Unknown}, []time.Duration{6 * s, 6 * s, 6 * s},
		},
		"steps apart from each other": {[][]int{{}, {}}, []time.Duration{3 * s, 7 * s}, []time.Duration{3 * s, 7 * s}},
	} {
		if got := Remaining(c.inputs, c.took); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// A graph of many diamonds has very many ways through it, and they are not walked one by one.
func TestRemainingOfDiamonds(t *testing.T) {
	const n = 3000
	inputs := [][]int{{}}
	took := []time.Duration{s}
	for i := 0; len(inputs) < n; i += 3 {
		inputs = append(inputs, []int{i}, []int{i}, []int{i + 1, i + 2})
		took = append(took, s, s, s)
	}
	if got, want := Remaining(inputs, took)[0], time.Duration(1+2*(len(took)/3))*s; got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func take(t *testing.T, q *Queue, urgency time.Duration) func() {
	t.Helper()
	leave, err := q.Take(t.Context(), func() time.Duration { return urgency })
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func (q *Queue) waits() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// The most urgent goes first, equals in the order in which they came, and never more at a time than there are places.
func TestQueueOrder(t *testing.T) {
	q := New(1)
	leave := take(t, q, 0)
	var mu sync.Mutex
	var order []int
	var all sync.WaitGroup
	urgencies := []time.Duration{1 * s, 3 * s, 2 * s, 3 * s, 1 * s}
	for i, u := range urgencies {
		all.Go(func() {
			leave := take(t, q, u)
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			leave()
			leave() // once is enough, twice no harm
		})
		for q.waits() <= i {
			time.Sleep(100 * time.Microsecond)
		}
	}
	leave()
	all.Wait()
	if want := []int{1, 3, 2, 0, 4}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if q.free != 1 {
		t.Errorf("%d places in the end", q.free)
	}
}

// Who gives up leaves the queue, and a place that was given to somebody who just gave up is not lost.
func TestQueueCanceled(t *testing.T) {
	q := New(2)
	a, b := take(t, q, 0), take(t, q, 0)
	gone := errors.New("gone")
	for range 200 {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if leave, err := q.Take(ctx, func() time.Duration { return s }); err == nil {
				leave()
			} else if !errors.Is(err, gone) {
				t.Error(err)
			}
		}()
		go cancel(gone)
		a()
		a = take(t, q, 0)
		<-done
		cancel(nil)
	}
	a()
	b()
	if q.free != 2 || q.waits() != 0 {
		t.Errorf("%d places and %d waiting in the end", q.free, q.waits())
	}
}
