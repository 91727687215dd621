package build

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"build/internal/store"
	"build/internal/testenv"
)

func (w *world) storeOpts() StoreOptions { return StoreOptions{Root: w.root, Offline: true} }

func (w *world) disk(filters ...string) *DiskUsage {
	w.t.Helper()
	fs, err := ParseFilters(filters)
	must(w.t, err)
	u, err := Disk(w.t.Context(), w.storeOpts(), fs)
	must(w.t, err)
	if len(u.Warnings) > 0 {
		w.t.Errorf("warnings: %v", u.Warnings)
	}
	return u
}

func (w *world) prune(p PruneOptions, filters ...string) *Pruned {
	w.t.Helper()
	var err error
	p.Filters, err = ParseFilters(filters)
	must(w.t, err)
	out, err := Prune(w.t.Context(), w.storeOpts(), p, nil)
	if err != nil || len(out.Warnings) > 0 {
		w.t.Fatalf("%v, %+v", err, out)
	}
	return out
}

// du is what du(1) says of the store. For a user it is asked inside the namespace: outside it cannot look into what steps wrote.
func (w *world) du() int64 {
	w.t.Helper()
	cmd := exec.Command("du", "-s", "--block-size=1", w.root)
	if os.Geteuid() != 0 && testenv.HasRange(w.t) {
		cmd = exec.Command("unshare", append([]string{"--map-auto", "--map-root-user"}, cmd.Args...)...)
	}
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("%v: %v", cmd, err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	must(w.t, err)
	return n
}

// diskDockerfile has a real base, cache mounts, and steps whose files are awkward to look at or remove.
const diskDockerfile = `
	FROM debian AS made
	RUN --mount=type=cache,id=things,target=/c seq 200000 > /c/a && ln /c/a /c/b && mkdir -p -m 0 /c/closed/deep
	RUN mkdir -p /many && for i in $(seq 800); do echo $i > /many/$i; done; chmod 500 /many; truncate -s 64M /sparse
	RUN useradd -m u && install -d -o u -m 700 /home/u/own && dd if=/dev/urandom of=/home/u/own/f bs=1k count=700 && chown -R u /home/u
	FROM made
	COPY f /f
	`

func (w *world) debian(o *Options) {
	o.NamedContexts = append(o.NamedContexts, KeyValue{"debian", "oci-layout://" + testenv.Base(w.t, "debian")})
}

// du agrees with du(1), on a store with a real base, cache mounts and what is left of a killed build; and everything in it has a
// line that says what it is.
func TestDiskUsageAgreesWithDu(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.killed = true
	w.write("f", "f")
	w.ok(from(diskDockerfile), w.debian, tags("app:1"))
	must(t, os.MkdirAll(w.root+"/tmp/dead/x", 0o700))
	must(t, os.WriteFile(w.root+"/tmp/dead/x/f", bytes.Repeat([]byte("x"), 1<<20), 0o600))
	u := w.disk()
	sum, _ := Total(u.Entries)
	want := w.du()
	if diff := sum - want; diff < -want/50 || diff > want/50 {
		t.Errorf("du says %d and du(1) %d", sum, want)
	}
	t.Logf("du says %d and du(1) %d", sum, want)
	for _, words := range [][]string{
		{string(DiskMount), "cache mount things on /c"}, {string(DiskImage), "image app:1"}, {string(DiskLayer), "useradd"},
		{string(DiskLayer), "COPY f /f"}, {string(DiskLayer), "layer of app:1"}, {string(DiskInternal), "temp"},
	} {
		if !slices.ContainsFunc(u.Entries, func(e DiskEntry) bool {
			return string(e.Type) == words[0] && e.Size > 0 && strings.Contains(e.Description+e.ID, words[1])
		}) {
			t.Errorf("no line of type %s says %q", words[0], words[1])
		}
	}
	// The running sum, which nobody walked anything for, is near enough to be a limit.
	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	if a := st.Account(); a.Bytes < want*9/10-2<<20 || a.Bytes > want*11/10 {
		t.Errorf("the running sum is %d of %d", a.Bytes, want)
	}
	mounts := w.disk("type=exec.cachemount")
	if len(mounts.Entries) != 1 || len(w.disk("description=useradd", "type=regular").Entries) != 1 {
		t.Errorf("filters: %+v", mounts.Entries)
	}
}

// A dry run says what then goes; what images need stays, and after prune --all there is nothing that could go.
func TestPrune(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "f")
	res, _ := w.ok(from(diskDockerfile), w.debian, tags("app:1"))
	must(t, Tag(t.Context(), w.storeOpts(), "app:1", "second:1"))

	ids := func(p *Pruned) map[string]int64 {
		m := map[string]int64{}
		for _, e := range p.Entries {
			m[e.ID] = e.Size
		}
		return m
	}
	if p := w.prune(PruneOptions{}, "until=1h"); len(p.Entries) != 0 {
		t.Errorf("used just now, and gone: %+v", p.Entries)
	}
	if p := w.prune(PruneOptions{DryRun: true, Max: 1 << 40}); len(p.Entries) != 0 {
		t.Errorf("below the limit, and gone: %+v", p.Entries)
	}
	dry := w.prune(PruneOptions{DryRun: true}, "type=exec.cachemount")
	before := w.du()
	did := w.prune(PruneOptions{}, "type=exec.cachemount")
	if len(did.Entries) != 1 || !maps.Equal(ids(dry), ids(did)) {
		t.Errorf("the cache mount: %+v, and before %+v", did.Entries, dry.Entries)
	}
	if freed := before - w.du(); freed < did.Reclaimed*98/100 || freed > did.Reclaimed*102/100+32<<10 {
		t.Errorf("reclaimed %d, says du(1), and %d, says prune", freed, did.Reclaimed)
	}

	dry = w.prune(PruneOptions{All: true, DryRun: true})
	did = w.prune(PruneOptions{All: true})
	if !maps.Equal(ids(dry), ids(did)) || dry.Reclaimed != did.Reclaimed {
		t.Errorf("dry run: %v\nthen: %v", ids(dry), ids(did))
	}
	u := w.disk()
	if _, left := Total(u.Entries); left != 0 {
		t.Errorf("%d unused bytes after prune --all: %+v", left, u.Entries)
	}
	rows, err := Images(t.Context(), w.storeOpts())
	must(t, err)
	if len(rows) != 2 || !rows[0].Complete || rows[0].Digest != res.Digest {
		t.Errorf("images: %+v", rows)
	}
	w.sound()
	w.ok(from("FROM app:1\nRUN [ -d /many ] && [ -e /f ]")) // it is all there

	w.prune(PruneOptions{All: true}, "type=image", "description=second")
	if rows, _ = Images(t.Context(), w.storeOpts()); len(rows) != 1 {
		t.Errorf("images: %+v", rows)
	}
	w.prune(PruneOptions{All: true}, "type=image")
	did = w.prune(PruneOptions{All: true})
	if rows, _ = Images(t.Context(), w.storeOpts()); len(rows) != 0 || did.Left > 4<<20 {
		t.Errorf("images: %+v, %d left", rows, did.Left)
	}
}

