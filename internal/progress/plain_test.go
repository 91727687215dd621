package progress

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// script drives a drawer without goroutines: every call of draw happens when the test says so.
type script struct {
	t   *testing.T
	s   *state
	d   drawer
	now time.Time
	out bytes.Buffer
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newScript(t *testing.T, d drawer, o Options) *script {
	return &script{t: t, s: newState(d, o), d: d, now: epoch}
}

func plainScript(t *testing.T) *script {
	return newScript(t, &plain{limit: 1 << 18}, Options{})
}

func (s *script) emit(events ...Event) {
	for _, e := range events {
		s.s.fold(e, s.now)
	}
}

func (s *script) log(id ID, text string) { s.emit(Log{ID: id, Stream: Stdout, Data: []byte(text)}) }

func (s *script) after(d time.Duration) *script {
	s.now = s.now.Add(d)
	return s
}

func (s *script) draw() { s.out.Write(s.d.draw(nil, s.s, s.now, false)) }

func (s *script) end() { s.out.Write(s.d.draw(nil, s.s, s.now, true)) }

func (s *script) want(want string) {
	s.t.Helper()
	if got := s.out.String(); got != want {
		s.t.Errorf("output:\n%s\nwant:\n%s\ngot  %q\nwant %q", got, want, got, want)
	}
}

func TestPlainOneAfterTheOther(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 3, Name: "[internal] load build definition from Dockerfile"})
	s.after(20*time.Millisecond).emit(
		Transfer{ID: 3, Key: "df", Label: "transferring dockerfile:", Current: 123, Total: 123, Done: true},
		Done{ID: 3})
	s.draw()
	s.emit(Started{ID: 1, Name: "[1/3] FROM docker.io/library/debian:12"}, Cached{ID: 1})
	s.emit(Started{ID: 9, Name: "[2/3] RUN make"})
	s.after(123*time.Millisecond).log(9, "cc -c a.c\ncc -c b.c\n")
	s.draw()
	s.after(12*time.Second).log(9, "ld\n")
	s.after(100*time.Second).log(9, "strip")
	s.emit(Done{ID: 9})
	s.draw()
	s.emit(Started{ID: 10, Name: "[3/3] RUN false"})
	s.after(time.Second).emit(Done{ID: 10, Err: "process \"/bin/sh -c false\" did not complete successfully: exit code: 1"})
	s.end()
	s.want(`#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 123B / 123B done
#1 DONE 0.0s

#2 [1/3] FROM docker.io/library/debian:12
#2 CACHED

#3 [2/3] RUN make
#3 0.123 cc -c a.c
#3 0.123 cc -c b.c
#3 12.12 ld
#3 112.1 strip
#3 DONE 112.1s

#4 [3/3] RUN false
#4 ERROR: process "/bin/sh -c false" did not complete successfully: exit code: 1
`)
}

func TestPlainInterleaving(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "slow"})
	s.after(time.Second).log(1, "slow 1\n")
	s.draw()
	s.emit(Started{ID: 2, Name: "other"})
	s.log(2, "other 1\n") // held back: slow was just shown
	s.draw()
	s.after(time.Second).log(1, "slow 2\n")
	s.draw()
	s.after(time.Second).emit(Started{ID: 3, Name: "short"}, Done{ID: 3}) // what ends is shown at once
	s.draw()
	s.after(time.Second).log(1, "slow 3\n")
	s.draw()
	s.after(11*time.Second).log(1, "slow 4\n") // other has waited long enough
	s.draw()
	s.emit(Done{ID: 2}, Done{ID: 1, Canceled: true})
	s.end()
	s.want(`#1 slow
#1 1.000 slow 1
#1 2.000 slow 2
#1 ...

#3 short
#3 DONE 0.0s

#2 other
#2 0.000 other 1
#2 ...

#1 slow
#1 4.000 slow 3
#1 15.00 slow 4
#1 CANCELED

#2 other
#2 DONE 14.0s
`)
}

