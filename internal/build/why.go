package build

import (
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"path"
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
	"build/internal/tree"
	"build/snapshot"
)

// earlier is the run of an instruction that this one is compared with.
type earlier struct {
	changes []explain.Change // why there is nothing to compare, if so
	record  *cache.Record
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
			return e.forced(step, e.lost(was, key))
		}
		rec, err := e.cache.Get(key)
		if err != nil {
			continue
		}
		t := e.cache.Text(rec)
		if n := len(cache.Diff(t, text)); least < 0 || n < least {
			was.record, was.text, least = rec, t, n
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

// contentOf is the content key of an earlier run, also of one that was answered by its definition.
func (e *evaluator) contentOf(k explain.Keys) cache.Key {
	if !k.Content.IsZero() {
		return k.Content
	}
	rec, err := e.cache.Get(k.Def)
	if err != nil {
		return cache.Key{}
	}
	key, err := cache.ParseKey(cache.Fields(e.cache.Text(rec))[explain.NoteContent])
	if err != nil {
		return cache.Key{}
	}
	return key
}

// lost says what is gone when the same key had an answer once.
func (e *evaluator) lost(was *earlier, key cache.Key) *earlier {
	text := "its record was evicted from the cache"
	if rec, err := e.cache.Get(key); err == nil {
		text = "the layer it made was evicted from the cache"
		was.record = rec
		for _, d := range rec.Layers[:rec.Base] {
			if !e.obtainable(d) {
				text = "a layer of its base image was evicted from the cache"
			}
		}
	} else if miss := (*cache.Miss)(nil); errors.As(err, &miss) && miss.Reason != cache.ReasonAbsent {
		text = "its record in the cache is damaged"
	}
	was.changes = []explain.Change{{Kind: explain.Evicted, Text: text}}
	return was
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

// fileLists gives the entries of a tree as it was and as it is; nil when either is not known any more.
type fileLists func() (before, after iter.Seq2[tree.Entry, error], err error)

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
	if was.place != nil {
		facts.SameText, facts.Was = was.place.Text == facts.Text, bareTitle(was.place.Title)
	} else {
		facts.SameText, facts.Was = true, bareTitle(was.record.Step)
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
		changes[i].Text = string(e.opts.Mask([]byte(changes[i].Text)))
	}
	return changes
}

// performExplained carries a step out and says why that was necessary, if something like it ran before: of a command before it
// runs, because it may take long; of a COPY when its layer is there to be compared with the one before.
func (e *evaluator) performExplained(ctx context.Context, step *dag.Step, content *stepKey, in []*outcome) (digest.Digest, []explain.Change, error) {
	was := e.earlier(step, content)
	if _, copies := step.Op.(dag.Copy); !copies {
		changes := e.tell(step, content, e.why(ctx, step, content, in, was, ""))
		made, err := e.perform(ctx, step, in)
		return made, changes, err
	}
	made, err := e.perform(ctx, step, in)
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
		Text: place.Text, Now: bareTitle(step.Name),
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

// filesChanged says which files differ in what a field of a key stands for. same reports whether the two have more in common
// than not, as far as that is known.
func (e *evaluator) filesChanged(ctx context.Context, step *dag.Step, in []*outcome, was *earlier, field, before string, made digest.Digest) (c explain.Change, same bool) {
	var lists fileLists
	var skip func(*tree.Entry) bool
	rename := func(p string) string { return "/" + p }
	place := ""
	if op, ok := step.Op.(dag.Copy); ok {
		lists = e.copiedLists(ctx, step, in, was, made)
		skip, rename = e.copiedNames(ctx, step, op, in)
		place = e.placeOf(step, 1)
	} else if op, ok := step.Op.(dag.Run); ok {
		i, _ := strconv.Atoi(strings.TrimPrefix(field[:strings.IndexByte(field+":", ':')], "mount"))
		lists, skip = e.mountedLists(ctx, step, op, i, in, was, field, before)
		place = e.placeOf(step, op.Mounts[i].Input)
		if place == "" {
			rename = func(p string) string { return p }
		}
	}
	return e.compareFiles(lists, skip, place, rename)
}

func (e *evaluator) compareFiles(lists fileLists, skip func(*tree.Entry) bool, place string, rename func(string) string) (explain.Change, bool) {
	none := (*explain.Files)(nil).Change(place, rename)
	if lists == nil {
		return none, false
	}
	before, after, err := lists()
	if err != nil || before == nil || after == nil {
		return none, false
	}
	total := 0
	counted := func(yield func(tree.Entry, error) bool) {
		for en, err := range after {
			total++
			if !yield(en, err) {
				return
			}
		}
	}
	files, err := explain.CompareFiles(before, counted, skip)
	if err != nil { // a damaged index: whoever needs it says so
		return none, false
	}
	return files.Change(place, rename), files.Total*2 <= total
}

// placeOf says what an input is: nothing for the build context.
func (e *evaluator) placeOf(step *dag.Step, input int) string {
	if input < 0 || input >= len(step.Inputs) {
		return ""
	}
	from := &e.graph.Steps[step.Inputs[input]]
	switch op := from.Op.(type) {
	case dag.Context:
		if op.Name == "" {
			return ""
		}
		return " of context " + op.Name
	case dag.Image:
		return " of image " + familiar(op.Ref)
	}
	return " of stage " + from.Stage
}

// copiedLists compares the layer that a COPY made earlier with the one it has made or would make.
func (e *evaluator) copiedLists(ctx context.Context, step *dag.Step, in []*outcome, was *earlier, made digest.Digest) fileLists {
	return func() (before, after iter.Seq2[tree.Entry, error], err error) {
		if len(was.record.Layers) == 0 {
			return nil, nil, nil
		}
		old, ok := e.layers.KnownIndex(was.record.Layers[len(was.record.Layers)-1])
		if !ok {
			return nil, nil, nil
		}
		if made != "" {
			now, err := e.index(ctx, made)
			if err != nil {
				return nil, nil, err
			}
			if a, b := old.Summary().Entries, now.Summary().Entries; was.loose && (a > 2*b || b > 2*a) {
				return nil, nil, nil // no need to look at them one by one
			}
			return old.Subtree(""), now.Subtree(""), nil
		}
		list, err := e.preview(ctx, step, in)
		if err != nil || list == nil {
			return nil, nil, err
		}
		return old.Subtree(""), entries(list), nil
	}
}

// preview lists what a COPY that has not run would put into its layer; nil when that is not known.
func (e *evaluator) preview(ctx context.Context, step *dag.Step, in []*outcome) ([]tree.Entry, error) {
	op := step.Op.(dag.Copy)
	if hasRemote(op) {
		return nil, nil
	}
	e.mu.Lock()
	f := e.sels[step.ID]
	e.mu.Unlock()
	if f == nil {
		return nil, nil
	}
	sel, err := f.wait(ctx)
	if err != nil {
		return nil, err
	}
	base := tree.NewChain(nil)
	var owner *snapshot.Owner
	if len(in) > 0 && in[0] != nil && !op.Link {
		chain, layers, err := e.baseChain(ctx, in[0])
		if err != nil {
			return nil, err
		}
		base = chain
		if op.Chown != "" {
			o, err := e.layers.Owner(ctx, chain, layers, op.Chown)
			if err != nil {
				return nil, err
			}
			owner = &o
		}
	} else if op.Chown != "" {
		return nil, nil
	}
	list, ok, err := sel.files.Preview(base, owner)
	if !ok {
		return nil, err
	}
	return list, err
}

func entries(list []tree.Entry) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		for i := range list {
			if !yield(list[i], nil) {
				return
			}
		}
	}
}

