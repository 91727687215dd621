package progress

import (
	"bytes"
	"strings"
	"time"
)

const (
	tailLines   = 20       // lines kept of each vertex for Tail and for the terminal
	tailWidth   = 4 << 10  // bytes kept of each of them
	maxPart     = 64 << 10 // an unfinished line longer than this is passed on in pieces
	maxMaskPart = 1 << 20  // the same when there is a mask, which wants whole lines
)

// state is what the events so far amount to. Every display draws from one.
type state struct {
	mask     func([]byte) []byte
	sink     recorder
	vertices []*vertex // in order of their numbers
	byID     map[ID]*vertex
	began    time.Time // of the first event
	running  int
	ended    int
	pending  int // bytes that the recorder holds until they are drawn
}

// recorder is told about every event after it was folded. Of v, all fields are up to date; v is nil for an event that
// belongs to no vertex.
type recorder interface {
	event(s *state, v *vertex, e Event)
	// line is one line of output without its end, or with end unset the first part of one that is not complete yet.
	// It must not keep data.
	line(s *state, v *vertex, at time.Time, stream int, data []byte, end bool)
}

// vertex is one displayed unit of work.
type vertex struct {
	id       ID
	index    int // shown as #index
	name     string
	start    time.Time // of the current or last run
	end      time.Time
	spent    time.Duration // of the runs that have ended
	running  bool
	ended    bool
	cached   bool
	canceled bool
	err      string
	waiting  string // holder of what it waits for
	because  string // why it was not answered from the cache, "" when there is nothing to say

	parts [2]part // of standard output and standard error

	lines   []tailLine // ring of the last lines
	next    int        // where the next one goes
	lastLog time.Time

	transfers []*transfer
	byKey     map[string]*transfer

	out textQueue // used by plain only
}

// part is output of one stream since its last line end. The streams are kept apart because a step's buffers end anywhere.
type part struct {
	data []byte
	at   time.Time // of its first byte
}

// partial reports whether a line of the vertex is not complete yet.
func (v *vertex) partial() bool { return len(v.parts[0].data) > 0 || len(v.parts[1].data) > 0 }

func streamIndex(stream int) int {
	if stream == Stderr {
		return 1
	}
	return 0
}

type tailLine struct {
	at     time.Duration
	data   []byte
	stream int
	open   bool // more of this line may come
}

// transfer is one thing that is moved for a vertex.
type transfer struct {
	label          string
	current, total int64
	start, last    time.Time
	done           bool

	printed   bool // used by plain: when and what it last said
	printedAt time.Time
	printedN  int64
}

func newState(sink recorder, o Options) *state {
	return &state{mask: o.Mask, sink: sink, byID: map[ID]*vertex{}}
}

// fold takes an event into the state. now stands in for a time that the event lacks.
func (s *state) fold(e Event, now time.Time) {
	if s.began.IsZero() {
		s.began = now
	}
	switch e := e.(type) {
	case Started:
		s.start(e, orNow(e.Time, now))
	case Cached:
		v := s.vertex(e.ID, "")
		v.cached = true
		s.finish(v, orNow(e.Time, now))
		s.sink.event(s, v, e)
	case Done:
		s.finishWith(e, orNow(e.Time, now))
	case Because:
		v := s.vertex(e.ID, "")
		e.Text, e.Time = oneLine(s.masked(e.Text)), orNow(e.Time, now)
		v.because = e.Text
		s.sink.event(s, v, e)
	case Log:
		s.log(e, orNow(e.Time, now))
	case Transfer:
		s.transfer(e, orNow(e.Time, now))
	case Waiting:
		v := s.vertex(e.ID, s.masked(e.Name))
		e.Holder, e.Time = oneLine(s.masked(e.Holder)), orNow(e.Time, now)
		v.waiting = e.Holder
		s.sink.event(s, v, e)
	case Warning:
		e.Text, e.Detail, e.Time = s.masked(e.Text), s.masked(e.Detail), orNow(e.Time, now)
		s.sink.event(s, s.byID[e.ID], e)
	case Message:
		e.Text, e.Time = s.masked(e.Text), orNow(e.Time, now)
		s.sink.event(s, s.byID[e.ID], e)
	}
}

func orNow(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return t
}

// masked applies the mask to each line of a text.
func (s *state) masked(text string) string {
	if s.mask == nil || text == "" {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = string(s.mask([]byte(l)))
	}
	return strings.Join(lines, "\n")
}

// vertex returns the vertex of an ID, making it when it is new.
func (s *state) vertex(id ID, name string) *vertex {
	v := s.byID[id]
	if v == nil {
		v = &vertex{id: id, index: len(s.vertices) + 1}
		s.byID[id] = v
		s.vertices = append(s.vertices, v)
	}
	if name != "" {
		v.name = oneLine(name)
	}
	return v
}

func (s *state) start(e Started, at time.Time) {
	v := s.vertex(e.ID, s.masked(e.Name))
	v.waiting = ""
	if v.running {
		return
	}
	if v.ended {
		s.ended--
	}
	v.running, v.ended, v.cached, v.canceled, v.err = true, false, false, false, ""
	v.start = at
	s.running++
	s.sink.event(s, v, e)
}

func (s *state) finishWith(e Done, at time.Time) {
	v := s.vertex(e.ID, "")
	if v.ended {
		return
	}
	e.Err = s.masked(e.Err)
	v.err = e.Err
	v.canceled = e.Canceled || strings.HasSuffix(e.Err, "context canceled")
	if v.canceled && v.err == "" {
		v.err = "canceled"
	}
	s.finish(v, at)
	s.sink.event(s, v, e)
	if v.err == "" {
		v.lines, v.next = nil, 0 // nobody reports on a step that went well
	}
}

