package dag

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/suggest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// targetScheme marks a named context that is a stage of the same file: --build-context NAME=target:STAGE. As in a bake file, where
// the context is the result of another target, NAME is then that stage, files and configuration, wherever it is used: in FROM
// instead of an image, instead of the stage that is called NAME, in COPY --from and in a mount. The stage may come later in the
// file, because nothing it says depends on where it stands.
const targetScheme = "target:"

// substitute puts stages where named contexts want them. It runs when all stages are known and before anything refers to one.
func (l *lowering) substitute() error {
	if err := l.checkTargets(); err != nil {
		return l.at(parser.Range{File: l.file.Name}, err)
	}
	for _, d := range l.stages {
		if d.contextKey == "" {
			continue
		}
		if name, ok := strings.CutPrefix(l.Contexts[d.contextKey], targetScheme); ok {
			d.instead, _ = l.stageNamed(name)
		}
	}
	for _, d := range l.stages {
		if _, err := d.actual(); err != nil {
			return l.at(d.pos, err)
		}
	}
	for _, d := range l.stages {
		if err := l.substituteBase(d); err != nil {
			return l.at(d.pos, err)
		}
	}
	return nil
}

// checkTargets refuses named contexts that are stages the file does not have, used or not.
func (l *lowering) checkTargets() error {
	for _, key := range slices.Sorted(maps.Keys(l.Contexts)) {
		name, ok := strings.CutPrefix(l.Contexts[key], targetScheme)
		if !ok {
			continue
		}
		if _, ok := l.stageNamed(name); !ok {
			err := fmt.Errorf("--build-context %s=%s%s: there is no stage %q", key, targetScheme, name, name)
			return suggest.WrapError(err, name, l.stageNames(), true)
		}
	}
	return nil
}

// substituteBase finds the stage below a stage, if a named context puts one there.
func (l *lowering) substituteBase(d *stage) (err error) {
	switch {
	case d.instead != nil || d.contextKey != "":
		return nil
	case d.base != nil:
		d.base, err = d.base.actual()
		return err
	case d.BaseName == scratchName:
		return nil
	}
	if d.base, err = l.contextStage(d.BaseName, l.platformOf(d)); d.base != nil {
		d.total-- // FROM is no step of its own
	}
	return err
}

// contextStage gives the stage that stands for what an instruction calls name; nil if none does.
func (l *lowering) contextStage(name string, p ocispec.Platform) (*stage, error) {
	ref, err := l.parseName(name)
	if err != nil {
		return nil, nil // told where the name is used
	}
	key, found, err := l.context(ref.Tagged().String(), p)
	if !found || err != nil {
		return nil, err
	}
	target, ok := strings.CutPrefix(l.Contexts[key], targetScheme)
	if !ok {
		return nil, nil
	}
	d, _ := l.stageNamed(target)
	return d.actual()
}

// actual is the stage itself or the one that stands instead of it.
func (d *stage) actual() (*stage, error) {
	seen := map[*stage]bool{}
	for d.instead != nil {
		if seen[d] {
			return nil, parser.About(d.Name, errors.New("circular dependency detected on stage: "+d.label+": --build-context replaces it by itself"))
		}
		seen[d] = true
		d = d.instead
	}
	return d, nil
}

func (l *lowering) stageNames() []string {
	names := make([]string, len(l.stages))
	for i, d := range l.stages {
		names[i] = d.label
	}
	return names
}

// inOrder lists the stages of a set so that what a stage is built from comes first: the order of the file, but for stages that
// named contexts put in front of others.
func inOrder(set map[*stage]bool, stages []*stage) []*stage {
	var out []*stage
	seen := map[*stage]bool{}
	var visit func(d *stage)
	visit = func(d *stage) {
		if seen[d] || !set[d] || d.external {
			return
		}
		seen[d] = true
		if d.base != nil {
			visit(d.base)
		}
		for _, dep := range d.deps {
			if dep.context || dep.stage.index < d.index {
				visit(dep.stage)
			}
		}
		out = append(out, d)
	}
	for _, d := range stages {
		visit(d)
	}
	return out
}
