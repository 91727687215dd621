package progress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is a writer that takes bytes only when it is opened.
type gate struct {
	mu   sync.Mutex
	cond sync.Cond
	open bool
	got  bytes.Buffer
}

func newGate() *gate {
	g := &gate{}
	g.cond.L = &g.mu
	return g
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.open {
		g.cond.Wait()
	}
	return g.got.Write(p)
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	g.cond.Broadcast()
}

// emitMany logs lines until told to stop and returns how many were taken.
func emitMany(d *Display, lines int) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range lines {
			d.Emit(Log{ID: 1, Stream: Stdout, Data: fmt.Appendf(nil, "line %d\n", i)})
		}
	}()
	return done
}

func closed(c <-chan struct{}, wait time.Duration) bool {
	select {
	case <-c:
		return true
	case <-time.After(wait):
		return false
	}
}

func TestSlowReaderSlowsPlainAndLosesNothing(t *testing.T) {
	g := newGate()
	d := newDisplay(Plain, g, Options{Buffer: 8 << 10})
	d.Emit(Started{ID: 1, Name: "chatty"})
	const lines = 20_000
	done := emitMany(d, lines)
	if closed(done, 200*time.Millisecond) {
		t.Fatal("more output was taken than the buffer holds while nobody read")
	}
	d.mu.Lock()
	if d.state.pending > 16<<10 {
		t.Errorf("%d bytes wait", d.state.pending)
	}
	d.mu.Unlock()
	g.release()
	if !closed(done, 20*time.Second) {
		t.Fatal("the step still waits though the reader reads")
	}
	d.Emit(Done{ID: 1})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	next := 0
	for line := range strings.SplitSeq(g.got.String(), "\n") {
		var stamp string
		var n int
		if _, err := fmt.Sscanf(line, "#1 %s line %d", &stamp, &n); err == nil {
			if n != next {
				t.Fatalf("line %d came where %d was due", n, next)
			}
			next++
		}
	}
	if next != lines {
		t.Fatalf("%d of %d lines came out", next, lines)
	}
}

