package build

import (
	"bytes"
	"slices"
)

// shortestMask is the length from which a secret is looked for in output: what is shorter occurs by chance, and stars in
// its place would say more than they hide.
const shortestMask = 4

// TooShortToMask reports whether there is a secret and nothing of it is masked. Short lines of a longer one, such as the
// brackets of JSON, are nobody's concern.
func TooShortToMask(data []byte) bool {
	n := len(bytes.TrimSpace(data))
	return n > 0 && n < shortestMask
}

var stars = []byte("****")

// MaskSecrets returns a function that replaces secrets in a line of output, or nil when there is nothing to replace. Of
// secrets of several lines every line is one.
func MaskSecrets(secrets []Secret) func([]byte) []byte {
	var words [][]byte
	for _, s := range secrets {
		for line := range bytes.Lines(s.Data) {
			if w := bytes.TrimSpace(line); len(w) >= shortestMask {
				words = append(words, w)
			}
		}
	}
	if len(words) == 0 {
		return nil
	}
	// The longest first: a secret may be part of another.
	slices.SortFunc(words, func(a, b []byte) int { return len(b) - len(a) })
	return func(line []byte) []byte {
		for _, w := range words {
			if bytes.Contains(line, w) {
				line = bytes.ReplaceAll(line, w, stars)
			}
		}
		return line
	}
}