// finish ends a vertex, passing on what is left of its output.
func (s *state) finish(v *vertex, at time.Time) {
	s.flush(v, true)
	if v.running {
		v.running = false
		s.running--
		if at.After(v.start) {
			v.spent += at.Sub(v.start)
		}
	}
	if !v.ended {
		v.ended = true
		s.ended++
	}
	v.end, v.waiting = at, ""
}

// elapsed is the time spent on a vertex until now.
func (v *vertex) elapsed(now time.Time) time.Duration {
	d := v.spent
	if v.running && now.After(v.start) {
		d += now.Sub(v.start)
	}
	return d
}

// log splits output into lines.
func (s *state) log(e Log, at time.Time) {
	v := s.vertex(e.ID, "")
	v.lastLog = at
	limit := maxPart
	if s.mask != nil {
		limit = maxMaskPart
	}
	p := &v.parts[streamIndex(e.Stream)]
	data := e.Data
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i >= 0 && len(p.data) == 0 {
			s.emitLine(v, at, e.Stream, data[:i], true)
			data = data[i+1:]
			continue
		}
		if len(p.data) == 0 {
			p.at = at
		}
		if i >= 0 && len(p.data)+i <= limit {
			p.data = append(p.data, data[:i]...)
			s.flushPart(v, p, e.Stream, true)
			data = data[i+1:]
			continue
		}
		n := min(len(data), limit-len(p.data))
		p.data = append(p.data, data[:n]...)
		data = data[n:]
		if len(p.data) >= limit {
			s.flushPart(v, p, e.Stream, false)
		}
	}
}

// flush passes on the lines that are not complete yet; end says that they now are.
func (s *state) flush(v *vertex, end bool) {
	s.flushPart(v, &v.parts[0], Stdout, end)
	s.flushPart(v, &v.parts[1], Stderr, end)
}

func (s *state) flushPart(v *vertex, p *part, stream int, end bool) {
	if len(p.data) > 0 {
		s.emitLine(v, p.at, stream, p.data, end)
	}
	p.data = p.data[:0]
	if cap(p.data) > maxPart {
		p.data = nil
	}
}

func (s *state) emitLine(v *vertex, at time.Time, stream int, data []byte, end bool) {
	v.remember(at, stream, data, end)
	if s.mask != nil {
		data = s.mask(data)
	}
	s.sink.line(s, v, at, stream, data, end)
}

// since is how long after the start of a vertex something happened.
func (v *vertex) since(at time.Time) time.Duration {
	if v.start.IsZero() || at.Before(v.start) {
		return 0
	}
	return at.Sub(v.start)
}

// remember puts a line, or a part of one, among the last ones. Masking is left to those who look at them.
func (v *vertex) remember(at time.Time, stream int, data []byte, end bool) {
	if v.next > 0 {
		if last := &v.lines[(v.next-1)%tailLines]; last.open && last.stream == stream {
			last.data = append(last.data, lastBytes(data)...)
			last.data = append(last.data[:0], lastBytes(last.data)...)
			last.open = !end
			return
		}
	}
	if len(v.lines) < tailLines {
		v.lines = append(v.lines, tailLine{})
	}
	l := &v.lines[v.next%tailLines]
	if cap(l.data) > 4*len(data)+256 {
		l.data = nil
	}
	*l = tailLine{at: v.since(at), data: append(l.data[:0], lastBytes(data)...), stream: stream, open: !end}
	v.next++
}

// lastBytes is the end of a line, as much of it as is kept. A line that a progress bar rewrote ends in its last state.
func lastBytes(data []byte) []byte {
	return data[max(0, len(data)-tailWidth):]
}

// recent returns the last n lines, oldest first, with an unfinished one, ready for a terminal.
func (v *vertex) recent(n int, mask func([]byte) []byte) []tailLine {
	have := min(v.next, tailLines)
	all := make([]tailLine, 0, have+len(v.parts))
	for i := v.next - have; i < v.next; i++ {
		all = append(all, v.lines[i%tailLines])
	}
	for i := range v.parts {
		p := &v.parts[i]
		if len(p.data) == 0 {
			continue
		}
		if have > 0 && all[have-1].open && streamIndex(all[have-1].stream) == i {
			all[have-1].data = append(bytes.Clone(all[have-1].data), lastBytes(p.data)...)
		} else {
			all = append(all, tailLine{at: v.since(p.at), data: lastBytes(p.data)})
		}
	}
	all = all[max(0, len(all)-n):]
	for i := range all {
		if mask != nil {
			all[i].data = mask(bytes.Clone(all[i].data))
		}
		all[i].data = sanitize(afterReturn(all[i].data))
	}
	return all
}

func (v *vertex) tail(mask func([]byte) []byte) []string {
	lines := v.recent(tailLines, mask)
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = string(appendSeconds(nil, l.at)) + " " + string(l.data)
	}
	return out
}

func (s *state) transfer(e Transfer, at time.Time) {
	v := s.vertex(e.ID, "")
	t := v.byKey[e.Key]
	if t == nil {
		if v.byKey == nil {
			v.byKey = map[string]*transfer{}
		}
		t = &transfer{start: at}
		v.byKey[e.Key] = t
		v.transfers = append(v.transfers, t)
	}
	if t.label = oneLine(s.masked(e.Label)); t.label == "" {
		t.label = oneLine(s.masked(e.Key))
	}
	t.current, t.total, t.done, t.last = e.Current, e.Total, e.Done, at
	s.sink.event(s, v, e)
}

// drop counts output that is left out.
func (s *state) drop(id ID, n int) {
	s.vertex(id, "").out.dropped += n
}