// TestPlainHiddenTooLong shows that a busy step does not keep a quiet one off the screen for ever.
func TestPlainHiddenTooLong(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "busy"})
	s.log(1, "x\n")
	s.draw()
	s.emit(Started{ID: 2, Name: "quiet"})
	s.log(2, "hello\n")
	shown := -1
	for i := range 200 {
		s.after(100 * time.Millisecond)
		s.log(1, strings.Repeat("x\n", 50))
		s.draw()
		if shown < 0 && strings.Contains(s.out.String(), "hello") {
			shown = i
		}
	}
	if shown < 50 || shown > 105 {
		t.Errorf("the quiet step was shown after %d tenths of a second", shown)
	}
}

func TestPlainPartialLines(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "a"})
	s.draw()
	s.log(1, "whole ")
	s.draw()
	s.log(1, "line\r\n10%\r20%")
	s.emit(Log{ID: 1, Stream: Stderr, Data: []byte("err\n")}) // another stream does not cut the line
	s.draw()
	s.after(2 * time.Second).draw() // by now the open line is worth seeing
	s.log(1, "\r30%\n")
	s.draw()
	s.log(1, "?")
	s.after(2 * time.Second).draw()
	s.emit(Log{ID: 1, Stream: Stderr, Data: []byte("oops\n")})
	s.draw()
	s.log(1, "end")
	s.emit(Done{ID: 1})
	s.end()
	s.want("#1 a\n#1 0.000 whole line\r\n#1 0.000 err\n#1 0.000 10%\r20%\r30%\n#1 2.000 ?\n#1 4.000 oops\n#1 4.000 end\n#1 DONE 4.0s\n")
}

func TestPlainOpenLineGivesWay(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "a"})
	s.draw()
	s.log(1, "prompt: ")
	s.after(2 * time.Second).draw()
	s.emit(Started{ID: 2, Name: "b"}, Done{ID: 2})
	s.draw()
	s.log(1, "answer\n")
	s.draw()
	s.emit(Done{ID: 1})
	s.end()
	s.want("#1 a\n#1 0.000 prompt: \n#1 ...\n\n#2 b\n#2 DONE 0.0s\n\n#1 a\n#1 2.000 answer\n#1 DONE 2.0s\n")
}

func TestPlainNotes(t *testing.T) {
	s := plainScript(t)
	s.emit(Message{Text: "debian:12 → sha256:abc"})
	s.emit(Started{ID: 1, Name: "a"})
	s.draw()
	s.emit(Warning{Text: "no overlay", Detail: "it costs\ntwice the disk", Pos: "Dockerfile:3:1"})
	s.emit(Warning{ID: 1, Text: "odd"}, Waiting{ID: 1, Holder: "process 12 (build .)"})
	s.draw()
	s.emit(Done{ID: 1})
	s.end()
	s.want("debian:12 → sha256:abc\n\n#1 a\n#1 ...\n\nWARN: Dockerfile:3:1: no overlay\n  it costs\n  twice the disk\n\n" +
		"#1 a\n#1 WARN: odd\n#1 waiting for process 12 (build .)\n#1 DONE 0.0s\n")
}

func TestPlainBecause(t *testing.T) {
	s := newScript(t, &plain{limit: 1 << 18}, Options{Mask: func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("s3cret"), []byte("***")) }})
	s.emit(Started{ID: 1, Name: "RUN make"}, Because{ID: 1, Kind: "file", Text: "a\ns3cret changed"})
	s.log(1, "made\n")
	s.emit(Done{ID: 1})
	s.end()
	s.want("#1 RUN make\n#1 ran because a *** changed\n#1 0.000 made\n#1 DONE 0.0s\n")
}

