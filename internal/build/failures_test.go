package build

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/progress"
	"build/internal/testenv"
	"build/internal/userns"
)

// Mistakes in the Dockerfile or the call: exit code 2, where it is, what it is, and nothing left behind.
func TestMistakes(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	w.write("f", "f", "d/x", "x", ".dockerignore", "hidden\n", "hidden", "h")
	set := func(f func(*Options)) mod { return f }
	for name, c := range map[string]struct {
		df    string
		words []string
		mod   mod
	}{
		"unknown instruction": {"FROM base\nRUNN make\n", []string{"Dockerfile:2", ">>> RUNN make", "^", "unknown instruction: RUNN", "RUN"}, nil},
		"unknown flag":        {"FROM base\nCOPY --chwon=1 f /\n", []string{"Dockerfile:2", ">>> COPY --chwon=1", "^", "did you mean", "chown"}, nil},
		"unterminated":        {"FROM base\nRUN <<EOT\necho\n", []string{"Dockerfile:2", "EOT"}, nil},
		"no stage":            {"# nothing\n", []string{"Dockerfile"}, nil},
		"target":              {"FROM base AS builder\n", []string{"buidler", "builder"}, set(func(o *Options) { o.Target = "buidler" })},
		"itself":              {"FROM base AS a\nCOPY --from=a /x /y\n", []string{"Dockerfile:2", "a"}, nil},
		"cycle":               {"FROM base AS a\nCOPY --from=b /x /y\nFROM base AS b\nCOPY --from=a /x /y\n", []string{"Dockerfile:4", "circular"}, nil},
		"missing source":      {"FROM base\n\nCOPY f nothere /d/\n", []string{"Dockerfile:3", ">>> COPY f nothere /d/", "nothere", "not found"}, nil},
		"ignored source":      {"FROM base\nCOPY hidden /\n", []string{"Dockerfile:2", "hidden", "not found"}, nil},
		"outside":             {"FROM base\nCOPY ../../../etc/no-such-file /\n", []string{"Dockerfile:2", "not found"}, nil},
		"missing in a stage":  {"FROM base AS a\nFROM base\nCOPY --from=a /nothere /\n", []string{"Dockerfile:3", "nothere", "not found"}, nil},
		"several to a file":   {"FROM base\nCOPY f d /file\n", []string{"Dockerfile:2", "/"}, nil},
		"unknown owner":       {"FROM base\nCOPY --chown=nobodyatall f /\n", []string{"Dockerfile:2", "nobodyatall"}, nil},
		"missing context":     {"FROM base\n", []string{"/no/such/dir", "not found"}, set(func(o *Options) { o.Context = "/no/such/dir" })},
		"file as context":     {"FROM base\n", []string{"not a directory"}, set(func(o *Options) { o.Context = w.dir + "/f" })},
		"missing Dockerfile":  {"", []string{"Dockerfile", w.dir, "name it with -f"}, set(func(o *Options) { o.Dockerfile = "" })},
		"missing -f":          {"", []string{"Other.Dockerfile"}, set(func(o *Options) { o.Dockerfile = "Other.Dockerfile" })},
		"no output directory": {"FROM base\n", []string{w.tmp + "/no/out.tar", "no such"}, ociTo(w.tmp + "/no/out.tar")},
		"bad name":            {"FROM base\n", []string{"UPPER"}, tags("UPPER:x")},
		"unreachable syntax":  {"FROM base AS lost\nCOPPY x y\nFROM base\n", []string{"Dockerfile:2", "COPPY", "COPY"}, nil},
		"epoch too late":      {"FROM base\n", []string{"SOURCE_DATE_EPOCH", "253402300800", "9999"}, arg("SOURCE_DATE_EPOCH", "253402300800")},
		"epoch too early":     {"ARG SOURCE_DATE_EPOCH=-99999999999\nFROM base\n", []string{"SOURCE_DATE_EPOCH", "9999"}, nil},
		"iidfile":             {"FROM base\n", []string{"--iidfile", w.tmp + "/no/iid"}, set(func(o *Options) { o.IIDFile = w.tmp + "/no/iid" })},
		"no named context":    {"FROM other\n", []string{"--build-context", "nowhere"}, set(func(o *Options) { o.NamedContexts = []KeyValue{{"other", "./nowhere"}} })},
	} {
		t.Run(name, func(t *testing.T) {
			c := c
			sub := *w
			sub.t = t
			mods := []mod{from(c.df), func(o *Options) { o.Tags = []string{"bad:" + "1"} }}
			if c.mod != nil {
				mods = append(mods, c.mod)
			}
			text := sub.fails(ExitUsage, c.words, mods...)
			if n := strings.Count(text, "ERROR:"); n != 1 {
				t.Errorf("%d errors: %s", n, text)
			}
			if images, err := Images(t.Context(), StoreOptions{Root: w.root}); err != nil || len(images) > 0 {
				t.Errorf("named anyway: %v, %v", images, err)
			}
		})
	}
}

