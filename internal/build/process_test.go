package build

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"build/internal/testenv"
)

// Twelve processes build the same and overlapping Dockerfiles on one store at once: each step runs once in total, and all
// that built the same get the same.
func TestTwelveProcesses(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	for i := range 40 {
		w.write(fmt.Sprintf("src/f%02d", i), strings.Repeat(fmt.Sprint(i), 1000))
	}
	// Four kinds of builds: all share "common" and "mid", two each share "pair", each kind has a last step of its own. The
	// steps give something else each time, so a second run of any would show in the digests, too.
	df := func(kind int) string {
		return fmt.Sprintf(`FROM base AS common
COPY src /src
RUN %s; cat /proc/sys/kernel/random/uuid > /common
FROM base AS side
RUN %s; cat /proc/sys/kernel/random/uuid > /side
FROM common AS mid
RUN %s; sleep 0.2; cat /common > /mid
FROM mid
COPY --from=side /side /side
RUN %s; cat /proc/sys/kernel/random/uuid > /pair
WORKDIR /k%d
RUN %s; cat /common /side /pair > all
`, y.get("common"), y.get("side"), y.get("mid"), y.get(fmt.Sprint("pair", kind/2)), kind, y.get(fmt.Sprint("last", kind)))
	}
	var workers []*worker
	for i := range 12 {
		j := w.job(df(i % 4))
		j.Epoch, j.Tag = 1700000000, fmt.Sprintf("app:%d", i)
		j.Dest = fmt.Sprintf("%s/out%d.tar", w.tmp, i)
		workers = append(workers, w.start(j))
	}
	digests := map[int]string{}
	ran := 0
	for i, p := range workers {
		r := p.result(t)
		if r.Code != 0 {
			t.Errorf("worker %d: exit code %d: %s", i, r.Code, r.Text)
			continue
		}
		ran += r.Ran
		if d, ok := digests[i%4]; ok && d != r.Digest {
			t.Errorf("worker %d got %s, another one of its kind %s", i, r.Digest, d)
		}
		digests[i%4] = r.Digest
		if a := readArchive(t, fmt.Sprintf("%s/out%d.tar", w.tmp, i)); a.digest.String() != r.Digest {
			t.Errorf("worker %d wrote %s and says %s", i, a.digest, r.Digest)
		}
	}
	if len(digests) != 4 || digests[0] == digests[1] {
		t.Errorf("digests: %v", digests)
	}
	want := map[string]int{"/common": 1, "/side": 1, "/mid": 1, "/pair0": 1, "/pair1": 1}
	for i := range 4 {
		want[fmt.Sprint("/last", i)] = 1
	}
	y.want(t, "twelve processes", want)
	// RUN common, side, mid, 2 pairs, 4 lasts; COPY src, 1 COPY --from, 4 WORKDIR.
	if ran != 15 {
		t.Errorf("%d steps were carried out in all, want 15", ran)
	}
	if names, err := Images(t.Context(), StoreOptions{Root: w.root}); err != nil || len(names) != 12 {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// killDockerfile has every kind of step.
func killDockerfile(y *tally, hang string) string {
	return fmt.Sprintf(`FROM base AS a
COPY src /src
RUN %s; mkdir -p /d/e && seq 20000 > /d/e/f
WORKDIR /w
FROM base
COPY --from=a /d /d
RUN %s; cat /d/e/f > /g; ln /g /h
LABEL k=v
`, y.get(hang), y.get("second"))
}

// killPoints are the places of publishing at which a build can die: its own process, and the holder.
var killPoints = []string{
	"front create.dirs 1", "front lease.taken 1", "front lease.added 1", "front blob.temp 1", "front blob.marked 1", "front blob.published 1",
	"front blob.published 3", "front index.written 1", "front index.published 1", "front layer.written 1", "front layer.published 1",
	"front record.written 1", "front record.published 1", "front record.published 2", "front record.published 4", "front name.written 1",
	"front name.published 1", "front index.json.written 1", "front index.json.published 1",
	"holder lease.added 1", "holder index.written 1", "holder dir.filled 1", "holder dir.published 1", "holder blob.marked 1",
	"holder blob.published 1", "holder layer.published 1", "holder dir.published 2",
}

// The front process or its holder dies at a named point. Nothing in the store lies then, nothing of the step is left, and
// the next build gives what it always gives.
func TestKilledAtEveryPoint(t *testing.T) {
	needIDs(t)
	y := newTally(t)
	src := newWorld(t)
	src.write("src/a", "a", "src/b", strings.Repeat("b", 3<<19)) // enough to be written before its key is known
	df := killDockerfile(y, "first")
	good := src.start(src.killJob(df)).result(t)
	if good.Code != 0 {
		t.Fatal(good.Text)
	}
	for _, point := range killPoints {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			w := newParallel(t)
			w.dir = src.dir
			w.killed = true
			must(t, os.WriteFile(killFile(w.root), []byte(point), 0o600))
			p := w.start(w.killJob(df))
			if strings.HasPrefix(point, "front") {
				if !p.killed() {
					t.Fatalf("it was not killed: %s%s", &p.out, &p.err)
				}
			} else if r := p.result(t); r.Code != ExitInternal && r.Code != ExitEnvironment {
				t.Errorf("the holder died and the exit code is %d: %s", r.Code, r.Text)
			} else if !strings.Contains(r.Text, "holder") || !strings.Contains(r.Text, "Dockerfile:") {
				t.Errorf("not clear: %s", r.Text)
			}
			if _, err := os.Stat(killFile(w.root) + "ed"); err != nil {
				t.Fatal("the point was never reached")
			}
			must(t, os.Remove(killFile(w.root)))
			w.processesGone()
			w.sound()
			w.again(df, good)
		})
	}
}

