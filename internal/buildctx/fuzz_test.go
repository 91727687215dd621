package buildctx

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Whatever an ignore file holds, it is refused as one or applied to every path as the library that made the rules applies
// them, and no walk leaves out a directory below which something is kept.
func FuzzIgnore(f *testing.F) {
	for _, seed := range []string{
		"dir\n!dir/keep\n", "*\n!a\n", "**/*.go\n!**/keep.go", "# comment\n\n  a  \n/abs\n./rel\n../up\n", "\xef\xbb\xbfa", "!", "[", "a\\", "[a-", "[]a]", "a/**/b\n!a/**/b/c\n",
		"\\!a\n\\#b", "a/\n!a/b/", "**", "!**", "a?c\n!a[b-c]c\n", "a//b\n", "\x00\n\xff", "a\r\n!a/b\r\n", ".\n", "..", "/", "!/", "a/../b", "{a,b}", "(a|b)+", "$^", strings.Repeat("a/", 40),
	} {
		for _, p := range []string{"a", "dir/keep", "a/b/c", "dir/sub/keep.go"} {
			f.Add([]byte(seed), p)
		}
	}
	f.Fuzz(func(t *testing.T, rules []byte, name string) {
		name = path.Clean("/" + strings.ReplaceAll(name, "\x00", ""))[1:]
		if len(name) > 200 || name == "" {
			return
		}
		ig, err := parseIgnore("ignore", rules)
		if err != nil {
			var known *IgnoreError
			if !errors.As(err, &known) {
				t.Fatalf("%q: an error of type %T: %v", rules, err, err)
			}
			return
		}
		checkIgnore(t, ig, rules, name)
	})
}

// checkIgnore compares what is said about a path, and about the directories it is in, with the library.
func checkIgnore(t *testing.T, ig *ignore, rules []byte, name string) {
	t.Helper()
	patterns, err := ignorefile.ReadAll(strings.NewReader(string(rules)))
	if err != nil {
		t.Fatalf("%q: taken, but %v", rules, err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatalf("%q: taken, but %v", rules, err)
	}
	v, err := ig.judgeAll(name)
	if err != nil {
		t.Fatalf("%q on %q: %v", rules, name, err)
	}
	// From the top down, as BuildKit sends a directory. Asked for the whole path at once the library may say something else
	// ("a/b" then "!a" leaves out a/b here, and there it does not): whether an exception of a parent is looked at depends on
	// what was left out so far.
	var want bool
	var above patternmatcher.MatchInfo
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '/' {
			if want, above, err = m.MatchesUsingParentResults(name[:i], above); err != nil {
				t.Fatalf("%q: taken, but on %q: %v", rules, name[:i], err)
			}
		}
	}
	if v.out != want {
		t.Fatalf("%q on %q: left out is %v, the library says %v", rules, name, v.out, want)
	}
	if v.out {
		return
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		above, err := ig.judgeAll(dir)
		if err != nil {
			t.Fatalf("%q on %q: %v", rules, dir, err)
		}
		if above.out && !ig.mayInclude(dir) {
			t.Fatalf("%q: %q is kept, but nobody looks into %q", rules, name, dir)
		}
	}
}
