package progress

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	antiFlicker      = 5 * time.Second  // a step stays the one shown for about so long when others have output too
	maxHidden        = 10 * time.Second // output of another step is not held back longer
	partialDelay     = time.Second      // an unfinished line is shown after so long
	minTransferTime  = 5 * time.Second  // a transfer is reported this often,
	minTransferShare = 0.05             // or when it has moved on by this share
)

// textQueue is what plain has still to print of a vertex.
type textQueue struct {
	text    []byte // complete but for open
	open    bool   // text, or what was printed before it, ends within a line
	stream  int    // whose line that is
	shown   bool   // its name was printed since it last started
	closed  bool   // its last line (DONE and the like) is in text
	updates int    // how many since it was last left, for a fair split
	since   time.Time
	dropped int // bytes left out
}

// plain prints lines. The output of a step stays together as long as possible: one vertex is the current one, and
// others take its place when they end, when they are much busier, or when they have waited long.
type plain struct {
	limit   int // bytes of held-back text above which it is printed in any case
	current *vertex
	since   time.Time // when it became so
	started bool      // something was printed
	notes   []byte    // lines that belong to no vertex
}

func (p *plain) period() time.Duration { return plainPeriod }

func (p *plain) tick(s *state) time.Duration {
	for _, v := range s.vertices {
		if v.out.dirty() || v.partial() {
			return plainTick
		}
	}
	return 0
}

func (q *textQueue) dirty() bool { return len(q.text) > 0 || q.dropped > 0 }

// event puts what an event says into the queue of its vertex.
func (p *plain) event(s *state, v *vertex, e Event) {
	if v == nil {
		before := len(p.notes)
		p.notes = appendNote(p.notes, "", e)
		s.pending += len(p.notes) - before
		return
	}
	q := &v.out
	before := len(q.text)
	prefix := "#" + strconv.Itoa(v.index) + " "
	switch e := e.(type) {
	case Started:
		q.shown, q.closed = false, false
		q.touch(v.start)
	case Cached:
		q.text = append(q.endLine(), prefix+"CACHED\n"...)
		q.closed = true
	case Done:
		q.text = appendEnd(q.endLine(), prefix, v)
		q.closed = true
	case Because:
		q.text = append(q.endLine(), prefix+"ran because "+e.Text+"\n"...)
		q.touch(e.Time)
	case Waiting:
		q.text = append(q.endLine(), prefix+"waiting for "+e.Holder+"\n"...)
		q.touch(e.Time)
	case Transfer:
		p.transfer(v, prefix, v.byKey[e.Key])
	case Warning:
		q.text = appendNote(q.endLine(), prefix, e)
		q.touch(e.Time)
	case Message:
		q.text = appendNote(q.endLine(), prefix, e)
		q.touch(e.Time)
	}
	s.pending += len(q.text) - before
}

// touch counts an update.
func (q *textQueue) touch(at time.Time) {
	if q.updates == 0 {
		q.since = at
	}
	q.updates++
}

// endLine returns the text with its last line complete.
func (q *textQueue) endLine() []byte {
	if q.open {
		q.text = append(q.text, '\n')
		q.open = false
	}
	return q.text
}

// appendEnd writes how a vertex ended.
func appendEnd(b []byte, prefix string, v *vertex) []byte {
	b = append(b, prefix...)
	switch {
	case v.canceled:
		b = append(b, "CANCELED"...)
	case v.err != "":
		b = append(b, "ERROR: "...)
		b = append(b, v.err...)
	default:
		b = appendTenths(append(b, "DONE "...), v.spent)
	}
	return append(b, '\n')
}

// appendNote writes a warning or a message.
func appendNote(b []byte, prefix string, e Event) []byte {
	switch e := e.(type) {
	case Message:
		for line := range strings.SplitSeq(strings.TrimRight(e.Text, "\n"), "\n") {
			b = append(append(append(b, prefix...), line...), '\n')
		}
	case Warning:
		b = append(append(b, prefix...), "WARN: "...)
		if e.Pos != "" {
			b = append(append(b, e.Pos...), ": "...)
		}
		b = append(append(b, e.Text...), '\n')
		if e.Detail == "" {
			break
		}
		for line := range strings.SplitSeq(strings.TrimRight(e.Detail, "\n"), "\n") {
			b = append(append(append(append(b, prefix...), "  "...), line...), '\n')
		}
	}
	return b
}

// transfer reports a transfer when there is something new to say.
func (p *plain) transfer(v *vertex, prefix string, t *transfer) {
	if t.printed && !t.done {
		moved := 0.0
		if t.total > 0 {
			moved = float64(t.current-t.printedN) / float64(t.total)
		}
		if moved < minTransferShare && t.last.Sub(t.printedAt) < minTransferTime {
			return
		}
	}
	t.printed, t.printedAt, t.printedN = true, t.last, t.current
	q := &v.out
	b := append(append(q.endLine(), prefix...), t.label...)
	if t.total != 0 || t.current != 0 {
		b = appendBytes(append(b, ' '), t.current)
	}
	if t.total != 0 {
		b = appendBytes(append(b, " / "...), t.total)
	}
	if d := t.last.Sub(t.start); d > 10*time.Millisecond {
		b = appendTenths(append(b, ' '), d)
	}
	if t.done {
		b = append(b, " done"...)
	}
	q.text = append(b, '\n')
	q.touch(t.last)
}

