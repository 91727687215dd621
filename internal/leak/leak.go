// Package leak finds secrets in the layers of an image. It owns what a secret may look like there (as it is, in base64, in hex,
// URL-encoded), and the search for many of them at once in a stream of bytes that is read for another reason anyway.
//
// It refuses to know where secrets come from, what happens when one is found, and how layers are stored. What it returns can be
// shown and kept: it holds no byte of a secret, not even where a file is called like one.
//
// What it does not find: a part of a secret, a secret inside compressed or encrypted data, and one shorter than Shortest.
package leak

import (
	"bytes"
	"slices"
)

// Shortest is the length in bytes, white space around it left out, from which a secret is searched for. What is shorter is in
// many files by chance.
const Shortest = 8

// longest bounds how much of a secret is compared: whoever finds its first 4 KiB has found it.
const longest = 4 << 10

// Secret is one thing to look for.
type Secret struct {
	ID    string
	Value []byte
}

// Trimmed returns what of a value is searched for: white space around it is not part of the secret (files end in a newline, what
// a shell made of them does not), nor is what follows the first 4 KiB. It is nil when that is too short.
func Trimmed(value []byte) []byte {
	v := bytes.TrimSpace(value)
	if len(v) < Shortest {
		return nil
	}
	return v[:min(len(v), longest)]
}

// Finder knows what some secrets look like. It does not change and is safe for concurrent use.
type Finder struct {
	ids      []string
	patterns []pattern
	filter   filter
}

// New makes a Finder. Secrets that are too short are left out.
func New(secrets []Secret) *Finder {
	f := &Finder{}
	for _, s := range secrets {
		v := Trimmed(s.Value)
		if v == nil {
			continue
		}
		if !slices.Contains(f.ids, s.ID) {
			f.ids = append(f.ids, s.ID)
		}
		secret := slices.Index(f.ids, s.ID)
		for rank, form := range forms(v) {
			f.patterns = append(f.patterns, newPattern(secret, rank, form))
		}
	}
	f.filter.fill(f.patterns)
	return f
}

// Hit is one secret in a text.
type Hit struct {
	Secret string
	Form   string // one of the Form constants
}

// In lists the secrets in a text, each once, in the form that is nearest to the secret itself.
func (f *Finder) In(s string) []Hit {
	t := newText(f)
	t.write([]byte(s))
	return t.end(nil)
}