func (w *world) killJob(df string) job {
	j := w.job(df)
	j.Epoch, j.Tag, j.Dest = 1700000000, "app:1", w.tmp+"/out.tar"
	return j
}

// again builds after a kill: the result is right, and a second time nothing runs. What the dead left is swept by and by.
func (w *world) again(df string, good jobResult) {
	w.t.Helper()
	r := w.start(w.killJob(df)).result(w.t)
	if r.Code != 0 || r.Digest != good.Digest {
		w.t.Errorf("after the kill: exit code %d, digest %s, want %s: %s", r.Code, r.Digest, good.Digest, r.Text)
	}
	if a := readArchive(w.t, w.tmp+"/out.tar"); a.digest.String() != good.Digest {
		w.t.Errorf("the archive is %s", a.digest)
	}
	r = w.start(w.killJob(df)).result(w.t)
	if r.Code != 0 || r.Ran != 0 || r.Digest != good.Digest {
		w.t.Errorf("once more: exit code %d, %d ran: %s", r.Code, r.Ran, r.Text)
	}
}

// swept waits until later builds have taken away what the dead left.
func (w *world) swept() {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); len(w.leftovers()) > 0 && time.Now().Before(end); {
		w.ok(from(fmt.Sprintf("FROM base\nRUN sleep 0.2 # %d\n", rand.Int())))
	}
	w.nothingLeft()
}

// processesGone waits until no process has this store open any more.
func (w *world) processesGone() {
	w.t.Helper()
	var left []string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left = nil
		fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, w.root+"/") {
				left = append(left, fd+" → "+to)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	w.t.Errorf("still there: %v", left)
}

// The front process is killed at random moments, again and again on the same store, until eight of the kills have come
// before the end of their build. A build that was quicker leaves nothing to do for the next one: that one gets a store of
// its own, and less time.
func TestKilledAtRandomTimes(t *testing.T) {
	needIDs(t)
	y := newTally(t)
	src := newParallel(t)
	src.write("src/a", "a", "src/b", strings.Repeat("b", 50000))
	df := killDockerfile(y, "first")
	began := time.Now()
	good := src.start(src.killJob(df)).result(t)
	span := time.Since(began)
	if good.Code != 0 {
		t.Fatal(good.Text)
	}
	store := func() *world {
		w := newWorld(t)
		w.dir, w.parallel = src.dir, true
		return w
	}
	w := store()
	for killed := 0; killed < 8; {
		p := w.start(w.killJob(df))
		time.Sleep(rand.N(span))
		_ = p.Process.Signal(syscall.SIGKILL)
		hit := p.killed()
		w.processesGone()
		w.sound()
		if hit {
			killed++
			continue
		}
		w.again(df, good)
		w.swept()
		w, span = store(), max(span*3/4, time.Millisecond)
	}
	w.again(df, good)
	w.swept()
}

// kill -9 of the front process in the middle of a RUN takes the step with it, and the next build is right.
func TestKilledInARun(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.write("src/a", "a")
	j := w.killJob(killDockerfile(y, "hang/first"))
	p := w.start(j)
	waitFor(t, "the step", y.saw("/hang/first"))
	must(t, p.Process.Kill())
	p.killed()
	w.processesGone()
	w.sound()
	close(y.free)
	r := w.start(j).result(t)
	if r.Code != 0 {
		t.Fatal(r.Text)
	}
	o := newWorld(t)
	o.dir = w.dir
	if other := o.start(o.killJob(j.Dockerfile)).result(t); other.Digest != r.Digest {
		t.Errorf("%s after a kill, %s without", r.Digest, other.Digest)
	}
	w.swept()
}

