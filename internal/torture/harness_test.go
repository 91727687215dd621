package torture

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/cache"
	"build/internal/store"
	"build/internal/testenv"
	"build/snapshot"
)

var (
	program = flag.String("torture.bin", "", "the `program` under test; empty: made of this module's cmd/build")
	kills   = flag.Int("torture.kills", 25, "how many processes TestKills kills")
	crashes = flag.Int("torture.crashes", 6, "at how many instants TestPowerLoss cuts the power")
	pages   = flag.Int("torture.pages", 10, "with how many amounts of room TestDiskFull builds; below 16, only two kinds of build")
	each    = flag.Int("torture.each", 0, "how many files of a kind TestDamage damages in each way; 0: one, in two ways chosen by the seed")
	machine = flag.Bool("torture.machine", false, "whether TestPowerLossMachine boots a virtual machine")
	seed    = flag.Uint64("torture.seed", 0, "what chooses the instants; 0: the time")
)

// stuck is after what time a build counts as one that never ends. The longest takes seconds.
const stuck = 3 * time.Minute

var buildProgram = sync.OnceValues(func() (string, error) {
	if *program != "" {
		return *program, nil
	}
	dir, err := os.MkdirTemp("", "build-torture-bin-")
	if err != nil {
		return "", err
	}
	made = dir
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+"/build", "build/cmd/build")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir + "/build", nil
})

var made string // the directory of the program that was made

// apartVar is in the environment of a process that has its mounts to itself.
const apartVar = "BUILD_TORTURE_APART"

// apart starts this process over in a mount namespace of its own. Otherwise everybody who makes one meanwhile, such as any other build
// of the machine, would have a disk mounted for as long as he lives that a test unmounts; and a test that is killed would leave its own.
func apart() error {
	if os.Geteuid() != 0 || os.Getenv(apartVar) != "" {
		return nil
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from the others: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), apartVar+"=1"))
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := apart(); err != nil {
		fmt.Fprintln(os.Stderr, "tests that mount will say what is missing:", err)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	code := m.Run()
	if made != "" {
		_ = os.RemoveAll(made)
	}
	os.Exit(code)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a store and a directory for contexts and outputs.
type world struct {
	t    testing.TB
	bin  string
	tmp  string
	root string // the store
	boot string // a file with the ID of the run of the system that builds believe in; "" is the true one
}

func newWorld(t testing.TB) *world {
	t.Helper()
	testenv.Root(t) // mounts, loop devices, other people's processes
	bin, err := buildProgram()
	must(t, err)
	tmp, err := os.MkdirTemp("", "build-torture-")
	must(t, err)
	t.Cleanup(func() { removeTree(tmp) })
	return &world{t: t, bin: bin, tmp: tmp, root: tmp + "/store"}
}

// with is the world with another store.
func (w *world) with(root string) *world {
	o := *w
	o.root = root
	return &o
}

func removeTree(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// write puts files into a new directory: path, content, path, content…
func (w *world) write(dir string, pairs ...string) string {
	w.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		p := filepath.Join(dir, pairs[i])
		must(w.t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(w.t, os.WriteFile(p, []byte(pairs[i+1]), 0o644))
	}
	return dir
}

// outcome is how one run of the program ended.
type outcome struct {
	code   int // as a shell gives it
	digest string
	text   string // what it said
	killed bool   // by SIGKILL
	stuck  bool   // it had not ended when it had to
}

// run is one run of the program that goes on.
type run struct {
	*exec.Cmd
	out, err bytes.Buffer
	ended    chan struct{}
}

// start starts the program in a process group of its own.
func (w *world) start(args ...string) *run {
	w.t.Helper()
	r := &run{Cmd: exec.Command(w.bin, args...), ended: make(chan struct{})}
	if w.boot != "" {
		const elsewhere = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
		r.Cmd = exec.Command("unshare", append([]string{"-m", "sh", "-c", elsewhere, w.boot, w.bin}, args...)...)
	}
	// With an epoch, what is built with rewrite-timestamp does not depend on the time.
	r.Env = append(os.Environ(), "BUILD_ROOT="+w.root, "SOURCE_DATE_EPOCH=1700000000", "XDG_CONFIG_HOME="+w.tmp+"/nothing", "DOCKER_CONFIG="+w.tmp+"/nothing")
	r.Stdout, r.Stderr = &r.out, &r.err
	r.WaitDelay = 5 * time.Second
	r.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(w.t, r.Start())
	go func() {
		defer close(r.ended)
		_ = r.Wait()
	}()
	return r
}

// wait waits for the end.
func (r *run) wait() outcome {
	var o outcome
	select {
	case <-r.ended:
	case <-time.After(stuck):
		o.stuck = true
		_ = syscall.Kill(r.Process.Pid, syscall.SIGQUIT) // it says where it is
		select {
		case <-r.ended:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-r.Process.Pid, syscall.SIGKILL)
			<-r.ended
		}
	}
	o.text, o.digest = r.err.String(), strings.TrimSpace(r.out.String())
	ws := r.ProcessState.Sys().(syscall.WaitStatus)
	o.code = ws.ExitStatus()
	if ws.Signaled() {
		o.code, o.killed = 128+int(ws.Signal()), ws.Signal() == syscall.SIGKILL
	}
	return o
}

// build is one build with quiet output to the end: what it prints is the image's ID.
func (w *world) build(args ...string) outcome {
	w.t.Helper()
	return w.start(w.args(args...)...).wait()
}

// args are those of a build of this world.
func (w *world) args(args ...string) []string {
	out := []string{"build", "--progress", "plain", "--build-context", "bb=oci-layout://" + testenv.Base(w.t, "busybox")}
	return append(out, args...)
}

// ok is build for one that must succeed; it returns the image's ID.
func (w *world) ok(args ...string) string {
	w.t.Helper()
	o := w.build(args...)
	if o.code != 0 || !strings.HasPrefix(o.digest, "sha256:") {
		w.t.Fatalf("build %q: exit code %d, stuck %v: %s%s", args, o.code, o.stuck, o.digest, o.text)
	}
	return o.digest
}

// command is a run of another command of the program.
func (w *world) command(args ...string) outcome {
	w.t.Helper()
	return w.start(args...).wait()
}

// check returns what is wrong with the store, apart from what misleads nobody.
func (w *world) check(repair bool) []string {
	w.t.Helper()
	st, err := store.Open(w.root, store.Options{})
	must(w.t, err)
	defer st.Close()
	problems, err := st.Check(context.Background(), store.CheckOptions{
		Repair:     repair,
		References: cache.References,
		Verify: func(kind store.Kind, key string, data []byte) error {
			if kind == store.KindRecord {
				return cache.CheckRecord(key, data)
			}
			return nil
		},
		VerifyIndex: snapshot.CheckIndex,
	})
	must(w.t, err)
	var lies []string
	for _, p := range problems {
		if !p.Harmless() && !p.Repaired {
			lies = append(lies, p.String())
		}
	}
	return lies
}

// sound checks that nothing in the store lies and that no lock of it is held.
func (w *world) sound() {
	w.t.Helper()
	for _, lie := range w.check(false) {
		w.t.Errorf("the store lies: %s", lie)
	}
	for _, l := range w.heldLocks() {
		w.t.Errorf("a lock is held: %s", l)
	}
}

// heldLocks are the lock files, leases included, that some process has locked.
func (w *world) heldLocks() []string {
	var held []string
	for _, pattern := range []string{"lock/*", "lease/*", "tmp/*.lock", "local/*/tmp/*.lock"} {
		files, _ := filepath.Glob(w.root + "/" + pattern)
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				continue
			}
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
				text, _ := os.ReadFile(name)
				held = append(held, name+": "+string(text))
			}
			f.Close()
		}
	}
	return held
}

