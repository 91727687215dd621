package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"build/internal/build"
	"build/internal/testenv"
)

// The scripts in testdata/script run whole commands. The test binary stands in for the program: as `build`, as a symlink
// called `docker`, and as the helper processes that the program starts from itself.
func TestMain(m *testing.M) {
	if build.Reentry() {
		return
	}
	switch filepath.Base(os.Args[0]) {
	case "docker":
		main()
	case "attacker":
		attacker()
		return
	}
	testscript.Main(m, map[string]func(){"build": main})
}

// Commands of the scripts, beside those of testscript:
//
//	exits CODE CMD...              run CMD, which must end with CODE
//	need PROGRAM...                skip the script, or fail when everything was to be here
//	as root|user                   skip the script for others
//	registry [USER PASSWORD]       start a registry; $REGISTRY is its address
//	interrupt SIG CODE RE CMD...   run CMD, send SIG when its stderr matches RE; it must end soon with CODE
//	noprocess WORD                 no process has WORD among its arguments
//	emptydir DIR                   the directory holds nothing (or does not exist)
//	same FILE PATTERN FILE         PATTERN has one group, which matches the same in both files
//
// The condition [ids] holds for root and for users with a range of subordinate ids: users of a step are then real ones.
//
// $BUSYBOX and $DEBIAN name OCI layouts with a base image each, $BUILD_ROOT a store of the script's own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Condition: func(cond string) (bool, error) {
			if cond == "ids" {
				return os.Geteuid() == 0 || testenv.HasRange(t), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": cmdExits, "need": cmdNeed, "as": cmdAs, "registry": cmdRegistry,
			"interrupt": cmdInterrupt, "noprocess": cmdNoProcess, "emptydir": cmdEmptyDir, "same": cmdSame,
		},
	})
}

// tKey is where Setup leaves the test for commands that skip.
type tKey struct{}

func setupScript(env *testscript.Env) error {
	env.Values[tKey{}] = env.T()
	for _, v := range []string{testenv.RequireVar, testenv.CacheVar} {
		env.Setenv(v, os.Getenv(v))
	}
	env.Setenv("BUILD_ROOT", filepath.Join(env.WorkDir, ".store"))
	env.Setenv("HOME", filepath.Join(env.WorkDir, ".home"))
	env.Setenv("BUILDKIT_PROGRESS", "plain")
	env.Setenv("BUSYBOX", filepath.Join(testenv.CacheDir(), "busybox"))
	env.Setenv("DEBIAN", filepath.Join(testenv.CacheDir(), "debian"))
	bin, err := exec.LookPath("build")
	if err != nil {
		return err
	}
	env.Setenv("BUILD_BIN", bin)
	short, err := os.MkdirTemp("/tmp", "b") // for programs that cannot take a long path
	if err != nil {
		return err
	}
	env.Setenv("SHORT", short)
	env.Defer(func() {
		removeStore(env.WorkDir)
		_ = os.RemoveAll(short)
	})
	return os.Mkdir(filepath.Join(env.WorkDir, ".home"), 0o755)
}

// removeStore makes what steps wrote removable: directories without write permission stop os.RemoveAll. What belongs to
// ids of a user's range stays for the one who gave the user its temporary directory.
func removeStore(dir string) {
	_ = filepath.WalkDir(filepath.Join(dir, ".store"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
}

func scriptSkip(ts *testscript.TestScript, missing string) {
	if testenv.Required() {
		ts.Fatalf("missing: %s (%s is set, so this is a failure)", missing, testenv.RequireVar)
	}
	ts.Value(tKey{}).(testscript.T).Skip("missing: " + missing)
}

func cmdNeed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: need PROGRAM...")
	}
	for _, what := range args {
		if filepath.IsAbs(what) {
			if _, err := os.Stat(what); err != nil {
				scriptSkip(ts, what)
			}
		} else if _, err := exec.LookPath(what); err != nil {
			scriptSkip(ts, "program "+what)
		}
	}
}

