package executor_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"build/executor"
	"build/internal/testenv"
	"build/internal/usernet"
	"build/internal/userns"
)

// The tests run twice: as whoever started them, and, when that is root, a second time as an ordinary user with a range of
// subordinate ids (TestAsUser). Steps run in a holder, as they do in builds.

const (
	asUserVar = "EXECUTOR_TEST_AS_USER"
	testUser  = "buildexectest"
)

func TestMain(m *testing.M) {
	usernet.Reentry()
	userns.Reentry(map[string]userns.Handler{"run": handleRun, "run ahead": handleRunAhead, "probe": handleProbe, "probe-emulation": handleProbeEmulation, "remove": handleRemove})
	if os.Getenv(crashVar) != "" {
		crashMain()
	}
	if os.Getenv(chrootVar) != "" {
		chrootMain()
	}
	code := m.Run()
	if shared.holder != nil {
		shared.holder.Close()
	}
	os.Exit(code)
}

func handleRun(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	return handle(ctx, in, files, nil)
}

func handle(ctx context.Context, in json.RawMessage, files []*os.File, a *executor.Ahead) (any, error) {
	var spec executor.Spec
	if err := json.Unmarshal(in, &spec); err != nil {
		return nil, err
	}
	for i, m := range spec.Mounts {
		if k, ok := m.Source.(executor.Socket); ok && k.Hand >= 0 { // an index of the files that came
			k.Hand = int(files[k.Hand].Fd())
			spec.Mounts[i].Source = k
		}
	}
	if a != nil && spec.Hostname == "early" {
		time.Sleep(aheadSleep)
	}
	spec.Ahead = a
	ctx, leave, err := serveNetwork(ctx, &spec, files[2])
	if err != nil {
		return nil, err
	}
	defer leave()
	return nil, executor.Run(ctx, &spec, files[0], files[1], files[2])
}

// ahead has the processes of "run ahead".
var ahead executor.Ahead

// aheadSleep is how long "run ahead" waits before it runs, so that a process that was started before can be told from one that was not.
const aheadSleep = 300 * time.Millisecond

func handleRunAhead(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	ahead.Expect(2)
	return handle(ctx, in, files, &ahead)
}

// aheadVar has the tests run their steps in processes that were started before.
const aheadVar = "EXECUTOR_TEST_AHEAD"

func method() string {
	if os.Getenv(aheadVar) != "" {
		return "run ahead"
	}
	return "run"
}

func handleProbe(ctx context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var dir string
	if err := json.Unmarshal(in, &dir); err != nil {
		return nil, err
	}
	return executor.Probe(ctx, dir, executor.Means{}), nil
}

func handleProbeEmulation(ctx context.Context, _ json.RawMessage, _ []*os.File) (any, error) {
	return executor.ProbeEmulation(ctx), nil
}

func handleRemove(_ context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var dir string
	if err := json.Unmarshal(in, &dir); err != nil {
		return nil, err
	}
	return nil, os.RemoveAll(dir)
}

var shared struct {
	once   sync.Once
	holder *userns.Holder
	err    error
}

func fullNamespaces(p userns.Plan) bool { return !p.Plain && !p.SharePID && p.IDs != userns.IDsSingle }

// holder returns the holder that all tests of this process share, or skips.
func holder(t testing.TB) *userns.Holder {
	t.Helper()
	shared.once.Do(func() {
		// These tests are of the sandbox with namespaces and true ids.
		shared.holder, _, _, shared.err = userns.Open(context.Background(), fullNamespaces)
	})
	if shared.err != nil {
		var e *userns.LadderError
		if errors.As(shared.err, &e) && os.Getenv(asUserVar) == "" {
			testenv.Skip(t, "namespaces: "+shared.err.Error())
		}
		t.Fatal(shared.err)
	}
	return shared.holder
}

// result is what a step printed and how it ended.
type result struct {
	out string
	err error
}

func (r result) code(t *testing.T) int {
	t.Helper()
	if r.err == nil {
		return 0
	}
	var e *executor.ExitError
	if !errors.As(r.err, &e) {
		t.Fatalf("not an ExitError: %v\noutput: %s", r.err, r.out)
	}
	return e.Code
}

// run runs spec in the holder and collects its output, standard error included.
func run(t testing.TB, ctx context.Context, spec *executor.Spec) result {
	t.Helper()
	h := holder(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		out <- string(b)
	}()
	err = h.Call(ctx, method(), spec, nil, null, w, w)
	w.Close()
	var re *userns.RemoteError
	if errors.As(err, &re) {
		if typed := executor.FromRemote(re.Kind, re.Data); typed != nil {
			err = typed
		}
	}
	select {
	case s := <-out:
		return result{s, err}
	case <-time.After(5 * time.Second):
		t.Fatal("something of the step still holds its standard output")
		panic("unreachable")
	}
}

