package progress

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Modes that New knows. Auto is TTY on a terminal and Plain elsewhere.
const (
	Auto    = "auto"
	Plain   = "plain"
	TTY     = "tty"
	Quiet   = "quiet"
	RawJSON = "rawjson"
)

// Options say how a display looks. The zero value is fine.
type Options struct {
	Color    bool // TTY: use colours
	CI       bool // Auto becomes Plain even on a terminal
	LogLines int  // TTY: lines of output shown below a running step; 0 is 6, negative none
	// Mask replaces what must not be shown. It is given whole lines without their end (a line longer than 1 MiB comes in
	// pieces), names, warnings and errors, and may return its argument.
	Mask func([]byte) []byte
	// Size tells the terminal's width and height; nil asks the terminal itself.
	Size func() (width, height int)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Buffer is how many bytes of output of steps may wait to be written before Emit makes a step wait; 0 is 1 MiB.
	Buffer int
}

const (
	defaultLogLines = 6
	defaultBuffer   = 1 << 20
	framePeriod     = 80 * time.Millisecond  // TTY: shortest time between two frames
	tickPeriod      = 100 * time.Millisecond // TTY: the elapsed times of running steps move on
	plainPeriod     = 40 * time.Millisecond  // plain: events of so long are written together
	plainTick       = 500 * time.Millisecond // plain: open lines and hidden steps are looked at
	abandonWait     = time.Second            // Close waits so long for a stuck terminal once Unblock was called
)

// Display folds events into a state and draws it. It is a Sink.
type Display struct {
	opts  Options
	w     io.Writer
	drawn drawer

	mu      sync.Mutex
	space   sync.Cond // signalled when output was taken from the state or limits were lifted
	state   *state
	unblock bool  // Emit no longer waits
	closing bool  // no more events
	broken  error // the first error of writing

	wake chan struct{}
	quit chan struct{}
	done chan struct{}
}

// drawer is told what happens and turns the state into bytes to write. Its methods are called with the state locked.
type drawer interface {
	recorder
	// draw appends what is to be written now. With last set it is the end.
	draw(b []byte, s *state, now time.Time, last bool) []byte
	// period is the shortest time between two draws; tick how often to draw without an event, given the state (0: not).
	period() time.Duration
	tick(s *state) time.Duration
}

// New makes a display that writes to w. The mode tty falls back to plain, with a warning, when w is no terminal.
func New(mode string, w *os.File, o Options) (*Display, error) {
	terminal := w != nil && term.IsTerminal(int(w.Fd()))
	fellBack := false
	switch mode {
	case Auto, "":
		mode = Plain
		if terminal && !o.CI {
			mode = TTY
		}
	case TTY:
		if !terminal {
			mode, fellBack = Plain, true
		}
	case Plain, Quiet, RawJSON:
	default:
		return nil, fmt.Errorf("unknown progress mode %q: the modes are auto, plain, tty, quiet and rawjson", mode)
	}
	if mode == TTY && o.Size == nil {
		o.Size = func() (int, int) {
			width, height, err := term.GetSize(int(w.Fd()))
			if err != nil || width <= 0 || height <= 0 {
				return 80, 24
			}
			return width, height
		}
	}
	d := newDisplay(mode, w, o)
	if fellBack {
		d.Emit(Warning{Text: "the output is not a terminal: plain progress instead of tty"})
	}
	return d, nil
}

// newDisplay makes a display of a mode that fits w.
func newDisplay(mode string, w io.Writer, o Options) *Display {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LogLines == 0 {
		o.LogLines = defaultLogLines
	}
	if o.Buffer <= 0 {
		o.Buffer = defaultBuffer
	}
	d := &Display{
		opts: o, w: w,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	d.space.L = &d.mu
	switch mode {
	case TTY:
		d.drawn = newTTY(o)
	case Plain:
		d.drawn = &plain{limit: o.Buffer / 4}
	case RawJSON:
		d.drawn = &rawJSON{}
	default:
		d.drawn = quiet{}
	}
	d.state = newState(d.drawn, o)
	go d.loop()
	return d
}

// Emit takes an event. In the modes that show every byte of output it waits while too much output is still to be
// written, so that a slow reader slows steps down instead of filling the memory; in the others it never waits.
func (d *Display) Emit(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return
	}
	now := d.opts.Now()
	log, ok := e.(Log)
	if !ok {
		d.state.fold(e, now)
		d.signal()
		return
	}
	const piece = 64 << 10 // so that one large write cannot exceed the limit by much
	for data := log.Data; len(data) > 0; {
		log.Data = data[:min(piece, len(data))]
		data = data[len(log.Data):]
		for d.state.pending > d.opts.Buffer && !d.unblock && !d.closing && d.broken == nil {
			d.signal()
			d.space.Wait()
		}
		if d.unblock && d.state.pending > d.opts.Buffer {
			d.state.drop(log.ID, len(log.Data))
			continue
		}
		d.state.fold(log, now)
		d.signal()
	}
}

