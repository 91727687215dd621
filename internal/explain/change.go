package explain

import (
	"cmp"
	"slices"
	"strings"
)

// Kind says what sort of thing changed. The values are part of the interface: they are in JSON output.
type Kind string

// The kinds, most telling first: of several changes the one whose kind comes first is the reason.
const (
	NoCache     Kind = "no-cache"    // --no-cache or --no-cache-filter
	Evicted     Kind = "evicted"     // a record or a layer was collected
	Unwritten   Kind = "unwritten"   // it was checked alone, because nothing needed its layer
	Platform    Kind = "platform"    // it is built for another platform
	Instruction Kind = "instruction" // the Dockerfile says something else, here-documents included
	Flag        Kind = "flag"        // --chown, --chmod, --link and the like
	Argument    Kind = "argument"    // a build argument
	Environment Kind = "environment" // a variable of ENV or of the base image
	File        Kind = "file"        // files of a context or of another stage
	Remote      Kind = "remote"      // what a URL or a repository holds
	Mount       Kind = "mount"       // what a RUN mounts, or how
	Setting     Kind = "setting"     // user, directory, network, hostname, limits, hosts
	Base        Kind = "base"        // the base image
	Step        Kind = "step"        // an earlier step gave something else
	Unknown     Kind = "unknown"     // something that has no name here
)

var order = []Kind{NoCache, Evicted, Unwritten, Platform, Instruction, Flag, Argument, Environment, File, Remote, Mount, Setting, Base, Step, Unknown}

// Change is one difference between an earlier run of a step and this one.
type Change struct {
	Kind Kind `json:"kind"`
	// Text completes "ran because …": one line, without a full stop.
	Text string `json:"text"`
	// Files are those that differ, as far as they are known, in path order; FilesLeftOut is how many more there are.
	Files        []FileChange `json:"files,omitempty"`
	FilesLeftOut int          `json:"filesLeftOut,omitempty"`
}

func byKind(a, b Change) int {
	return cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind))
}

// Sort puts the most telling change first and keeps the order of those of one kind.
func Sort(changes []Change) { slices.SortStableFunc(changes, byKind) }

// maxValue is how much of a value is shown, in bytes.
const maxValue = 60

// quote shows a value in one line, shortened.
func quote(v string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, r := range v {
		if i >= maxValue {
			b.WriteString("…")
			break
		}
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r < ' ' || r == 0x7f:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Line is a text in one line, shortened to about so many bytes.
func Line(s string, width int) string {
	s = strings.Join(strings.Fields(s), " ")
	for i := range s {
		if i >= width {
			return s[:i] + "…"
		}
	}
	return s
}
