package tree

import (
	"container/heap"
	"fmt"
	"iter"
)

// Walk yields the merged subtree at path, path itself first, in the order of Compare; nothing when there is nothing at
// path. It streams: what it holds does not grow with the tree.
func (c *Chain) Walk(path string) iter.Seq2[Located, error] {
	return func(yield func(Located, error) bool) {
		top, ok, err := c.Lstat(path)
		if err != nil || !ok {
			if err != nil {
				yield(Located{}, err)
			}
			return
		}
		if !yield(top, nil) || top.Type != Dir {
			return
		}
		err = c.below(path, false, func(l Located) bool { return yield(l, nil) })
		if err != nil {
			yield(Located{}, err)
		}
	}
}

// ReadDir returns what is in the directory at path, sorted by name; nothing when there is no directory at path.
func (c *Chain) ReadDir(path string) ([]Located, error) {
	var out []Located
	err := c.below(path, true, func(l Located) bool {
		out = append(out, l)
		return true
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// below calls visit for everything in the directory dir, and, unless flat is set, everything further down.
func (c *Chain) below(dir string, flat bool, visit func(Located) bool) error {
	layers, err := c.dirLayers(dir)
	if err != nil {
		return err
	}
	h := make(cursors, 0, len(layers))
	for _, layer := range layers {
		cur, err := c.layers[layer].seek(dir)
		if err == nil && cur.ok && string(cur.path) == dir {
			err = cur.next()
		}
		if err != nil {
			return c.failedWalk(layer, err)
		}
		if cur.within(dir) {
			cur.layer = layer
			h = append(h, cur)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		l, ok, err := c.step(&h, dir, flat)
		if err != nil {
			return err
		}
		if ok && !visit(l) {
			return nil
		}
	}
	return nil
}

// step merges the entries of all cursors that stand on the first path and moves these on. Where an entry hides the
// layers below it, their cursors pass over the subtree without looking.
func (c *Chain) step(h *cursors, dir string, flat bool) (Located, bool, error) {
	var m merge
	path := string((*h)[0].path)
	for len(*h) > 0 && string((*h)[0].path) == path {
		cur := (*h)[0]
		hidden := m.done
		if !hidden {
			e, err := cur.entry()
			if err != nil {
				return Located{}, false, c.failedWalk(cur.layer, err)
			}
			m.add(&e, cur.layer)
		}
		var err error
		if hidden || flat {
			err = cur.skip(path)
		} else {
			err = cur.next()
		}
		if err != nil {
			return Located{}, false, c.failedWalk(cur.layer, err)
		}
		if cur.within(dir) {
			heap.Fix(h, 0)
		} else {
			heap.Pop(h)
		}
	}
	l, ok := m.result()
	return l, ok, nil
}

func (c *Chain) failedWalk(layer int, err error) error {
	return fmt.Errorf("walking layer %d: %w", layer+1, err)
}

// cursors is a heap: the first path first, and of equal paths the topmost layer.
type cursors []*cursor

func (h cursors) Len() int { return len(h) }
func (h cursors) Less(i, j int) bool {
	if order := comparePaths(h[i].path, h[j].path); order != 0 {
		return order < 0
	}
	return h[i].layer > h[j].layer
}
func (h cursors) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *cursors) Push(x any)   { *h = append(*h, x.(*cursor)) }
func (h *cursors) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
