package git

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// attributes are the rules of one .gitattributes file as far as they say how a file looks in a working tree, see
// gitattributes(5). Git reads no others than those of the repository when its user has no configuration.
type attributes struct {
	outer *attributes // of the directory above, which give way to these
	rules []attrRule
	// macros are names for several attributes; only the file at the top of the repository can define them.
	macros map[string][]attr
	weight int // of the patterns here and in outer
}

// attrRule is one line.
type attrRule struct {
	dir   string // of the file the rule is in
	match *regexp.Regexp
	base  bool // the last component of a path is matched, rather than the path from dir
	attrs []attr
}

// attr is one attribute with its value.
type attr struct{ name, value string }

const (
	attrSet    = "\x00set"
	attrUnset  = "\x00unset"
	attrUnsaid = "\x00unspecified" // as if no rule were there

	maxAttributes = 4 << 20
	maxAttrLine   = 2048 // longer lines are none to git
	// maxAttrWeight bounds the patterns that count for one file. Compiled, they take some hundred times their length.
	maxAttrWeight = 1 << 20
	attrWeight    = 64 // of a pattern that has no length
)

// attributesOf reads the .gitattributes in a directory of the repository. A symlink of that name is none.
func (o *objects) attributesOf(ctx context.Context, entries []treeEntry, dir string, outer *attributes) (*attributes, error) {
	i := slices.IndexFunc(entries, func(e treeEntry) bool { return e.name == ".gitattributes" })
	if i < 0 || entries[i].mode&modeType != modeRegular {
		return outer, nil
	}
	data, err := o.read(ctx, entries[i].id, blobKind)
	if err != nil {
		return nil, err
	}
	if len(data) > maxAttributes {
		return nil, fmt.Errorf("%s is too large", path.Join(dir, ".gitattributes"))
	}
	return parseAttributes(string(data), dir, outer)
}

func parseAttributes(text, dir string, outer *attributes) (*attributes, error) {
	a := &attributes{outer: outer}
	if outer == nil {
		a.macros = map[string][]attr{"binary": {{"diff", attrUnset}, {"merge", attrUnset}, {"text", attrUnset}}}
	} else {
		a.macros, a.weight = outer.macros, outer.weight
	}
	type line struct {
		pattern string
		attrs   []attr
	}
	var lines []line
	for text := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		text = strings.Trim(text, " \t\r\n")
		if text == "" || text[0] == '#' || len(text) > maxAttrLine {
			continue
		}
		pattern, rest := attrPattern(text)
		attrs := parseAttrs(rest)
		if name, ok := strings.CutPrefix(pattern, "[attr]"); !ok {
			lines = append(lines, line{pattern, attrs})
		} else if dir == "" && name != "" {
			a.macros[name] = attrs
		}
	}
	for _, l := range lines {
		if !slices.ContainsFunc(l.attrs, a.matters) {
			continue
		}
		if a.weight += attrWeight + len(l.pattern); a.weight > maxAttrWeight {
			return nil, fmt.Errorf("%s: there are too many rules", path.Join(dir, ".gitattributes"))
		}
		if r, ok := newAttrRule(l.pattern, dir, l.attrs); ok {
			a.rules = append(a.rules, r)
		}
	}
	return a, nil
}

// matters reports whether an attribute can change how a file looks.
func (a *attributes) matters(at attr) bool {
	_, macro := a.macros[at.name]
	return macro || slices.Contains(convertingAttrs, at.name)
}

// attrPattern splits a line into a pattern, which may be quoted as a string of C, and the rest.
func attrPattern(line string) (pattern, rest string) {
	if line[0] == '"' {
		if q, err := strconv.QuotedPrefix(line); err == nil {
			if s, err := strconv.Unquote(q); err == nil {
				return s, line[len(q):]
			}
		}
	}
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, ""
	}
	return line[:i], line[i:]
}

func parseAttrs(text string) []attr {
	var out []attr
	for word := range strings.FieldsSeq(text) {
		name, value, ok := strings.Cut(word, "=")
		switch {
		case ok:
			out = append(out, attr{name, value})
		case word[0] == '-':
			out = append(out, attr{word[1:], attrUnset})
		case word[0] == '!':
			out = append(out, attr{word[1:], attrUnsaid})
		default:
			out = append(out, attr{word, attrSet})
		}
	}
	return out
}