// line queues a line of output.
func (p *plain) line(s *state, v *vertex, at time.Time, stream int, data []byte, end bool) {
	q := &v.out
	before := len(q.text)
	if q.stream != stream {
		q.text = q.endLine()
	}
	if !q.open {
		q.text = append(q.text, '#')
		q.text = strconv.AppendInt(q.text, int64(v.index), 10)
		q.text = appendSeconds(append(q.text, ' '), v.since(at))
		q.text = append(q.text, ' ')
	}
	q.text = append(q.text, data...)
	q.open, q.stream = !end, stream
	if end {
		q.text = append(q.text, '\n')
	}
	q.touch(at)
	s.pending += len(q.text) - before
}

// draw prints what is due.
func (p *plain) draw(b []byte, s *state, now time.Time, last bool) []byte {
	p.openLines(s, now, last)
	b = p.printNotes(b, s)
	var ended, rest []*vertex
	for _, v := range s.vertices {
		switch {
		case v.ended && (v.out.dirty() || !v.out.shown):
			ended = append(ended, v)
		case v.out.dirty() || v.running && !v.out.shown:
			rest = append(rest, v)
		}
	}
	slices.SortStableFunc(ended, func(a, b *vertex) int { return a.end.Compare(b.end) })
	if p.current != nil && p.current.ended {
		b = p.print(b, s, p.current, now)
	}
	for _, v := range ended {
		if v.out.dirty() || !v.out.shown {
			b = p.print(b, s, v, now)
		}
	}
	if last {
		for _, v := range rest {
			b = p.print(b, s, v, now)
		}
		return b
	}
	return p.printRunning(b, s, rest, now)
}

// openLines passes on lines that have been incomplete for a while, so that a prompt or a row of dots can be seen. With a
// mask they wait for their end: a part of a secret would not be recognised.
func (p *plain) openLines(s *state, now time.Time, last bool) {
	for _, v := range s.vertices {
		if last {
			s.flush(v, true)
			continue
		}
		if s.mask != nil || v != p.current {
			continue
		}
		for i := range v.parts {
			if part := &v.parts[i]; len(part.data) > 0 && now.Sub(part.at) >= partialDelay {
				s.flushPart(v, part, Stdout+i, false)
			}
		}
	}
}

// printNotes prints what belongs to no vertex.
func (p *plain) printNotes(b []byte, s *state) []byte {
	if len(p.notes) == 0 {
		return b
	}
	b = p.leave(b)
	if p.started {
		b = append(b, '\n')
	}
	p.started = true
	s.pending -= len(p.notes)
	b = append(b, p.notes...)
	p.notes = p.notes[:0]
	return b
}

// leave takes the current vertex off the screen.
func (p *plain) leave(b []byte) []byte {
	v := p.current
	if v == nil {
		return b
	}
	if v.out.open {
		b = append(b, '\n')
		v.out.open = false
	}
	v.out.updates = 0
	p.current = nil
	b = append(b, '#')
	b = strconv.AppendInt(b, int64(v.index), 10)
	return append(b, " ...\n"...)
}

// print makes a vertex the current one and prints what it has.
func (p *plain) print(b []byte, s *state, v *vertex, now time.Time) []byte {
	q := &v.out
	if v != p.current {
		b = p.leave(b)
		if p.started {
			b = append(b, '\n')
		}
		p.started = true
		b = append(b, '#')
		b = strconv.AppendInt(b, int64(v.index), 10)
		b = append(append(append(b, ' '), v.name...), '\n')
		p.current, p.since = v, now
	}
	q.shown = true
	b = append(b, q.text...)
	s.pending -= len(q.text)
	q.text = q.text[:0]
	if cap(q.text) > 8*p.limit || v.ended {
		q.text = nil
	}
	if q.dropped > 0 {
		if q.open {
			b = append(b, '\n')
			q.open = false
		}
		b = append(b, '#')
		b = strconv.AppendInt(b, int64(v.index), 10)
		b = append(b, " ["...)
		b = strconv.AppendInt(b, int64(q.dropped), 10)
		b = append(b, " bytes of output left out]\n"...)
		q.dropped = 0
	}
	if v.ended {
		p.current, q.updates = nil, 0
	}
	return b
}

// printRunning prints the output of vertices that go on, deciding which of them is shown.
func (p *plain) printRunning(b []byte, s *state, rest []*vertex, now time.Time) []byte {
	if len(rest) == 0 {
		if p.current == nil {
			for _, v := range s.vertices {
				if v.running {
					return p.print(b, s, v, now)
				}
			}
		}
		return b
	}
	if p.current != nil && slices.Contains(rest, p.current) {
		b = p.print(b, s, p.current, now)
	}
	for s.pending > 2*p.limit { // too much is held back: the largest goes first
		v := slices.MaxFunc(rest, func(a, b *vertex) int { return cmp.Compare(len(a.out.text), len(b.out.text)) })
		if len(v.out.text) == 0 {
			break
		}
		b = p.print(b, s, v, now)
	}
	if v := p.successor(rest, now); v != nil {
		b = p.print(b, s, v, now)
	}
	return b
}

// successor returns the vertex to show instead of the current one, nil when that stays.
func (p *plain) successor(rest []*vertex, now time.Time) *vertex {
	speed := func(v *vertex) float64 {
		return float64(v.out.updates) / max(now.Sub(v.out.since).Seconds(), 0.001)
	}
	var best *vertex
	sum := 0.0
	for _, v := range rest {
		if v == p.current {
			continue
		}
		if p.current != nil && v.out.updates > 0 && now.Sub(v.out.since) > maxHidden {
			return v
		}
		sum += speed(v)
		if best == nil || speed(v) > speed(best) {
			best = v
		}
	}
	if p.current == nil || best == nil || sum == 0 {
		if p.current == nil {
			return best
		}
		return nil
	}
	share := speed(p.current) / (sum + speed(p.current))
	if antiFlicker.Seconds()/(1-share) < now.Sub(p.since).Seconds() {
		return best
	}
	return nil
}
