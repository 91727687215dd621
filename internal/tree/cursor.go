package tree

import "sort"

// cursor stands on one entry of an Index and moves forward. It reads paths as it goes and bodies only when asked.
type cursor struct {
	x     *Index
	n     int    // the block it is in
	rest  []byte // what follows the current record in the block
	left  int    // how many records follow it
	path  []byte // of the current record; overwritten by next
	body  []byte
	ok    bool // whether there is a current record
	keep  bool // put blocks into the index's cache
	layer int  // for the users of several cursors
}

// seek returns a cursor on the first entry that is not before path.
func (x *Index) seek(path string) (*cursor, error) {
	c := &cursor{x: x}
	return c, c.seek(path)
}

func (c *cursor) seek(path string) error {
	if err := c.load(max(c.x.blockOf(path), 0)); err != nil {
		return err
	}
	for c.ok && comparePaths(c.path, path) < 0 {
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// load puts the cursor on the first entry of block n.
func (c *cursor) load(n int) error {
	if n >= len(c.x.blocks) {
		c.ok = false
		return nil
	}
	data, err := c.x.block(n, c.keep)
	if err != nil {
		return err
	}
	c.n, c.rest, c.left, c.path = n, data, c.x.blocks[n].count, c.path[:0]
	if err := c.record(); err != nil {
		return err
	}
	if string(c.path) != c.x.blocks[n].first {
		c.ok = false
		return corrupt("block %d does not start where the table says", n)
	}
	return nil
}

// next moves to the following entry.
func (c *cursor) next() error {
	if c.left == 0 {
		return c.load(c.n + 1)
	}
	return c.record()
}

// record reads the head of the record at rest.
func (c *cursor) record() error {
	c.ok = false
	d := decoder{b: c.rest}
	shared, more, length := d.uvarint(), d.uvarint(), d.uvarint()
	tail := d.bytes(more)
	body := d.bytes(length)
	if d.bad || shared > uint64(len(c.path)) {
		return corrupt("a record of block %d cannot be read", c.n)
	}
	c.path = append(c.path[:shared], tail...)
	c.body, c.rest, c.ok = body, d.b, true
	c.left--
	if c.left == 0 && len(c.rest) > 0 {
		c.ok = false
		return corrupt("block %d has more than its entries", c.n)
	}
	return nil
}

// entry reads the current record whole.
func (c *cursor) entry() (Entry, error) {
	e := Entry{Path: string(c.path)}
	if !parseBody(c.body, &e) {
		return Entry{}, corrupt("the record of %q cannot be read", c.path)
	}
	return e, nil
}

// within reports whether the cursor stands at path or below it.
func (c *cursor) within(path string) bool {
	return c.ok && (string(c.path) == path || belowPath(c.path, path))
}

// skip moves behind everything at or below dir, without reading the blocks in between.
func (c *cursor) skip(dir string) error {
	if c.n+1 < len(c.x.blocks) && Below(c.x.blocks[c.n+1].first, dir) {
		from := c.n + 1
		// The first block that starts outside; the subtree may end in the one before it.
		out := from + sort.Search(len(c.x.blocks)-from, func(i int) bool {
			return !Below(c.x.blocks[from+i].first, dir)
		})
		if err := c.load(out - 1); err != nil {
			return err
		}
	}
	for c.within(dir) {
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// belowPath is Below for a path that is not a string yet.
func belowPath(path []byte, dir string) bool {
	if dir == "" {
		return len(path) > 0
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && string(path[:len(dir)]) == dir
}
