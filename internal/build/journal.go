package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"build/cache"
	"build/dag"
	"build/internal/buildctx"
	"build/internal/explain"
	"build/internal/git"
	"build/internal/lazyregexp"
	"build/internal/store"
)

// The journal of a context directory remembers which keys the instructions of its Dockerfiles had, and what the last build did
// and why. It is read when a step misses and written once, when the build is over. It is a link of the store: losing it
// costs explanations and nothing else.

// history is the journal of this build's context.
type history struct {
	once    sync.Once
	journal *explain.Journal // what was known when the build began; never nil once read
}

// stream is the context of a build from standard input. All of them share a journal, so little is concluded from it.
const stream = "-"

// journalContext names the context a journal is for.
func journalContext(o *Options) string {
	if o.Context == stream {
		return stream
	}
	if r, err := buildctx.ParseContext(o.Context); err == nil && r.Kind != buildctx.Local {
		return git.Redact(o.Context)
	}
	abs, err := filepath.Abs(o.Context)
	if err != nil {
		return o.Context
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	return abs
}

func journalKey(context string) string {
	sum := sha256.Sum256([]byte(context))
	return "journal " + hex.EncodeToString(sum[:])
}

// readJournal returns the journal of a context and its bytes; an empty one when there is none that can be read.
func readJournal(st *store.Store, context string) (*explain.Journal, []byte) {
	raw, err := st.Read(store.KindLink, journalKey(context))
	if err == nil {
		if j, err := explain.Decode(raw); err == nil && j.Context == context {
			return j, raw
		}
	}
	return &explain.Journal{Context: context}, nil
}

// known is the journal as it was when the build began.
func (s *session) known() *explain.Journal {
	s.history.once.Do(func() { s.history.journal, _ = readJournal(s.store, journalContext(s.opts)) })
	return s.history.journal
}

// progressOf is what an evaluator notes about its steps for the journal.
type progressOf struct {
	mu       sync.Mutex
	outcomes map[dag.ID]*explain.Outcome

	once   sync.Once
	places map[dag.ID]explain.Place
	now    []explain.Outcome // all places, in order
	order  []dag.ID
}

// place says where a step is in the Dockerfile.
func (e *evaluator) place(step *dag.Step) explain.Place {
	e.findPlaces()
	return e.told.places[step.ID]
}

// findPlaces numbers the steps that make layers within their stages.
func (e *evaluator) findPlaces() {
	e.told.once.Do(func() {
		e.told.places = map[dag.ID]explain.Place{}
		lines := bytes.Split(e.dockerfile, []byte{'\n'})
		file := e.dockerfileID()
		count := map[int]int{}
		for i := range e.graph.Steps {
			step := &e.graph.Steps[i]
			if !isWork(step) {
				continue
			}
			count[step.StageIndex]++
			p := explain.Place{
				Dockerfile: file, Platform: platformString(step.Platform), Stage: step.Stage,
				Pos: count[step.StageIndex], Line: step.Pos.Start.Line, Title: e.hidden(step.Name), Text: e.hidden(bareTitle(step.Name)),
			}
			if a, b := step.Pos.Start.Line, step.Pos.End.Line; a > 0 && b >= a && b <= len(lines) {
				if text := string(bytes.TrimSpace(bytes.Join(lines[a-1:b], []byte{'\n'}))); sameInstruction(text, p.Text) {
					p.Text = withoutPasswords(text)
				}
			}
			e.told.places[step.ID] = p
			e.told.order = append(e.told.order, step.ID)
			e.told.now = append(e.told.now, explain.Outcome{Place: p})
		}
	})
}

// passwords finds those in the URLs of a text.
var passwords = lazyregexp.New(`(://[^/\s:@"']*):[^/\s@"']*@`)

// withoutPasswords is the text of an instruction as it may be kept.
func withoutPasswords(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return passwords().ReplaceAllString(text, "$1:xxxxx@")
}

// sameInstruction tells the lines of a step from those of a FROM whose image brought the step along (ONBUILD).
func sameInstruction(text, title string) bool {
	a, _, _ := strings.Cut(text, " ")
	b, _, _ := strings.Cut(title, " ")
	return strings.EqualFold(a, b)
}

// bareTitle is a step's name without stage and number: "[2/5] RUN make" is "RUN make".
func bareTitle(name string) string {
	if _, rest, ok := strings.Cut(name, "] "); ok && strings.HasPrefix(name, "[") {
		return rest
	}
	return name
}

// dockerfileID tells the Dockerfiles of one context apart.
func (s *session) dockerfileID() string {
	if s.opts.Dockerfile == stream {
		return stream
	}
	if path := s.dockerfilePath(); path != "" {
		return path
	}
	return s.definition.Name
}

// note keeps what became of a step, for the journal.
func (e *evaluator) note(step *dag.Step, status string, content cache.Key, changes []explain.Change) {
	place := e.place(step)
	e.told.mu.Lock()
	defer e.told.mu.Unlock()
	if e.told.outcomes == nil {
		e.told.outcomes = map[dag.ID]*explain.Outcome{}
	}
	e.told.outcomes[step.ID] = &explain.Outcome{Place: place, Status: status, Keys: explain.Keys{Content: content}, Changes: changes}
}

// changesOf returns why a step ran, as far as that was told.
func (e *evaluator) changesOf(id dag.ID) []explain.Change {
	e.told.mu.Lock()
	defer e.told.mu.Unlock()
	if o := e.told.outcomes[id]; o != nil {
		return o.Changes
	}
	return nil
}

// outcomes lists what became of all steps.
func (e *evaluator) outcomes() []explain.Outcome {
	e.findPlaces()
	out := slices.Clone(e.told.now)
	for i, id := range e.told.order {
		e.told.mu.Lock()
		have := e.told.outcomes[id]
		e.told.mu.Unlock()
		o := &out[i]
		o.Status = explain.NotRun
		if have != nil {
			*o = *have
		} else if e.wasShown(id) {
			o.Status = explain.Cached
		}
		o.Keys.Def = e.definitionIfKnown(id)
		if o.Keys.Def.IsZero() && o.Status == explain.Cached {
			o.Status = explain.NotRun
		}
	}
	return out
}

func (e *evaluator) wasShown(id dag.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.shown[id]
}

// definitionIfKnown is the definition key of a step, zero when it was not computed.
func (e *evaluator) definitionIfKnown(id dag.ID) cache.Key {
	e.mu.Lock()
	f := e.keys[id]
	e.mu.Unlock()
	if f == nil {
		return cache.Key{}
	}
	select {
	case <-f.done:
		if f.err == nil {
			return f.val.key
		}
	default:
	}
	return cache.Key{}
}

// writeJournal notes what this build did. A build that did what the last one did writes nothing.
func (s *session) writeJournal(products []*product) {
	var last []explain.Outcome
	for _, p := range products {
		if p.ev != nil {
			last = append(last, p.ev.outcomes()...)
		}
	}
	if len(last) == 0 {
		return
	}
	context := journalContext(s.opts)
	mark := journalMark(last)
	if raw, err := s.store.Read(store.KindLink, journalKey(context)); err == nil && explain.Marked(raw, mark) {
		return
	}
	j, _ := readJournal(s.store, context) // once more: another build of this context may have ended meanwhile
	j.Record(last)
	data, err := j.Encode(mark)
	if err == nil {
		err = s.store.Write(store.KindLink, journalKey(context), data)
	}
	if err != nil {
		s.warn("what this build did cannot be remembered: %v; \"build explain\" will not know of it", err)
	}
}

// journalMark is the same for two builds after which the journal says the same.
func journalMark(last []explain.Outcome) string {
	h := cache.NewHash("journal")
	for i := range last {
		o := &last[i]
		h.Field("place", fmt.Sprint(o.Dockerfile, "\x00", o.Platform, "\x00", o.Stage, "\x00", o.Pos, o.Line, "\x00", o.Text, "\x00", o.Title))
		h.Field("status", o.Status)
		h.Key("def", o.Keys.Def)
		if o.Status != explain.Cached {
			h.Key("content", o.Keys.Content)
			for _, c := range o.Changes {
				h.Field("change", c.Text)
			}
		}
	}
	return h.Sum().String()
}
