package build

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func policy(t *testing.T, rules string) mod {
	t.Helper()
	p, err := ParseSourcePolicy([]byte(`{"version":1,"rules":[` + rules + `]}`))
	must(t, err)
	return func(o *Options) { o.SourcePolicy = p }
}

func TestSourcePolicyRules(t *testing.T) {
	for _, c := range []struct{ rules, id, want string }{
		{``, "docker-image://docker.io/library/a:1", "docker-image://docker.io/library/a:1"},
		{`{"action":"DENY","selector":{"identifier":"docker-image://docker.io/*"}}`, "docker-image://docker.io/library/a:1", "denied"},
		{`{"action":"DENY","selector":{"identifier":"docker-image://docker.io/*"}}`, "docker-image://quay.io/a:1", "docker-image://quay.io/a:1"},
		{`{"action":"DENY","selector":{"identifier":"*"}},{"action":"ALLOW","selector":{"identifier":"docker-image://docker.io/library/*"}}`, "docker-image://docker.io/library/a:1", "docker-image://docker.io/library/a:1"},
		{`{"action":"ALLOW","selector":{"identifier":"docker-image://docker.io/library/*"}},{"action":"DENY","selector":{"identifier":"*"}}`, "docker-image://docker.io/library/a:1", "denied"},
		{`{"action":1,"selector":{"identifier":"^https?://.*\\.zip$","matchType":"REGEX"}}`, "http://x/a.zip", "denied"},
		{`{"action":"DENY","selector":{"identifier":"http://x/*","match_type":"EXACT"}}`, "http://x/a", "http://x/a"},
		{`{"action":"CONVERT","selector":{"identifier":"docker-image://docker.io/library/go:*"},"updates":{"identifier":"docker-image://mirror/go:${1}-alpine"}}`, "docker-image://docker.io/library/go:1.2", "docker-image://mirror/go:1.2-alpine"},
		{`{"action":"CONVERT","selector":{"identifier":"http://x/(.*)","matchType":"REGEX"},"updates":{"identifier":"https://y/$1"}},{"action":"DENY","selector":{"identifier":"https://y/*"}}`, "http://x/a", "denied"},
		{`{"action":"CONVERT","selector":{"identifier":"http://x/*"},"updates":{"identifier":"http://x/a${1}"}}`, "http://x/a", "without end"},
		{`{"action":"DENY","selector":{"identifier":"http://x/*","constraints":[{"key":"http.checksum","value":"","condition":"EQUAL"}]}}`, "http://x/a", "denied"},
		{`{"action":"DENY","selector":{"identifier":"http://x/*","constraints":[{"key":"http.checksum","value":"^sha","condition":"MATCHES"}]}}`, "http://x/a", "http://x/a"},
		{`{"action":"DENY","selector":{"identifier":"http://x/*","constraints":[{"key":"http.checksum","value":"","condition":"NOTEQUAL"}]}}`, "http://x/a", "http://x/a"},
	} {
		p, err := ParseSourcePolicy([]byte(`{"rules":[` + c.rules + `]}`))
		if err != nil {
			t.Errorf("%s: %v", c.rules, err)
			continue
		}
		got, err := p.decide(policySource{id: c.id})
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && got.id != c.want {
			t.Errorf("%s of %s: %s, %v; want %s", c.rules, c.id, got.id, err, c.want)
		}
	}
	for _, bad := range []string{
		`{"rules":[{"action":"FORBID","selector":{"identifier":"*"}}]}`, `{"rules":[{"action":"CONVERT","selector":{"identifier":"*"}}]}`,
		`{"rules":[{"selector":{"identifier":"**"}}]}`, `{"rules":[{"selector":{"identifier":"(","matchType":"REGEX"}}]}`, `{"rule":[]}`, `{"version":2}`, `{}{}`, ``,
	} {
		if _, err := ParseSourcePolicy([]byte(bad)); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
}

// 2.34: DENY ends a build before a request, also for what is cached; CONVERT takes another source, and can demand a checksum.
func TestSourcePolicy(t *testing.T) {
	p, s := newPlace(t), newServer(t)
	ref := s.seed(t)
	w := newWorld(t)
	file, other := p.put(t, "f", "file"), p.put(t, "g", "other")
	repo, _ := p.repo(t, "r", "a", "1")
	deny := policy(t, `{"action":"DENY","selector":{"identifier":"docker-image://`+s.host+`/*"}},{"action":"DENY","selector":{"identifier":"git://*r.git*"}},{"action":"DENY","selector":{"identifier":"`+file+`"}}`)
	for _, df := range []string{"FROM " + ref, "FROM scratch\nCOPY --from=" + ref + " /seed /", "FROM scratch\nADD " + repo + "#main /", "FROM scratch\nADD " + file + " /"} {
		w.fails(ExitUsage, []string{"Dockerfile:", "denied by policy"}, from(df+"\n"), online, deny)
	}
	w.fails(ExitUsage, []string{"denied by policy"}, contextAt(repo), online, deny)
	if got := s.requests(); len(got) != 0 || len(p.sent) != 0 {
		t.Errorf("asked for %q, %v", got, p.sent)
	}
	sum := digest.FromString("file").String()
	pinned := from("FROM scratch\nADD --checksum=" + sum + " " + file + " /\n")
	w.out(pinned)
	w.fails(ExitUsage, []string{"denied by policy"}, pinned, online, deny)

	dir, rec := w.out(from("FROM example.com/none:1 AS x\nFROM scratch\nCOPY --from=x /seed /\nADD "+file+" /f\n"), policy(t,
		`{"action":"CONVERT","selector":{"identifier":"docker-image://example.com/none:*"},"updates":{"identifier":"docker-image://`+s.host+`/base:${1}"}},`+
			`{"action":"CONVERT","selector":{"identifier":"`+file+`"},"updates":{"identifier":"`+other+`"}}`))
	has(t, dir+"/seed", "seed")
	has(t, dir+"/f", "other")
	if len(rec.warned("--source-policy-file")) != 2 {
		t.Errorf("%q", rec.warned(""))
	}
	w.fails(ExitNetwork, []string{"digest mismatch"}, from("FROM scratch\nADD "+other+" /g\n"), online,
		policy(t, `{"action":"CONVERT","selector":{"identifier":"`+other+`"},"updates":{"attrs":{"http.checksum":"`+sum+`"}}}`))
}