// newAttrRule makes a rule. Patterns for directories and negated ones have no meaning here; git skips them too.
func newAttrRule(pattern, dir string, attrs []attr) (attrRule, bool) {
	if pattern == "" || pattern[0] == '!' || strings.HasSuffix(pattern, "/") || len(attrs) == 0 {
		return attrRule{}, false
	}
	r := attrRule{dir: dir, base: !strings.Contains(pattern, "/"), attrs: attrs}
	expr, ok := globExpr(latin1(strings.TrimPrefix(pattern, "/")))
	if !ok {
		return attrRule{}, false
	}
	var err error
	r.match, err = regexp.Compile("(?s)^" + expr + "$")
	return r, err == nil
}

// latin1 makes characters of bytes: a pattern is matched byte by byte, whatever the encoding of the names.
func latin1(s string) string {
	out := make([]rune, len(s))
	for i := range len(s) {
		out[i] = rune(s[i])
	}
	return string(out)
}

// globExpr makes a regular expression of a pattern: those are matched in a time linear in the path, whoever wrote them.
func globExpr(pattern string) (string, bool) {
	var b strings.Builder
	p := []rune(pattern)
	for i := 0; i < len(p); i++ {
		switch c := p[i]; c {
		case '*':
			end := i
			for end < len(p) && p[end] == '*' {
				end++
			}
			whole := end-i > 1 && (i == 0 || p[i-1] == '/')
			switch {
			case whole && end < len(p) && p[end] == '/':
				b.WriteString("(?:.*/)?")
				end++
			case whole && end == len(p):
				b.WriteString(".*")
			default:
				b.WriteString("[^/]*")
			}
			i = end - 1
		case '?':
			b.WriteString("[^/]")
		case '[':
			class, n, ok := globClass(p[i:])
			if !ok {
				return "", false
			}
			b.WriteString(class)
			i += n - 1
		case '\\':
			if i++; i == len(p) {
				return "", false
			}
			b.WriteString(regexp.QuoteMeta(string(p[i])))
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	return b.String(), true
}

// globClass makes a character class of the one that p begins with, and says how long that is.
func globClass(p []rune) (class string, n int, ok bool) {
	var b strings.Builder
	b.WriteByte('[')
	i := 1
	if i < len(p) && (p[i] == '!' || p[i] == '^') {
		b.WriteString("^/")
		i++
	}
	for first := true; ; first = false {
		if i >= len(p) {
			return "", 0, false
		}
		switch c := p[i]; {
		case c == ']' && !first:
			b.WriteByte(']')
			return b.String(), i + 1, true
		case c == '[' && i+1 < len(p) && p[i+1] == ':':
			end := strings.Index(string(p[i:]), ":]")
			if end < 0 {
				return "", 0, false
			}
			named := string(p[i:])[:end+2]
			b.WriteString(named)
			i += len([]rune(named))
			continue
		case c == '-':
			b.WriteRune('-')
		case c == '\\':
			if i++; i >= len(p) {
				return "", 0, false
			}
			b.WriteString(`\` + fmt.Sprintf("x{%x}", p[i]))
		default:
			fmt.Fprintf(&b, `\x{%x}`, c)
		}
		i++
	}
}

// of returns the values of the attributes of a file that matter; what no rule says is not in it.
func (a *attributes) of(file string) map[string]string {
	found := map[string]string{}
	var fill func(attrs []attr, depth int)
	fill = func(attrs []attr, depth int) {
		for _, at := range slices.Backward(attrs) {
			if _, ok := found[at.name]; ok {
				continue
			}
			found[at.name] = at.value
			if macro := a.macros[at.name]; macro != nil && at.value == attrSet && depth < 16 {
				fill(macro, depth+1)
			}
		}
	}
	for level := a; level != nil; level = level.outer {
		for _, r := range slices.Backward(level.rules) {
			if r.matches(file) {
				fill(r.attrs, 0)
			}
		}
	}
	maps.DeleteFunc(found, func(_, v string) bool { return v == attrUnsaid })
	return found
}

func (r *attrRule) matches(file string) bool {
	if r.base {
		return r.match.MatchString(latin1(path.Base(file)))
	}
	if r.dir != "" {
		file = strings.TrimPrefix(file, r.dir+"/")
	}
	return r.match.MatchString(latin1(file))
}
