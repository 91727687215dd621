package userns

import (
	"context"
	"errors"
	"strings"
)

// Tried is a way to start a holder and what came of it; Err is nil for the one that was taken.
type Tried struct {
	Plan Plan
	Err  error
}

// LadderError says that no way was open, and for each of them why.
type LadderError struct{ Tried []Tried }

func (e *LadderError) Error() string {
	if len(e.Tried) == 0 {
		return "no way to isolate a step was allowed"
	}
	parts := make([]string, len(e.Tried))
	for i, t := range e.Tried {
		parts[i] = t.Plan.String() + ": " + t.Err.Error()
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns what was wrong with each way.
func (e *LadderError) Unwrap() []error {
	out := make([]error, len(e.Tried))
	for i, t := range e.Tried {
		out[i] = t.Err
	}
	return out
}

// String names the plan as users know it.
func (p Plan) String() string {
	var s string
	switch {
	case p.Plain:
		return "chroot"
	case p.IDs == IDsHost:
		s = "namespaces of root"
	case p.IDs == IDsSingle:
		s = "user namespace with a single id"
	default:
		s = "user namespace with a range of ids"
	}
	if p.SharePID {
		s += ", without a pid namespace"
	}
	return s
}

// Open starts a holder in the best way that is open here and accepted; a nil accept takes any. It finds out by trying: a way that
// is closed costs about a millisecond. What was tried, and why it was not taken, comes back in order; when nothing is open the
// error is a *LadderError with the same.
func Open(ctx context.Context, accept func(Plan) bool) (*Holder, Plan, []Tried, error) {
	var tried []Tried
	for c := range Candidates() {
		// The same way without a pid namespace comes next, when only a fresh /proc is missing.
		for range 2 {
			if accept != nil && !accept(c.Plan) {
				break
			}
			err := c.Err
			var h *Holder
			if err == nil {
				h, err = Start(ctx, c.Plan)
			}
			if ctx.Err() != nil {
				return nil, Plan{}, tried, context.Cause(ctx)
			}
			tried = append(tried, Tried{c.Plan, err})
			if err == nil {
				return h, c.Plan, tried, nil
			}
			if !withoutProc(err) {
				break
			}
			c.Plan.SharePID = true
		}
	}
	return nil, Plan{}, tried, &LadderError{tried}
}

// withoutProc reports whether all that is missing is a fresh /proc.
func withoutProc(err error) bool {
	var r *RemoteError
	return errors.As(err, &r) && r.Kind == KindNoProc
}
