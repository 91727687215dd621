package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"build/dag"
	"build/executor"
	"build/internal/buildctx"
	"build/internal/registry"
	"build/internal/store"
	"build/internal/userns"
	"build/parser"
	"build/snapshot"
)

// Exit codes of every command. They are part of the interface: scripts branch on them.
const (
	ExitOK          = 0
	ExitInternal    = 1
	ExitUsage       = 2 // Dockerfile or command line
	ExitStep        = 3 // a RUN failed, its own code is in the message and the metadata file; or a step leaked a secret
	ExitAuth        = 4
	ExitNetwork     = 5
	ExitEnvironment = 6
	ExitDamaged     = 7 // of `build store check`: something is damaged and was not repaired
)

// UsageError is a mistake in what was asked for: flags, paths, names.
type UsageError struct {
	Msg, Hint string
}

func (e *UsageError) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	return e.Msg + "\n  " + e.Hint
}

// EnvironmentError is something the machine does not allow or does not have: no room, no namespaces, no permission.
type EnvironmentError struct {
	Err  error
	Hint string
}

func (e *EnvironmentError) Error() string {
	if e.Hint == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + "\n  " + e.Hint
}
func (e *EnvironmentError) Unwrap() error { return e.Err }

// StepError is a command of the Dockerfile that ran and failed.
type StepError struct {
	Step   string // as displayed
	Pos    parser.Range
	Args   []string
	Code   int
	Signal string
	OOM    *OutOfMemory // nil: the kernel killed none of it for want of memory
	Msg    string       // why it could not be started
	Hint   string       // what the machine has to do with it, "" nothing
	Tail   []string     // last lines it printed
	Log    string       // file with everything it printed
	source []byte
}

func (e *StepError) Error() string {
	if e.Hint != "" {
		return e.failure() + "\n  " + e.Hint
	}
	return e.failure()
}

func (e *StepError) failure() string {
	cmd := strings.Join(e.Args, " ")
	switch {
	case e.Msg != "":
		return fmt.Sprintf("process %q could not be started: %s (exit code %d)", cmd, e.Msg, e.Code)
	case e.OOM != nil && e.Code == 128+int(syscall.SIGKILL):
		return fmt.Sprintf("process %q was killed: %s", cmd, e.OOM)
	case e.OOM != nil:
		return fmt.Sprintf("process %q did not complete successfully: exit code: %d, after the kernel had killed %d of its processes: %s", cmd, e.Code, e.OOM.Killed, e.OOM)
	case e.Signal != "":
		return fmt.Sprintf("process %q did not complete successfully: killed by signal %d (%s)", cmd, e.Code-128, e.Signal)
	}
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", cmd, e.Code)
}

// SourceError is a failure that belongs to an instruction of the Dockerfile.
type SourceError struct {
	Pos    parser.Range
	Err    error
	source []byte
}

func (e *SourceError) Error() string { return e.Err.Error() }
func (e *SourceError) Unwrap() error { return e.Err }

// located gives an error the position of the step it happened in, unless it has one.
func (s *session) located(step *dag.Step, err error) error {
	var src *SourceError
	var stepErr *StepError
	var perr *parser.Error
	if err == nil || errors.As(err, &src) || errors.As(err, &stepErr) || errors.As(err, &perr) || errors.Is(err, context.Canceled) {
		return err
	}
	return &SourceError{Pos: step.Pos, Err: err, source: s.dockerfile}
}

// SignalError is the cause of a context that a signal ended.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return e.Signal.String() }

// ExitCode maps an error to the documented exit code. It is the only place that does.
func ExitCode(err error) int {
	var (
		sig   *SignalError
		step  *StepError
		perr  *parser.Error
		perrs parser.Errors
		usage *UsageError
		env   *EnvironmentError
		st    *store.Error
		setup *executor.SetupError
		nodf  *buildctx.NoDockerfileError
		esc   *buildctx.EscapeError
		ign   *buildctx.IgnoreError
		arch  *buildctx.ArchiveError
		uns   *userns.Error
		reg   *registry.Error
		nf    *snapshot.NotFoundError
		dmg   *damagedError
		chg   *snapshot.ChangedError
		bchg  *buildctx.ChangedError
		src   *SourceError
		path  *fs.PathError
		link  *os.LinkError
		cp    *snapshot.CopyError
		owner *snapshot.OwnerError
		lie   *snapshot.DigestError
		layer *snapshot.LayerError
		leaks *SecretLeakError
		add   *snapshot.ArchiveError
		unfit *snapshot.UnfitError
		large *buildctx.TooLargeError
	)
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &sig):
		return 128 + int(sig.Signal)
	case errors.As(err, &step), errors.As(err, &leaks):
		return ExitStep
	case errors.As(err, &uns), errors.As(err, &env), errors.As(err, &st), errors.As(err, &setup), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS):
		return ExitEnvironment
	case errors.As(err, &reg):
		return registryExit(reg)
	case errors.As(err, &lie), errors.As(err, &layer): // the image's configuration promised another layer, or its layer is none
		return ExitNetwork
	case errors.As(err, &perr), errors.As(err, &perrs), errors.As(err, &usage), errors.As(err, &nf), errors.As(err, &cp), errors.As(err, &owner), errors.As(err, &chg), errors.As(err, &bchg), errors.As(err, &nodf), errors.As(err, &esc), errors.As(err, &ign), errors.As(err, &arch), errors.As(err, &add), errors.As(err, &unfit), errors.As(err, &large):
		return ExitUsage
	case errors.As(err, &path):
		if errors.As(err, &src) { // an unreadable file of the context, named by an instruction
			return ExitUsage
		}
		return ExitEnvironment
	case errors.As(err, &dmg): // and it was not better the second time
		return ExitEnvironment
	case errors.As(err, &link): // a rename or link that the machine refused
		return ExitEnvironment
	}
	return ExitInternal
}

func registryExit(err *registry.Error) int {
	switch err.Class {
	case registry.Auth:
		return ExitAuth
	case registry.Unsupported, registry.Invalid:
		return ExitUsage
	}
	return ExitNetwork
}
