package build

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"build/internal/progress"
	"build/internal/store"
)

// A step that prints much and fails leaves all of it in a file, with secrets replaced; the display has the first of it and says
// that it has no more.
func TestFullLog(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	secret := func(o *Options) { o.Mask = MaskSecrets([]Secret{{Data: []byte("hunter2-hunter2")}}) }
	_, rec, err := w.build(secret, from(`
		FROM base
		RUN i=0; while [ $i -lt 60000 ]; do echo "line $i of a step that says much: hunter2-hunter2"; i=$((i+1)); done; echo -n the end >&2; exit 7`))
	w.failed(ExitStep, []string{"full output: " + w.root + "/" + store.LogsDir, "the end"}, rec, err)
	var failed *StepError
	if !errors.As(err, &failed) {
		t.Fatalf("%T: %v", err, err)
	}
	got, err := os.ReadFile(failed.Log)
	must(t, err)
	var want bytes.Buffer
	for i := range 60000 {
		want.WriteString("line " + strconv.Itoa(i) + " of a step that says much: ****\n")
	}
	if text := strings.Replace(string(got), "the end", "", 1); text != want.String() {
		t.Errorf("the log has %d bytes, want %d: %.100q … %q", len(text), want.Len(), text, text[max(0, len(text)-100):])
	}
	shown := rec.log("RUN")
	if len(shown) < maxShown || len(shown) > maxShown+100 || !strings.HasSuffix(shown, "\n[output clipped, log limit 2MiB reached]\n") {
		t.Errorf("the display got %d bytes that end with %q", len(shown), shown[max(0, len(shown)-100):])
	}
}

// The report of a step that printed little has all of it, and a step that succeeds leaves nothing, however much it printed.
func TestNoLogWithoutNeed(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	if text := w.fails(ExitStep, []string{"little"}, from("FROM base\nRUN echo little; exit 1\n")); strings.Contains(text, "full output") {
		t.Errorf("a log of what is there anyway: %s", text)
	}
	w.ok(from("FROM base\nRUN dd if=/dev/zero bs=1000 count=3000 2>/dev/null | tr '\\0' x\n"))
	w.nothingLeft()
	if _, err := os.Stat(w.root + "/" + store.LogsDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of logs: %v", err)
	}
}

// stuck is a display that takes no output: a terminal on which somebody pressed Ctrl-S.
type stuck struct{ free chan struct{} }

func (s stuck) Emit(e progress.Event) {
	if _, ok := e.(progress.Log); ok {
		<-s.free
	}
}

// Nobody reads the display, and the build goes on.
func TestStuckDisplay(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	display := stuck{make(chan struct{})}
	defer close(display.free)
	o := w.options(display, from("FROM base\nRUN dd if=/dev/zero bs=1000 count=5000 2>/dev/null | tr '\\0' x\nRUN echo another\n"))
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// That the log cannot be written is told once, and is no failure of the step's.
func TestLogThatCannotBeWritten(t *testing.T) {
	st, err := store.Open(t.TempDir(), store.Options{})
	must(t, err)
	must(t, os.RemoveAll(st.Dir()))
	var told []error
	l := fullLog{store: st, warn: func(err error) { told = append(told, err) }}
	for range 10 {
		l.write(1, bytes.Repeat([]byte("x"), smallLog))
	}
	if path := l.keep(); path != "" || len(told) != 1 {
		t.Errorf("kept at %q, told %v", path, told)
	}
	l.drop()
	st.Close()
}

// Output is shown in order and no later than at the end, whoever is faster.
func TestShower(t *testing.T) {
	var mu sync.Mutex
	var got strings.Builder
	var s shower
	s.begin(func(e progress.Log) {
		mu.Lock()
		defer mu.Unlock()
		got.Write(e.Data)
	})
	buf := make([]byte, 1)
	var want strings.Builder
	for i := range 5000 {
		buf[0] = byte('a' + i%26)
		want.WriteByte(buf[0])
		s.add(progress.Log{Stream: progress.Stdout, Data: buf, Time: time.Now()})
	}
	s.end()
	if got.String() != want.String() {
		t.Errorf("%d bytes were shown, or in another order", got.Len())
	}
}