func cmdAs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || args[0] != "root" && args[0] != "user" {
		ts.Fatalf("usage: as root|user")
	}
	if (args[0] == "root") != (os.Geteuid() == 0) {
		ts.Value(tKey{}).(testscript.T).Skip("for the other pass of make test: as " + args[0])
	}
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE CMD...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// cmdRegistry starts a real registry on a free port and waits until it answers.
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 && len(args) != 2 {
		ts.Fatalf("usage: registry [USER PASSWORD]")
	}
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		scriptSkip(ts, "program docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	addr := l.Addr().String()
	ts.Check(l.Close())

	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", ts.MkAbs(".registry"), addr)
	if len(args) == 2 {
		hash, err := bcrypt.GenerateFromPassword([]byte(args[1]), bcrypt.MinCost)
		ts.Check(err)
		passwords := ts.MkAbs(".htpasswd")
		ts.Check(os.WriteFile(passwords, fmt.Appendf(nil, "%s:%s\n", args[0], hash), 0o600))
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", passwords)
	}
	file := ts.MkAbs(".registry.yml")
	ts.Check(os.WriteFile(file, []byte(config), 0o600))
	cmd := exec.Command(program, "serve", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Setenv("REGISTRY", addr)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("the registry does not answer: %v", err)
		}
	}
}

// watcher collects output and says when it matches.
type watcher struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	re    *regexp.Regexp
	found chan struct{}
	once  sync.Once
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if w.re.Match(w.buf.Bytes()) {
		w.once.Do(func() { close(w.found) })
	}
	return len(p), nil
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// soon is how long a build may take to end after a signal: the second that is promised, and as much for a busy machine.
const soon = 2 * time.Second

func cmdInterrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: interrupt SIGNAL CODE REGEXP CMD...")
	}
	sig := unix.SignalNum("SIG" + args[0])
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	w := &watcher{re: regexp.MustCompile(args[2]), found: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	program := args[3]
	if program == "build" {
		program = ts.Getenv("BUILD_BIN")
	}
	cmd := exec.CommandContext(ctx, program, args[4:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "BUILD_ROOT="+ts.Getenv("BUILD_ROOT"), "BUILDKIT_PROGRESS=plain", "HOME="+ts.Getenv("HOME"))
	cmd.Stderr = w
	cmd.WaitDelay = time.Second
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-w.found:
	case err := <-ended:
		ts.Fatalf("ended before %q was seen: %v\n%s", args[2], err, w)
	}
	began := time.Now()
	ts.Check(cmd.Process.Signal(sig))
	err = <-ended
	took := time.Since(began)
	_, _ = io.WriteString(ts.Stderr(), w.String())
	ts.Logf("%s after %v: %v\n%s", args[0], took.Round(time.Millisecond), err, w)
	state := cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := state.ExitStatus()
	if state.Signaled() {
		code = 128 + int(state.Signal())
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
	if took > soon {
		ts.Fatalf("took %v to end", took)
	}
}

func cmdNoProcess(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: noprocess WORD")
	}
	var left []string
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left = nil
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		ts.Check(err)
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue // it has just ended
			}
			for _, word := range strings.Split(string(data), "\x00") {
				if word == args[0] {
					left = append(left, filepath.Base(filepath.Dir(f)))
				}
			}
		}
		if len(left) == 0 {
			return
		}
	}
	ts.Fatalf("processes %v still have %q among their arguments", left, args[0])
}

func cmdEmptyDir(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: emptydir DIR")
	}
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		ts.Fatalf("%v", err)
	}
	for _, e := range entries {
		ts.Fatalf("%s holds %s", args[0], e.Name())
	}
}

func cmdSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: [!] same FILE PATTERN FILE")
	}
	re := regexp.MustCompile(args[1])
	var got [2]string
	for i, file := range []string{args[0], args[2]} {
		m := re.FindStringSubmatch(ts.ReadFile(file))
		if len(m) != 2 {
			ts.Fatalf("%s does not match %q", file, args[1])
		}
		got[i] = m[1]
	}
	if (got[0] == got[1]) == neg {
		ts.Fatalf("%q in %s, %q in %s", got[0], args[0], got[1], args[2])
	}
}