// copiedNames translates paths of a COPY's layer into what the Dockerfile means. skip leaves out the directories above what is
// copied: they are the base's.
func (e *evaluator) copiedNames(ctx context.Context, step *dag.Step, op dag.Copy, in []*outcome) (skip func(*tree.Entry) bool, rename func(string) string) {
	dest := tree.Clean(op.Dest)
	src, err := e.copySource(ctx, step, in)
	exists := func(p string) bool {
		if err != nil || src == nil {
			return false
		}
		_, ok, err := src.Lstat(p)
		return ok && err == nil
	}
	skip = func(en *tree.Entry) bool {
		return en.Type == tree.Dir && (en.Path == dest || tree.Below(dest, en.Path))
	}
	rename = func(p string) string {
		rest := strings.TrimPrefix(strings.TrimPrefix(p, dest), "/")
		var guesses []string
		for _, s := range op.Sources {
			from := tree.Clean(s.Path)
			switch {
			case s.Place != "":
			case s.Inline:
				if rest == "" || rest == from {
					return "here-document " + from
				}
			case op.Parents:
				_, pivot, ok := strings.Cut(s.Path, "/./")
				if ok && strings.HasPrefix(rest, strings.SplitN(tree.Clean(pivot), "/", 2)[0]) {
					guesses = append(guesses, tree.Join(strings.TrimSuffix(from, "/"+tree.Clean(pivot)), rest))
				} else {
					guesses = append(guesses, rest)
				}
			case rest == "": // one file under the name of the destination
				guesses = append(guesses, from)
			case path.Base(from) == rest || strings.ContainsAny(from, "*?["):
				guesses = append(guesses, tree.Join(tree.Parent(from), rest), tree.Join(from, rest))
			default:
				guesses = append(guesses, tree.Join(from, rest))
			}
		}
		for _, g := range guesses {
			if exists(g) {
				return e.spelled(step, g)
			}
		}
		if unpacks := op.Add && (op.Unpack == nil || *op.Unpack) || op.Unpack != nil && *op.Unpack; len(guesses) > 0 && !unpacks {
			return e.spelled(step, guesses[0])
		}
		return "/" + p
	}
	return skip, rename
}

