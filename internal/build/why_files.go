package build

import (
	"context"
	"encoding/hex"
	"iter"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/internal/explain"
	"build/internal/tree"
	"build/snapshot"
)

// Which files differ is not stored anywhere: the index of the layer that a COPY made earlier has every path with its digest,
// and so has the one it makes now. Only when a step misses are the two compared. Of what a RUN mounts, the part of a context is
// a layer, too, and the names of a stage's layers are noted beside the key.

// fileLists gives the entries of a tree as it was and as it is; nil when either is not known any more.
type fileLists func() (before, after iter.Seq2[tree.Entry, error], err error)

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
		old, ok := e.layers.KnownIndex(was.files())
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
		after, err = e.preview(ctx, step, in)
		return old.Subtree(""), after, err
	}
}

// preview lists what a COPY that has not run would put into its layer; nil when that is not known.
func (e *evaluator) preview(ctx context.Context, step *dag.Step, in []*outcome) (iter.Seq2[tree.Entry, error], error) {
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
	if sel.entries != nil {
		return sel.entries, nil
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
	list, _, err := sel.files.Preview(base, owner)
	return list, err
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
		return e.mountedBefore(sel, was, i, strings.HasSuffix(field, ":context"), before), list, nil
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