// waitTrimmed waits until no trimmer works on the store.
func (w *world) waitTrimmed() {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if len(w.trimmers()) == 0 {
			return
		}
	}
	w.t.Fatal("a trimmer does not end")
}

// trimmers are the processes that trim this store.
func (w *world) trimmers() []string {
	var out []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), argTrimmer+"\x00"+w.root+"\x00") {
			out = append(out, f)
		}
	}
	return out
}

// The store stays below its limit over fifty builds that each add to it, without a prune: what was used last and what has a name
// is kept, and nothing of a trimmer is left.
func TestStoreStaysBelowItsLimit(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	const limit = 24 << 20
	limited := func(o *Options) { o.Store.Limit = StoreLimit{Bytes: limit} }
	w.ok(limited, tags("kept:1"), from("FROM base\nRUN echo kept > /kept"))
	var most int64
	for i := range 50 {
		// Each adds about 1.5 MB of which nothing can be compressed: as blob and as directory, and to a cache mount.
		w.ok(limited, from(fmt.Sprintf(`
			FROM base
			RUN --mount=type=cache,target=/c dd if=/dev/urandom of=/d bs=1k count=600; dd if=/dev/urandom of=/c/%d bs=1k count=100
			`, i%20)))
		w.waitTrimmed()
		most = max(most, w.du())
	}
	t.Logf("at most %d of %d bytes", most, limit)
	if most > limit {
		t.Errorf("%d bytes, with a limit of %d", most, limit)
	}
	if most < limit/2 {
		t.Errorf("only %d bytes were ever kept, with a limit of %d", most, limit)
	}
	// The last build is still there, and so is the image with a name.
	_, rec := w.ok(limited, from(`
		FROM base
		RUN --mount=type=cache,target=/c dd if=/dev/urandom of=/d bs=1k count=600; dd if=/dev/urandom of=/c/9 bs=1k count=100
		`))
	wantRan(t, "the last one again", rec)
	w.ok(from("FROM kept:1\nRUN [ -e /kept ]"))
	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	if n := st.LastTrim(); n.Error != "" || n.Time.IsZero() {
		t.Errorf("the last trim: %+v", n)
	}
}

