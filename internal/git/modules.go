package git

import "strings"

// submodule is one section of .gitmodules.
type submodule struct{ path, url, update string }

// parseModules reads .gitmodules, which has the syntax of git's configuration, and returns the submodules by path.
func parseModules(text string) map[string]submodule {
	byName := map[string]*submodule{}
	var order []string
	var cur *submodule
	text = strings.ReplaceAll(text, "\\\n", "")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			cur = nil
			end := strings.LastIndexByte(line, ']')
			if end < 0 {
				continue
			}
			section, name, ok := strings.Cut(line[1:end], " ")
			if !ok || !strings.EqualFold(section, "submodule") {
				continue
			}
			if name = configValue(name); byName[name] == nil {
				byName[name] = &submodule{}
				order = append(order, name)
			}
			cur = byName[name]
			continue
		}
		if cur == nil {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		value = configValue(value)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "path":
			cur.path = strings.TrimSuffix(value, "/")
		case "url":
			cur.url = value
		case "update":
			cur.update = value
		}
	}
	out := map[string]submodule{}
	for _, name := range order {
		out[byName[name].path] = *byName[name]
	}
	return out
}

// configValue undoes quotes and escapes and drops a comment.
func configValue(s string) string {
	var b strings.Builder
	quoted := false
	s = strings.TrimSpace(s)
	kept := 0 // up to the last thing that is not unquoted white space
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			quoted = !quoted
			kept = b.Len()
			continue
		case c == '\\' && i+1 < len(s):
			i++
			switch s[i] {
			case 'n':
				c = '\n'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			default:
				c = s[i]
			}
			b.WriteByte(c)
			kept = b.Len()
			continue
		case !quoted && (c == '#' || c == ';'):
			return b.String()[:kept]
		}
		b.WriteByte(c)
		if quoted || c != ' ' && c != '\t' {
			kept = b.Len()
		}
	}
	return b.String()[:kept]
}
