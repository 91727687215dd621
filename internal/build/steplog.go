package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"build/dag"
	"build/internal/progress"
	"build/internal/store"
)

// stepLog takes what a step prints, as fast as it prints: all of it goes to the log of the step, the first of it to the display,
// and its last lines are kept for the error report. Whether anybody reads the display does not matter to the step.
type stepLog struct {
	stdin, stdout, stderr *os.File // the step's ends
	readers               sync.WaitGroup
	tail                  tail
	full                  fullLog
	shown                 shower
}

func newStepLog(s *session, step *dag.Step, id progress.ID) (*stepLog, error) {
	l := &stepLog{
		tail: tail{mask: s.opts.Mask},
		full: fullLog{store: s.store, mask: s.opts.Mask, warn: func(err error) {
			s.emit(progress.Warning{ID: id, Text: fmt.Sprintf("the full output of %s is not kept: %v", step.Name, err)})
		}},
	}
	l.shown.begin(func(p progress.Log) { p.ID = id; s.emit(p) })
	var err error
	if l.stdin, err = os.Open(os.DevNull); err == nil {
		if l.stdout, err = l.pump(progress.Stdout); err == nil {
			l.stderr, err = l.pump(progress.Stderr)
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// pump returns what the step writes to, and passes on what comes.
func (l *stepLog) pump(stream int) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l.readers.Go(func() {
		defer r.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				l.full.write(stream, buf[:n])
				l.tail.write(stream, buf[:n])
				l.shown.add(progress.Log{Stream: stream, Data: buf[:n], Time: time.Now()})
			}
			if err != nil {
				return
			}
		}
	})
	return w, nil
}

// close gives up our copies of the step's ends, as far as they were made, and waits until everything the step wrote has been
// passed on, or the display does not take it.
func (l *stepLog) close() {
	l.stdin.Close()
	l.stdout.Close()
	l.stderr.Close()
	l.readers.Wait()
	l.shown.end()
}

// keep makes a file of everything the step printed and returns its path, "" when the error report has all of it.
func (l *stepLog) keep() string {
	if l.tail.whole() {
		return ""
	}
	return l.full.keep()
}

// drop removes the log unless it was kept.
func (l *stepLog) drop() { l.full.drop() }

// fullLog is everything that a step prints, with secrets replaced. A little is held in memory; more is in a file of the store.
// That it cannot be written is no reason for a step to fail.
type fullLog struct {
	store *store.Store
	mask  func([]byte) []byte // hides secrets in a whole line; may be nil
	warn  func(error)

	mu    sync.Mutex
	part  [2][]byte // lines that have not ended, by stream, when there is a mask
	small []byte
	file  *store.Log
	err   error
}

const smallLog = 64 << 10

func (l *fullLog) write(stream int, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mask == nil {
		l.put(p)
		return
	}
	part := &l.part[stream-1]
	for {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		*part = append(*part, line...)
		if ended || len(*part) >= tailMasked {
			l.put(l.mask(*part))
			*part = (*part)[:0]
		}
		if !ended {
			return
		}
		l.put([]byte{'\n'})
		p = rest
	}
}

// put is called with the lock held.
func (l *fullLog) put(p []byte) {
	if l.err != nil {
		return
	}
	if l.file == nil && len(l.small)+len(p) <= smallLog {
		l.small = append(l.small, p...)
		return
	}
	l.err = l.flush()
	if l.err == nil {
		_, l.err = l.file.Write(p)
	}
	if l.err != nil {
		l.warn(l.err)
	}
}

// flush moves what is in memory to the file, which is made.
func (l *fullLog) flush() error {
	if l.file != nil {
		return nil
	}
	f, err := l.store.NewLog()
	if err != nil {
		return err
	}
	l.file = f
	_, err = f.Write(l.small)
	l.small = nil
	return err
}

func (l *fullLog) keep() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.part {
		if len(l.part[i]) > 0 {
			l.put(l.mask(l.part[i]))
			l.part[i] = nil
		}
	}
	if l.err != nil {
		return "" // which was told
	}
	err := l.flush()
	path := ""
	if err == nil {
		path, err = l.file.Keep(time.Now())
	}
	if err != nil {
		l.err = err
		l.warn(err)
	}
	return path
}

func (l *fullLog) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Drop() // does nothing to one that was kept
	}
	l.small, l.err = nil, errors.New("dropped")
}

// maxShown is how much of a step's output the display gets, as in BuildKit.
const maxShown = 2 << 20

// patience is how long the end of a step waits for a display that takes nothing.
const patience = time.Second

// shower gives the display what it may have, from a goroutine of its own: a terminal that is stopped, or a pager that nobody
// scrolls, must not stop the step. At most maxShown waits.
type shower struct {
	mu     sync.Mutex
	more   sync.Cond
	queue  []progress.Log
	left   int // negative: something was left out
	ended  bool
	passed int // how many were shown
	done   chan struct{}
}

func (s *shower) begin(show func(progress.Log)) {
	s.more.L, s.left, s.done = &s.mu, maxShown, make(chan struct{})
	go func() {
		defer close(s.done)
		for {
			e, ok := s.next()
			if !ok {
				return
			}
			show(e)
		}
	}()
}

func (s *shower) next() (progress.Log, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.ended {
		s.more.Wait()
	}
	if len(s.queue) == 0 {
		return progress.Log{}, false
	}
	e := s.queue[0]
	s.queue = s.queue[1:]
	s.passed++
	return e, true
}

// add copies e's data.
func (s *shower) add(e progress.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left < 0 || s.ended {
		return
	}
	data := bytes.Clone(e.Data[:min(len(e.Data), s.left)])
	if s.left -= len(e.Data); s.left < 0 {
		data = append(data, fmt.Sprintf("\n[output clipped, log limit %dMiB reached]\n", maxShown>>20)...)
	}
	e.Data = data
	s.queue = append(s.queue, e)
	s.more.Signal()
}

// end waits until all was shown, as long as the display takes anything. What it does not take then, it gets later or never.
func (s *shower) end() {
	s.mu.Lock()
	s.ended = true
	passed := s.passed
	s.more.Signal()
	s.mu.Unlock()
	for {
		select {
		case <-s.done:
			return
		case <-time.After(patience):
		}
		s.mu.Lock()
		stuck := s.passed == passed
		passed = s.passed
		s.mu.Unlock()
		if stuck {
			return
		}
	}
}
