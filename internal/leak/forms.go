package leak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// The forms in which a secret is found, as they are told.
const (
	FormLiteral = "as it is"
	FormSpaced  = "as it is, with other white space"
	FormBase64  = "in base64"
	FormHex     = "in hex"
	FormURL     = "URL-encoded"
)

// form is one sequence of bytes that gives a secret away.
type form struct {
	text []byte
	kind string
	// loose means that white space between the bytes does not matter, nor does its escape in a string (\n): encoders wrap lines, at
	// 60, 64 or 76 characters, and keys are indented or put into JSON.
	loose bool
}

// forms lists what a trimmed value may look like, the nearest to the value first, none twice and none shorter than Shortest.
func forms(v []byte) []form {
	var out []form
	add := func(kind string, loose bool, text []byte) {
		if len(text) < Shortest {
			return
		}
		for _, have := range out {
			if bytes.Equal(have.text, text) && have.loose == loose {
				return
			}
		}
		out = append(out, form{text, kind, loose})
	}
	encoded := func(kind string, text []byte) {
		add(kind, true, text)
		if len(text) >= lateFrom {
			add(kind, true, text[late:])
		}
	}
	add(FormLiteral, false, v)
	if bytes.ContainsFunc(v, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) }) {
		add(FormSpaced, true, unspaced(v))
	}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			encoded(FormBase64, base64After(enc, before, v))
		}
	}
	lower := hex.EncodeToString(v)
	encoded(FormHex, []byte(lower))
	encoded(FormHex, []byte(strings.ToUpper(lower)))
	for _, text := range urlForms(v) {
		if !bytes.Equal(text, v) {
			add(FormURL, false, text)
		}
	}
	return out
}

// A loose form is recognised by its first bytes in one piece. Where these happen to be wrapped, the same form without its first
// ones is found: no encoder breaks lines so short that both are.
const (
	late     = 16
	lateFrom = 48
)

// base64After returns the characters that v gives, whatever the bytes before it (as many, modulo 3, as said) and after it are.
// That leaves padding out.
func base64After(enc *base64.Encoding, before int, v []byte) []byte {
	src := append(make([]byte, before), v...)
	dst := make([]byte, enc.EncodedLen(len(src)))
	enc.Encode(dst, src)
	return dst[(before*8+5)/6 : len(src)*8/6]
}

// unspaced removes white space, and what stands before the first word by which the rest can be recognised.
func unspaced(v []byte) []byte {
	fields := bytes.FieldsFunc(v, func(r rune) bool { return r < 0x80 && isSpace(byte(r)) })
	for i, f := range fields {
		if len(f) >= Shortest {
			return bytes.Join(fields[i:], nil)
		}
	}
	return nil
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// What the usual encoders leave as it is besides letters, digits and -._~ (RFC 3986, 2.3): nothing (a form's field, Go's
// url.QueryEscape), the slash (Python's quote), what encodeURIComponent and encodeURI of JavaScript keep, what Go's
// url.PathEscape, URL.EscapedPath and Userinfo keep.
var kept = []string{"", "/", "!'()*", ";,/?:@&=+$!'()*#", "$&+=:@", "$&+,/:;=@", "$&+,;="}

func urlForms(v []byte) [][]byte {
	var out [][]byte
	for _, keep := range kept {
		for _, digits := range []string{"0123456789ABCDEF", "0123456789abcdef"} {
			out = append(out, percent(v, keep, digits, false), percent(v, keep, digits, true))
		}
	}
	return out
}

// percent escapes v; plus writes a space as a plus sign, as forms do.
func percent(v []byte, keep, digits string, plus bool) []byte {
	var b []byte
	for _, c := range v {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~"+keep, c) >= 0:
			b = append(b, c)
		case c == ' ' && plus:
			b = append(b, '+')
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}
