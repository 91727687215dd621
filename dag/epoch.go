package dag

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// epoch evaluates SOURCE_DATE_EPOCH, a build argument or a global ARG with a default, and leaves in both scopes what came out.
// "context" is the time of the build context's source; the caller knows it or, for a plain directory, there is none.
func (s *settings) epoch(global *env, stages []instructions.Stage) (*time.Time, error) {
	value, given := s.args[argEpoch]
	if !given {
		value, _ = global.Get(argEpoch)
	}
	if value == "" {
		s.setEpoch(global, nil)
		return nil, nil
	}
	if sec, err := strconv.ParseInt(value, 10, 64); err == nil {
		t := time.Unix(sec, 0).UTC()
		s.setEpoch(global, &t)
		return &t, nil
	}
	if value == "context" {
		s.setEpoch(global, s.ContextEpoch)
		return s.ContextEpoch, nil
	}
	if _, named, err := s.context(value, s.target); err == nil && named {
		s.setEpoch(global, nil) // a directory has no time; sources that have one are not supported as contexts yet
		return nil, nil
	}
	for _, st := range stages {
		if strings.EqualFold(st.Name, value) {
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH from stage %q is not supported yet", st.Name)
		}
	}
	return nil, errors.New("invalid SOURCE_DATE_EPOCH: " + value)
}

func (s *settings) setEpoch(global *env, t *time.Time) {
	_, given := s.args[argEpoch]
	_, declared := global.Get(argEpoch)
	switch {
	case t == nil:
		delete(s.args, argEpoch)
		global.unset(argEpoch)
	default:
		v := strconv.FormatInt(t.Unix(), 10)
		if given {
			s.args[argEpoch] = v
		}
		if declared {
			global.vals[argEpoch] = v
		}
	}
}
