package dag

import (
	"errors"
	"fmt"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// scratchName is the FROM that names no image.
const scratchName = "scratch"

// lowering is one call of Lower.
type lowering struct {
	*settings
	file   *parser.File
	have   map[NeedKey]Resolved
	lex    *shell.Lex // with the file's escape character
	global *env
	meta   []instructions.ArgCommand // before the first FROM
	epoch  *time.Time

	epochNeed *Need // whose answer everything else waits for

	stages  []*stage          // in file order
	byName  map[string]*stage // declared names in lower case; of duplicates the latest
	badName error             // of a FROM that cannot name an image
	sources int               // how many trees that are no stage the instructions name

	steps    []Step
	shared   map[string]ID // sources of files that several steps use
	names    map[string]imageName
	warnings []parser.Warning
	lint     *linter.Linter // with the options of the file
	here     *linter.Linter // and with those of the comments above the instruction at hand
	declared []string       // what FROM may refer to, sorted

	modifierSeen bool // warned of ${v#p} and the like
}

// Lower turns a parsed Dockerfile into a graph. If needs come back instead of a graph, the caller has to answer them in have,
// together with all earlier answers, and call again; the needs of one call can be resolved in parallel. The error
// is a *parser.Error whenever the cause has a place in the file; with it comes a graph that holds nothing but the warnings found
// until then.
func Lower(f *parser.File, o Options, have map[NeedKey]Resolved) (*Graph, []Need, error) {
	l := &lowering{file: f, have: have, lex: shell.NewLex(f.Escape), byName: map[string]*stage{}, shared: map[string]ID{}, names: map[string]imageName{}}
	var err error
	if l.settings, err = o.settle(); err != nil {
		return &Graph{Target: None}, nil, l.at(parser.Range{File: f.Name}, err)
	}
	l.lint = f.Linter(l.found)
	g, needs, err := l.lower()
	if err != nil {
		return &Graph{Target: None, Warnings: l.warnings}, nil, err
	}
	return g, needs, nil
}

func (l *lowering) lower() (*Graph, []Need, error) {
	target, err := l.prepare()
	if err != nil {
		return nil, nil, err
	}
	if l.epochNeed != nil { // first of all: its value can be in names of images
		return nil, []Need{*l.epochNeed}, nil
	}
	needs, err := l.resolve(target)
	if err != nil || len(needs) > 0 {
		return nil, needs, err
	}
	reachable := l.wanted(target)
	for _, d := range inOrder(reachable, l.stages) {
		if d.done {
			continue
		}
		if err := l.lowerStage(d); err != nil {
			return nil, nil, err
		}
	}
	return l.finish(target), nil, nil
}

// prepare does everything that does not depend on images: variables, the table of stages, the target, and who uses whom.
func (l *lowering) prepare() (*stage, error) {
	stages, meta, err := l.file.Instantiate()
	if err != nil {
		return nil, err
	}
	whole := parser.Range{File: l.file.Name}
	name := l.Target
	if name == "" {
		name = stages[len(stages)-1].Name
	}
	l.lintDefaults(name, stages, meta)
	l.global, l.meta = l.platformArgs(name), meta
	if err := l.globalArgs(l.file, l.global, meta, l.lex); err != nil {
		return nil, err
	}
	l.declared = l.globalNames(meta)
	if l.epochNeed, err = l.resolveEpoch(stages); err != nil || l.epochNeed != nil {
		return nil, err
	}
	for i := range stages {
		if err := l.addStage(i, &stages[i]); err != nil {
			return nil, err
		}
	}
	if err := l.substitute(); err != nil {
		return nil, err
	}
	target, err := l.target()
	if err != nil {
		return nil, l.at(whole, err)
	}
	for _, d := range l.stages {
		if err := l.link(d); err != nil {
			return nil, err
		}
	}
	if err := l.checkCycles(); err != nil {
		return nil, err
	}
	if l.badName != nil { // what is wrong between the stages comes first
		return nil, l.badName
	}
	if len(l.stages)+l.sources == 1 {
		target.display = "" // the only stage of a file needs no name in front of its steps
	}
	return target, nil
}

// target finds the stage to build.
func (l *lowering) target() (*stage, error) {
	if l.Target == "" {
		return l.stages[len(l.stages)-1].actual()
	}
	if d, ok := l.stageNamed(l.Target); ok {
		return d.actual()
	}
	return nil, suggest.WrapError(fmt.Errorf("target stage %q could not be found", l.Target), l.Target, l.stageNames(), true)
}

// at places an error in the file.
func (l *lowering) at(r parser.Range, err error) error {
	return l.file.ErrorAt(r, err)
}

// errNoWindows refuses what needs Windows: to run its programs, and to write layers as its images have them. Images for it
// that are FROM scratch, to export programs, are like any other.
var errNoWindows = parser.WithHint("build it on Windows; stages FROM scratch can be for windows, and others FROM --platform=$BUILDPLATFORM can make what goes into them",
	errors.New("Windows containers are not supported"))

// add appends a step of a stage.
func (l *lowering) add(d *stage, s Step) ID {
	s.ID = ID(len(l.steps))
	if d == nil || d.external {
		s.StageIndex = -1
	} else {
		s.Stage, s.StageIndex = d.label, d.index
	}
	l.steps = append(l.steps, s)
	return s.ID
}

// source appends a step without inputs, or finds the equal one that is already there.
func (l *lowering) source(key string, d *stage, s Step) ID {
	if id, ok := l.shared[key]; ok {
		return id
	}
	id := l.add(d, s)
	l.shared[key] = id
	return id
}

func (l *lowering) scratch() ID {
	return l.source("scratch", nil, Step{Op: Scratch{}, Name: "scratch", Pos: parser.Range{File: l.file.Name}})
}

// contextStep gives the step of a named context's directory, or of the build context if the name is empty.
func (l *lowering) contextStep(name string, pos parser.Range, p ocispec.Platform) ID {
	title := "[internal] load build context"
	if name != "" {
		title = "[context " + name + "] load from client"
	}
	return l.source("context "+name, nil, Step{Op: Context{Name: name}, Name: title, Pos: pos, Platform: p})
}

// finish assembles the graph, leaving out what the target does not use.
func (l *lowering) finish(target *stage) *Graph {
	st := &target.state
	out := st.out
	if st.dir {
		l.layContext(target)
		out = st.out
	}
	g := &Graph{
		Stage: target.Name, Config: st.img, History: st.history, Epoch: l.epoch, Warnings: l.warnings,
		BaseConfig: st.baseConfig, BaseName: st.baseName, BaseDigest: st.baseDigest,
	}
	if l.Options.Outline {
		g.Outline = l.outline(target)
	}
	if len(l.Labels) > 0 && g.Config.Config.Labels == nil {
		g.Config.Config.Labels = make(map[string]string, len(l.Labels))
	}
	for _, kv := range l.Labels {
		g.Config.Config.Labels[kv.Key] = kv.Value
	}
	if !l.implicit {
		setPlatform(&g.Config.Platform, l.settings.target)
	}
	g.Config.Platform = normalized(g.Config.Platform)
	g.Config.History = nil
	g.Config.RootFS = ocispec.RootFS{}
	g.Steps, g.Target = prune(l.steps, out)
	renumber(g, l.steps)
	return g
}

// prune keeps the steps that out stands on. Kept steps remember their old number in ID until renumber.
func prune(steps []Step, out ID) ([]Step, ID) {
	if _, empty := steps[out].Op.(Scratch); empty {
		return nil, None
	}
	used := make([]bool, len(steps))
	used[out] = true
	for i := int(out); i >= 0; i-- {
		if used[i] {
			for _, in := range steps[i].Inputs {
				used[in] = true
			}
		}
	}
	var kept []Step
	for i, s := range steps {
		if used[i] {
			kept = append(kept, s)
		}
	}
	return kept, out
}

// renumber makes IDs the indexes of g.Steps again.
func renumber(g *Graph, all []Step) {
	number := make([]ID, len(all))
	for i := range number {
		number[i] = None
	}
	for i := range g.Steps {
		number[g.Steps[i].ID] = ID(i)
	}
	for i := range g.Steps {
		s := &g.Steps[i]
		s.ID = ID(i)
		inputs := make([]ID, len(s.Inputs))
		for j, in := range s.Inputs {
			inputs[j] = number[in]
		}
		s.Inputs = inputs
	}
	if g.Target != None {
		g.Target = number[g.Target]
	}
	for i := range g.History {
		if h := &g.History[i]; h.Step != None {
			h.Step = number[h.Step]
		}
	}
}
