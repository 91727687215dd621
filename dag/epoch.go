package dag

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"build/parser"
)

// resolveEpoch evaluates SOURCE_DATE_EPOCH, a build argument or a global ARG with a default, and leaves in both scopes what came
// out. Besides a number of seconds it can be the name of something that has a time: "context", a named context, or a stage that
// is nothing but the ADD of one remote source. It returns a need when that time has to be asked for; a source without a time
// leaves the variable unset.
func (l *lowering) resolveEpoch(stages []instructions.Stage) (*Need, error) {
	value, given := l.args[argEpoch]
	if !given {
		value, _ = l.global.Get(argEpoch)
	}
	if value == "" {
		return nil, l.setEpoch(nil)
	}
	if sec, err := strconv.ParseInt(value, 10, 64); err == nil {
		t := time.Unix(sec, 0).UTC()
		return nil, l.setEpoch(&t)
	}
	if value == "context" {
		return nil, l.setEpoch(l.ContextEpoch)
	}
	need, err := l.epochSource(value, stages)
	if err != nil {
		return nil, err
	}
	got, ok := l.have[need.Key()]
	if !ok {
		return need, nil
	}
	return nil, l.setEpoch(got.Time)
}

// epochSource finds out whose time is wanted. A named context comes before a stage, as everywhere.
func (l *lowering) epochSource(value string, stages []instructions.Stage) (*Need, error) {
	whole := parser.Range{File: l.file.Name}
	key, found, err := l.context(value, l.BuildPlatform)
	if err == nil && found {
		name, stage := strings.CutPrefix(l.Contexts[key], targetScheme)
		if !stage {
			return &Need{Name: key, Value: l.Contexts[key], Context: true, Time: true, Pos: whole}, nil
		}
		value = name
	}
	for i := range stages {
		if !strings.EqualFold(stages[i].Name, value) {
			continue
		}
		need, err := l.stageSource(&stages[i])
		if err != nil {
			return nil, l.at(l.file.Position(stages[i].Location), err)
		}
		need.Pos, need.Stage = l.file.Position(stages[i].Location), stages[i].Name
		return need, nil
	}
	return nil, l.at(whole, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s: neither a number of seconds nor the name of a context or stage", value))
}

var errSeveralSources = errors.New("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")

// stageSource returns the one source of a stage whose time is that of the stage. As in BuildKit such a stage is FROM
// scratch and has, besides ARG, one ADD from elsewhere.
func (l *lowering) stageSource(st *instructions.Stage) (*Need, error) {
	env := l.global.clone()
	env.unset(argEpoch)
	base, _, err := l.lex.ProcessWord(st.BaseName, env)
	if err != nil {
		return nil, fmt.Errorf("failed to process source stage base name %q: %w", st.BaseName, err)
	}
	if base != scratchName {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must use FROM scratch")
	}
	var need *Need
	for _, cmd := range st.Commands {
		switch c := cmd.(type) {
		case *instructions.ArgCommand:
			if err := l.epochArgs(c, env); err != nil {
				return nil, err
			}
		case *instructions.AddCommand:
			if need != nil {
				return nil, errSeveralSources
			}
			if need, err = l.addSource(c, env); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported %s instruction", strings.ToUpper(cmd.Name()))
		}
	}
	if need == nil {
		return nil, errSeveralSources
	}
	return need, nil
}

func (l *lowering) epochArgs(c *instructions.ArgCommand, env *env) error {
	for _, arg := range c.Args {
		if v, ok := l.args[arg.Key]; ok {
			env.set(arg.Key, v)
			continue
		}
		if arg.Value == nil {
			continue
		}
		v, _, err := l.lex.ProcessWord(*arg.Value, env)
		if err != nil {
			return err
		}
		env.set(arg.Key, v)
	}
	return nil
}

// addSource is what an ADD adds, if that is one file or repository from elsewhere.
func (l *lowering) addSource(c *instructions.AddCommand, env *env) (*Need, error) {
	if len(c.SourceContents) != 0 || len(c.SourcePaths) != 1 {
		return nil, errors.New("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source")
	}
	src, _, err := l.lex.ProcessWord(c.SourcePaths[0], env)
	if err != nil {
		return nil, err
	}
	sum, _, err := l.lex.ProcessWord(c.Checksum, env)
	if err != nil {
		return nil, err
	}
	place := kindOf(src)
	switch place {
	case "":
		return nil, errors.New("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")
	case HTTP:
		if sum != "" {
			if _, err := digest.Parse(sum); err != nil {
				return nil, err
			}
		}
	}
	add := Copy{Add: true, Sources: []CopySource{{Path: src, Place: place}}, Checksum: sum, KeepGitDir: c.KeepGitDir}
	return &Need{Name: src, Time: true, Add: &add}, nil
}

// lastYear is the last that the times in an image can be in: RFC 3339 has four digits for it.
const lastYear = 9999

// setEpoch notes the time, in the graph and in the variables that were to have it.
func (l *lowering) setEpoch(t *time.Time) error {
	if t != nil && (t.UTC().Year() < 0 || t.UTC().Year() > lastYear) {
		err := fmt.Errorf("invalid SOURCE_DATE_EPOCH: %d seconds are not in the years 0 to %d", t.Unix(), lastYear)
		return l.at(parser.Range{File: l.file.Name}, err)
	}
	l.epoch = t
	_, given := l.args[argEpoch]
	_, declared := l.global.Get(argEpoch)
	if t == nil {
		delete(l.args, argEpoch)
		l.global.unset(argEpoch)
		return nil
	}
	v := strconv.FormatInt(t.Unix(), 10)
	if given {
		l.args[argEpoch] = v
	}
	if declared {
		l.global.vals[argEpoch] = v
	}
	return nil
}
