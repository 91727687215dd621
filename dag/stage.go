package dag

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/util/suggest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// stage is a stage of the file, or (external) an image or named context that an instruction copies or mounts from.
type stage struct {
	instructions.Stage        // BaseName and Platform expanded
	index              int    // in the file
	label              string // name, or stage-N
	display            string // label as it stands in the names of steps
	external           bool
	pos                parser.Range
	base               *stage            // earlier stage it is FROM; nil for an image, scratch or a named context
	platform           *ocispec.Platform // of FROM --platform; nil without
	contextKey         string            // named context that replaces the stage
	instead            *stage            // stage that replaces this one, if that context is one
	cmds               []command         // triggers first
	deps               []dep
	noCache            bool

	onbuild   []string // triggers of the image below
	resolved  bool     // what is below the stage is known
	triggered bool     // ONBUILD triggers are in cmds
	done      bool     // state is final
	total     int      // steps to count in names
	count     int      // steps named so far
	fromArgs  []string // variables of FROM
	declared  []declaredArg
	mounted   []mounted

	lastCmd, lastEntrypoint, lastHealth instructions.Command // for lint: of this stage alone

	state state
}

// command is an instruction with the stages it takes files from: for COPY one or none, for RUN one for each mount (nil without).
type command struct {
	instructions.Command
	from    []*stage
	onbuild bool
}

// dep is the use of another stage's files by an instruction.
type dep struct {
	stage   *stage
	name    string // as written
	pos     parser.Range
	context bool // name is that of a named context
	below   bool // by FROM
}

// addStage expands a FROM and enters the stage in the table. FROM is checked for every stage, needed or not.
func (l *lowering) addStage(i int, st *instructions.Stage) error {
	pos := l.file.Position(st.Location)
	d := &stage{Stage: *st, index: i, label: st.Name, pos: pos, noCache: l.noCache(st.Name)}
	if d.label == "" {
		d.label = "stage-" + strconv.Itoa(i)
	}
	d.display = d.label
	l.here = l.lint.WithMergedConfigFromComments(st.Comments)
	base, err := l.lex.ProcessWordWithMatches(st.BaseName, l.global)
	l.lintFromArgs(st, base.Unmatched)
	l.warnModifier(pos, st.BaseName, base)
	d.fromArgs = sortedKeys(base.Matched)
	if err != nil {
		return l.at(pos, err)
	}
	if base.Result == "" {
		return l.at(pos, fmt.Errorf("base name (%s) should not be blank", st.BaseName))
	}
	d.BaseName = base.Result
	if st.Platform != "" {
		p, err := l.fromPlatform(d)
		if err != nil {
			return l.at(pos, err)
		}
		d.platform = &p
	}
	if st.Name != "" {
		key, found, err := l.context(st.Name, l.platformOf(d))
		if err != nil {
			return l.at(pos, err)
		}
		if found {
			d.contextKey = key
		}
	}
	if d.contextKey == "" {
		d.base = l.byName[d.BaseName] // as written: names in FROM are case-sensitive
	}
	if d.base == nil && d.contextKey == "" && d.BaseName != scratchName {
		if _, err := l.parseName(d.BaseName); err != nil {
			l.badName = cmp.Or(l.badName, l.at(pos, fmt.Errorf("failed to parse stage name %q: %w", d.BaseName, err)))
		}
	}
	l.stages = append(l.stages, d)
	if d.Name != "" {
		l.byName[strings.ToLower(d.Name)] = d
	}
	if d.contextKey == "" {
		d.total = countSteps(d)
	}
	return nil
}

// fromPlatform evaluates the value of FROM --platform.
func (l *lowering) fromPlatform(d *stage) (ocispec.Platform, error) {
	v := d.Platform
	m, err := l.lex.ProcessWordWithMatches(v, l.global)
	l.lintFromPlatform(&d.Stage, m)
	d.fromArgs = append(d.fromArgs, sortedKeys(m.Matched)...)
	if err != nil {
		return ocispec.Platform{}, fmt.Errorf("failed to process arguments for platform %s: %w", m.Result, err)
	}
	similar := func(err error) error {
		for _, k := range sortedKeys(m.Unmatched) {
			if found, e := suggest.WrapErrorMaybe(err, k, l.global.Keys(), true); found {
				return e
			}
		}
		return err
	}
	if m.Result == "" {
		return ocispec.Platform{}, similar(fmt.Errorf("empty platform value from expression %s", v))
	}
	p, err := platforms.Parse(m.Result)
	if err != nil {
		return ocispec.Platform{}, similar(fmt.Errorf("failed to parse platform %s: %w", v, err))
	}
	return p, nil
}

// platformOf is the platform a stage's base is looked up for.
func (l *lowering) platformOf(d *stage) ocispec.Platform {
	if d.platform != nil {
		return *d.platform
	}
	return l.settings.target
}

// countSteps is the n in the "i/n" of the stage's steps.
func countSteps(d *stage) int {
	n := 0
	if d.BaseName != scratchName && d.base == nil {
		n++
	}
	for _, c := range d.Commands {
		switch c.(type) {
		case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
			n++
		}
	}
	return n
}

func (l *lowering) stageNamed(name string) (*stage, bool) {
	d, ok := l.byName[strings.ToLower(name)]
	return d, ok
}

