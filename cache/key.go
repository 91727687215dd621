package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// salt enters every key. Raise its number when the same fields no longer mean the same result.
const salt = "build cache key 1"

// Key names a step together with everything that its result depends on. It says nothing about the result.
type Key [sha256.Size]byte

func (k Key) String() string { return hex.EncodeToString(k[:]) }

// IsZero reports whether the key was never set.
func (k Key) IsZero() bool { return k == Key{} }

// ParseKey is the inverse of String. It accepts nothing else.
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) || hex.EncodeToString(b) != s {
		return Key{}, fmt.Errorf("%.80q is no key", s)
	}
	copy(k[:], b)
	return k, nil
}

// Hash makes a key from named fields. Order counts; no two different sequences of fields give the same bytes to hash.
// The fields are kept as text. The zero value is not usable.
type Hash struct {
	h       hash.Hash
	text    bytes.Buffer
	details []func(add func(name, value string))
	scratch [8]byte
}

// NewHash begins a key of some kind. Keys of different kinds never meet.
func NewHash(kind string) *Hash {
	h := &Hash{h: sha256.New()}
	h.write(salt)
	h.Field("kind", kind)
	return h
}

func (h *Hash) write(s string) {
	binary.LittleEndian.PutUint64(h.scratch[:], uint64(len(s)))
	h.h.Write(h.scratch[:])
	if w, ok := h.h.(interface{ WriteString(string) (int, error) }); ok {
		_, _ = w.WriteString(s)
		return
	}
	h.h.Write([]byte(s))
}

// Field adds a field.
func (h *Hash) Field(name, value string) {
	h.write(name)
	h.write(value)
	appendLine(&h.text, name, value)
}

// Bytes adds a field whose value is any bytes.
func (h *Hash) Bytes(name string, value []byte) { h.Field(name, string(value)) }

// Key adds a field whose value is another key.
func (h *Hash) Key(name string, k Key) { h.Field(name, k.String()) }

// Explain adds fields to the text that are not hashed, because a field that was hashed stands for all of them: the
// files behind a digest, say, as "file:path". They are asked for only when the text is.
func (h *Hash) Explain(fields func(add func(name, value string))) {
	h.details = append(h.details, fields)
}

// Sum returns the key of the fields so far.
func (h *Hash) Sum() Key {
	var k Key
	h.h.Sum(k[:0])
	return k
}

// Text returns the fields as one "name=value" line each, with what a line cannot hold escaped.
func (h *Hash) Text() []byte {
	if len(h.details) == 0 {
		return bytes.Clone(h.text.Bytes())
	}
	var b bytes.Buffer
	b.Write(h.text.Bytes())
	for _, f := range h.details {
		f(func(name, value string) { appendLine(&b, name, value) })
	}
	return b.Bytes()
}

// appendLine writes a field as a line. A backslash stands before what would end the name or the line, and before itself.
func appendLine(b *bytes.Buffer, name, value string) {
	escape(b, name, true)
	b.WriteByte('=')
	escape(b, value, false)
	b.WriteByte('\n')
}

func escape(b *bytes.Buffer, s string, name bool) {
	from := 0
	for i := range len(s) {
		var esc byte
		switch c := s[i]; {
		case c == '\n':
			esc = 'n'
		case c == '\\' || c == '=' && name:
			esc = c
		default:
			continue
		}
		b.WriteString(s[from:i])
		b.WriteByte('\\')
		b.WriteByte(esc)
		from = i + 1
	}
	b.WriteString(s[from:])
}

// splitLine is the inverse of appendLine, without the line break. ok is false for what appendLine does not write.
func splitLine(line string) (name, value string, ok bool) {
	var b []byte
	name = "\x00"
	inName := true
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '\\':
			i++
			if i == len(line) {
				return "", "", false
			}
			switch e := line[i]; {
			case e == 'n':
				b = append(b, '\n')
			case e == '\\' || e == '=' && inName:
				b = append(b, e)
			default:
				return "", "", false
			}
		case c == '=' && inName:
			name, b, inName = string(b), nil, false
		default:
			b = append(b, c)
		}
	}
	return name, string(b), !inName
}