// signal asks the loop to draw. The caller holds the lock.
func (d *Display) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Tail returns the last lines of output of a vertex that has not ended well, each with its time as in plain mode, and
// fit for a terminal.
func (d *Display) Tail(id ID) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.state.byID[id]
	if v == nil {
		return nil
	}
	return v.tail(d.opts.Mask)
}

// Unblock lifts the limit that makes steps wait for a slow reader: from now on, output that does not fit is counted
// and left out. It is for a build that is being cancelled. Close then no longer waits for a terminal that takes nothing.
func (d *Display) Unblock() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.unblock {
		d.unblock = true
		close(d.quit)
	}
	d.space.Broadcast()
}

var errStuck = errors.New("the output takes no more bytes")

// Close draws what is left, puts the terminal back in order and returns the first error of writing. Events that come
// later are dropped. Calling it again does no harm.
func (d *Display) Close() error {
	d.mu.Lock()
	d.closing = true
	d.space.Broadcast()
	d.signal()
	d.mu.Unlock()
	select {
	case <-d.done:
	case <-d.quit:
		select {
		case <-d.done:
		case <-time.After(abandonWait):
			return fmt.Errorf("write progress: %w", errStuck)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return fmt.Errorf("write progress: %w", d.broken)
	}
	return nil
}

// loop draws whenever something changed, at most once per period, and is the only one who writes.
func (d *Display) loop() {
	defer close(d.done)
	timer := time.NewTimer(0)
	if !timer.Stop() {
		<-timer.C
	}
	var buf []byte
	for {
		d.await(timer)
		d.pace(timer)
		d.mu.Lock()
		last := d.closing
		buf = d.drawn.draw(buf[:0], d.state, d.opts.Now(), last)
		broken := d.broken
		d.space.Broadcast()
		d.mu.Unlock()
		if len(buf) > 0 && broken == nil {
			if _, err := d.w.Write(buf); err != nil {
				d.mu.Lock()
				d.broken = err
				d.space.Broadcast()
				d.mu.Unlock()
			}
		}
		if last {
			return
		}
		if cap(buf) > 4*defaultBuffer {
			buf = nil
		}
	}
}

// await returns when there is a reason to draw: an event, or the time for the next tick.
func (d *Display) await(timer *time.Timer) {
	d.mu.Lock()
	tick := d.drawn.tick(d.state)
	d.mu.Unlock()
	if tick <= 0 {
		<-d.wake
		return
	}
	timer.Reset(tick)
	defer timer.Stop()
	select {
	case <-d.wake:
	case <-timer.C:
	}
}

// pace lets events gather for one period, unless much output waits already or it is time to end.
func (d *Display) pace(timer *time.Timer) {
	period := d.drawn.period()
	if period <= 0 {
		return
	}
	timer.Reset(period)
	defer timer.Stop()
	for {
		d.mu.Lock()
		hurry := d.closing || d.state.pending > d.opts.Buffer/4
		d.mu.Unlock()
		if hurry {
			return
		}
		select {
		case <-d.wake:
			// Something more came: look whether it is a reason to hurry.
		case <-timer.C:
			return
		}
	}
}

// quiet draws nothing; the state is still kept for Tail.
type quiet struct{}

func (quiet) event(*state, *vertex, Event)                        {}
func (quiet) line(*state, *vertex, time.Time, int, []byte, bool)  {}
func (quiet) draw(b []byte, _ *state, _ time.Time, _ bool) []byte { return b }
func (quiet) period() time.Duration                               { return 0 }
func (quiet) tick(*state) time.Duration                           { return 0 }
