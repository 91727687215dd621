package reference

import "strings"

// isDomain reports whether s is host[:port]; the host is a name, an IPv4 address, or an IPv6 address in brackets.
func isDomain(s string) bool {
	if s, ok := strings.CutPrefix(s, "["); ok {
		ip, port, ok := strings.Cut(s, "]")
		return ok && consists(ip, func(c byte) bool { return isHex(c) || c == ':' }) && (port == "" || port[0] == ':' && isPort(port[1:]))
	}
	host, port, hasPort := strings.Cut(s, ":")
	if hasPort && !isPort(port) {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if !consists(label, func(c byte) bool { return isAlnum(c) || c == '-' }) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

func isPort(s string) bool { return consists(s, isNumeral) }

// isPath reports whether all elements of a path are words of small letters and digits, with one dot, one or two underscores,
// or any number of dashes between two of them.
func isPath(s string) bool {
	for element := range strings.SplitSeq(s, "/") {
		if !isElement(element) {
			return false
		}
	}
	return true
}

func isElement(s string) bool {
	for {
		rest := strings.TrimLeft(s, "abcdefghijklmnopqrstuvwxyz0123456789")
		if rest == s || rest == "" {
			return s != "" && rest == ""
		}
		s = strings.TrimLeft(rest, rest[:1])
		n := len(rest) - len(s)
		if c := rest[0]; c != '-' && !(c == '.' && n == 1) && !(c == '_' && n <= 2) {
			return false
		}
	}
}

func isTag(s string) bool {
	return len(s) <= maxTag && consists(s, func(c byte) bool { return isAlnum(c) || c == '_' || c == '.' || c == '-' }) && s[0] != '.' && s[0] != '-'
}

// consists reports whether s has at least one character, and none that is not of a class.
func consists(s string, of func(byte) bool) bool {
	for i := range len(s) {
		if !of(s[i]) {
			return false
		}
	}
	return s != ""
}

func isNumeral(c byte) bool { return c >= '0' && c <= '9' }
func isHex(c byte) bool     { return isNumeral(c) || c|0x20 >= 'a' && c|0x20 <= 'f' }
func isAlnum(c byte) bool   { return isNumeral(c) || c|0x20 >= 'a' && c|0x20 <= 'z' }
