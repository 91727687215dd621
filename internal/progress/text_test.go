package progress

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestSanitize(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain", "plain"},
		{"\x1b[1;31mred\x1b[0m text", "red text"},
		{"\x1b]0;title\x07after", "after"},
		{"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"},
		{"\x1bPq#0;2;0\x1b\\sixel", "sixel"},
		{"\x1b(Bcharset", "charset"},
		{"\x1b7save\x1b8", "save"},
		{"up\x1b[2A\x1b[2Kgone", "upgone"},
		{"a\tb", "a       b"},
		{"bell\x07 back\b", "bell back"},
		{"\x1b[31", ""},
		{"\x1b", ""},
		{"\x1b[3\x1b[0mx", "x"},
		{"bad \xff\xfe utf", "bad \ufffd\ufffd utf"},
		{"c1 \u009b31m", "c1 31m"},
		{"\u202edesrever\u202c", "desrever"},
		{"日本 語", "日本 語"},
		{"\x1b]unterminated", ""},
	} {
		if got := string(sanitize([]byte(c.in))); got != c.want {
			t.Errorf("sanitize(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzSanitize(f *testing.F) {
	f.Add([]byte("\x1b[31mx\x1b]0;\x07\x1bP\x1b\\\t\u202e"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := sanitize(in)
		if !utf8.Valid(out) {
			t.Fatalf("not UTF-8: %q", out)
		}
		for _, r := range string(out) {
			if r < ' ' || r == 0x7f || hidden(r) {
				t.Fatalf("%q lets %U through: %q", in, r, out)
			}
		}
		if again := sanitize(out); string(again) != string(out) {
			t.Fatalf("not stable: %q, then %q", out, again)
		}
	})
}

func TestAfterReturn(t *testing.T) {
	for in, want := range map[string]string{
		"10%\r20%\r30%": "30%", "line\r": "line", "a\rb\r": "b", "": "", "\r\r": "", "x": "x",
	} {
		if got := string(afterReturn([]byte(in))); got != want {
			t.Errorf("afterReturn(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.000", 123456 * time.Microsecond: "0.123", 9999 * time.Millisecond: "9.999",
		12345 * time.Millisecond: "12.35", 123450 * time.Millisecond: "123.5",
	} {
		if got := string(appendSeconds(nil, d)); got != want && got != "12.34" && got != "123.4" {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{
		0: "0B", 999: "999B", 1000: "1.00kB", 12_300_000: "12.30MB", 40_000_000: "40.00MB", 5e9: "5.00GB", -5: "-5B", 1 << 62: "4.61EB",
	} {
		if got := string(appendBytes(nil, n)); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

func TestFit(t *testing.T) {
	for width := range 12 {
		for _, s := range []string{"", "abc", "abcdefghijk", "日本語日本語", "e\u0301e\u0301e\u0301", "mixed 日本"} {
			got := fit(s, width)
			if textWidth(got) > width {
				t.Errorf("fit(%q, %d) = %q, %d columns", s, width, got, textWidth(got))
			}
			if textWidth(s) <= width && got != s {
				t.Errorf("fit(%q, %d) = %q", s, width, got)
			}
			row := aligned(s, "1.2s", width)
			if textWidth(row) > width {
				t.Errorf("aligned(%q, %d) = %q", s, width, row)
			}
		}
	}
	if got := aligned("left", "right", 20); got != "left"+strings.Repeat(" ", 11)+"right" {
		t.Errorf("aligned: %q", got)
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("RUN a \\\n\tb\x1b[31m"); strings.ContainsAny(got, "\n\t\x1b") {
		t.Errorf("oneLine: %q", got)
	}
	if got := oneLine("[1/2] RUN echo ünïcode"); got != "[1/2] RUN echo ünïcode" {
		t.Errorf("oneLine: %q", got)
	}
}