// A step that fails gives its own exit code, its last lines and its place.
func TestFailingSteps(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	for name, c := range map[string]struct {
		run   string
		code  int
		words []string
	}{
		"exit":      {"RUN i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; echo last words >&2; exit 42", 42, []string{"line 399\n", "last words\n", "exit code: 42", ">>> RUN"}},
		"not found": {"RUN no-such-command", 127, []string{"exit code: 127", "not found"}},
		"exec form": {`RUN ["/no/such/command"]`, 127, []string{"/no/such/command"}},
		"signal":    {"RUN sh -c 'kill -9 $$'; exit $?", 137, []string{"exit code: 137"}},
		"child":     {"RUN sleep 1000 & exit 3", 3, []string{"exit code: 3"}},
		"user":      {"USER nobodyatall\nRUN true", 126, []string{"nobodyatall"}},
		"mount":     {"RUN --mount=type=cache,target=/bin/sh true", 126, []string{"mount /bin/sh: not a directory"}},
		"kernel's":  {"RUN --mount=type=tmpfs,target=/proc/x true", 126, []string{"mount /proc/x", "/proc and /sys"}},
		"workdir":   {"WORKDIR /w\nRUN cd / && rmdir /w && touch /w\nRUN true", 126, []string{"working directory /w: not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			sub := *w
			sub.t = t
			dest := w.tmp + "/out.tar"
			must(t, os.WriteFile(dest, []byte("before"), 0o600))
			df := "FROM base\nRUN echo fine > /fine\n" + c.run + "\nRUN echo never\n"
			_, rec, err := sub.build(from(df), ociTo(dest))
			text := sub.failed(ExitStep, append(c.words, fmt.Sprintf("Dockerfile:%d", 2+strings.Count(c.run, "\n")+1)), rec, err)
			var step *StepError
			if !errors.As(err, &step) || step.Code != c.code {
				t.Errorf("its own code is not %d: %+v", c.code, step)
			}
			if strings.Contains(text, "line 100\n") {
				t.Errorf("more than the last lines: %s", text)
			}
			if b, _ := os.ReadFile(dest); string(b) != "before" {
				t.Error("the output of before is gone")
			}
			if rec.log("echo never") != "" || slices.Contains(rec.ran(), "RUN echo never") {
				t.Error("what follows ran")
			}
			if m, _ := filepath.Glob(w.tmp + "/.out*"); len(m) > 0 {
				t.Errorf("left: %v", m)
			}
		})
	}
}

// A first process that was killed from outside, as by the kernel for want of memory, is told by number and name.
func TestKilledStepIsTold(t *testing.T) {
	e := &StepError{Args: []string{"make"}, Code: 137, Signal: syscall.SIGKILL.String()}
	if text := e.Error(); !strings.HasSuffix(text, "killed by signal 9 (killed)") {
		t.Errorf("%q", text)
	}
}

// The first failure ends the other steps, and is the one that is told.
func TestFirstFailureEndsTheOthers(t *testing.T) {
	needIDs(t)
	w, y := newWorld(t), newTally(t)
	w.fails(ExitStep, []string{"exit code: 9", "Dockerfile:2"}, from(fmt.Sprintf(`
		FROM base AS bad
		RUN %s; exit 9
		FROM base AS slow
		RUN %s
		FROM base AS slower
		RUN %s
		FROM base
		COPY --from=slow /etc/passwd /a
		COPY --from=slower /etc/passwd /b
		COPY --from=bad /etc/passwd /c
	`, y.get("meet/1/bad"), y.get("hang/1"), y.get("hang/2"))))
}

