package leak

import (
	"slices"
	"strings"

	"build/internal/tree"
)

// Place is where in a layer a secret is.
type Place struct {
	// Path is that of the entry, absolute. A name that holds a secret is shown as stars.
	Path string `json:"path"`
	Part string `json:"part"` // "" the content; else what of the entry: see the Part constants
	Form string `json:"form"`
}

// What of an entry holds a secret, besides its content.
const (
	PartName  = "its name"
	PartLink  = "what it links to"
	PartXattr = "an extended attribute"
)

func (p Place) String() string {
	if p.Part == "" {
		return p.Path + " (" + p.Form + ")"
	}
	return p.Path + " (" + p.Part + ", " + p.Form + ")"
}

// Finding is one secret and where it is.
type Finding struct {
	Secret string  `json:"secret"`
	Places []Place `json:"places"` // the first of them
	Others int     `json:"others,omitempty"`
}

// maxPlaces is how many places of a secret are listed.
const maxPlaces = 5

// Search looks for secrets in one layer, entry by entry. It is used by one goroutine.
type Search struct {
	f     *Finder
	t     *text
	path  string
	hits  []Hit
	bytes []byte
	found []Finding
}

// Search begins with a layer.
func (f *Finder) Search() *Search { return &Search{f: f, t: newText(f)} }

// Entry goes on to an entry. What Content gets afterwards is the content of its file.
func (s *Search) Entry(e *tree.Entry) {
	s.endContent()
	s.path = e.Path
	if hits := s.in(e.Path); len(hits) > 0 {
		s.name(e.Path, hits)
	}
	if e.Link != "" {
		s.add(PartLink, s.in(e.Link))
	}
	for _, x := range e.Xattrs {
		s.add(PartXattr, s.in(x.Name+"="+x.Value))
	}
}

// Content takes a piece of the content of the last entry.
func (s *Search) Content(b []byte) { s.t.write(b) }

// End ends the search and returns what was found, one finding for each secret.
func (s *Search) End() []Finding {
	s.endContent()
	return s.found
}

func (s *Search) endContent() {
	s.hits = s.t.end(s.hits[:0])
	s.add("", s.hits)
}

func (s *Search) in(text string) []Hit {
	s.bytes = append(s.bytes[:0], text...)
	s.t.write(s.bytes)
	s.hits = s.t.end(s.hits[:0])
	return s.hits
}

// name adds what a path holds, unless that is all in the names of the directories above, which are entries too.
func (s *Search) name(path string, hits []Hit) {
	above := map[string]bool{}
	for _, h := range s.f.In(tree.Parent(path)) {
		above[h.Secret] = true
	}
	for _, h := range hits {
		if !above[h.Secret] {
			s.add(PartName, []Hit{h})
		}
	}
}

func (s *Search) add(part string, hits []Hit) {
	for _, h := range hits {
		s.addPlace(h.Secret, Place{Part: part, Form: h.Form})
	}
}

func (s *Search) addPlace(secret string, p Place) {
	i := slices.IndexFunc(s.found, func(f Finding) bool { return f.Secret == secret })
	if i < 0 {
		i = len(s.found)
		s.found = append(s.found, Finding{Secret: secret})
	}
	f := &s.found[i]
	if len(f.Places) == maxPlaces {
		f.Others++
		return
	}
	p.Path = "/" + s.f.Hide(s.path)
	f.Places = append(f.Places, p)
}

// Merge adds what another search found of the same secret.
func (f *Finding) Merge(o Finding) {
	f.Others += o.Others
	for _, p := range o.Places {
		switch {
		case slices.Contains(f.Places, p):
		case len(f.Places) == maxPlaces:
			f.Others++
		default:
			f.Places = append(f.Places, p)
		}
	}
}

const stars = "****"

// Hide replaces the components of a path that hold a secret; all of it, where a secret goes over several.
func (f *Finder) Hide(path string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if len(f.In(part)) > 0 {
			parts[i] = stars
		}
	}
	path = strings.Join(parts, "/")
	if len(f.In(path)) > 0 {
		return stars
	}
	return path
}
