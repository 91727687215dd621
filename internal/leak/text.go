package leak

import (
	"encoding/binary"
	"slices"
)

// pattern is one form of one secret with the table by which a search goes on after a mismatch without looking back (Knuth,
// Morris and Pratt): a text is never read twice, whatever is in it.
type pattern struct {
	form
	secret int // of Finder.ids
	rank   int // the lower, the nearer to the secret
	fail   []int32
}

func newPattern(secret, rank int, f form) pattern {
	p := pattern{form: f, secret: secret, rank: rank, fail: make([]int32, len(f.text))}
	k := int32(0)
	for i := 1; i < len(f.text); i++ {
		for k > 0 && f.text[i] != f.text[k] {
			k = p.fail[k-1]
		}
		if f.text[i] == f.text[k] {
			k++
		}
		p.fail[i] = k
	}
	return p
}

// step takes one byte.
func (p *pattern) step(k int32, c byte) int32 {
	for k > 0 && p.text[k] != c {
		k = p.fail[k-1]
	}
	if p.text[k] == c {
		k++
	}
	return k
}

// run is a pattern of which a text has had the first k bytes.
type run struct {
	pattern int
	k       int32
	escaped bool // the byte before this one was a backslash that is not in the pattern
}

// advance goes on with b and returns how many bytes it took: all of them, or fewer when the pattern is complete (k is its length)
// or nothing of it is left (k is 0).
func (r *run) advance(p *pattern, b []byte) int {
	for i, c := range b {
		if p.loose {
			if r.escaped {
				r.escaped = false
				if c == 'n' || c == 'r' || c == 't' {
					continue
				}
				if r.k = p.step(r.k, '\\'); r.k == 0 {
					return i
				}
			}
			if isSpace(c) {
				continue
			}
			if c == '\\' && p.text[r.k] != c {
				r.escaped = true
				continue
			}
		}
		if r.k = p.step(r.k, c); r.k == 0 || int(r.k) == len(p.text) {
			return i + 1
		}
	}
	return len(b)
}

// anchorLen is how much of the beginning of a pattern starts a run. No pattern is shorter.
const anchorLen = Shortest

// filter finds the beginnings of patterns. Every stretch of 7 bytes has an aligned group of 4 in it, so it is enough to look at
// every fourth byte, whether the group there is in any beginning; most are not, which one bit of a table that fits into the
// fastest cache says.
type filter struct {
	bits [1 << (filterBits - 6)]uint64
	refs map[uint32][]ref
}

const filterBits = 16

// ref is a place in a beginning at which a group stands.
type ref struct {
	anchor   uint64 // the whole beginning
	offset   int    // of the group in it
	patterns []int
}

func slot(group uint32) uint32 { return group * 0x9E3779B1 >> (32 - filterBits) }

func (f *filter) fill(patterns []pattern) {
	f.refs = map[uint32][]ref{}
	anchors := map[uint64][]int{}
	for i := range patterns {
		a := binary.LittleEndian.Uint64(patterns[i].text)
		anchors[a] = append(anchors[a], i)
	}
	for a, of := range anchors {
		for off := range 4 {
			group := uint32(a >> (8 * off))
			f.refs[group] = append(f.refs[group], ref{a, off, of})
			f.bits[slot(group)>>6] |= 1 << (slot(group) & 63)
		}
	}
	for _, list := range f.refs { // so that what begins first is found first
		slices.SortFunc(list, func(a, b ref) int { return b.offset - a.offset })
	}
}

func (f *filter) has(group uint32) uint64 {
	s := slot(group)
	return f.bits[s>>6%uint32(len(f.bits))] >> (s & 63) & 1
}

// scan calls hit with where patterns begin, in order.
func (f *filter) scan(b []byte, hit func(start int, patterns []int)) {
	i := 0
	for ; i+16 <= len(b); i += 16 {
		g := b[i : i+16 : i+16]
		lo, hi := binary.LittleEndian.Uint64(g), binary.LittleEndian.Uint64(g[8:])
		if f.has(uint32(lo))|f.has(uint32(lo>>32))|f.has(uint32(hi))|f.has(uint32(hi>>32)) == 0 {
			continue
		}
		for j := i; j < i+16; j += 4 {
			f.look(b, j, hit)
		}
	}
	for ; i+4 <= len(b); i += 4 {
		f.look(b, i, hit)
	}
}