// Builds that run while everything nobody leases is taken away again and again give what they always give.
func TestBuildsDuringCollections(t *testing.T) {
	needIDs(t)
	y := newTally(t)
	w := newParallel(t)
	w.write("src/a", "a", "src/b", strings.Repeat("b", 50000))
	df := killDockerfile(y, "first")
	good := w.start(w.killJob(df)).result(t)
	if good.Code != 0 {
		t.Fatal(good.Text)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := Prune(t.Context(), w.storeOpts(), PruneOptions{All: true}, func(string) {}); err != nil {
				done <- err
				return
			}
		}
	}()
	for round := range 4 {
		var jobs []*worker
		for i := range 3 {
			j := w.killJob(df)
			j.Tag, j.Dest = fmt.Sprintf("app:%d", i), fmt.Sprintf("%s/out%d.tar", w.tmp, i)
			jobs = append(jobs, w.start(j))
		}
		for _, p := range jobs {
			if r := p.result(t); r.Code != 0 || r.Digest != good.Digest {
				t.Errorf("round %d: exit code %d, %s: %s", round, r.Code, r.Digest, r.Text)
			}
		}
	}
	close(stop)
	must(t, <-done)
	w.sound()
}

// A trimmer has nothing of the build that started it: no terminal, no pipe, no directory, a session of its own.
func TestTrimmerIsAlone(t *testing.T) {
	w := newWorld(t)
	w.write("f", "f")
	w.ok(from("FROM scratch\nCOPY f /f"))
	st, err := store.Open(w.root, store.Options{})
	must(t, err)
	// It waits for this lock, so that it can be looked at.
	unlock, ok, err := st.TryLock("collect")
	if err != nil || !ok {
		t.Fatal(err)
	}
	defer unlock()
	must(t, startTrimmer(w.root, 1))
	var dir string
	for end := time.Now().Add(10 * time.Second); dir == "" && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, p := range w.trimmers() {
			if to, err := os.Readlink(filepath.Dir(p) + "/cwd"); err == nil && to == "/" {
				dir = filepath.Dir(p)
			}
		}
	}
	if dir == "" {
		t.Fatal("no trimmer")
	}
	fds, err := os.ReadDir(dir + "/fd")
	must(t, err)
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil || to == "/dev/null" || strings.HasPrefix(to, w.root+"/") || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "/sys/fs/cgroup") || strings.HasPrefix(to, "/proc/") {
			continue
		}
		t.Errorf("it has %s", to)
	}
	pid, err := strconv.Atoi(filepath.Base(dir))
	must(t, err)
	if sid, _, errno := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(pid), 0, 0); errno != 0 || int(sid) != pid {
		t.Errorf("session %d of %d: %v", sid, pid, errno)
	}
	unlock()
	w.waitTrimmed()
}

