package build

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/userns"
)

// A command that finds no room for a file says so in its own words or not at all. The file system it meets is the one of the
// store, which its Dockerfile has nothing to do with.

// fullError is a command that failed when the store had no room left.
type fullError struct {
	*executor.ExitError
	room string // what is left, for people
}

func (e *fullError) Unwrap() error { return e.ExitError }

const kindFull = "build.full"

type fullData struct {
	Exit *executor.ExitError
	Room string
}

// Remote lets the error cross a process boundary.
func (e *fullError) Remote() (string, any) { return kindFull, fullData{e.ExitError, e.room} }

func fullFromRemote(data json.RawMessage) error {
	var d fullData
	if json.Unmarshal(data, &d) != nil || d.Exit == nil {
		return nil
	}
	return &fullError{d.Exit, d.Room}
}

// What is left on a file system when it counts as full: programs write in pieces, and give up before the last byte; and an
// overlay takes several inodes for one deletion, which are free again when that failed.
const (
	noRoom   = 1 << 20
	noInodes = 64
)

// blameRoom adds to the failure of a command that there is no room. It is asked before what the command wrote is removed.
func (n *inside) blameRoom(err error) error {
	var exit *executor.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs(n.store.Dir(), &st) != nil {
		return err
	}
	free := st.Bavail
	if n.kind == userns.KindRoot { // what is reserved for root is there for steps of root
		free = st.Bfree
	}
	left := int64(free) * st.Bsize
	switch {
	case left < noRoom:
		return &fullError{exit, units.HumanSize(float64(left)) + " left"}
	case st.Files > 0 && st.Ffree < noInodes:
		return &fullError{exit, fmt.Sprintf("%d inodes left", st.Ffree)}
	}
	return err
}

// fullHint says what is full and what to do.
func (s *session) fullHint(err error) string {
	var full *fullError
	if !errors.As(err, &full) {
		return ""
	}
	return fmt.Sprintf("the file system of the store, %s, is full (%s): make room there, or have the store elsewhere with --root", s.store.Dir(), full.room)
}