// A file that changes between its hashing and its copying: once starts the build over, again and again ends it, named.
func TestFileChangesWhileRead(t *testing.T) {
	for _, always := range []bool{false, true} {
		t.Run(fmt.Sprint("always=", always), func(t *testing.T) {
			w := newWorld(t)
			w.write("f", "0", "other", "o")
			rec := newRecorder()
			n := 0
			rec.watch = func(e progress.Event) { // the step has its key and is about to be carried out
				if s, ok := e.(progress.Started); ok && strings.HasSuffix(s.Name, "COPY f other /d/") && (always || n == 0) {
					n++
					must(t, os.WriteFile(w.dir+"/f", []byte(fmt.Sprint("changed ", n)), 0o644))
				}
			}
			dest := w.tmp + "/out"
			_, err := Run(t.Context(), w.options(rec, from("FROM base\nCOPY f other /d/\n"), output(Output{Type: OutputLocal, Dest: dest})))
			if always {
				w.failed(ExitUsage, []string{"f", "changed while", "Dockerfile:2"}, rec, err)
				w.sound()
				return
			}
			must(t, err)
			if b, _ := os.ReadFile(dest + "/d/f"); string(b) != "changed 1" {
				t.Errorf("the image has %q", b)
			}
			if !slices.ContainsFunc(rec.warnings, func(s string) bool { return strings.Contains(s, "f changed while") }) {
				t.Errorf("warnings: %q", rec.warnings)
			}
			// What was hashed first is nobody's: with that content the step runs and gives it.
			w.write("f", "0")
			w.ok(from("FROM base\nCOPY f other /d/\n"), output(Output{Type: OutputLocal, Dest: dest}))
			if b, _ := os.ReadFile(dest + "/d/f"); string(b) != "0" {
				t.Errorf("the cache gave %q", b)
			}
		})
	}
}

// Outputs that cannot be written: said with the path, and the store is as good as before.
func TestOutputNotWritable(t *testing.T) {
	w := newWorld(t)
	w.write("f", strings.Repeat("x", 100<<10))
	df := from("FROM base\nCOPY f /\n")
	w.fails(ExitEnvironment, []string{"/dev/full", "no space left"}, df, ociTo("/dev/full"))
	must(t, os.Mkdir(w.tmp+"/isdir", 0o755))
	w.fails(ExitUsage, []string{w.tmp + "/isdir", "directory"}, df, ociTo(w.tmp+"/isdir"))
	w.fails(ExitUsage, []string{w.dir + "/f/out.tar"}, df, ociTo(w.dir+"/f/out.tar"))
	w.fails(ExitUsage, []string{w.dir + "/f"}, df, output(Output{Type: OutputLocal, Dest: w.dir + "/f"}))
	if os.Geteuid() != 0 {
		locked := w.tmp + "/locked"
		must(t, os.Mkdir(locked, 0o555))
		w.fails(ExitUsage, []string{locked, "permission denied"}, df, ociTo(locked+"/out.tar"))
		w.fails(ExitUsage, []string{locked, "permission denied"}, df, output(Output{Type: OutputLocal, Dest: locked}))
		w.fails(ExitUsage, []string{locked, "permission denied"}, df, output(Output{Type: OutputOCI, Dest: locked + "/new/dir"}))
		w.fails(ExitUsage, []string{"--iidfile", locked, "permission denied"}, df, func(o *Options) { o.IIDFile = locked + "/iid" })
		must(t, os.Mkdir(w.dir+"/unreadable", 0))
		w.fails(ExitEnvironment, []string{"unreadable", "permission denied"}, func(o *Options) { o.Context = w.dir + "/unreadable" })
	}
	if os.Geteuid() == 0 { // who may write everywhere, but not there
		w.fails(ExitEnvironment, []string{"/proc/bin"}, df, output(Output{Type: OutputLocal, Dest: "/proc"}))
	}
	full := func(o *Options) { o.IIDFile = "/dev/full" }
	w.fails(ExitEnvironment, []string{"--iidfile", "no space left"}, df, full)
	same := w.tmp + "/same.tar"
	twice := output(Output{Type: OutputTar, Dest: w.tmp + "/./same.tar"})
	w.fails(ExitUsage, []string{"same.tar", "two things"}, df, twice, ociTo(same))
	w.fails(ExitUsage, []string{"same.tar", "two things"}, df, twice, func(o *Options) { o.MetadataFile = same })
	w.ok(df, output(Output{Type: OutputTar, Dest: os.DevNull}), ociTo(os.DevNull))
	w.ok(df, ociTo(w.tmp+"/out.tar"))
	readArchive(t, w.tmp+"/out.tar")
}