// rootfs is a busybox root filesystem as a lower layer, with an upper above it.
type rootfs struct {
	dir, lower, upper, work string
}

var applets = []string{
	"sh", "ls", "cat", "id", "env", "mount", "sleep", "grep", "stat", "mkdir", "rm", "rmdir", "mv", "ln", "touch", "chmod", "chown",
	"mkfifo", "mknod", "echo", "wc", "ip", "ifconfig", "hostname", "df", "su", "ps", "kill", "setsid", "dd", "cut", "head", "test", "true",
	"false", "umount", "unshare", "pwd", "readlink", "tr", "sort", "find", "ulimit", "date", "nohup", "chroot", "ping",
}

func newRootfs(t testing.TB) *rootfs {
	t.Helper()
	holder(t)
	bb, err := exec.LookPath("busybox")
	if err != nil {
		testenv.Skip(t, "program busybox (package busybox-static)")
	}
	dir, err := os.MkdirTemp("/tmp", "executor-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeTree(t, dir) })
	r := &rootfs{dir: dir, lower: dir + "/lower", upper: dir + "/upper", work: dir + "/work"}
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "lower/root", "lower/home/app", "lower/proc", "lower/dev", "lower/sys", "upper", "work"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(r.lower+"/tmp", 0o1777))
	data, err := os.ReadFile(bb)
	must(t, err)
	must(t, os.WriteFile(r.lower+"/bin/busybox", data, 0o755))
	for _, a := range applets {
		must(t, os.Symlink("busybox", r.lower+"/bin/"+a))
	}
	must(t, os.WriteFile(r.lower+"/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(r.lower+"/etc/group", []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\nmore:x:2001:other,app\n"), 0o644))
	return r
}

// removeTree removes a directory in the holder, who may remove what belongs to other ids of the namespace.
func removeTree(t testing.TB, dir string) {
	t.Helper()
	must(t, holder(t).Call(context.Background(), "remove", dir, nil))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spec runs a shell script on the root.
func (r *rootfs) spec(script string) *executor.Spec {
	return &executor.Spec{
		Root: executor.Overlay{Lower: []string{r.lower}, Upper: r.upper, Work: r.work},
		Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"},
	}
}

// reset gives the root a fresh upper.
func (r *rootfs) reset(t testing.TB) {
	t.Helper()
	for _, d := range []string{r.upper, r.work} {
		removeTree(t, d)
		must(t, os.Mkdir(d, 0o755))
	}
}

// sh runs a script on a fresh upper and wants it to succeed.
func (r *rootfs) sh(t testing.TB, script string, change ...func(*executor.Spec)) string {
	t.Helper()
	r.reset(t)
	s := r.spec(script)
	for _, c := range change {
		c(s)
	}
	res := run(t, t.Context(), s)
	if res.err != nil {
		t.Fatalf("%s: %v\n%s", script, res.err, res.out)
	}
	return res.out
}

// changes lists what is in the upper directory.
func (r *rootfs) changes(t testing.TB) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(r.upper, func(p string, _ os.DirEntry, err error) error {
		if err == nil && p != r.upper {
			out = append(out, strings.TrimPrefix(p, r.upper+"/"))
		}
		return err
	}))
	return out
}

func TestAsUser(t *testing.T) {
	if os.Getenv(asUserVar) != "" {
		t.Skip("this is the second run")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: the tests already run as an ordinary user")
	}
	u := ordinaryUser(t)
	dir, err := os.MkdirTemp("/tmp", "executor-user-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(dir+"/executor.test", exe, 0o755))
	for _, env := range [][]string{nil, {"GOARCH=386"}, {"GOARCH=arm64"}} {
		copyFile(t, buildHelper(t, env...), dir+"/syscalls"+strings.Join(env, ""))
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	args := []string{"-test.timeout=120s"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.Command(dir+"/executor.test", args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), asUserVar + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("as %s:\n%s", u.Username, out)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ordinaryUser makes (for the duration of the test) a user with subordinate ids.
func ordinaryUser(t testing.TB) *user.User {
	t.Helper()
	for _, tool := range []string{"useradd", "newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			testenv.Skip(t, "program "+tool)
		}
	}
	if u, err := user.Lookup(testUser); err == nil {
		return u
	}
	var out []byte
	var err error
	for range 20 { // another useradd may hold the lock
		out, err = exec.Command("useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false", testUser).CombinedOutput()
		if err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Skipf("cannot make a user: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("userdel", testUser).Run() })
	if b, _ := os.ReadFile("/etc/subuid"); !strings.Contains(string(b), testUser+":") {
		t.Skip("useradd gave the new user no range in /etc/subuid")
	}
	u, err := user.Lookup(testUser)
	must(t, err)
	return u
}
