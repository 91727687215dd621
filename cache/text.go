package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strings"

	"build/internal/store"
)

// Texts can be long: a line per file of a context. Records of the same instruction have nearly the same ones, so runs
// of lines whose names share a prefix ("file:") are stored apart, in pieces cut where the lines themselves say so.
// A change of one line then makes one new piece.
const (
	// A run shorter than this stays in the record.
	shareFrom = 64
	// A piece has this many lines on average, and at most four times as many.
	pieceLines = 256
)

// sharedMark begins a line of a stored text that stands for a piece. No field can begin so: in a line of a field a
// backslash is followed by 'n', '=' or another.
const sharedMark = `\@`

// shareText stores the long runs of a text apart and returns what is left for the record.
func (c *Cache) shareText(text []byte) ([]byte, error) {
	if bytes.Count(text, []byte{'\n'}) < shareFrom {
		return text, nil
	}
	var out bytes.Buffer
	lines := bytes.SplitAfter(text, []byte{'\n'})
	for len(lines) > 0 {
		n := runLength(lines)
		if n < shareFrom {
			for _, l := range lines[:n] {
				out.Write(l)
			}
			lines = lines[n:]
			continue
		}
		for run := lines[:n]; len(run) > 0; {
			m := pieceLength(run)
			key, err := c.storePiece(bytes.Join(run[:m], nil))
			if err != nil {
				return nil, err
			}
			out.WriteString(sharedMark + key + "\n")
			run = run[m:]
		}
		lines = lines[n:]
	}
	return out.Bytes(), nil
}

// runLength is how many lines from the first on share the prefix of its name. It is at least 1.
func runLength(lines [][]byte) int {
	prefix := namePrefix(lines[0])
	n := 1
	for prefix != nil && n < len(lines) && bytes.Equal(namePrefix(lines[n]), prefix) {
		n++
	}
	return n
}

// namePrefix is what stands before the colon of a name, with it; nil if there is none.
func namePrefix(line []byte) []byte {
	i := bytes.IndexAny(line, ":=\n")
	if i < 0 || line[i] != ':' || line[len(line)-1] != '\n' {
		return nil
	}
	return line[:i+1]
}

// pieceLength is how many lines of a run make the next piece. A piece ends after a line whose name says so, which
// another line cannot change.
func pieceLength(run [][]byte) int {
	for i, l := range run {
		name, _, _ := bytes.Cut(l, []byte{'='})
		if crc32.ChecksumIEEE(name)%pieceLines == 0 || i+1 == 4*pieceLines {
			return i + 1
		}
	}
	return len(run)
}

func (c *Cache) storePiece(piece []byte) (string, error) {
	sum := sha256.Sum256(piece)
	key := hex.EncodeToString(sum[:])
	if have, err := c.st.Read(store.KindText, key); err == nil && bytes.Equal(have, piece) {
		return key, nil
	}
	return key, c.st.Write(store.KindText, key, piece)
}

// Text returns the whole text of a record. Pieces that were evicted are missing from it.
func (c *Cache) Text(r *Record) []byte {
	if !bytes.Contains(r.Text, []byte(sharedMark)) {
		return r.Text
	}
	var out bytes.Buffer
	for line := range strings.Lines(string(r.Text)) {
		key, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), sharedMark)
		if !ok {
			out.WriteString(line)
			continue
		}
		if piece, err := c.st.Read(store.KindText, key); err == nil {
			out.Write(piece)
		}
	}
	return out.Bytes()
}

// sharedTexts lists the keys of the pieces that a record's text stands on.
func sharedTexts(text []byte) []string {
	var keys []string
	for line := range strings.Lines(string(text)) {
		if key, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), sharedMark); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// Change is one field that differs between two texts.
type Change struct {
	Name string
	Old  string // "" when Kind is Added
	New  string // "" when Kind is Removed
	Kind ChangeKind
}

// ChangeKind tells how a field differs.
type ChangeKind string

const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Diff names the fields in which two texts differ, in the order of the new text, those that are only in the old one
// last and in its order. Fields of the same name are compared in turn.
func Diff(oldText, newText []byte) []Change {
	was := make(map[string][]string)
	var order []string
	for name, value := range fields(oldText) {
		was[name] = append(was[name], value)
		order = append(order, name)
	}
	var out []Change
	for name, value := range fields(newText) {
		old := was[name]
		if len(old) == 0 {
			out = append(out, Change{Name: name, New: value, Kind: Added})
			continue
		}
		was[name] = old[1:]
		if old[0] != value {
			out = append(out, Change{Name: name, Old: old[0], New: value, Kind: Changed})
		}
	}
	slices.Reverse(order) // what is left of a name are its last ones
	var gone []Change
	for _, name := range order {
		if left := was[name]; len(left) > 0 {
			gone = append(gone, Change{Name: name, Old: left[len(left)-1], Kind: Removed})
			was[name] = left[:len(left)-1]
		}
	}
	slices.Reverse(gone)
	return append(out, gone...)
}

// fields yields the fields of a text. Lines that are none are passed over.
func fields(text []byte) func(yield func(name, value string) bool) {
	return func(yield func(string, string) bool) {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := splitLine(strings.TrimSuffix(line, "\n")); ok && !yield(name, value) {
				return
			}
		}
	}
}

// Fields returns the values of a text by name; of several of one name the last.
func Fields(text []byte) map[string]string {
	m := make(map[string]string)
	for name, value := range fields(text) {
		m[name] = value
	}
	return m
}