// A destination that is a link stays one, and a new file has the mode that the umask leaves.
func TestOutputThroughALink(t *testing.T) {
	w := newWorld(t)
	df := from("FROM base\n")
	must(t, os.Symlink("real.tar", w.tmp+"/link.tar"))
	must(t, os.WriteFile(w.tmp+"/real.tar", nil, 0o644))
	old := syscall.Umask(0o077)
	_, _, err := w.build(df, ociTo(w.tmp+"/link.tar"))
	syscall.Umask(old)
	must(t, err)
	readArchive(t, w.tmp+"/link.tar")
	fi, err := os.Lstat(w.tmp + "/real.tar")
	must(t, err)
	if fi.Mode() != 0o600 || fi.Size() == 0 {
		t.Errorf("the file has mode %v and %d bytes", fi.Mode(), fi.Size())
	}
	if _, err := os.Readlink(w.tmp + "/link.tar"); err != nil {
		t.Error(err)
	}
}

// A script that looks for the ID after a failure does not find that of an earlier build.
func TestOldIDIsRemoved(t *testing.T) {
	w := newWorld(t)
	id := w.tmp + "/iid"
	must(t, os.WriteFile(id, []byte("sha256:old"), 0o644))
	w.fails(ExitUsage, []string{"nothere"}, from("FROM base\nCOPY nothere /\n"), func(o *Options) { o.IIDFile = id })
	if b, err := os.ReadFile(id); err == nil {
		t.Errorf("it is still %q", b)
	}
}

func TestUnreadableFile(t *testing.T) {
	w := newWorld(t)
	w.write("ok", "ok", "secret", "s", "dir/x", "x")
	must(t, os.Chmod(w.dir+"/secret", 0))
	must(t, os.Chmod(w.dir+"/dir", 0))
	for path, df := range map[string]string{"secret": "FROM base\nCOPY secret /\n", "dir": "FROM base\nCOPY ok dir /d/\n", "": "FROM base\nCOPY . /d/\n"} {
		words := []string{"Dockerfile:2", path, "permission denied"}
		if os.Geteuid() != 0 {
			w.fails(ExitUsage, words, from(df))
			continue
		}
		// Root reads everything, so somebody else builds.
		r := w.startAs(testenv.UserWithoutRange, w.job(df)).result(t)
		if r.Code != ExitUsage {
			t.Errorf("exit code %d: %s", r.Code, r.Text)
		}
		for _, word := range words {
			if !strings.Contains(r.Text, word) {
				t.Errorf("%q is missing in: %s", word, r.Text)
			}
		}
	}
	if os.Geteuid() == 0 {
		must(t, os.RemoveAll(w.root)) // somebody else's, now
	}
	must(t, os.Chmod(w.dir+"/dir", 0o755))
}

// startAs starts a worker as another user, to whom store and context are given.
func (w *world) startAs(user string, j job) *worker {
	w.t.Helper()
	cred, _ := testenv.Credential(w.t, user)
	must(w.t, filepath.WalkDir(w.tmp, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, int(cred.Uid), int(cred.Gid))
		}
		return err
	}))
	return w.startWith(j, func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		c.Dir = "/"
	})
}

