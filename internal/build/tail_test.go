package build

import (
	"slices"
	"strings"
	"testing"
)

// The last lines of a failed step are masked, wherever a secret is cut: by a read, by the width of a line, or because the
// line has not ended.
func TestTailMasks(t *testing.T) {
	mask := MaskSecrets([]Secret{{Data: []byte("top-secret-value\nsecond-line\n")}, {Data: []byte("top-secret")}, {Data: []byte("abc")}})
	before := strings.Repeat("x", tailWidth-5)
	for name, c := range map[string]struct{ writes, want []string }{
		"whole":        {[]string{"a top-secret-value b\nabc second-line\n"}, []string{"a **** b", "abc ****"}},
		"two reads":    {[]string{"a top-sec", "ret-value b\n"}, []string{"a **** b"}},
		"without end":  {[]string{"a top-secret-", "value"}, []string{"a ****"}},
		"at the width": {[]string{before + "top-secret-value and more\n"}, []string{before + "****" + " "}},
		"part of it":   {[]string{"top-secret-valu\n"}, []string{"****-valu"}},
	} {
		tl := tail{mask: mask}
		for _, w := range c.writes {
			tl.write(1, []byte(w))
		}
		if got := tl.lines(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %.80q, want %.80q", name, got, c.want)
		}
	}
	if MaskSecrets([]Secret{{Data: []byte("abc\n\n")}}) != nil {
		t.Error("there is nothing to mask, and a mask")
	}
}