// link finds the stages a stage's instructions take files from.
func (l *lowering) link(d *stage) error {
	d.cmds = make([]command, 0, len(d.Commands))
	for _, c := range d.Commands {
		cmd, err := l.linked(d, c)
		if err != nil {
			return l.at(l.file.Position(c.Location()), err)
		}
		d.cmds = append(d.cmds, cmd)
	}
	return nil
}

// linked finds the stages one instruction takes files from.
func (l *lowering) linked(d *stage, ic instructions.Command) (command, error) {
	cmd := command{Command: ic}
	link := func(src *stage, context bool, err error) error {
		if err == nil {
			cmd.from = append(cmd.from, src)
		}
		if err == nil && src != nil {
			name := fromName(ic, len(cmd.from)-1)
			d.deps = append(d.deps, dep{stage: src, name: name, pos: l.file.Position(ic.Location()), context: context})
		}
		return err
	}
	switch c := ic.(type) {
	case *instructions.CopyCommand:
		if c.From == "" {
			break
		}
		if err := link(l.copySource(c)); err != nil {
			return command{}, err
		}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			if m.From == "" {
				l.sources++
				cmd.from = append(cmd.from, nil)
				continue
			}
			if err := link(l.sourceNamed(m.From, c)); err != nil { // a mount names a stage, never its number
				return command{}, err
			}
		}
	}
	return cmd, nil
}

// fromName is the name by which an instruction calls the i-th tree it takes files from.
func fromName(ic instructions.Command, i int) string {
	switch c := ic.(type) {
	case *instructions.CopyCommand:
		return c.From
	case *instructions.RunCommand:
		return instructions.GetMounts(c)[i].From
	}
	return ""
}

// copySource finds what COPY --from names: a stage by name or number, else an image or a named context. It also says whether a
// named context puts a stage there.
func (l *lowering) copySource(c *instructions.CopyCommand) (src *stage, context bool, err error) {
	r, err := l.lex.ProcessWordWithMatches(c.From, newEnv())
	if err != nil {
		return nil, false, err
	}
	if r.Result != c.From {
		return nil, false, parser.About("--from", errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"))
	}
	if n, err := strconv.Atoi(c.From); err == nil {
		if n < 0 || n >= len(l.stages) {
			return nil, false, parser.About("--from", fmt.Errorf("invalid stage index %d", n))
		}
		d := l.stages[n]
		src, err = d.actual()
		return src, src != d, err
	}
	return l.sourceNamed(c.From, c)
}

// sourceNamed is copySource for what is not the number of a stage.
func (l *lowering) sourceNamed(name string, by instructions.Command) (src *stage, context bool, err error) {
	if d, ok := l.stageNamed(name); ok {
		src, err = d.actual()
		return src, src != d, err
	}
	if src, err = l.contextStage(name, l.settings.target); src != nil || err != nil {
		return src, true, err
	}
	return l.externalSource(name, by), false, nil
}

func (l *lowering) externalSource(name string, by instructions.Command) *stage {
	l.sources++
	return &stage{
		Stage:    instructions.Stage{BaseName: name, Location: by.Location()},
		external: true,
		index:    -1,
		pos:      l.file.Position(by.Location()),
	}
}

// checkCycles refuses stages that are built from themselves, directly or through each other. FROM alone cannot make a cycle, as it
// only sees earlier stages, but named contexts can put any stage below it.
func (l *lowering) checkCycles() error {
	const (
		unseen = iota
		onPath
		finished
	)
	mark := map[*stage]int{}
	var visit func(d *stage) *dep
	visit = func(d *stage) *dep {
		mark[d] = onPath
		uses := d.deps
		if d.base != nil {
			uses = append([]dep{{stage: d.base, name: d.BaseName, pos: d.pos, below: true}}, uses...)
		}
		for i := range uses {
			next := uses[i].stage
			if mark[next] == onPath {
				return &uses[i]
			}
			if mark[next] == unseen {
				if closing := visit(next); closing != nil {
					return closing
				}
			}
		}
		mark[d] = finished
		return nil
	}
	for _, d := range l.stages {
		if mark[d] != unseen {
			continue
		}
		if closing := visit(d); closing != nil {
			err := fmt.Errorf("circular dependency detected on stage: %s", d.label)
			word := "from=" + closing.name
			if closing.below {
				word = closing.name
			}
			return l.at(closing.pos, parser.About(word, err))
		}
	}
	return nil
}

// wanted gives what is to be lowered.
func (l *lowering) wanted(target *stage) map[*stage]bool {
	set := reachableFrom(target)
	if l.AllStages {
		for _, d := range l.stages {
			if d.instead == nil {
				maps.Copy(set, reachableFrom(d))
			}
		}
	}
	return set
}

// reachableFrom gives the stages the target is built from.
func reachableFrom(target *stage) map[*stage]bool {
	seen := map[*stage]bool{}
	todo := []*stage{target}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[d] {
			continue
		}
		seen[d] = true
		if d.base != nil {
			todo = append(todo, d.base)
		}
		for _, dep := range d.deps {
			todo = append(todo, dep.stage)
		}
	}
	return seen
}

func sortedKeys(set map[string]struct{}) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