// Where the namespaces that were asked for cannot be made, RUN is refused before anything is done, with the reason and the remedy;
// the rest builds.
func TestNoNamespaces(t *testing.T) {
	testenv.Root(t)
	w := newWorld(t)
	w.write("f", "f")
	run := w.job("FROM base\nRUN true\n")
	run.Isolation.IDs = userns.IDsRange
	r := w.startAs(testenv.UserWithoutRange, run).result(t)
	if r.Code != ExitEnvironment {
		t.Errorf("exit code %d: %s", r.Code, r.Text)
	}
	for _, word := range []string{"Dockerfile:2", "subordinate ids", "/etc/subuid", testenv.UserWithoutRange, "usermod --add-subuids"} {
		if !strings.Contains(r.Text, word) {
			t.Errorf("%q is missing in: %s", word, r.Text)
		}
	}
	if r := w.startAs(testenv.UserWithoutRange, w.job("FROM base\nCOPY f /\n")).result(t); r.Code != 0 || r.Ran != 1 {
		t.Errorf("without RUN: %+v", r)
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	must(t, os.RemoveAll(w.root)) // somebody else's
}

// A disk that fills up at any moment ends the build with exit code 6 and leaves what was complete, and nothing else.
func TestDiskFull(t *testing.T) {
	testenv.Root(t)
	w := newWorld(t)
	must(t, os.Mkdir(w.root, 0o700))
	if err := unix.Mount("tmpfs", w.root, "tmpfs", 0, "mode=0700,size=1m"); err != nil {
		testenv.Skip(t, "the right to mount a tmpfs ("+err.Error()+")")
	}
	t.Cleanup(func() {
		w.sound()
		must(t, unix.Unmount(w.root, unix.MNT_DETACH))
	})
	resize := func(size string) {
		t.Helper()
		must(t, unix.Mount("tmpfs", w.root, "tmpfs", unix.MS_REMOUNT, "mode=0700,size="+size))
	}
	w.write("small", "small")
	big := make([]byte, 6<<20) // which no compression makes fit
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	must(t, os.WriteFile(w.dir+"/big", big, 0o644))
	full := func(what, df string, words ...string) {
		t.Helper()
		_, rec, err := w.build(from(df), tags("full:1"))
		w.fullDisk(what, append(words, "no space left"), rec, err)
	}
	full("the base", "FROM base\nRUN true\n", "Dockerfile")
	resize("8m")
	w.ok(from("FROM base\nRUN true\n"))
	full("a file of the context", "FROM base\nCOPY big /\n", "Dockerfile:2")
	full("the layer of a RUN", "FROM base\nRUN yes | head -c 3500000 > /x\n", "Dockerfile:2")
	w.fails(ExitStep, []string{"exit code: 5", "Dockerfile:2", "the file system of the store, " + w.root + ", is full ("}, from("FROM base\nRUN head -c 7000000 /dev/zero > /x || exit 5\n"))
	w.sound()
	if images, err := Images(t.Context(), StoreOptions{Root: w.root}); err != nil || len(images) > 0 {
		t.Errorf("named anyway: %v, %v", images, err)
	}
	// Nothing of the failures is in the way.
	w.ok(from("FROM base\nRUN true\nCOPY small /\nRUN cat /small\n"), tags("fits:1"))
	resize("64m")
	w.ok(from("FROM base\nCOPY big /\nRUN cat /big > /copy\n"), tags("full:1"))
}

func (w *world) fullDisk(what string, words []string, rec *recorder, err error) {
	w.t.Helper()
	if err == nil {
		w.t.Errorf("%s: there was room for it", what)
		return
	}
	w.failed(ExitEnvironment, words, rec, err)
	for _, l := range w.leftovers() {
		if !strings.Contains(l, w.root+" ") { // the mount is the test's
			w.t.Errorf("%s: left %s", what, l)
		}
	}
}

// A name that is no stage's is an image's. When that cannot be had and a stage is called nearly so, the message says which.
func TestMisspeltStage(t *testing.T) {
	w := newWorld(t)
	for _, use := range []string{"COPY --from=biuld /f /", "RUN --mount=from=biuld,target=/m true", "FROM biuld"} {
		w.fails(5, []string{"Dockerfile:4:", "did you mean the stage build?"}, from("FROM base AS build\nFROM base AS x\nFROM base\n"+use+"\n"))
	}
	if msg := w.fails(5, nil, from("FROM base AS a\nFROM base\nCOPY --from=b /f /\n")); strings.Contains(msg, "did you mean") {
		t.Errorf("short names are near to all others: %s", msg)
	}
}