// copySource is what a COPY copies from; nil when that is not known.
func (e *evaluator) copySource(ctx context.Context, step *dag.Step, in []*outcome) (snapshot.Source, error) {
	switch {
	case e.readsContext(step):
		return e.contextSource(step)
	case len(in) > 1 && in[1] != nil:
		return e.chainSource(ctx, in[1])
	}
	return nil, nil
}

// spelled writes a path of a source: those of a context are relative, those of a stage or image are not.
func (e *evaluator) spelled(step *dag.Step, p string) string {
	if e.readsContext(step) {
		return p
	}
	return "/" + p
}

// mountedLists compares what a mount of a RUN showed with what it shows. skip leaves out the directories above it.
func (e *evaluator) mountedLists(ctx context.Context, step *dag.Step, op dag.Run, i int, in []*outcome, was *earlier, field, before string) (fileLists, func(*tree.Entry) bool) {
	m := op.Mounts[i]
	var from *outcome
	if m.Input < len(in) {
		from = in[m.Input]
	}
	sel, err := e.mountSelection(ctx, step, i, m, from)
	if err != nil {
		return nil, nil
	}
	lists := func() (a, b iter.Seq2[tree.Entry, error], err error) {
		list, ok, err := sel.files.Preview(tree.NewChain(nil), nil)
		if err != nil || !ok {
			return nil, nil, err
		}
		return e.mountedBefore(sel, was, i, strings.HasSuffix(field, ":context"), before), entries(list), nil
	}
	return lists, func(en *tree.Entry) bool { return en.Path != sel.at && tree.Below(sel.at, en.Path) || en.Path == "" }
}

// mountedBefore lists what a mount showed earlier; nil when it is not known any more. What was mounted of a context is a layer;
// what was mounted of a stage was part of layers whose names were noted.
func (e *evaluator) mountedBefore(sel *selection, was *earlier, i int, context bool, sum string) iter.Seq2[tree.Entry, error] {
	if context {
		raw, err := hex.DecodeString(sum)
		if err != nil || len(raw) != 32 {
			return nil
		}
		rec, err := e.cache.Get(mountedKey([32]byte(raw), sel.spec.Dest).Sum())
		if err != nil || len(rec.Layers) != 1 {
			return nil
		}
		x, ok := e.layers.KnownIndex(rec.Layers[0])
		if !ok {
			return nil
		}
		return x.Subtree("")
	}
	var layers []*tree.Index
	for d := range strings.FieldsSeq(cache.Fields(was.text)[explain.NoteChain(i)]) {
		x, ok := e.layers.KnownIndex(digest.Digest(d))
		if !ok {
			return nil
		}
		layers = append(layers, x)
	}
	if layers == nil {
		return nil
	}
	chain := tree.NewChain(layers)
	return func(yield func(tree.Entry, error) bool) {
		for l, err := range chain.Walk(sel.at) {
			if !yield(l.Entry, err) || err != nil {
				return
			}
		}
	}
}
