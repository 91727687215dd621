package explain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"build/cache"
)

// Place is an instruction of a Dockerfile, as far as it can be recognised again after a change.
type Place struct {
	Dockerfile string `json:"dockerfile"` // which one of the context
	Platform   string `json:"platform,omitempty"`
	Stage      string `json:"stage"`
	Pos        int    `json:"pos"` // among the steps of the stage that make a layer, from 1
	Line       int    `json:"line"`
	Text       string `json:"text"` // as it is in the file
	Title      string `json:"title"`
}

// Keys are those one run of an instruction had. Content is zero when the step was answered by its definition alone.
type Keys struct{ Def, Content cache.Key }

type jsonKeys struct {
	Def     string `json:"def"`
	Content string `json:"content,omitempty"`
}

// MarshalJSON writes keys as they are shown everywhere.
func (k Keys) MarshalJSON() ([]byte, error) {
	j := jsonKeys{Def: k.Def.String()}
	if !k.Content.IsZero() {
		j.Content = k.Content.String()
	}
	return json.Marshal(j)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (k *Keys) UnmarshalJSON(b []byte) error {
	var j jsonKeys
	err := json.Unmarshal(b, &j)
	if err == nil {
		k.Def, err = cache.ParseKey(j.Def)
	}
	if err == nil && j.Content != "" {
		k.Content, err = cache.ParseKey(j.Content)
	}
	return err
}

// Entry is an instruction with the keys of its last runs, the latest first.
type Entry struct {
	Place
	Keys []Keys `json:"keys"`
}

// What became of a step in a build.
const (
	Ran    = "ran"
	Cached = "cached"
	Failed = "failed"
	NotRun = "not reached"
)

// Outcome is what became of one step in the last build, and why.
type Outcome struct {
	Place
	Status  string   `json:"status"`
	Keys    Keys     `json:"keys"`
	Changes []Change `json:"changes,omitempty"` // the most telling first
}

// Journal is what is remembered of the builds of one context.
type Journal struct {
	Version int       `json:"version"`
	Context string    `json:"context"`
	Last    []Outcome `json:"last"` // of the last build, in the order of its steps
	Steps   []Entry   `json:"steps"`

	stages map[Place][]*Entry // Steps, by what stage gives
}

const (
	journalVersion = 1
	maxKeys        = 4    // of one entry, for branches that take turns
	maxEntries     = 2000 // of a journal, those of the last build not counted
)

// Decode reads a journal. One that is from another version is as good as none.
func Decode(data []byte) (*Journal, error) {
	_, body, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return nil, errors.New("it ends early")
	}
	var j Journal
	if err := json.Unmarshal(body, &j); err != nil {
		return nil, err
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("version %d", j.Version)
	}
	j.sortStages()
	return &j, nil
}

// Encode writes a journal. Its first line is the given mark, by which a build that changes nothing knows that without
// reading more: see Marked.
func (j *Journal) Encode(mark string) ([]byte, error) {
	j.Version = journalVersion
	var b bytes.Buffer
	b.WriteString(mark + "\n")
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(j)
	return b.Bytes(), err
}

// Marked reports whether the data of a journal begin with a mark.
func Marked(data []byte, mark string) bool {
	first, _, ok := bytes.Cut(data, []byte{'\n'})
	return ok && string(first) == mark
}

// Record takes in what became of the steps of a build. What it knew of the same Dockerfile, platform and stages is
// replaced; what it knew of others stays.
func (j *Journal) Record(last []Outcome) {
	var fresh []Entry
	stages := map[Place]bool{}
	for i := range last {
		o := &last[i]
		stages[o.stage()] = true
		var keys []Keys
		if o.Status == Ran || o.Status == Cached {
			keys = append(keys, o.Keys)
		}
		if e := j.Same(o.Place, last); e != nil {
			for _, k := range e.Keys {
				if len(keys) > 0 && k.Def == keys[0].Def {
					if keys[0].Content.IsZero() {
						keys[0].Content = k.Content
					}
				} else if len(keys) < maxKeys {
					keys = append(keys, k)
				}
			}
		}
		if len(keys) > 0 {
			fresh = append(fresh, Entry{Place: o.Place, Keys: keys})
		}
	}
	for _, e := range j.Steps {
		if !stages[e.stage()] && len(fresh) < len(last)+maxEntries {
			fresh = append(fresh, e)
		}
	}
	j.Last, j.Steps = last, fresh
	j.sortStages()
}

// Same finds the entry of the same instruction: with the same text in the same stage or, if there is none, at the same place
// in the stage with another text, unless that is the text of another one of now. It is nil when the instruction is new.
func (j *Journal) Same(p Place, now []Outcome) *Entry {
	own := j.stages[p.stage()]
	if e := nearest(own, p, func(e *Entry) bool { return e.Text == p.Text }); e != nil {
		return e
	}
	return nearest(own, p, func(e *Entry) bool {
		return e.Pos == p.Pos && word(e.Title) == word(p.Title) &&
			!slices.ContainsFunc(now, func(o Outcome) bool { return o.stage() == e.stage() && o.Text == e.Text })
	})
}

// stage is what the steps of one stage have in common.
func (p Place) stage() Place {
	return Place{Dockerfile: p.Dockerfile, Platform: p.Platform, Stage: p.Stage}
}

// sortStages fills j.stages, whenever Steps are new. Searches only read, so that several steps can look at once.
func (j *Journal) sortStages() {
	j.stages = map[Place][]*Entry{}
	for i := range j.Steps {
		e := &j.Steps[i]
		j.stages[e.stage()] = append(j.stages[e.stage()], e)
	}
}

// Elsewhere finds an entry with the same text for another platform, in another stage, or in another Dockerfile of the
// context, in this order.
func (j *Journal) Elsewhere(p Place) *Entry {
	var same []*Entry
	for i := range j.Steps {
		if e := &j.Steps[i]; e.Text == p.Text {
			same = append(same, e)
		}
	}
	for _, like := range []func(e *Entry) bool{
		func(e *Entry) bool { return e.Dockerfile == p.Dockerfile && e.Stage == p.Stage },
		func(e *Entry) bool { return e.Dockerfile == p.Dockerfile && e.Platform == p.Platform },
		func(e *Entry) bool { return e.Platform == p.Platform },
	} {
		if e := nearest(same, p, like); e != nil {
			return e
		}
	}
	return nil
}

// nearest returns the fitting entry whose position is nearest.
func nearest(list []*Entry, p Place, fits func(*Entry) bool) *Entry {
	var best *Entry
	distance := func(e *Entry) int { return max(e.Pos-p.Pos, p.Pos-e.Pos) }
	for _, e := range list {
		if fits(e) && (best == nil || distance(e) < distance(best)) {
			best = e
		}
	}
	return best
}

// word is the instruction of a title: "[2/5] RUN make" is a RUN.
func word(title string) string {
	if _, rest, ok := strings.Cut(title, "] "); ok && strings.HasPrefix(title, "[") {
		title = rest
	}
	w, _, _ := strings.Cut(title, " ")
	return w
}
