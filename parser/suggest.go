package parser

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"build/internal/lazyregexp"
)

// BuildKit suggests by walking maps, so that of two equally near words it names either, by chance. The lists here make the
// suggestions for what people mistype most stable, and count two swapped letters as one mistake.

// flagsOf lists the flags each instruction has.
var flagsOf = map[string][]string{
	command.Add:         {"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"},
	command.Copy:        {"chmod", "chown", "exclude", "from", "link", "parents"},
	command.From:        {"platform"},
	command.Healthcheck: {"interval", "retries", "start-interval", "start-period", "timeout"},
	command.Run:         {"device", "mount", "network", "security"},
}

var (
	mountTypes = []string{
		string(instructions.MountTypeBind), string(instructions.MountTypeCache), string(instructions.MountTypeSecret),
		string(instructions.MountTypeSSH), string(instructions.MountTypeTmpfs),
	}
	sharingModes = []string{
		string(instructions.MountSharingLocked), string(instructions.MountSharingPrivate), string(instructions.MountSharingShared),
	}
)

var mistyped = lazyregexp.New(`^(unknown flag: --|unsupported mount type "|unsupported sharing value ")([^"]*)`)

// suggest gives the hint for a mistyped word; ok is false for messages it knows nothing about.
func (s *source) suggest(r Range, err error, msg string) (hint string, ok bool) {
	var word, match string
	var unknown *instructions.UnknownInstructionError
	if errors.As(err, &unknown) {
		word = unknown.Instruction
		match = closest(strings.ToLower(word), slices.Sorted(maps.Keys(command.Commands)))
		if word != strings.ToLower(word) {
			match = strings.ToUpper(match)
		}
	} else {
		m := mistyped().FindStringSubmatch(msg)
		if m == nil {
			return "", false
		}
		word = m[2]
		switch {
		case strings.HasPrefix(m[1], "unknown flag"):
			match = closest(word, s.flagsAt(r))
		case strings.Contains(m[1], "mount type"):
			match = closest(word, mountTypes)
		default:
			match = closest(word, sharingModes)
		}
	}
	if match == "" || match == word {
		return "", true
	}
	return didYouMean + match + "?", true
}

// flagsAt lists the flags of the instruction at r or, if that has none, of all: a trigger's mistake is shown at its FROM.
func (s *source) flagsAt(r Range) []string {
	words := strings.Fields(strings.ToLower(s.line(r.Start.Line)))
	if len(words) > 1 && words[0] == command.Onbuild {
		words = words[1:]
	}
	if len(words) > 0 && len(flagsOf[words[0]]) > 0 && words[0] != command.From {
		return flagsOf[words[0]]
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(flagsOf)) {
		all = append(all, flagsOf[name]...)
	}
	return all
}

// maxMistakes is how many letters a word may be off and still be taken for another.
const maxMistakes = 2

// closest finds the option with the fewest mistakes, the first of equals.
func closest(word string, options []string) string {
	best, found := maxMistakes+1, ""
	for _, o := range options {
		if d := distance(word, o); d < best {
			best, found = d, o
		}
	}
	return found
}

// distance counts the letters that were added, left out, replaced or swapped with their neighbour.
func distance(a, b string) int {
	if len(a)-len(b) > maxMistakes || len(b)-len(a) > maxMistakes {
		return maxMistakes + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
