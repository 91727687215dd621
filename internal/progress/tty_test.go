package progress

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal and a simple screen that obeys what is written to it.
type terminal struct {
	master, slave *os.File
	done          chan struct{}

	mu     sync.Mutex
	raw    strings.Builder
	screen screen
}

// screen knows the few control sequences that the display uses; any other is an error.
type screen struct {
	width   int
	resized bool // it does not reflow lines as terminals do, so moves up may go too far
	lines   [][]rune
	row     int
	col     int
	hidden  bool
	bad     []string
}

func openTerminal(t *testing.T, width, height int) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: open /dev/ptmx: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skipf("no pseudo-terminal: unlock: %v", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skipf("no pseudo-terminal: number: %v", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: open /dev/pts/%d: %v", n, err)
	}
	term := &terminal{master: master, slave: slave, done: make(chan struct{}), screen: screen{width: width}}
	term.resize(t, width, height)
	term.screen.resized = false
	go term.read()
	t.Cleanup(func() { term.close() })
	return term
}

func (term *terminal) resize(t *testing.T, width, height int) {
	t.Helper()
	size := &unix.Winsize{Row: uint16(height), Col: uint16(width)}
	term.screen.resized = true
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, size); err != nil {
		t.Fatal(err)
	}
}

// read collects what is written until the slave is closed.
func (term *terminal) read() {
	defer close(term.done)
	buf := make([]byte, 4096)
	for {
		n, err := term.master.Read(buf)
		term.mu.Lock()
		term.raw.Write(buf[:n])
		term.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (term *terminal) close() {
	term.slave.Close()
	<-term.done
	term.master.Close()
}

// show replays everything written so far on a fresh screen.
func (term *terminal) show() screen {
	term.mu.Lock()
	text := term.raw.String()
	term.mu.Unlock()
	s := screen{width: term.screen.width, resized: term.screen.resized}
	s.write(text)
	return s
}

func (s *screen) write(text string) {
	for text != "" {
		if text[0] == 0x1b {
			n := escapeLen([]byte(text))
			s.control(text[:n])
			text = text[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(text)
		text = text[n:]
		switch r {
		case '\r':
			s.col = 0
		case '\n':
			s.row++
		default:
			s.put(r)
		}
	}
}

func (s *screen) put(r rune) {
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	if s.col >= s.width {
		s.bad = append(s.bad, fmt.Sprintf("text runs over the right edge at row %d", s.row))
		return
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
}

func (s *screen) control(seq string) {
	var up int
	switch {
	case seq == hideCursor:
		s.hidden = true
	case seq == showCursor:
		s.hidden = false
	case seq == clearLine:
		if s.row < len(s.lines) && s.col < len(s.lines[s.row]) {
			s.lines[s.row] = s.lines[s.row][:s.col]
		}
	case seq == clearBelow:
		if s.row < len(s.lines) {
			s.lines = s.lines[:s.row]
		}
	case strings.HasSuffix(seq, "m"):
	case strings.HasSuffix(seq, "A"):
		if _, err := fmt.Sscanf(seq, "\x1b[%dA", &up); err != nil || up > s.row && !s.resized {
			s.bad = append(s.bad, fmt.Sprintf("%q at row %d", seq, s.row))
		}
		s.row = max(0, s.row-up)
	default:
		s.bad = append(s.bad, fmt.Sprintf("%q", seq))
	}
}

func (s *screen) text() string {
	var b strings.Builder
	for _, l := range s.lines {
		b.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return b.String()
}

// eventually waits until the screen satisfies a condition.
func (term *terminal) eventually(t *testing.T, what string, ok func(string) bool) {
	t.Helper()
	for range 100 {
		s := term.show()
		if ok(s.text()) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s := term.show()
	t.Fatalf("the screen never shows %s:\n%s", what, s.text())
}

func TestTTY(t *testing.T) {
	term := openTerminal(t, 80, 24)
	d, err := New(Auto, term.slave, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.Emit(Started{ID: 1, Name: "[1/3] FROM debian:12"})
	d.Emit(Cached{ID: 1})
	d.Emit(Started{ID: 2, Name: "[2/3] RUN make"})
	for i := range 20 {
		d.Emit(Log{ID: 2, Data: fmt.Appendf(nil, "\x1b[32mcc\x1b[0m file%d.c\x1b[2J\n", i)})
	}
	d.Emit(Log{ID: 2, Data: []byte("10%\r50%")})
	d.Emit(Started{ID: 3, Name: "pull"})
	d.Emit(Transfer{ID: 3, Key: "k", Label: "sha256:abc", Current: 20_000_000, Total: 40_000_000})
	term.eventually(t, "the running steps", func(s string) bool {
		return strings.Contains(s, " => [2/3] RUN make") && strings.Contains(s, " => => sha256:abc") &&
			strings.Contains(s, " => => # cc file19.c\n => => # 50%\n") && !strings.Contains(s, "file14.c") &&
			strings.Contains(s, "20.00MB / 40.00MB [==========          ]") && strings.Contains(s, "(1/3)")
	})
	if !term.show().hidden {
		t.Error("the cursor is visible while frames are drawn")
	}
	d.Emit(Warning{Text: "something odd", Pos: "Dockerfile:2:1"})
	d.Emit(Transfer{ID: 3, Key: "k", Label: "sha256:abc", Current: 40_000_000, Total: 40_000_000, Done: true})
	d.Emit(Done{ID: 3})
	d.Emit(Because{ID: 2, Kind: "file", Text: "a changed"})
	d.Emit(Done{ID: 2, Err: "exit code: 2"})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	term.eventually(t, "the end", func(s string) bool { return strings.Contains(s, "(3/3) FINISHED") })
	s := term.show()
	var names []string
	for l := range strings.SplitSeq(strings.TrimSpace(s.text()), "\n") {
		names = append(names, strings.TrimRight(strings.TrimRight(l, "0123456789.s"), " "))
	}
	want := []string{"=> CACHED [1/3] FROM debian:12", "WARN: Dockerfile:2:1: something odd", " => pull 40.00MB", " => ERROR [2/3] RUN make", " => => ran because a changed"}
	if len(names) != 6 || strings.Join(names[:5], "|") != strings.Join(want, "|") {
		t.Errorf("at the end:\n%s", s.text())
	}
	if s.hidden || len(s.bad) > 0 {
		t.Errorf("cursor hidden: %v; %q", s.hidden, s.bad)
	}
	term.mu.Lock()
	defer term.mu.Unlock()
	if strings.Contains(term.raw.String(), "\x1b[3") {
		t.Error("colours though none were asked for")
	}
}

func TestTTYColours(t *testing.T) {
	term := openTerminal(t, 60, 20)
	d, err := New(TTY, term.slave, Options{Color: true})
	if err != nil {
		t.Fatal(err)
	}
	d.Emit(Started{ID: 1, Name: "a"})
	d.Emit(Done{ID: 1, Err: "boom"})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	term.eventually(t, "the end", func(s string) bool { return strings.Contains(s, "FINISHED") })
	term.mu.Lock()
	defer term.mu.Unlock()
	if !strings.Contains(term.raw.String(), red+" => ERROR a") {
		t.Errorf("no colour: %q", term.raw.String())
	}
}

// TestTTYManyStepsSmallTerminal draws more than fits, and changes the size meanwhile.
func TestTTYManyStepsSmallTerminal(t *testing.T) {
	term := openTerminal(t, 40, 8)
	d, err := New(TTY, term.slave, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for id := ID(1); id <= 30; id++ {
		d.Emit(Started{ID: id, Name: fmt.Sprintf("[stage %d/30] RUN a rather long command line, 日本語 included", id)})
		d.Emit(Log{ID: id, Data: []byte(strings.Repeat("long ", 50) + "\n")})
	}
	term.eventually(t, "how many more there are", func(s string) bool { return strings.Contains(s, "… and 25 more") })
	for i, size := range [][2]int{{30, 6}, {40, 3}, {38, 1}, {40, 40}} {
		term.resize(t, size[0], size[1])
		d.Emit(Log{ID: 1, Data: []byte("more\n")})
		time.Sleep(2 * framePeriod)
		d.Emit(Done{ID: ID(i + 1)})
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	term.eventually(t, "the end", func(s string) bool { return strings.Contains(s, "(4/30)") })
	s := term.show()
	if s.hidden || len(s.bad) > 0 {
		t.Errorf("cursor hidden: %v; %q\n%s", s.hidden, s.bad, s.text())
	}
}

// TestStuckTerminalBlocksNobody stops reading from the terminal: in this mode steps go on.
func TestStuckTerminalBlocksNobody(t *testing.T) {
	g := newGate()
	d := newDisplay(TTY, g, Options{Size: func() (int, int) { return 80, 24 }})
	d.Emit(Started{ID: 1, Name: "a"})
	if !closed(emitMany(d, 100_000), 20*time.Second) {
		t.Fatal("the step waits for the terminal")
	}
	d.Emit(Done{ID: 1})
	g.release()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(g.got.String(), showCursor) {
		t.Error("the cursor was not restored")
	}
}

// TestFrameIsNotDrawnWithoutReason counts writes while nothing happens.
func TestFrameIsNotDrawnWithoutReason(t *testing.T) {
	w := &countingWriter{}
	d := newDisplay(TTY, w, Options{Size: func() (int, int) { return 80, 24 }})
	d.Emit(Started{ID: 1, Name: "a"})
	for range 2000 {
		d.Emit(Log{ID: 1, Data: []byte("x\n")})
		time.Sleep(100 * time.Microsecond)
	}
	d.Emit(Done{ID: 1})
	time.Sleep(3 * framePeriod)
	busy := w.count()
	if busy < 2 || busy > 60 {
		t.Errorf("%d frames for less than a second or so of output", busy)
	}
	time.Sleep(5 * tickPeriod)
	if idle := w.count() - busy; idle != 0 {
		t.Errorf("%d frames though nothing runs", idle)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

type countingWriter struct {
	mu sync.Mutex
	n  int
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return len(p), nil
}

func (w *countingWriter) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}
