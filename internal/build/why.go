package build

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/internal/explain"
	"build/internal/git"
	"build/internal/progress"
)

// earlier is the run of an instruction that this one is compared with.
type earlier struct {
	changes []explain.Change // why there is nothing to compare, if so
	record  *cache.Record
	key     cache.Key // of record, by content
	text    []byte
	place   *explain.Place // nil: found by its text alone, in another context
	loose   bool           // it may be of something else that merely looks the same
	other   *earlier       // another one that does
}

// earlier finds the nearest earlier run of a step that the cache does not answer; nil if nothing like it ran before. It must be
// asked before the step's own record is written.
func (e *evaluator) earlier(step *dag.Step, content *stepKey) *earlier {
	text := content.hash.Text()
	journal, place := e.known(), e.place(step)
	entry := journal.Same(place, e.told.now)
	if entry == nil {
		entry = journal.Elsewhere(place)
	}
	if entry == nil {
		return e.lookAlike(step, place)
	}
	was := &earlier{place: &entry.Place, loose: journal.Context == stream}
	least := -1
	for _, k := range entry.Keys {
		key := e.contentOf(k)
		if key == content.key {
			return e.forced(step, e.lost(step, was, key))
		}
		rec := e.runOf(key)
		if rec == nil {
			continue
		}
		t := e.cache.Text(rec)
		if n := len(cache.Diff(t, text)); least < 0 || n < least {
			was.record, was.key, was.text, least = rec, key, t, n
		}
	}
	if was.record == nil {
		was.changes = []explain.Change{{Kind: explain.Evicted, Text: "what is known of its earlier runs was evicted from the cache"}}
	}
	return e.forced(step, was)
}

// lookAlike finds runs of the same line in other contexts; nil if there are none. One of this very build explains nothing.
func (e *evaluator) lookAlike(step *dag.Step, place explain.Place) *earlier {
	var first *earlier
	next := &first
	for _, rec := range e.cache.Alike(identity(place)) {
		if rec.Created.Before(e.began) {
			*next = &earlier{record: rec, text: rec.Text, loose: true}
			next = &(*next).other
		}
	}
	if first == nil || step.NoCache {
		return nil
	}
	return first
}

// latest is the record of the last run of an instruction, or of another of the same text; nil if there is none.
func (e *evaluator) latest(step *dag.Step) *cache.Record {
	place := e.place(step)
	if entry := e.known().Same(place, e.told.now); entry != nil {
		for _, k := range entry.Keys {
			if rec, err := e.cache.Get(e.contentOf(k)); err == nil {
				return rec
			}
		}
	}
	if alike := e.cache.Alike(identity(place)); len(alike) > 0 {
		return alike[0]
	}
	return nil
}

// contentOf is the content key of an earlier run, also of one that was answered by its definition.
func (e *evaluator) contentOf(k explain.Keys) cache.Key {
	if !k.Content.IsZero() {
		return k.Content
	}
	rec := e.runOf(k.Def)
	if rec == nil {
		return cache.Key{}
	}
	key, err := cache.ParseKey(cache.Fields(e.cache.Text(rec))[explain.NoteContent])
	if err != nil {
		return cache.Key{}
	}
	return key
}

// lost says what is gone when the same key had an answer once.
func (e *evaluator) lost(step *dag.Step, was *earlier, key cache.Key) *earlier {
	text := "its record was evicted from the cache"
	if rec := e.runOf(key); rec != nil {
		was.record = rec
		text = "the layer it made was evicted from the cache"
		if wroteNothing(rec) {
			if !e.unread(step) {
				was.changes = []explain.Change{{Kind: explain.Unwritten, Text: "its layer was not needed before"}}
				return was
			}
			text = "a layer it stands on was evicted from the cache"
		}
		for _, d := range rec.Layers[:rec.Base] {
			if !e.obtainable(d) {
				text = "a layer of its base image was evicted from the cache"
			}
		}
	} else if e.damaged(key) {
		text = "its record in the cache is damaged"
	}
	was.changes = []explain.Change{{Kind: explain.Evicted, Text: text}}
	return was
}

// damaged reports whether there is a record under a key that cannot be read.
func (e *evaluator) damaged(k cache.Key) bool {
	_, err := e.cache.Get(k)
	miss := (*cache.Miss)(nil)
	return errors.As(err, &miss) && miss.Reason != cache.ReasonAbsent
}

