package registry

import "strings"

// challenge is one WWW-Authenticate challenge.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// pickChallenge returns the challenge to answer: a bearer one if there is any, else a basic one. A registry that offers
// both wants tokens and tolerates passwords.
func pickChallenge(headers []string) (challenge, bool) {
	var basic *challenge
	for _, h := range headers {
		for _, c := range parseChallenges(h) {
			switch c.scheme {
			case "bearer":
				return c, true
			case "basic":
				basic = &c
			}
		}
	}
	if basic != nil {
		return *basic, true
	}
	return challenge{}, false
}

// parseChallenges reads one header value: schemes followed by comma-separated parameters, whose values may be quoted.
func parseChallenges(s string) []challenge {
	var out []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		word, rest := cutToken(s)
		if word == "" {
			return out
		}
		rest = strings.TrimLeft(rest, " \t")
		if !strings.HasPrefix(rest, "=") {
			out = append(out, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
			s = rest
			continue
		}
		var value string
		value, s = cutValue(strings.TrimLeft(rest[1:], " \t"))
		if len(out) > 0 {
			out[len(out)-1].params[strings.ToLower(word)] = value
		}
	}
}

func cutToken(s string) (token, rest string) {
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, " \t,")
		if i < 0 {
			return s, ""
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
