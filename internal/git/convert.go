package git

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// conversion is how the content of a file differs from that of its blob, as git checks it out where nobody configured
// anything: line ends, the id in the text, the encoding. Filters need a configuration and a program; without them, the
// pointers of Git LFS stay what they are.
type conversion struct {
	crlf     bool
	auto     bool // only when the content is text
	ident    bool
	encoding string
}

// convertingAttrs are the attributes that have to do with it.
var convertingAttrs = []string{"text", "crlf", "eol", "ident", "working-tree-encoding"}

// conversion returns what the attributes say about a file, nil for nothing.
func (a *attributes) conversion(file string) (*conversion, error) {
	if a == nil {
		return nil, nil
	}
	v := a.of(file)
	text := v["text"]
	if text != attrSet && text != attrUnset && text != "auto" && text != "input" {
		text = v["crlf"] // what it was called before
	}
	c := &conversion{ident: v["ident"] == attrSet}
	if text != attrUnset && v["eol"] == "crlf" {
		c.crlf, c.auto = true, text == "auto"
	}
	switch enc := v["working-tree-encoding"]; {
	case enc == attrSet, enc == attrUnset:
		return nil, fmt.Errorf("%s: working-tree-encoding in .gitattributes needs a value", file)
	case enc != "" && !strings.EqualFold(enc, "UTF-8") && !strings.EqualFold(enc, "UTF8"):
		c.encoding = enc
		if _, ok := encodings[strings.ToUpper(enc)]; !ok {
			return nil, fmt.Errorf("%s: .gitattributes wants the working-tree-encoding %s; only UTF-8, UTF-16 and UTF-32 are supported", file, enc)
		}
	}
	if *c == (conversion{}) {
		return nil, nil
	}
	return c, nil
}

// apply converts the content of the blob with a name.
func (c *conversion) apply(data []byte, id string) []byte {
	if c.ident {
		data = expandIdent(data, id)
	}
	if c.crlf && c.wantsCRLF(data) {
		out := make([]byte, 0, len(data)+bytes.Count(data, []byte{'\n'}))
		for i, b := range data {
			if b == '\n' && (i == 0 || data[i-1] != '\r') {
				out = append(out, '\r')
			}
			out = append(out, b)
		}
		data = out
	}
	if c.encoding != "" && utf8.Valid(data) { // git leaves alone what it cannot convert
		data = encodings[strings.ToUpper(c.encoding)].encode(string(data))
	}
	return data
}

// wantsCRLF reports whether line ends are to be converted. What only may be text is not if it looks like something else
// or has line ends of that kind already.
func (c *conversion) wantsCRLF(data []byte) bool {
	if !c.auto {
		return true
	}
	printable, other := 0, 0
	for _, b := range data {
		switch {
		case b == 0, b == '\r':
			return false
		case b == '\n':
		case b == '\b', b == '\t', b == '\x1b', b == '\f':
			printable++
		case b < 0x20, b == 0x7f:
			other++
		default:
			printable++
		}
	}
	if len(data) > 0 && data[len(data)-1] == 0x1a { // the end of a file in DOS
		other--
	}
	return printable>>7 >= other
}

// expandIdent puts the name of the blob where the text says $Id$, or has another name there.
func expandIdent(data []byte, id string) []byte {
	var out []byte
	for {
		i := bytes.IndexByte(data, '$')
		if i < 0 {
			break
		}
		out = append(out, data[:i+1]...)
		data = data[i+1:]
		n := identLen(data)
		if n < 0 {
			break
		}
		if n > 0 {
			out = append(out, "Id: "+id+" $"...)
			data = data[n:]
		}
	}
	return append(out, data...)
}

// identLen returns how long the rest of an identifier is that follows a dollar: 0 for none, -1 if there is none any more.
func identLen(s []byte) int {
	if len(s) < 3 || string(s[:2]) != "Id" {
		return 0
	}
	switch s[2] {
	case '$':
		return 3
	case ':':
		end := bytes.IndexByte(s[3:], '$')
		if end < 0 {
			return -1
		}
		text := s[3 : 3+end]
		if bytes.IndexByte(text, '\n') >= 0 {
			return 0
		}
		if len(text) > 1 { // words of another system stay
			if i := bytes.IndexByte(text[1:], ' '); i >= 0 && 1+i < len(text)-1 {
				return 0
			}
		}
		return 3 + end + 1
	}
	return 0
}

// encoding is a way to write Unicode. Where no order of bytes is said it is that of the machines git runs on, with a mark.
type encoding struct {
	order binary.AppendByteOrder
	wide  bool // four bytes for each character
	mark  bool
}

var encodings = map[string]encoding{
	"UTF-16": {binary.LittleEndian, false, true}, "UTF-16LE": {binary.LittleEndian, false, false}, "UTF-16BE": {binary.BigEndian, false, false},
	"UTF-32": {binary.LittleEndian, true, true}, "UTF-32LE": {binary.LittleEndian, true, false}, "UTF-32BE": {binary.BigEndian, true, false},
	"UTF-16LE-BOM": {binary.LittleEndian, false, true}, "UTF-16BE-BOM": {binary.BigEndian, false, true},
}

func (e encoding) encode(s string) []byte {
	var out []byte
	put := func(r rune) {
		if e.wide {
			out = e.order.AppendUint32(out, uint32(r))
			return
		}
		for _, u := range utf16.AppendRune(nil, r) {
			out = e.order.AppendUint16(out, u)
		}
	}
	if e.mark {
		put('\ufeff')
	}
	for _, r := range s {
		put(r)
	}
	return out
}
