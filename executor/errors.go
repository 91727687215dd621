package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kinds under which this package's errors cross a process boundary; see FromRemote.
const (
	KindExit  = "executor.exit"
	KindSetup = "executor.setup"
)

// ExitError says that the command ended with something other than success, or could not be started for a reason that lies in
// the root filesystem or the instruction (then Msg is set).
type ExitError struct {
	Code   int    // exit code as a shell gives it: 128 + number for a signal, 127 not found, 126 not executable
	Signal string `json:",omitempty"` // e.g. "killed"
	Msg    string `json:",omitempty"`
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("exit code: %d", e.Code)
	switch {
	case e.Msg != "":
		s = e.Msg + ": " + s
	case e.Signal != "":
		s += " (signal: " + e.Signal + ")"
	}
	return s
}

// Remote makes the error keep its type when it crosses a process boundary.
func (e *ExitError) Remote() (string, any) { return KindExit, e }

// SetupError says that the sandbox could not be made: what was being done, what the kernel said, and where it can be told, who
// is in the way and what would help.
type SetupError struct {
	Op      string // e.g. "mount overlay"
	Msg     string `json:",omitempty"` // when there is more to say than the error number
	Errno   syscall.Errno
	Blocker string `json:",omitempty"`
	Fix     string `json:",omitempty"`
}

func (e *SetupError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	switch {
	case e.Msg != "":
		b.WriteString(": " + e.Msg)
	case e.Errno != 0:
		b.WriteString(": " + e.Errno.Error())
	}
	if e.Blocker != "" {
		b.WriteString(": " + e.Blocker)
	}
	if e.Fix != "" {
		b.WriteString(" (fix: " + e.Fix + ")")
	}
	return b.String()
}

// Unwrap gives the error number, so that errors.Is(err, syscall.ENOSPC) works.
func (e *SetupError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Remote makes the error keep its type when it crosses a process boundary.
func (e *SetupError) Remote() (string, any) { return KindSetup, e }

// FromRemote gives back the error that Remote took apart, or nil when kind is none of this package's.
func FromRemote(kind string, data json.RawMessage) error {
	switch kind {
	case KindExit:
		var e ExitError
		if json.Unmarshal(data, &e) == nil {
			return &e
		}
	case KindSetup:
		var e SetupError
		if json.Unmarshal(data, &e) == nil {
			return &e
		}
	}
	return nil
}

// cannotExecute is the exit code with which shells say that a command is there and cannot be started.
const cannotExecute = 126

// pathError is setupError for a path of the instruction inside the root. What is wrong with the path itself is wrong on every
// machine, and so no matter of the sandbox.
func pathError(op string, err error) error {
	for _, own := range []error{unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.ENOENT, errKernelFS, errOnRoot} {
		if errors.Is(err, own) {
			return &ExitError{Code: cannotExecute, Msg: op + ": " + err.Error()}
		}
	}
	return setupError(op, err)
}

// setupError wraps what a primitive said. Nil stays nil; an error that already says all passes unchanged.
func setupError(op string, err error) error {
	if err == nil {
		return nil
	}
	var (
		se    *SetupError
		ee    *ExitError
		errno syscall.Errno
	)
	if errors.As(err, &se) || errors.As(err, &ee) {
		return err
	}
	e := &SetupError{Op: op}
	if errors.As(err, &errno) {
		e.Errno = errno
	}
	if err != error(errno) {
		e.Msg = err.Error()
	}
	switch errno {
	case unix.EPERM, unix.EACCES:
		e.Blocker, e.Fix = blockerOf(op)
	case unix.ENOSYS:
		e.Blocker, e.Fix = blockerOfCall()
	}
	return e
}
