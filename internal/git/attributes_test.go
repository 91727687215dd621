package git

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files come out as git itself lays them out where nobody configured anything.
func TestAttributesAsInGit(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "a")
	run(t, s.dir, "init", "-q", "-b", "main", "a")
	for name, text := range map[string]string{
		".gitattributes": "# c\n*.bat text eol=crlf\n*.sh text eol=lf\n/top.txt text eol=crlf\nsub/**/x.txt eol=crlf\n*.auto text=auto eol=crlf\n" +
			"id ident\n*.u16 working-tree-encoding=UTF-16\n*.u16le working-tree-encoding=UTF-16LE text\n*.u32 working-tree-encoding=utf-32be\n" +
			"*.bom working-tree-encoding=UTF-16LE-BOM\n[attr]dos text eol=crlf\n*.dos dos\n\"with \\\"quotes\\\".q\" eol=crlf\n*.bin binary eol=crlf\n" +
			"[a-c]?.cls eol=crlf\n[!a-c]?.ncls eol=crlf\ndir/ eol=crlf\n!neg eol=crlf\n*.old crlf=input\n*.lfs filter=lfs diff=lfs merge=lfs -text\nexp export-ignore\n\\*star eol=crlf\nd/*/f eol=crlf\np[!x]q/f eol=crlf\n",
		"sub/.gitattributes": "*.bat -text\nlast.sh eol=crlf\ny.bat !text !eol\n/z eol=crlf\n",
		"run.bat":            "a\nb\n", "b.sh": "a\nb\n", "top.txt": "a\n", "sub/top.txt": "a\n", "sub/a/b/x.txt": "a\n", "sub/x.txt": "a\n",
		"text.auto": "a\nb\n", "nul.auto": "a\x00\nb\n", "cr.auto": "a\r\rb\n", "dos.auto": "a\n\x1a", "odd.auto": "a\x01\x02\n", "empty.auto": "",
		"id": "$Id$ $Id: old $ $Id: two words $ $Id: x\n $ $Idx$ $Id: $ $Id:", "x.u16": "aü😀\n", "x.u16le": "aü\n", "x.u32": "aü\n", "x.bom": "aü\n",
		"x.dos": "a\n", "with \"quotes\".q": "a\n", "x.bin": "a\n", "b1.cls": "a\n", "d1.cls": "a\n", "d1.ncls": "a\n", "b1.ncls": "a\n",
		"dir/f": "a\n", "neg": "a\n", "!neg": "a\n", "x.old": "a\n", "x.lfs": "version https://git-lfs.github.com/spec/v1\n", "exp": "a\n",
		"*star": "a\n", "xstar": "a\n", "d/e/f": "a\n", "d/e/e/f": "a\n", "p/q/f": "a\n", "p-q/f": "a\n",
		"sub/y.bat": "a\n", "sub/w.bat": "a\n", "sub/last.sh": "a\n", "sub/z": "a\n", "sub/a/z": "a\n",
	} {
		write(t, filepath.Join(dir, name), text, 0o644)
	}
	// The blobs are to be the texts above, not what git makes of them when it adds them.
	attrs := filepath.Join(dir, ".git/info/attributes")
	write(t, attrs, "* -text -ident !eol !working-tree-encoding\n", 0o644)
	run(t, dir, "add", "-A")
	if err := os.Remove(attrs); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "commit", "-q", "-m", "x")
	want := filepath.Join(s.dir, "want")
	run(t, s.dir, "clone", "-q", "--no-local", s.smart+"/a/.git", want)
	got, _, err := get(t, s.smart+"/a/.git", Query{}, CheckoutOptions{KeepGitDir: true}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(run(t, dir, "ls-files", "-z"), "\x00")
	for _, name := range names[:len(names)-1] {
		if g, w := content(t, filepath.Join(got, name)), content(t, filepath.Join(want, name)); g != w {
			t.Errorf("%s: %q, git makes it %q", name, g, w)
		}
	}
	sub, _, err := get(t, s.smart+"/a/.git", Query{}, CheckoutOptions{Subdir: "sub"}, Config{})
	if err != nil || content(t, sub+"/a/b/x.txt") != "a\r\n" || content(t, sub+"/z") != "a\r\n" {
		t.Errorf("the rules of the directories above a subdirectory: %v", err)
	}
}

// A kept .git knows what was converted: nothing looks changed.
func TestAttributesKeptGitDir(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "a")
	run(t, s.dir, "init", "-q", "-b", "main", "a")
	write(t, dir+"/.gitattributes", "*.bat text eol=crlf\n*.u16 working-tree-encoding=UTF-16LE\nid ident\n", 0o644)
	write(t, dir+"/x.bat", "a\r\nb\r\n", 0o644)
	write(t, dir+"/x.u16", "a\x00\n\x00", 0o644)
	write(t, dir+"/id", "$Id$\n", 0o644)
	run(t, dir, "add", "-A")
	run(t, dir, "commit", "-q", "-m", "x")
	out, _, err := get(t, s.smart+"/a/.git", Query{}, CheckoutOptions{KeepGitDir: true}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, out+"/x.bat") + content(t, out+"/x.u16"); got != "a\r\nb\r\na\x00\n\x00" {
		t.Errorf("%q", got)
	}
	if changed := run(t, out, "status", "--porcelain"); changed != "" {
		t.Errorf("git sees changes:\n%s", changed)
	}
}

func TestUnknownEncodingIsRefused(t *testing.T) {
	a, err := parseAttributes("*.txt working-tree-encoding=SHIFT-JIS\n*.x working-tree-encoding\n*.y working-tree-encoding=utf8\n", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.conversion("a.txt"); err == nil || !strings.Contains(err.Error(), "SHIFT-JIS") {
		t.Errorf("%v", err)
	}
	if _, err := a.conversion("a.x"); err == nil {
		t.Error("no value is accepted")
	}
	if c, err := a.conversion("a.y"); c != nil || err != nil {
		t.Errorf("%+v %v", c, err)
	}
}

// Rules take memory, so there is an end to them: in one file, and in those of all directories above a file together.
func TestTooManyRules(t *testing.T) {
	if _, err := parseAttributes(strings.Repeat("x text\n", 20000), "", nil); err == nil {
		t.Error("accepted")
	}
	if _, err := parseAttributes(strings.Repeat("x diff\n", 20000), "", nil); err != nil {
		t.Errorf("what does not matter counts: %v", err)
	}
	var a *attributes
	var err error
	for dir := "d"; err == nil && len(dir) < 100; dir += "/d" {
		a, err = parseAttributes(strings.Repeat("x text\n", 1000), dir, a)
	}
	if err == nil {
		t.Error("accepted in many directories")
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add("*.bat text eol=crlf\n[attr]m m text\nx m\n", "a/b.bat", "a\nb")
	f.Add("[[:alpha:]-z]?\\* ident working-tree-encoding=UTF-16\n**/x/** -text\n", "x/y", "$Id: x$")
	f.Fuzz(func(t *testing.T, text, file, data string) {
		a, err := parseAttributes(text, "", nil)
		if err != nil {
			return
		}
		if c, err := a.conversion(file); err == nil && c != nil {
			c.apply([]byte(data), strings.Repeat("0", 40))
		}
	})
}
