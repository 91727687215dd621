package progress

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	clearLine  = "\x1b[K"
	clearBelow = "\x1b[J"

	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	blue   = "\x1b[34m"
	faint  = "\x1b[2m"
	reset  = "\x1b[0m"

	maxTransferRows = 6  // of one step
	barWidth        = 20 // of a transfer
)

// tty keeps the running steps at the bottom of a terminal and redraws them in place; what has ended moves up and stays.
// A frame is one write, and every line of it is shorter than the terminal is wide.
type tty struct {
	opts     Options
	finished []string // rows to print above the frame for good, without colour
	colours  []string // theirs
	drawn    []int    // widths of the rows of the last frame
	dirty    bool     // something changed since
	begun    bool     // the cursor is hidden
}

func newTTY(o Options) *tty { return &tty{opts: o} }

func (t *tty) period() time.Duration { return framePeriod }

func (t *tty) tick(s *state) time.Duration {
	if s.running > 0 {
		return tickPeriod
	}
	return 0
}

func (t *tty) line(*state, *vertex, time.Time, int, []byte, bool) { t.dirty = true }

// event notes what stays on the screen.
func (t *tty) event(s *state, v *vertex, e Event) {
	t.dirty = true
	switch e := e.(type) {
	case Cached:
		t.stay(blue, " => CACHED "+v.name, v)
	case Done:
		switch {
		case v.canceled:
			t.stay(yellow, " => CANCELED "+v.name, v)
		case v.err != "":
			t.stay(red, " => ERROR "+v.name, v)
		default:
			t.stay(blue, " => "+v.name+moved(v), v)
		}
		t.stayBecause(v)
	case Warning, Message:
		colour := ""
		if _, ok := e.(Warning); ok {
			colour = yellow
		}
		for line := range strings.SplitSeq(strings.TrimRight(string(appendNote(nil, "", e)), "\n"), "\n") {
			t.stay(colour, string(sanitize([]byte(line))), nil)
		}
	}
}

// stay queues a row for above the frame. With a vertex it gets the time at its end.
func (t *tty) stay(colour, text string, v *vertex) {
	if v != nil {
		width, _ := t.opts.Size()
		text = aligned(text, string(appendTenths(nil, v.spent)), width-1)
	}
	t.finished, t.colours = append(t.finished, text), append(t.colours, colour)
}

// stayBecause queues the reason why a vertex was not answered from the cache, below its row.
func (t *tty) stayBecause(v *vertex) {
	if v.because != "" {
		width, _ := t.opts.Size()
		t.stay(faint, fit(" => => ran because "+v.because, max(width-1, 1)), nil)
		v.because = ""
	}
}

// moved says how much the transfers of a vertex came to.
func moved(v *vertex) string {
	var sum int64
	for _, t := range v.transfers {
		sum += t.current
	}
	if sum == 0 {
		return ""
	}
	return " " + string(appendBytes(nil, sum))
}

// aligned puts two texts at the two ends of a row.
func aligned(left, right string, width int) string {
	room := width - len(right) - 1
	if room < 8 {
		return fit(left, width)
	}
	left = fit(left, room)
	return left + strings.Repeat(" ", room-textWidth(left)+1) + right
}

// row is one line of a frame.
type row struct{ colour, text string }

// draw makes one frame.
func (t *tty) draw(b []byte, s *state, now time.Time, last bool) []byte {
	if !t.dirty && s.running == 0 && !last || s.began.IsZero() {
		return b
	}
	t.dirty = false
	width, height := t.opts.Size()
	width = max(width-1, 1) // the last column stays free: writing into it wraps differently everywhere
	rows := t.rows(s, now, width, height, last)
	if !t.begun {
		t.begun = true
		b = append(b, hideCursor...)
	}
	if up := t.height(width + 1); up > 0 {
		b = fmt.Appendf(b, "\r\x1b[%dA", up)
	}
	for i, text := range t.finished {
		b = t.appendRow(b, row{t.colours[i], text})
	}
	t.finished, t.colours = nil, nil
	t.drawn = t.drawn[:0]
	for _, r := range rows {
		b = t.appendRow(b, r)
		t.drawn = append(t.drawn, textWidth(r.text))
	}
	b = append(b, clearBelow...)
	if last {
		b = append(b, showCursor...)
	}
	return b
}

// height is how many lines of the terminal the last frame takes at a width, which may have changed since.
func (t *tty) height(width int) int {
	n := 0
	for _, w := range t.drawn {
		n += max(1, (w+width-1)/max(width, 1))
	}
	return n
}

func (t *tty) appendRow(b []byte, r row) []byte {
	if t.opts.Color && r.colour != "" {
		b = append(append(append(b, r.colour...), r.text...), reset...)
	} else {
		b = append(b, r.text...)
	}
	return append(b, clearLine+"\r\n"...)
}

// rows lays out the frame: a headline, then what runs, with transfers and output as far as there is room.
func (t *tty) rows(s *state, now time.Time, width, height int, last bool) []row {
	head := fmt.Sprintf("[+] Building %s (%d/%d)", appendTenths(nil, now.Sub(s.began)), s.ended, len(s.vertices))
	if last && s.running == 0 {
		head += " FINISHED"
	}
	rows := []row{{"", fit(head, width)}}
	var active []*vertex
	for _, v := range s.vertices {
		if v.running || v.waiting != "" {
			active = append(active, v)
		}
	}
	room := max(height-2, 1) // the headline, and the line the cursor is on
	more := 0
	if len(active) > room {
		more = len(active) - room + 1
		active = active[:room-1]
	}
	free := room - len(active)
	if more > 0 || last {
		free = 0
	}
	extra := t.details(active, free, width)
	for i, v := range active {
		rows = append(rows, row{"", vertexRow(v, now, width)})
		rows = append(rows, extra[i]...)
	}
	if more > 0 {
		rows = append(rows, row{faint, fit(fmt.Sprintf(" => … and %d more", more), width)})
	}
	return rows
}

func vertexRow(v *vertex, now time.Time, width int) string {
	text := " => " + v.name
	if v.waiting != "" {
		text += " (waiting for " + v.waiting + ")"
	}
	return aligned(text, string(appendTenths(nil, v.elapsed(now))), width)
}

// details shares free rows among the active vertices: transfers first, then output, the most recently active vertex
// first.
func (t *tty) details(active []*vertex, free, width int) [][]row {
	extra := make([][]row, len(active))
	order := make([]int, len(active))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return active[b].lastLog.Compare(active[a].lastLog) })
	for _, i := range order {
		open := 0
		for _, tr := range active[i].transfers {
			if !tr.done && free > 0 && open < maxTransferRows {
				extra[i] = append(extra[i], row{"", transferRow(tr, width)})
				free, open = free-1, open+1
			}
		}
	}
	for _, i := range order {
		if t.opts.LogLines < 0 || free == 0 {
			break
		}
		for _, l := range active[i].recent(min(t.opts.LogLines, free), t.opts.Mask) {
			extra[i] = append(extra[i], row{faint, fit(" => => # "+string(l.data), width)})
			free--
		}
	}
	return extra
}

// transferRow shows a transfer with a bar when its size is known.
func transferRow(t *transfer, width int) string {
	amount := string(appendBytes(nil, t.current))
	if t.total > 0 {
		amount += " / " + string(appendBytes(nil, t.total))
		if width > 70 {
			full := int(min(max(t.current, 0), t.total) * barWidth / t.total)
			amount += " [" + strings.Repeat("=", full) + strings.Repeat(" ", barWidth-full) + "]"
		}
	}
	return aligned(" => => "+t.label, amount, width)
}
