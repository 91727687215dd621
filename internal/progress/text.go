package progress

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// appendSeconds writes a time since the start of a step: 0.123, 12.34, 123.4.
func appendSeconds(b []byte, d time.Duration) []byte {
	sec := d.Seconds()
	digits := 1
	switch {
	case sec < 10:
		digits = 3
	case sec < 100:
		digits = 2
	}
	return strconv.AppendFloat(b, sec, 'f', digits, 64)
}

// appendTenths writes a duration as 1.2s.
func appendTenths(b []byte, d time.Duration) []byte {
	return append(strconv.AppendFloat(b, d.Seconds(), 'f', 1, 64), 's')
}

// appendBytes writes an amount as 12B, 1.50kB, 12.30MB.
func appendBytes(b []byte, n int64) []byte {
	if n < 1000 && n > -1000 {
		return append(strconv.AppendInt(b, n, 10), 'B')
	}
	value, unit := float64(n)/1000, 0
	const units = "kMGTPE"
	for value >= 1000 && unit < len(units)-1 {
		value, unit = value/1000, unit+1
	}
	b = strconv.AppendFloat(b, value, 'f', 2, 64)
	return append(b, units[unit], 'B')
}

// oneLine makes a name fit one line of any display.
func oneLine(s string) string {
	clean := func(r rune) bool { return r >= ' ' && r != 0x7f && !hidden(r) && r != utf8.RuneError }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	return string(sanitize([]byte(strings.ReplaceAll(s, "\n", " "))))
}

// afterReturn is what a line shows once its carriage returns were obeyed: what follows the last one that something
// follows.
func afterReturn(line []byte) []byte {
	line = bytes.TrimRight(line, "\r")
	return line[bytes.LastIndexByte(line, '\r')+1:]
}

// sanitize makes a line of output harmless for a terminal: control sequences vanish, tabs become spaces, and so do
// bytes that are no text. The result never changes colours, moves the cursor or reverses the direction of text.
func sanitize(line []byte) []byte {
	out := make([]byte, 0, len(line))
	column := 0
	for len(line) > 0 {
		if c := line[0]; c == 0x1b {
			line = line[escapeLen(line):]
			continue
		} else if c == '\t' {
			for ok := true; ok; ok = column%8 != 0 {
				out = append(out, ' ')
				column++
			}
			line = line[1:]
			continue
		} else if c < ' ' || c == 0x7f {
			line = line[1:]
			continue
		}
		r, n := utf8.DecodeRune(line)
		if !hidden(r) {
			out = utf8.AppendRune(out, r)
			column += runeWidth(r)
		}
		line = line[n:]
	}
	return out
}

// hidden reports whether a character steers a terminal or the direction of text instead of showing something.
func hidden(r rune) bool {
	switch {
	case r >= 0x80 && r < 0xa0: // C1 controls
		return true
	case r == 0x200e || r == 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069: // directions
		return true
	case r == 0x2028 || r == 0x2029 || r == 0xfeff:
		return true
	}
	return false
}

// escapeLen is the length of the control sequence at the start of line, which begins with ESC.
func escapeLen(line []byte) int {
	if len(line) < 2 {
		return len(line)
	}
	switch c := line[1]; {
	case c == '[': // CSI: parameters, intermediates, one final byte
		for i := 2; i < len(line); i++ {
			if line[i] >= 0x40 && line[i] <= 0x7e {
				return i + 1
			}
			if line[i] < 0x20 || line[i] > 0x7e { // not a sequence after all
				return i
			}
		}
		return len(line)
	case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_': // strings up to BEL or ST
		for i := 2; i < len(line); i++ {
			if line[i] == 0x07 {
				return i + 1
			}
			if line[i] == 0x1b && i+1 < len(line) && line[i+1] == '\\' {
				return i + 2
			}
		}
		return len(line)
	case c >= 0x20 && c <= 0x2f: // intermediates, then a final byte
		for i := 2; i < len(line); i++ {
			if line[i] < 0x20 || line[i] > 0x2f {
				return i + 1
			}
		}
		return len(line)
	case c > 0x7e || c < 0x20:
		return 1
	}
	return 2
}

// wide lists the blocks of characters that take two columns.
var wide = [...][2]rune{
	{0x1100, 0x115f}, {0x2e80, 0x303e}, {0x3041, 0x33ff}, {0x3400, 0x4dbf}, {0x4e00, 0x9fff}, {0xa000, 0xa4cf},
	{0xac00, 0xd7a3}, {0xf900, 0xfaff}, {0xfe30, 0xfe6f}, {0xff00, 0xff60}, {0xffe0, 0xffe6}, {0x1f300, 0x1f64f},
	{0x1f680, 0x1f6ff}, {0x1f900, 0x1f9ff}, {0x20000, 0x3fffd},
}

// runeWidth is how many columns a character takes.
func runeWidth(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	for _, w := range wide {
		if r >= w[0] && r <= w[1] {
			return 2
		}
	}
	return 1
}

// textWidth is how many columns a text takes.
func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// fit cuts a text to at most width columns; what was cut is marked.
func fit(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if textWidth(s) <= width {
		return s
	}
	n := 0
	for i, r := range s {
		w := runeWidth(r)
		if n+w > width-1 {
			return s[:i] + "…"
		}
		n += w
	}
	return s
}
