package build

import (
	"sync"

	"build/snapshot"
)

// This file is about the program that inflates layers, in the holder: what there is to say about it reaches the user through
// the build process.

// inflate is who inflates layers in the holder. Where steps share the processes of the machine, what runs below the holder is
// taken for theirs when they are swept away: no program is started there.
func (n *inside) inflate(req *openRequest) snapshot.Inflate {
	if req.Plan.Plain || req.Plan.SharePID {
		return snapshot.Inflate{}
	}
	return snapshot.Inflate{Program: req.Inflate, Warn: n.notes.add}
}

// notes are what a holder wants to be told to the user.
type notes struct {
	mu    sync.Mutex
	texts []string
}

func (t *notes) add(text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.texts = append(t.texts, text)
}

// take hands the notes over, once.
func (t *notes) take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	texts := t.texts
	t.texts = nil
	return texts
}

// tellNotes tells what a holder noted.
func (s *session) tellNotes(texts []string) {
	for _, text := range texts {
		s.warn("%s", text)
	}
}
