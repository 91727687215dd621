package progress

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
)

// rawJSON writes one JSON object per event, in the shape that tools reading `docker build --progress=rawjson` know:
// {"vertexes": […]}, {"statuses": […]}, {"logs": […]} or {"warnings": […]}; and {"reasons": […]}, which is
// ours.
type rawJSON struct {
	text []byte

	// Lines of one vertex and stream that come together make one object.
	log  []byte
	of   *vertex
	from int // stream
	at   time.Time
}

const maxJSONLog = 32 << 10 // of output in one object

type jsonVertex struct {
	Digest    string     `json:"digest"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
}

type jsonStatus struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"vertex"`
	Name      string     `json:"name,omitempty"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
}

type jsonLog struct {
	Vertex    string    `json:"vertex"`
	Stream    int       `json:"stream"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

type jsonWarning struct {
	Vertex string   `json:"vertex,omitempty"`
	Level  int      `json:"level"`
	Short  []byte   `json:"short"`
	Detail [][]byte `json:"detail,omitempty"`
	Pos    string   `json:"pos,omitempty"`
}

// jsonReason is ours: readers of the format pass over what they do not know.
type jsonReason struct {
	Vertex    string    `json:"vertex"`
	Kind      string    `json:"kind"`
	Text      string    `json:"text"`
	Timestamp time.Time `json:"timestamp"`
}

// jsonLine is one line of output.
type jsonLine struct {
	Vertexes []jsonVertex  `json:"vertexes,omitempty"`
	Statuses []jsonStatus  `json:"statuses,omitempty"`
	Logs     []jsonLog     `json:"logs,omitempty"`
	Warnings []jsonWarning `json:"warnings,omitempty"`
	Reasons  []jsonReason  `json:"reasons,omitempty"`
}

func (*rawJSON) period() time.Duration     { return 0 }
func (*rawJSON) tick(*state) time.Duration { return 0 }

func (r *rawJSON) draw(b []byte, s *state, _ time.Time, last bool) []byte {
	if last {
		for _, v := range s.vertices {
			s.flush(v, false) // what has no line end gets none
		}
	}
	r.flushLog(s)
	b = append(b, r.text...)
	s.pending -= len(r.text)
	r.text = r.text[:0]
	return b
}

// digest names a vertex the way the format wants it.
func (v *vertex) digest() string {
	if v == nil {
		return ""
	}
	sum := sha256.Sum256([]byte("vertex " + strconv.Itoa(v.index)))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (v *vertex) json() jsonVertex {
	j := jsonVertex{Digest: v.digest(), Name: v.name, Cached: v.cached, Error: v.err}
	if !v.start.IsZero() {
		start := v.start
		j.Started = &start
	}
	if v.ended {
		end := v.end
		j.Completed = &end
	}
	return j
}

func (r *rawJSON) event(s *state, v *vertex, e Event) {
	switch e := e.(type) {
	case Started, Cached, Done:
		r.add(s, jsonLine{Vertexes: []jsonVertex{v.json()}})
	case Waiting:
		r.add(s, jsonLine{Vertexes: []jsonVertex{v.json()}})
		r.add(s, jsonLine{Statuses: []jsonStatus{{ID: "waiting for " + e.Holder, Vertex: v.digest(), Timestamp: e.Time}}})
	case Transfer:
		t := v.byKey[e.Key]
		start := t.start
		j := jsonStatus{ID: t.label, Vertex: v.digest(), Total: t.total, Current: t.current, Timestamp: t.last, Started: &start}
		if t.done {
			j.Completed = &j.Timestamp
		}
		r.add(s, jsonLine{Statuses: []jsonStatus{j}})
	case Warning:
		j := jsonWarning{Vertex: v.digest(), Level: 1, Short: []byte(e.Text), Pos: e.Pos}
		if e.Detail != "" {
			j.Detail = [][]byte{[]byte(e.Detail)}
		}
		r.add(s, jsonLine{Warnings: []jsonWarning{j}})
	case Because:
		r.add(s, jsonLine{Reasons: []jsonReason{{Vertex: v.digest(), Kind: e.Kind, Text: e.Text, Timestamp: e.Time}}})
	case Message:
		r.add(s, jsonLine{Logs: []jsonLog{{Vertex: v.digest(), Stream: Stderr, Data: []byte(e.Text + "\n"), Timestamp: e.Time}}})
	}
}

func (r *rawJSON) line(s *state, v *vertex, at time.Time, stream int, data []byte, end bool) {
	if v != r.of || stream != r.from || len(r.log)+len(data) > maxJSONLog {
		r.flushLog(s)
	}
	if len(r.log) == 0 {
		r.of, r.from, r.at = v, stream, at
	}
	before := len(r.log)
	r.log = append(r.log, data...)
	if end {
		r.log = append(r.log, '\n')
	}
	s.pending += len(r.log) - before
}

// flushLog makes an object of the lines that were gathered.
func (r *rawJSON) flushLog(s *state) {
	if len(r.log) == 0 {
		return
	}
	log := r.log
	r.log = r.log[:0]
	s.pending -= len(log)
	r.add(s, jsonLine{Logs: []jsonLog{{Vertex: r.of.digest(), Stream: r.from, Data: log, Timestamp: r.at}}})
}

// add queues one object, after the output that came before it.
func (r *rawJSON) add(s *state, l jsonLine) {
	r.flushLog(s)
	b, err := json.Marshal(l)
	if err != nil {
		panic("progress: " + err.Error()) // only a type of ours that cannot be marshalled does this
	}
	r.text = append(append(r.text, b...), '\n')
	s.pending += len(b) + 1
}
