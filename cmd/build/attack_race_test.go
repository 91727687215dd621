package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// flip exchanges two paths until the file stop exists, or some seconds have passed: an attacker's side of a race. A path may be
// gone for a moment, where the build replaces what is there; one that never exchanged anything attacked nothing, which is an error.
func flip(a, b, stop string) error {
	flips := 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); {
		for range 200 {
			err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			if err == nil {
				flips++
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if _, err := os.Stat(stop); err == nil {
			break
		}
	}
	if flips == 0 {
		return fmt.Errorf("%s and %s were never exchanged", a, b)
	}
	return nil
}

// racing flips two paths of the host while f runs.
func racing(t *testing.T, a, b string, f func()) {
	t.Helper()
	var wg sync.WaitGroup
	stop := a + ".stop"
	wg.Go(func() {
		if err := flip(a, b, stop); err != nil {
			t.Error(err)
		}
	})
	f()
	check(t, os.WriteFile(stop, nil, 0o644))
	wg.Wait()
	check(t, os.Remove(stop))
}

// victims is how many steps of a build meet a race, and races how many builds.
const victims, races = 8, 2

// race is a Dockerfile of one stage that exchanges /c/sub, a directory, with a link to the host in a shared cache mount, and of
// stages that run meanwhile with the mount given, in which %d is a number.
func (a *arena) race(mount, command string) string {
	var d strings.Builder
	// The place the link leads to exists inside the cache, too, so that who resolves it there finds something.
	fmt.Fprintf(&d, `FROM base AS b
COPY sys /
RUN --mount=type=cache,id=shared,target=/c rm -rf /c/* && mkdir -p /c%[1]s /c/sub && ln -s %[2]s%[1]s /c/link && touch /c%[1]s/inside /c/sub/plain
FROM b AS flipper
RUN --mount=type=cache,id=shared,target=/c attacker flip /c/sub /c/link /c/stop
`, a.host, up)
	for i := range victims {
		fmt.Fprintf(&d, "FROM b AS v%d\nRUN --mount=type=cache,id=shared,target=/c --mount=%s %s; touch /c/done%d; [ $(ls -d /c/done* | wc -l) -lt %d ] || touch /c/stop; touch /ok\n",
			i, strings.ReplaceAll(mount, "%d", fmt.Sprint(i)), command, i, victims)
	}
	d.WriteString("FROM b\nCOPY --from=flipper /bin/attacker /\n")
	for i := range victims {
		fmt.Fprintf(&d, "COPY --from=v%d /ok /ok%d\n", i, i)
	}
	return d.String()
}

// B1, P5, C5, C6: two steps of one build, one of which exchanges what the other's mount is made from, or made on.
func TestAttackRaceOfMounts(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.bringAttacker()
		for range races {
			a.ok(a.race("type=cache,id=shared,target=/v,source=sub", "[ -e /v/inside ] || [ -e /v/plain ] || echo ' BREACH: nothing of the cache'; "+
				"[ -e /v/secret ] && echo ' BREACH: the host'; true"), "--no-cache")
			// Where a mount is made on the exchanged directory, its place may be gone in between, which fails the step.
			a.noBreach(a.build(a.race("type=tmpfs,target=/c/sub/made%d", "[ -e /c/sub/secret ] && echo ' BREACH: the host'; true"), "--no-cache"))
			a.noBreach(a.build(a.race("type=secret,id=s,target=/c/sub/stub", "true"), "--no-cache", "--secret", "id=s,env=PATH"))
		}
	})
}

// M1: COPY from a stage that left a process behind which exchanges the source with a link.
func TestAttackRaceOfCopy(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.bringAttacker()
		for range races {
			a.noBreach(a.build("FROM base AS s\nCOPY sys /\nRUN mkdir /d && touch /d/secret && ln -s "+up+a.host+" /link && (setsid attacker flip /d /link /stop >/dev/null 2>&1 &) && sleep 0.05\n"+
				"FROM base\nCOPY --from=s /d /x\nRUN grep -r "+a.pattern()+" /x && echo ' BREACH'; true\n", "--no-cache", "-o", a.dir+"/out"))
			a.holdsNoToken(a.dir + "/out")
		}
	})
}

// P9, P8, M1: a context and a directory of output in which somebody exchanges directories with links while the build runs.
func TestAttackRaceOfDirectories(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		a.image("full", nil, []entry{directory("d"), file("d/secret", "x"), file("d/null", "x"), file("d/dir", "x"), directory("d/stub")})
		ctx, out, link := a.dir+"/ctx", a.dir+"/o", a.dir+"/link"
		check(t, os.Symlink(a.host, link))
		a.write("d/secret", "plain")
		a.write("d/dir/file", "plain")
		racing(t, ctx+"/d", link, func() {
			// One instruction in each build: half of them fail because the link is what they find.
			for i := range 16 {
				a.build("FROM scratch\n"+[]string{"COPY d /x", "ADD d/secret /y", "COPY d/* /z/", "COPY . /"}[i%4]+"\n", "-o", a.dir+"/out")
			}
			for range races {
				a.noBreach(a.build("FROM base\nRUN --mount=type=bind,target=/m grep -r "+a.pattern()+" /m && echo ' BREACH'; true\n", "--no-cache"))
			}
			a.holdsNoToken(a.dir + "/out")
		})
		for _, name := range []string{".dockerignore", "Dockerfile"} {
			a.write(name, map[string]string{".dockerignore": "nothing", "Dockerfile": "FROM base\nCOPY d /x\n"}[name])
			check(t, os.Symlink(a.host+"/"+name, a.dir+"/"+name+".link"))
			racing(t, ctx+"/"+name, a.dir+"/"+name+".link", func() {
				for range races {
					a.build("FROM base\nCOPY d /x\n")
					a.run(a.args(ctx)...)
					a.run(a.args("-f", ctx+"/Dockerfile", ctx)...)
				}
			})
			check(t, os.RemoveAll(ctx+"/"+name))
		}
		check(t, os.MkdirAll(out+"/d", 0o755))
		racing(t, out+"/d", link, func() {
			for range races {
				a.build("FROM full\n", "-o", out)
			}
		})
	})
}