// Every way of damaging a store that a build made is found, and repaired so that the next build gives what it always gave.
func TestCheckStore(t *testing.T) {
	needIDs(t)
	src := newWorld(t)
	src.write("f", "f")
	df := "FROM base\nRUN echo x > /x\nCOPY f /f"
	one := func(w *world, pattern string) string {
		m, _ := filepath.Glob(w.root + "/" + pattern)
		if len(m) == 0 {
			t.Fatalf("nothing at %s", pattern)
		}
		return m[0]
	}
	for name, damage := range map[string]func(w *world){
		"none": func(*world) {},
		"truncated blob": func(w *world) {
			blob := one(w, "blobs/sha256/*")
			must(t, os.Chmod(blob, 0o600))
			must(t, os.Truncate(blob, 3))
		},
		"truncated index":  func(w *world) { must(t, os.Truncate(one(w, "index/*/*"), 40)) },
		"truncated record": func(w *world) { must(t, os.Truncate(one(w, "record/*/*"), 40)) },
		"changed notes": func(w *world) {
			must(t, os.WriteFile(one(w, "layer/*/*"), []byte("x"), 0o600))
		},
		"unmarked directory": func(w *world) {
			dir := one(w, "local/*/dir/*")
			must(t, os.Remove(dir+"/marker"))
			old := time.Now().Add(-time.Hour)
			must(t, os.Chtimes(dir, old, old))
		},
		"image without blob": func(w *world) {
			must(t, os.RemoveAll(w.root+"/blobs/sha256"))
			must(t, os.Mkdir(w.root+"/blobs/sha256", 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.dir, w.killed = src.dir, true
			res, _ := w.ok(from(df), tags("app:1"), epoch(1))
			damage(w)
			check := func(repair bool) []StoreProblem {
				ps, warnings, err := CheckStore(t.Context(), w.storeOpts(), CheckStoreOptions{Repair: repair}, nil)
				must(t, errors.Join(err))
				if len(warnings) > 0 {
					t.Errorf("warnings: %v", warnings)
				}
				return ps
			}
			if found := check(false); (len(found) == 0) != (name == "none") {
				t.Errorf("found %v", found)
			}
			for _, p := range check(true) {
				if !p.Repaired {
					t.Errorf("not repaired: %+v", p)
				}
			}
			if found := check(false); len(found) != 0 {
				t.Errorf("after the repair: %v", found)
			}
			if again, _ := w.ok(from(df), tags("app:1"), epoch(1)); again.Digest != res.Digest {
				t.Errorf("%s, and before %s", again.Digest, res.Digest)
			}
		})
	}
}

func TestFilters(t *testing.T) {
	e := &DiskEntry{ID: "sha256:0123456789abcdef", Type: DiskMount, Description: "cache mount /root", Used: time.Now().Add(-2 * time.Hour), Shared: true}
	for text, want := range map[string]bool{
		"type=exec.cachemount": true, "type=mount": true, "type!=mount": false, "type==regular": false, "id=0123456789ab": true, "id=sha256:0123456789abcdef": true,
		"id=012": false, "id~=^sha256:01": true, "description=/root": true, "description~=^c.*t$": true, "shared": true, "shared=false": false,
		"private": false, "inuse": false, "inuse!=true": true, "until=1h": true, "until=3h": false, "until=2020-01-01": false, "shared,until=1h": true, "shared,inuse": false,
	} {
		fs, err := ParseFilters([]string{text})
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := fs.match(e, time.Now()); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	for _, text := range []string{"", "x", "x=1", "until", "until=x", "until!=1h", "type=x", "id", "id~=(", "shared=x", "type~=x", "shared~=x", "parents=x"} {
		if _, err := ParseFilters([]string{text}); ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestStoreLimit(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		l     StoreLimit
		least int64
	}{{StoreLimit{}, 0}, {StoreLimit{Bytes: 5}, 5}, {DefaultStoreLimit, 10e9}, {StoreLimit{Bytes: 1 << 60, Percent: 1}, 1 << 60}} {
		if n, err := c.l.in(dir); err != nil || n < c.least || c.l.Percent == 0 && n != c.least {
			t.Errorf("%+v: %d, %v", c.l, n, err)
		}
	}
	now := time.Now()
	for _, c := range []struct {
		a    store.Account
		want bool
	}{
		{store.Account{}, true}, {store.Account{Counted: now, Bytes: 95}, false}, {store.Account{Counted: now, Bytes: 101}, true},
		{store.Account{Counted: now, Bytes: 150, Stuck: 145}, false}, {store.Account{Counted: now, Bytes: 160, Stuck: 145}, true},
		{store.Account{Counted: now.Add(-time.Hour), Bytes: 150, Stuck: 145}, true}, {store.Account{Counted: now.Add(-48 * time.Hour), Bytes: 1}, false},
		{store.Account{Counted: now.Add(-48 * time.Hour), Bytes: 1, Lines: 1}, true},
	} {
		if got := wantsTrim(c.a, 100, now); got != c.want {
			t.Errorf("%+v: %v", c.a, got)
		}
		if wantsTrim(c.a, 0, now) {
			t.Errorf("%+v: trimmed without a limit", c.a)
		}
	}
}
