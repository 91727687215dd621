package build

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"build/dag"
	"build/internal/leak"
	"build/parser"
)

// leakedIntoConfig searches the configuration of an image (an ENV, a LABEL) and its history (a build argument of a RUN). Both
// are known before any step runs.
func (s *session) leakedIntoConfig(file *parser.File, g *dag.Graph) error {
	whole := parser.Range{File: file.Name}
	cfg := g.Config
	cfg.History = nil
	found, err := leaksInJSON(s.leaks.finder, &cfg)
	if err != nil {
		return fmt.Errorf("search the configuration for secrets: %w", err)
	}
	if err := s.report(whole, inConfig, found); err != nil {
		return err
	}
	for i, h := range g.History {
		at := whole
		if h.Step >= 0 {
			at = g.Steps[h.Step].Pos
		}
		found, err := leaksInJSON(s.leaks.finder, map[string]any{fmt.Sprintf("history[%d]", i): &h.History})
		if err != nil {
			return fmt.Errorf("search the history for secrets: %w", err)
		}
		if err := s.report(at, inHistory, found); err != nil {
			if at != whole {
				return &SourceError{Pos: at, Err: err, source: s.dockerfile}
			}
			return err
		}
	}
	return nil
}

// leaksInJSON searches all strings of what v is in JSON, as they are without JSON's escapes.
func leaksInJSON(f *leak.Finder, v any) ([]leak.Finding, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var decoded any
	if err := json.Unmarshal(data, &decoded); err != nil {
		return nil, err
	}
	c := jsonSearch{f: f}
	c.value("", decoded)
	return c.found, nil
}

type jsonSearch struct {
	f     *leak.Finder
	found []leak.Finding
}

func (c *jsonSearch) value(at string, v any) {
	switch v := v.(type) {
	case string:
		c.text(at, v)
	case []any:
		for i, x := range v {
			c.value(fmt.Sprintf("%s[%d]", at, i), x)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			below := c.f.Hide(key)
			if at != "" {
				below = at + "." + below
			}
			c.text(below, key)
			c.value(below, v[key])
		}
	}
}

func (c *jsonSearch) text(at, s string) {
	for _, h := range c.f.In(s) {
		found := leak.Finding{Secret: h.Secret, Places: []leak.Place{{Path: at, Form: h.Form}}}
		i := slices.IndexFunc(c.found, func(have leak.Finding) bool { return have.Secret == h.Secret })
		if i < 0 {
			c.found = append(c.found, found)
		} else {
			c.found[i].Merge(found)
		}
	}
}
