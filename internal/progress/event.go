// Package progress shows what a build is doing. It owns the typed events a build emits, the state they fold into, and
// the displays that draw that state: plain lines, a redrawn terminal, JSON, or nothing. It decides nothing about the
// build, reads no environment variable, and never keeps more of a step's output than a bounded amount: events come in
// through a Sink that is passed as an argument, text goes out to one file.
package progress

import "time"

// ID names one displayed vertex, usually a step. The caller gives IDs, from 1 up; zero means no vertex. Displays number
// vertices #1, #2, … in the order in which they were first started.
type ID int

// Event is one thing that happened. The set of events is closed: Started, Cached, Done, Because, Log, Transfer, Waiting,
// Warning and Message. A zero Time means now.
type Event interface{ event() }

// Started says that work on a vertex begins. A vertex that has ended may start again: its times add up.
type Started struct {
	ID   ID
	Name string // "[build 2/5] RUN make"
	Time time.Time
}

// Cached says that a vertex needed no work. It ends the vertex, without a Done.
type Cached struct {
	ID   ID
	Time time.Time
}

// Done says that work on a vertex has ended.
type Done struct {
	ID       ID
	Err      string // "" when it went well
	Canceled bool   // it was stopped because of something else; Err is then not shown as a failure
	Time     time.Time
}

// Because says why a vertex could not be answered from the cache although something like it was done before. It comes
// between Started and Done.
type Because struct {
	ID   ID
	Kind string // what sort of thing changed, one word for programs: "file", "argument", "base"…
	Text string // completes "ran because …"; one line
	Time time.Time
}

// Stream numbers of Log.
const (
	Stdout = 1
	Stderr = 2
)

// Log carries output of a step, cut anywhere. Data may be reused by the caller when Emit has returned.
type Log struct {
	ID     ID
	Stream int
	Data   []byte
	Time   time.Time
}

// Transfer says how far moving one thing (a layer, a context) has come. Key tells the transfers of a vertex apart.
type Transfer struct {
	ID             ID
	Key            string
	Label          string // shown; "" shows Key
	Current, Total int64  // bytes; Total is 0 when it is not known
	Done           bool
	Time           time.Time
}

// Waiting says that a vertex waits for something another process holds. It may come before Started; Name is then what
// the vertex is called until it starts.
type Waiting struct {
	ID     ID
	Name   string
	Holder string
	Time   time.Time
}

// Warning is something the user should know though the build goes on.
type Warning struct {
	ID     ID     // the vertex it belongs to, or 0
	Text   string // one line
	Detail string // further lines, or ""
	Pos    string // "Dockerfile:3:1", or ""
	Time   time.Time
}

// Message is a line of information, such as which image a FROM name stands for.
type Message struct {
	ID   ID // the vertex it belongs to, or 0
	Text string
	Time time.Time
}

func (Started) event()  {}
func (Cached) event()   {}
func (Done) event()     {}
func (Because) event()  {}
func (Log) event()      {}
func (Transfer) event() {}
func (Waiting) event()  {}
func (Warning) event()  {}
func (Message) event()  {}

// Sink takes events. Emit may be called from any goroutine. It copies what it keeps.
type Sink interface{ Emit(Event) }

// Discard is a Sink that drops every event.
var Discard Sink = discard{}

type discard struct{}

func (discard) Emit(Event) {}
