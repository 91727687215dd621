package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
)

// Kinds of remote errors that this package makes. Handlers add their own by returning an error with a Remote method.
const (
	KindError    = "error"    // only a message
	KindErrno    = "errno"    // Data is the number; errors.Is finds the syscall.Errno
	KindCanceled = "canceled" // the handler ended because its context did
	KindPanic    = "panic"    // Data is the stack
	KindMethod   = "method"   // no such method
)

// RemoteError is an error that came from the other side of the socket.
type RemoteError struct {
	Kind string
	Msg  string
	Data json.RawMessage `json:",omitempty"`
}

func (e *RemoteError) Error() string { return e.Msg }

// Unwrap gives back the identity of errors whose identity can cross a process boundary: error numbers and cancellation.
func (e *RemoteError) Unwrap() error {
	switch e.Kind {
	case KindErrno:
		var n uint32
		if json.Unmarshal(e.Data, &n) == nil && n != 0 {
			return syscall.Errno(n)
		}
	case KindCanceled:
		return context.Canceled
	}
	return nil
}

// remoter is what an error implements to cross with more than its message.
type remoter interface {
	Remote() (kind string, data any)
}

// toRemote makes the form of err that crosses the socket.
func toRemote(err error) *RemoteError {
	if err == nil {
		return nil
	}
	re := &RemoteError{Kind: KindError, Msg: err.Error()}
	var (
		r     remoter
		inner *RemoteError
		errno syscall.Errno
	)
	switch {
	case errors.As(err, &r):
		kind, data := r.Remote()
		raw, jerr := json.Marshal(data)
		if jerr != nil {
			re.Msg += fmt.Sprintf(" (details lost: %v)", jerr)
			return re
		}
		re.Kind, re.Data = kind, raw
	case errors.As(err, &inner):
		re.Kind, re.Data = inner.Kind, inner.Data
	case errors.As(err, &errno):
		re.Kind = KindErrno
		re.Data, _ = json.Marshal(uint32(errno))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		re.Kind = KindCanceled
	}
	return re
}
