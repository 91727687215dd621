package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// P1: the source of a mount is a link to the host in the image, or in a cache, it is taken from.
func TestAttackMountSources(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		entries := []entry{link("root", "/"), link("parents", up)}
		n := 0
		ways := waysOut(a.host)
		for _, target := range ways {
			n++
			entries = append(entries, link(fmt.Sprintf("way%d", n), target))
		}
		a.image("links", nil, entries)
		show := "cat /m/secret /m" + a.host + "/secret 2>/dev/null && echo ' BREACH'; echo x > /m/secret; echo x > /m" + a.host + "/secret; rm -rf /m/stub; true\n"
		for _, source := range []string{"/root", "/parents", "/root/parents/root" + a.host} {
			a.noBreach(a.build("FROM base\nRUN --mount=type=bind,rw,from=links,source=" + source + ",target=/m " + show))
		}
		for i := range n {
			a.noBreach(a.build(fmt.Sprintf("FROM base\nRUN --mount=type=bind,rw,from=links,source=/way%d,target=/m %s", i+1, show)))
			a.noBreach(a.build(fmt.Sprintf("FROM base\nRUN --mount=type=cache,from=links,source=/way%d,target=/m %s", i+1, show)))
		}
		for _, target := range ways {
			a.noBreach(a.build("FROM base\nRUN --mount=type=cache,id=c,target=/c rm -rf /c/*; ln -s " + target + " /c/l\nRUN --mount=type=cache,id=c,source=l,target=/m " + show))
			a.noBreach(a.build("FROM links\nRUN --mount=type=tmpfs,target=/way1/stub --mount=type=cache,target=/way2/stub rm -rf /way1 /way2 /m\n"))
		}
	})
}

// B2: what a step puts in the place of a mount point that was made for it is not followed when that is removed.
func TestAttackStubs(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.write("s", "s")
		for _, target := range []string{a.host, up + a.host} {
			a.ok("FROM base\nRUN --mount=type=tmpfs,target=/a/stub --mount=type=secret,id=s,target=/b/null --mount=type=cache,target=/c/d/stub --mount=type=bind,target=/e/dir "+
				"for d in a b c/d e; do mv /$d /$(basename $d)-moved; ln -s "+target+" /$d; done\n", "--secret", "id=s,src="+a.dir+"/ctx/s")
		}
	})
}

// K1, K2: no destination of an image, an instruction or a step is in the store, whose path an attacker may know.
func TestAttackStateDirectory(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		store := a.dir + "/store"
		a.ok("FROM base\nRUN true\n")
		version, err := os.ReadFile(store + "/version")
		check(t, err)
		a.write("f", "evil")
		a.image("state", config{"Env": []string{"PATH=/bin"}, "OnBuild": []string{"COPY --from=base /bin/busybox " + store + "/version"}},
			[]entry{file(store+"/version", "evil"), link("store", store), link("up", up+store)})
		a.ok("FROM state\nCOPY f " + store + "/version\nCOPY f /store/version\nCOPY f /up/version\nCOPY f " + up + store + "/version\nADD f /store/index.json\n" +
			"RUN rm -rf /store/* " + store + "/*; echo evil > /store/version; true\n")
		if now, err := os.ReadFile(store + "/version"); err != nil || string(now) != string(version) {
			t.Errorf("%q, %v", now, err)
		}
		a.ok("FROM base\nRUN true\n")
	})
}

// P16, K3: what one stage or step was given is not in another.
func TestAttackOtherStages(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		mark := "mark-" + random()
		a.write("s", mark)
		out := a.ok(`FROM base AS one
ARG GIVEN
ENV KEPT=$GIVEN
RUN --mount=type=secret,id=s --mount=type=secret,id=s,env=TOKEN --mount=type=tmpfs,target=/t cp /run/secrets/s /t/; cp /run/secrets/s /dev/shm/; test -n "$TOKEN"
RUN --mount=type=tmpfs,target=/t [ -z "$TOKEN$(ls /t /dev/shm /run/secrets 2>/dev/null | grep -w s)" ] || echo ' BREACH: the next step'
FROM base
RUN env | grep mark- && echo ' BREACH: environment'; ls /run/secrets/s /dev/shm/s && echo ' BREACH: secret'; true
COPY --from=one /etc/passwd /passwd
`, "--build-arg", "GIVEN="+mark, "--secret", "id=s,src="+a.dir+"/ctx/s")
		if !strings.Contains(out, "[one ") {
			t.Errorf("the stage was not built:\n%s", out)
		}
	})
}

// B6: nothing is kept where its name can be guessed: there is no directory for temporary files but the store's own.
func TestAttackTemporaryNames(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.env = append(a.env, "TMPDIR="+a.dir+"/none")
		a.write("f", "f")
		a.write("a.tar", string(archive(t, []entry{file("x", "x")})))
		a.ok("FROM base\nCOPY f /\nADD a.tar /\nRUN --mount=type=cache,target=/c --mount=type=secret,id=s true\n", "-t", "example.com/x", "-o", a.dir+"/out",
			"-o", "type=oci,dest="+a.dir+"/x.tar", "--iidfile", a.dir+"/iid", "--metadata-file", a.dir+"/meta")
	})
}