// look compares what is around the group at i with the beginnings that have it.
func (f *filter) look(b []byte, i int, hit func(int, []int)) {
	group := binary.LittleEndian.Uint32(b[i:])
	if f.has(group) == 0 {
		return
	}
	for _, r := range f.refs[group] {
		start := i - r.offset
		if start >= 0 && start+anchorLen <= len(b) && binary.LittleEndian.Uint64(b[start:]) == r.anchor {
			hit(start, r.patterns)
		}
	}
}

// text is one text in which patterns are searched for; it comes in pieces, cut anywhere.
type text struct {
	f     *Finder
	tail  []byte // the last bytes before this piece: the beginning of a pattern may be cut
	runs  []run
	found []int // patterns that were found

	seam    []byte // tail and the first bytes of a piece
	reached []int  // of every pattern: up to where in this piece a run has looked
}

func newText(f *Finder) *text { return &text{f: f, reached: make([]int, len(f.patterns))} }

func (t *text) write(b []byte) {
	if len(t.f.patterns) == 0 || len(b) == 0 {
		return
	}
	going := t.runs
	t.runs = t.runs[len(t.runs):]
	for _, r := range going {
		t.goOn(r, b, 0)
	}
	if len(t.tail) > 0 {
		n := len(t.tail)
		t.seam = append(append(t.seam[:0], t.tail...), b[:min(len(b), anchorLen-1)]...)
		t.f.filter.scan(t.seam, func(start int, patterns []int) {
			if start < n {
				t.begin(patterns, b, start+anchorLen-n)
			}
		})
	}
	t.f.filter.scan(b, func(start int, patterns []int) { t.begin(patterns, b, start+anchorLen) })
	t.keepTail(b)
	clear(t.reached)
}

// begin starts runs of patterns whose beginning ends at b[:end].
func (t *text) begin(patterns []int, b []byte, end int) {
	for _, p := range patterns {
		// A run that has come further has seen this beginning, too, and knows what became of it.
		if t.reached[p] < end && !slices.Contains(t.found, p) {
			t.goOn(run{pattern: p, k: anchorLen}, b, end)
		}
	}
}

// goOn lets a run take b from an offset.
func (t *text) goOn(r run, b []byte, from int) {
	p := &t.f.patterns[r.pattern]
	if int(r.k) < len(p.text) {
		from += r.advance(p, b[from:])
	}
	t.reached[r.pattern] = from
	switch {
	case int(r.k) == len(p.text):
		t.found = append(t.found, r.pattern)
	case r.k > 0:
		t.runs = append(t.runs, r)
		t.reached[r.pattern] = len(b)
	}
}

func (t *text) keepTail(b []byte) {
	const most = anchorLen - 1
	if len(b) >= most {
		t.tail = append(t.tail[:0], b[len(b)-most:]...)
		return
	}
	t.tail = append(t.tail, b...)
	if over := len(t.tail) - most; over > 0 {
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
}

// end ends the text, adds what was found to hits and makes t ready for the next text.
func (t *text) end(hits []Hit) []Hit {
	if len(t.found) > 0 {
		slices.SortFunc(t.found, func(a, b int) int {
			p, q := &t.f.patterns[a], &t.f.patterns[b]
			if p.secret != q.secret {
				return p.secret - q.secret
			}
			return p.rank - q.rank
		})
		last := -1
		for _, i := range t.found {
			if p := &t.f.patterns[i]; p.secret != last {
				last = p.secret
				hits = append(hits, Hit{t.f.ids[p.secret], p.kind})
			}
		}
	}
	t.tail, t.runs, t.found = t.tail[:0], t.runs[:0], t.found[:0]
	return hits
}
