package build

import (
	"bytes"
	"slices"
	"sync"
)

// tail keeps the last lines of both streams, in the order in which they arrived. They are two pipes, so what a command
// said last on one may be read before much that it said earlier on the other: each keeps its last lines.
type tail struct {
	mask    func([]byte) []byte // hides secrets in a whole line; may be nil
	mu      sync.Mutex
	streams [2]struct {
		part  []byte // a line that has not ended
		lines []tailLine
	}
	arrived int
	cut     bool // a line was longer than what is kept of it
}

type tailLine struct {
	arrived int
	text    string
}

const (
	tailLines  = 25
	tailStderr = 15 // of these at least so many are of standard error, if it has them
	tailWidth  = 4 << 10

	tailMasked = 1 << 20 // as much of a line is masked before it is cut: a part of a secret would not be recognised
)

func (t *tail) write(stream int, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.streams[stream-1]
	for {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		if room := t.width() - len(s.part); room > 0 {
			s.part = append(s.part, line[:min(room, len(line))]...)
			t.cut = t.cut || len(line) > room
		} else if len(line) > 0 {
			t.cut = true
		}
		if !ended {
			return
		}
		t.arrived++
		if len(s.lines) >= 2*tailLines {
			s.lines = append(s.lines[:0], s.lines[len(s.lines)-tailLines:]...)
		}
		s.lines = append(s.lines, tailLine{t.arrived, t.show(s.part)})
		s.part, p = s.part[:0], rest
	}
}

// width is how much of a line is kept until it ends.
func (t *tail) width() int {
	if t.mask != nil {
		return tailMasked
	}
	return tailWidth
}

func (t *tail) show(line []byte) string {
	if t.mask != nil {
		line = t.mask(line)
	}
	t.cut = t.cut || len(line) > tailWidth
	return string(line[:min(len(line), tailWidth)])
}

// whole reports whether lines returns everything.
func (t *tail) whole() bool {
	n := len(t.lines())
	t.mu.Lock()
	defer t.mu.Unlock()
	said := t.arrived
	for i := range t.streams {
		if len(t.streams[i].part) > 0 {
			said++
		}
	}
	return !t.cut && n == said
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var last [2][]tailLine
	for i := range t.streams {
		s := &t.streams[i]
		last[i] = slices.Clone(s.lines)
		if len(s.part) > 0 {
			last[i] = append(last[i], tailLine{t.arrived + 1 + i, t.show(s.part)})
		}
	}
	out, err := last[0], last[1]
	err = err[max(0, len(err)-max(tailStderr, tailLines-len(out))):]
	out = out[max(0, len(out)-(tailLines-len(err))):]
	all := append(slices.Clone(out), err...)
	slices.SortStableFunc(all, func(a, b tailLine) int { return a.arrived - b.arrived })
	texts := make([]string, len(all))
	for i, l := range all {
		texts[i] = l.text
	}
	return texts
}