// forced gives the reason of a step that was told to run.
func (e *evaluator) forced(step *dag.Step, was *earlier) *earlier {
	if !step.NoCache {
		return was
	}
	text := "--no-cache was given"
	if !e.opts.NoCache {
		text = "--no-cache-filter=" + step.Stage + " was given"
	}
	was.changes = []explain.Change{{Kind: explain.NoCache, Text: text}}
	return was
}

// why says what changed since an earlier run. made is the layer the step has made, if it has.
func (e *evaluator) why(ctx context.Context, step *dag.Step, content *stepKey, in []*outcome, was *earlier, made digest.Digest) []explain.Change {
	if was == nil {
		return nil
	}
	if was.changes != nil {
		return was.changes
	}
	unlike := false
	facts := e.facts(step)
	facts.Was = bareTitle(was.record.Step)
	facts.SameText = was.place == nil || was.place.Text == facts.Text
	if _, run := step.Op.(dag.Run); run && facts.Was != bareTitle(step.Name) {
		facts.SameText = false // of the runs that the place remembers it may be one of an older text
	}
	facts.Files = func(field, before, after string) explain.Change {
		c, same := e.filesChanged(ctx, step, in, was, field, before, made)
		unlike = unlike || !same
		return c
	}
	facts.Below = func(before, after []string, base bool) explain.Change {
		return e.belowChanged(step, before, after, base)
	}
	changes := explain.Compare(was.text, content.hash.Text(), facts)
	if was.loose && !e.akin(step, changes, unlike) {
		return e.why(ctx, step, content, in, was.other, made)
	}
	if len(changes) == 0 {
		changes = []explain.Change{{Kind: explain.Unknown, Text: "its key changed"}}
	}
	return e.masked(changes)
}

// akin reports whether something that was found by its text alone explains a step. Two projects with the same line have
// nothing to do with each other unless what it works on is much the same.
func (e *evaluator) akin(step *dag.Step, changes []explain.Change, unlike bool) bool {
	if len(changes) != 1 || unlike {
		return false
	}
	switch changes[0].Kind {
	case explain.Base:
		return false
	case explain.Step:
		for _, s := range e.ancestors(step) {
			if len(e.changesOf(s.ID)) > 0 {
				return true
			}
		}
		return false
	}
	return true
}

// masked hides secrets in what is about to be told.
func (e *evaluator) masked(changes []explain.Change) []explain.Change {
	if e.opts.Mask == nil {
		return changes
	}
	for i := range changes {
		changes[i].Text = e.hidden(changes[i].Text)
	}
	return changes
}

// hidden is a line without secrets: a build argument may hold one.
func (s *session) hidden(line string) string {
	if s.opts.Mask == nil {
		return line
	}
	return string(s.opts.Mask([]byte(line)))
}

// performExplained carries a step out and says why that was necessary, if something like it ran before: of a command before it
// runs, because it may take long; of a COPY when its layer is there to be compared with the one before.
func (e *evaluator) performExplained(ctx context.Context, step *dag.Step, content *stepKey, in []*outcome) (digest.Digest, []explain.Change, error) {
	was := e.earlier(step, content)
	if _, copies := step.Op.(dag.Copy); !copies {
		changes := e.tell(step, content, e.why(ctx, step, content, in, was, ""))
		made, err := e.perform(ctx, step, content, in)
		return made, changes, err
	}
	made, err := e.perform(ctx, step, content, in)
	if err != nil {
		e.note(step, explain.Failed, content.key, nil)
		return "", nil, err
	}
	return made, e.tell(step, content, e.why(ctx, step, content, in, was, made)), nil
}

// tell shows why a step ran and notes it.
func (e *evaluator) tell(step *dag.Step, content *stepKey, changes []explain.Change) []explain.Change {
	if len(changes) > 0 {
		e.emit(progress.Because{ID: e.vertex(step), Kind: string(changes[0].Kind), Text: changes[0].Text, Time: time.Now()})
	}
	e.note(step, explain.Failed, content.key, changes) // until it is done
	return changes
}