// The holder is killed in the middle of a RUN: a clear error with its place, no hang, and the next build is right.
func TestHolderKilledInARun(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	go func() {
		<-y.saw("/hang/x")
		for _, c := range children() {
			var pid int
			if _, err := fmt.Sscanf(c, "process %d", &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	df := from("FROM base\nRUN " + y.get("hang/x") + "\n")
	_, rec, err := w.build(df)
	if err == nil {
		t.Fatal("the build succeeded")
	}
	w.sound()
	w.openVertices(rec)
	var text strings.Builder
	Explain(&text, err)
	for _, word := range []string{"Dockerfile:2", "holder", "killed"} {
		if !strings.Contains(text.String(), word) {
			t.Errorf("%q is missing in: %s", word, &text)
		}
	}
	if code := ExitCode(err); code != ExitEnvironment {
		t.Errorf("exit code %d", code)
	}
	close(y.free)
	w.ok(df)
	w.swept()
}

// The same inputs give the same digest on two empty stores, as root and as an ordinary user.
func TestSameDigestEverywhere(t *testing.T) {
	needIDs(t)
	w := newParallel(t)
	w.write("f", "f", "d/x", "x", "script.sh", "#!/bin/sh\n")
	must(t, os.Chmod(w.dir+"/script.sh", 0o755))
	must(t, os.Symlink("x", w.dir+"/d/link"))
	df := `FROM base AS a
WORKDIR /w/x
COPY --chown=7:8 f d/ ./
RUN mkdir -p /made/sub && echo 1 > /made/sub/f && chown -R 1000:1000 /made && chmod 2755 /made/sub && ln -s f /made/sub/l && ln /made/sub/f /made/g && mkfifo /made/p
RUN rm -r /bin/vi /home && adduser -D -H u 2>/dev/null || echo u:x:1000:1000::/:/bin/sh >> /etc/passwd
USER 1000
RUN touch /tmp/mine && rm -f /made/sub/l
USER 0
FROM a
COPY --from=a --chown=daemon /made /copy
COPY script.sh /usr/local/bin/
RUN script.sh; date > /dev/null
`
	first := w.start(w.killJob(df)).result(t)
	if first.Code != 0 {
		t.Fatal(first.Text)
	}
	time.Sleep(1100 * time.Millisecond)
	o := newWorld(t) // another context directory, with other inodes and times
	must(t, os.RemoveAll(o.dir))
	must(t, os.CopyFS(o.dir, os.DirFS(w.dir)))
	if second := o.start(o.killJob(df)).result(t); second.Digest != first.Digest {
		t.Errorf("%s on one store, %s on another", first.Digest, second.Digest)
	}
	if os.Geteuid() != 0 {
		return
	}
	u := newWorld(t)
	must(t, os.RemoveAll(u.dir))
	must(t, os.CopyFS(u.dir, os.DirFS(w.dir)))
	p := u.startAs(testenv.UserWithRange, u.killJob(df))
	r := p.result(t)
	if r.Code != 0 {
		t.Fatal(r.Text)
	}
	if r.Digest != first.Digest {
		t.Errorf("%s as root, %s as a user", first.Digest, r.Digest)
		diffArchives(t, w.tmp+"/out.tar", u.tmp+"/out.tar")
	}
	u.processesGone()
	must(t, os.RemoveAll(u.root)) // somebody else's
}

// How builds of several processes share a cache mount.
func TestCacheSharing(t *testing.T) {
	needIDs(t)
	for sharing, script := range map[string]string{
		"shared": `touch /c/$N; until [ -e /c/$(( 3 - N )) ]; do sleep 0.02; done`,
		"private": `touch /m/$N; until [ -e /m/$(( 3 - N )) ]; do sleep 0.02; done; [ -z "$(ls /c)" ] || exit 1; ` +
			`touch /c/$N /m/done$N; until [ -e /m/done$(( 3 - N )) ]; do sleep 0.02; done; [ "$(ls /c)" = $N ]`,
	} {
		t.Run(sharing, func(t *testing.T) {
			w := newParallel(t)
			one, two := w.start(w.sharing(sharing, "1", script)), w.start(w.sharing(sharing, "2", script))
			for _, b := range []*worker{one, two} {
				if r := b.result(t); r.Code != 0 {
					t.Error(r.Text)
				}
			}
		})
	}
	t.Run("locked", func(t *testing.T) {
		w := newParallel(t)
		const script = `[ ! -e /c/inside ] && touch /c/inside /m/$N && until [ -e /m/go ]; do sleep 0.02; done; rm /c/inside`
		one := w.start(w.sharing("locked", "1", script))
		w.ok(from("FROM base\nRUN --mount=type=cache,target=/m until [ -e /m/1 ]; do sleep 0.02; done\n"))
		j := w.sharing("locked", "2", script)
		two := w.start(j)
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if log, _ := os.ReadFile(j.Plain); bytes.Contains(log, []byte("waiting for the cache mount on /c, which is locked by ")) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the second build does not say that it waits")
			}
		}
		w.ok(from("FROM base\nRUN --mount=type=cache,target=/m [ ! -e /m/2 ] && touch /m/go\n"))
		for _, b := range []*worker{one, two} {
			if r := b.result(t); r.Code != 0 {
				t.Error(r.Text)
			}
		}
	})
}

// sharing is a build with a step that has a cache mount of that sharing at /c, and one that all builds share at /m.
func (w *world) sharing(sharing, n, script string) job {
	j := w.job("FROM base\nARG N\nRUN --mount=type=cache,target=/c,sharing=" + sharing + " --mount=type=cache,target=/m " + script + "\n")
	j.Args, j.None, j.Plain = map[string]string{"N": n}, true, w.tmp+"/log"+n
	return j
}
