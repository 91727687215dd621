package main

import "testing"

// A heap grows freely while it is small, towards the goal when it is not, and never so slowly that collecting is all it does.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, laterCollections}, {20 << 20, laterCollections}, {90 << 20, laterCollections}, {96 << 20, 50},
		{140 << 20, denseCollections}, {heapGoal, denseCollections}, {4 << 30, denseCollections},
	} {
		if got := growth(c.live); got != c.want {
			t.Errorf("%d MiB live: %d %%, not %d", c.live>>20, got, c.want)
		}
	}
}