func TestUnblock(t *testing.T) {
	g := newGate()
	d := newDisplay(Plain, g, Options{Buffer: 4 << 10})
	d.Emit(Started{ID: 1, Name: "chatty"})
	done := emitMany(d, 10_000)
	if closed(done, 100*time.Millisecond) {
		t.Fatal("nothing waited")
	}
	d.Unblock()
	if !closed(done, 5*time.Second) {
		t.Fatal("the step still waits")
	}
	began := time.Now()
	if err := d.Close(); !errors.Is(err, errStuck) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > 3*abandonWait {
		t.Errorf("Close took %v", took)
	}
	g.release()
	<-d.done
	if out := g.got.String(); !strings.Contains(out, "bytes of output left out]") {
		t.Error("nothing says that output is missing")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestBrokenOutputBlocksNobody(t *testing.T) {
	for _, mode := range []string{Plain, RawJSON} {
		d := newDisplay(mode, brokenWriter{}, Options{Buffer: 1 << 10})
		d.Emit(Started{ID: 1, Name: "a"})
		if !closed(emitMany(d, 20_000), 20*time.Second) {
			t.Fatalf("%s: the step waits for a reader that is gone", mode)
		}
		if err := d.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: Close: %v", mode, err)
		}
	}
}

// TestMuchOutputInLittleMemory sends far more through every mode than it may keep, and looks at the heap.
func TestMuchOutputInLittleMemory(t *testing.T) {
	const size = 128 << 20
	chunk := bytes.Repeat([]byte("a line of output as compilers write it, about eighty bytes long, give or take ten\n"), 400)
	for _, mode := range []string{Plain, TTY, Quiet, RawJSON} {
		t.Run(mode, func(t *testing.T) {
			d := newDisplay(mode, io.Discard, Options{Size: func() (int, int) { return 80, 24 }})
			d.Emit(Started{ID: 1, Name: "a"})
			runtime.GC()
			var before, now runtime.MemStats
			runtime.ReadMemStats(&before)
			for sent := 0; sent < size; sent += len(chunk) {
				d.Emit(Log{ID: 1, Stream: Stdout, Data: chunk})
			}
			d.Emit(Log{ID: 1, Stream: Stdout, Data: bytes.Repeat([]byte("x"), 16<<20)}) // a line without an end
			runtime.ReadMemStats(&now)
			runtime.GC()
			if grown := int64(now.HeapSys) - int64(before.HeapSys); grown > 48<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTail(t *testing.T) {
	d := newDisplay(Quiet, nil, Options{})
	now := time.Now()
	d.Emit(Started{ID: 7, Name: "a", Time: now})
	for i := range 30 {
		d.Emit(Log{ID: 7, Data: fmt.Appendf(nil, "\x1b[31mline\x1b[0m %d\n", i), Time: now.Add(time.Second)})
	}
	d.Emit(Log{ID: 7, Data: []byte("0%\r100%"), Time: now.Add(12 * time.Second)})
	d.Emit(Started{ID: 8, Name: "b"})
	d.Emit(Log{ID: 8, Data: []byte("fine\n")})
	d.Emit(Done{ID: 8})
	d.Emit(Done{ID: 7, Err: "exit code: 2"})
	tail := d.Tail(7)
	if len(tail) != tailLines || tail[0] != "1.000 line 11" || tail[tailLines-1] != "12.00 100%" {
		t.Errorf("tail: %q", tail)
	}
	if tail := d.Tail(8); len(tail) != 0 {
		t.Errorf("tail of a step that went well: %q", tail)
	}
	if tail := d.Tail(99); tail != nil {
		t.Errorf("tail of nothing: %q", tail)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error("second Close:", err)
	}
	d.Emit(Started{ID: 9}) // after the end: dropped
}

func TestNewModes(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for mode, want := range map[string]string{
		Auto: "#1 a\n#1 DONE 1.0s\n", "": "#1 a\n#1 DONE 1.0s\n", Plain: "#1 a\n#1 DONE 1.0s\n", Quiet: "",
		TTY: "WARN: the output is not a terminal: plain progress instead of tty\n\n#1 a\n#1 DONE 1.0s\n",
	} {
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		d, err := New(mode, file, Options{})
		if err != nil {
			t.Fatal(mode, err)
		}
		d.Emit(Started{ID: 1, Name: "a", Time: epoch})
		d.Emit(Done{ID: 1, Time: epoch.Add(time.Second)})
		if err := d.Close(); err != nil {
			t.Fatal(mode, err)
		}
		got, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("mode %q: %q, want %q", mode, got, want)
		}
	}
	if _, err := New("fancy", file, Options{}); err == nil || !strings.Contains(err.Error(), "rawjson") {
		t.Errorf("unknown mode: %v", err)
	}
}

func TestRawJSON(t *testing.T) {
	var out bytes.Buffer
	d := newDisplay(RawJSON, &out, Options{})
	d.Emit(Started{ID: 1, Name: "RUN make", Time: epoch})
	d.Emit(Log{ID: 1, Stream: Stderr, Data: []byte("warn"), Time: epoch.Add(time.Second)})
	d.Emit(Log{ID: 1, Stream: Stderr, Data: []byte("ing\nno end"), Time: epoch.Add(2 * time.Second)})
	d.Emit(Transfer{ID: 1, Key: "k", Label: "sha256:1", Current: 5, Total: 10, Time: epoch})
	d.Emit(Warning{ID: 1, Text: "w", Detail: "d"})
	d.Emit(Waiting{ID: 2, Name: "b", Holder: "h"})
	d.Emit(Message{Text: "hello"})
	d.Emit(Because{ID: 1, Kind: "file", Text: "a changed", Time: epoch})
	d.Emit(Done{ID: 1, Err: "boom", Time: epoch.Add(3 * time.Second)})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var logs, vertices, warnings, statuses int
	var text strings.Builder
	var reasons []string
	lines := bufio.NewScanner(&out)
	for lines.Scan() {
		var l jsonLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		for _, e := range l.Reasons {
			reasons = append(reasons, e.Kind+" "+e.Text)
			if e.Vertex == "" || !e.Timestamp.Equal(epoch) {
				t.Errorf("%+v", e)
			}
		}
		for _, e := range l.Logs {
			text.Write(e.Data)
		}
		for _, v := range l.Vertexes {
			if v.Error == "boom" && (v.Completed == nil || !v.Completed.Equal(epoch.Add(3*time.Second))) {
				t.Errorf("completed %v", v.Completed)
			}
		}
		logs, vertices, warnings, statuses = logs+len(l.Logs), vertices+len(l.Vertexes), warnings+len(l.Warnings), statuses+len(l.Statuses)
	}
	if len(reasons) != 1 || reasons[0] != "file a changed" {
		t.Errorf("reasons %q", reasons)
	}
	if text.String() != "warning\nhello\nno end\n" || vertices != 3 || warnings != 1 || statuses != 2 || logs != 3 {
		t.Errorf("text %q, %d vertices, %d warnings, %d statuses, %d logs", text.String(), vertices, warnings, statuses, logs)
	}
}

func TestConcurrentEmit(t *testing.T) {
	for _, mode := range []string{Plain, TTY, RawJSON, Quiet} {
		d := newDisplay(mode, io.Discard, Options{Size: func() (int, int) { return 80, 24 }, Buffer: 4 << 10})
		var wg sync.WaitGroup
		for id := ID(1); id <= 8; id++ {
			wg.Go(func() {
				d.Emit(Started{ID: id, Name: "step"})
				for range 200 {
					d.Emit(Log{ID: id, Data: []byte("some output\nand ")})
					d.Emit(Transfer{ID: id, Key: "k", Current: 1, Total: 2})
					d.Tail(id)
				}
				d.Emit(Done{ID: id})
			})
		}
		wg.Wait()
		if err := d.Close(); err != nil {
			t.Error(mode, err)
		}
	}
}