func TestPlainTransfers(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "pull"})
	const total = 40_000_000
	for n := int64(0); n <= total; n += total / 100 { // every percent, but only every fifth is worth a line
		s.emit(Transfer{ID: 1, Key: "k", Label: "sha256:12", Current: n, Total: total})
		s.after(20 * time.Millisecond)
	}
	s.emit(Transfer{ID: 1, Key: "k", Label: "sha256:12", Current: total, Total: total, Done: true})
	s.emit(Done{ID: 1})
	s.end()
	out := s.out.String()
	if n := strings.Count(out, "#1 sha256:12 "); n != 22 {
		t.Errorf("%d lines, want 22:\n%s", n, out)
	}
	for _, want := range []string{"#1 sha256:12 0B / 40.00MB\n", "#1 sha256:12 12.00MB / 40.00MB 0.6s\n", "#1 sha256:12 40.00MB / 40.00MB 2.0s done\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestMaskSeesWholeLines(t *testing.T) {
	mask := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("s3cret"), []byte("***")) }
	s := newScript(t, &plain{limit: 1 << 18}, Options{Mask: mask})
	s.emit(Started{ID: 1, Name: "RUN echo s3cret"})
	s.log(1, "key: s3c")
	s.draw()
	s.after(5 * time.Second).draw()
	s.log(1, "ret!\n")
	s.emit(Log{ID: 1, Stream: Stderr, Data: []byte("s3cret")})
	s.emit(Warning{ID: 1, Text: "s3cret", Detail: "x\ns3cret"}, Message{Text: "s3cret"}, Waiting{ID: 1, Holder: "s3cret"})
	s.emit(Transfer{ID: 1, Key: "k", Label: "s3cret", Current: 1})
	if got := s.s.byID[1].tail(mask); fmt.Sprint(got) != "[0.000 key: ***! 5.000 ***]" {
		t.Errorf("tail %q", got)
	}
	s.emit(Done{ID: 1, Err: "no s3cret"})
	s.end()
	if out := s.out.String(); strings.Contains(out, "s3c") || strings.Count(out, "***") != 10 {
		t.Errorf("masked output:\n%s", out)
	}
}

// TestPlainLosesNothing feeds random output of several steps, cut anywhere, and puts it together again from what was
// printed.
func TestPlainLosesNothing(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newScript(t, &plain{limit: 1 << 10}, Options{})
		const steps = 4
		var sent [steps + 1]bytes.Buffer
		for id := 1; id <= steps; id++ {
			s.emit(Started{ID: ID(id), Name: "step"})
		}
		for range 400 {
			id := 1 + r.IntN(steps)
			var chunk []byte
			for range r.IntN(80) {
				chunk = append(chunk, "abcdefgh\n\r"[r.IntN(10)])
			}
			if r.IntN(40) == 0 {
				chunk = append(chunk, strings.Repeat("x", 70<<10)...)
			}
			sent[id].Write(chunk)
			s.log(ID(id), string(chunk))
			s.after(time.Duration(r.IntN(900)) * time.Millisecond)
			if r.IntN(3) == 0 {
				s.draw()
			}
		}
		for id := 1; id <= steps; id++ {
			s.emit(Done{ID: ID(id)})
		}
		s.end()
		if s.s.pending != 0 {
			t.Fatalf("seed %d: %d bytes counted as waiting at the end", seed, s.s.pending)
		}
		for id := 1; id <= steps; id++ {
			got := collect(s.out.String(), id)
			if want := strings.ReplaceAll(sent[id].String(), "\n", ""); strings.ReplaceAll(got, "\n", "") != want {
				t.Fatalf("seed %d: step %d: %d bytes came out, want %d", seed, id, len(got), len(want))
			}
		}
	}
}

// collect takes what a step wrote out of plain output.
func collect(out string, id int) string {
	var b strings.Builder
	for line := range strings.SplitSeq(out, "\n") {
		rest, ok := strings.CutPrefix(line, fmt.Sprintf("#%d ", id))
		if !ok {
			continue
		}
		stamp, text, ok := strings.Cut(rest, " ")
		if ok && strings.Contains(stamp, ".") && stamp != "..." {
			b.WriteString(text)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestRestartedVertexAddsUp(t *testing.T) {
	s := plainScript(t)
	s.emit(Started{ID: 1, Name: "fetching layers"}, Started{ID: 1, Name: "fetching layers"})
	s.after(time.Second).emit(Done{ID: 1})
	s.after(time.Hour).emit(Started{ID: 1, Name: "fetching layers"})
	s.after(time.Second).emit(Done{ID: 1}, Done{ID: 1})
	s.end()
	s.want("#1 fetching layers\n#1 DONE 1.0s\n#1 DONE 2.0s\n")
	if s.s.running != 0 || s.s.ended != 1 {
		t.Errorf("%d running, %d ended", s.s.running, s.s.ended)
	}
}