// facts is what is said of a step itself.
func (e *evaluator) facts(step *dag.Step) explain.Facts {
	place := e.place(step)
	mounts := func(i int) dag.Mount {
		if op, ok := step.Op.(dag.Run); ok && i < len(op.Mounts) {
			return op.Mounts[i]
		}
		return dag.Mount{}
	}
	return explain.Facts{
		Text: place.Text,
		Hide: dag.SecretName,
		Remote: func(i int) string {
			if op, ok := step.Op.(dag.Copy); ok && i < len(op.Sources) {
				return git.Redact(op.Sources[i].Path)
			}
			return "a source"
		},
		Mount: func(i int) string {
			m := mounts(i)
			if m.Target == "" {
				return "number " + strconv.Itoa(i+1)
			}
			return m.Target
		},
		Secret: func(i int) string { return mounts(i).ID },
	}
}

// notes adds to the text of a key what explains it: see package explain.
func (e *evaluator) notes(h *cache.Hash, step *dag.Step, in []*outcome) {
	h.Explain(func(add func(name, value string)) {
		if base := e.rootImage(step); base != nil && !linked(step) {
			add(explain.NoteBase, familiar(base.Ref))
			add(explain.NoteDigest, base.Digest.String())
		}
		add(explain.NotePlatform, platformString(step.Platform))
		op, ok := step.Op.(dag.Run)
		if !ok {
			return
		}
		if args := e.argNames(step); len(args) > 0 {
			add(explain.NoteArgs, strings.Join(args, " "))
		}
		for i, m := range op.Mounts {
			if m.Input < 0 || m.Input >= len(in) || in[m.Input] == nil {
				continue
			}
			var b strings.Builder
			for _, d := range in[m.Input].chain {
				b.WriteString(d.String() + "\n")
			}
			add(explain.NoteChain(i), b.String())
		}
	})
}

// argNames are the build arguments that a stage declares and does not turn into ENV.
func (e *evaluator) argNames(step *dag.Step) []string {
	if e.file == nil || step.StageIndex < 0 || step.StageIndex >= len(e.file.Stages) {
		return nil
	}
	var args, env []string
	for _, c := range e.file.Stages[step.StageIndex].Commands {
		switch c := c.(type) {
		case *instructions.ArgCommand:
			for _, a := range c.Args {
				args = append(args, a.Key)
			}
		case *instructions.EnvCommand:
			for _, kv := range c.Env {
				env = append(env, kv.Key)
			}
		}
	}
	return slices.DeleteFunc(args, func(name string) bool { return slices.Contains(env, name) })
}

// rootImage is the image that a step stands on, nil if it is none.
func (e *evaluator) rootImage(step *dag.Step) *dag.Image {
	for len(step.Inputs) > 0 {
		step = &e.graph.Steps[step.Inputs[0]]
	}
	if op, ok := step.Op.(dag.Image); ok {
		return &op
	}
	return nil
}

// ancestors are the steps whose layers a step stands on, bottom first.
func (e *evaluator) ancestors(step *dag.Step) []*dag.Step {
	var out []*dag.Step
	for len(step.Inputs) > 0 {
		step = &e.graph.Steps[step.Inputs[0]]
		if isWork(step) {
			out = append(out, step)
		}
	}
	slices.Reverse(out)
	return out
}

// belowChanged says what differs in the layers that a step stands on: the first one names the step that made it.
func (e *evaluator) belowChanged(step *dag.Step, before, after []string, base bool) explain.Change {
	if base {
		return explain.Change{Kind: explain.Base, Text: "the base image changed"}
	}
	at := 0
	for at < min(len(before), len(after)) && before[at] == after[at] {
		at++
	}
	own := slices.IndexFunc(after, func(l string) bool { return strings.HasPrefix(l, explain.Made) })
	above := e.ancestors(step)
	if at == len(after) || own < 0 || at < own || at-own >= len(above) {
		return explain.Change{Kind: explain.Step, Text: "a step before it is gone"}
	}
	from := above[at-own]
	if len(e.changesOf(from.ID)) == 0 && e.known().Same(e.place(from), e.told.now) == nil {
		return explain.Change{Kind: explain.Step, Text: from.Name + " is new before it"}
	}
	if at+1 < len(before) && before[at+1] == after[at] {
		return explain.Change{Kind: explain.Step, Text: "a step before " + from.Name + " is gone"}
	}
	return explain.Change{Kind: explain.Step, Text: from.Name + " before it gave something else"}
}