// users are the processes that have something of the store open, or their working directory or root in it.
func (w *world) users() []string {
	var out []string
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, what := range []string{"cwd", "root", "exe"} {
		more, _ := filepath.Glob("/proc/[0-9]*/" + what)
		links = append(links, more...)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, w.root+"/") {
			out = append(out, l+" → "+to)
		}
	}
	return out
}

// idle waits until no process uses the store any more.
func (w *world) idle() {
	w.t.Helper()
	var left []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left = w.users(); len(left) == 0 {
			return
		}
	}
	w.t.Errorf("processes that do not end: %q", left)
}

// leftovers are the traces of processes in the store and the mounts below it.
func (w *world) leftovers() []string {
	var left []string
	for _, pattern := range []string{"tmp/*", "lease/*", "trash/*", "local/*/tmp/*", "local/*/trash/*"} {
		m, _ := filepath.Glob(w.root + "/" + pattern)
		left = append(left, m...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(w.t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, w.root+"/") {
			left = append(left, line)
		}
	}
	return left
}

// swept checks that later builds take away what the dead left.
func (w *world) swept() {
	w.t.Helper()
	dir := w.write(w.tmp+"/sweep", "Dockerfile", "FROM bb\nARG N\nRUN sleep 0.3\n")
	var left []string
	for i := range 20 {
		w.ok("-t", "sweep:1", "--build-arg", fmt.Sprintf("N=%d.%d", i, time.Now().UnixNano()), dir)
		if left = w.leftovers(); len(left) == 0 {
			return
		}
	}
	w.t.Errorf("left behind by the dead: %q", left)
}

// treeSum is a digest of the names, modes, links and bytes of a directory.
func treeSum(t testing.TB, dir string) string {
	t.Helper()
	lines := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fi.Mode().String()
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(b))
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + to
		}
		lines[strings.TrimPrefix(path, dir)] = line
		return nil
	})
	must(t, err)
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintf(h, "%q %s\n", name, lines[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}
