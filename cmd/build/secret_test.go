package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"build/internal/testenv"
)

// vault is everything secret that a build of these tests knows, and one directory that holds all it could write to.
type vault struct {
	t   *testing.T
	dir string // store, context, outputs, home and temporary directory

	hidden   map[string][]byte // by what it is: bytes that must not be found
	variable string            // the value that the build itself got in its environment

	arrived chan struct{} // a step stands still at /hang
	leave   chan struct{}
	armed   atomic.Bool
	url     string
}

func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func newVault(t *testing.T) *vault {
	t.Helper()
	dir, err := os.MkdirTemp("", "build-secrets-")
	check(t, err)
	v := &vault{
		t: t, dir: dir, hidden: map[string][]byte{}, variable: "env-" + random(),
		arrived: make(chan struct{}, 1), leave: make(chan struct{}),
	}
	t.Cleanup(func() {
		removeStore(dir)
		os.RemoveAll(dir)
	})
	for _, d := range []string{"ctx", "given", "home", "tmp"} {
		check(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	lines := []string{"one-" + random(), "two-" + random()}
	v.give("file", lines[0]+"\n"+lines[1]+"\n")
	v.give("key", v.newKey())
	v.hidden["first line"], v.hidden["second line"] = []byte(lines[0]), []byte(lines[1])
	v.hidden["value of a variable"] = []byte(v.variable)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if !v.armed.Load() {
			return
		}
		select {
		case v.arrived <- struct{}{}:
		default:
		}
		select {
		case <-v.leave:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	v.url = srv.URL
	return v
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// give writes a file that the build is pointed at. It is beside what the build may write to.
func (v *vault) give(name, content string) {
	check(v.t, os.WriteFile(filepath.Join(v.dir, "given", name), []byte(content), 0o600))
}

// newKey makes an ssh key and hides it in every form.
func (v *vault) newKey() string {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(v.t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	check(v.t, err)
	v.hidden["ssh key"], v.hidden["decoded ssh key"] = key.Seed(), block.Bytes[len(block.Bytes)-64:]
	text := string(pem.EncodeToMemory(block))
	v.hidden["text of the ssh key"] = []byte(strings.Split(text, "\n")[3])
	return text
}

// dockerfile is one whose first step uses every secret, prints them and asks for /hang while it has them.
func (v *vault) dockerfile() string {
	return `FROM base
RUN --mount=type=secret,id=file --mount=type=secret,id=file,target=/x/again,mode=0444 --mount=type=secret,id=env \
    --mount=type=secret,id=env,env=TOKEN --mount=type=ssh \
    cat /run/secrets/file /x/again; cat /run/secrets/env >&2; echo "<$TOKEN>"; export COPY="$TOKEN"; \
    test -S $SSH_AUTH_SOCK && wget -q -O /dev/null ` + v.url + `/hang; echo went on > /first
RUN test ! -e /run/secrets && test ! -e /x && test -z "$TOKEN$COPY" && echo nothing > /second
CMD ["cat", "/first"]
`
}

// command is a build that is given all secrets.
func (v *vault) command(ctx context.Context, dockerfile string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	v.t.Helper()
	check(v.t, os.WriteFile(filepath.Join(v.dir, "ctx", "Dockerfile"), []byte(dockerfile), 0o644))
	bin, err := exec.LookPath("build")
	check(v.t, err)
	args = append([]string{
		"build", "--secret", "id=file,src=" + v.dir + "/given/file", "--secret", "id=env,env=GIVEN,cachekey=true", "--ssh", "default=" + v.dir + "/given/key",
		"--build-context", "base=oci-layout://" + testenv.Base(v.t, "busybox"),
	}, append(args, v.dir+"/ctx")...)
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Dir = v.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + v.dir + "/home", "TMPDIR=" + v.dir + "/tmp", "BUILD_ROOT=" + v.dir + "/store",
		"GIVEN=" + v.variable,
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	return cmd, &said
}

func (v *vault) run(dockerfile string, args ...string) string {
	v.t.Helper()
	cmd, said := v.command(v.t.Context(), dockerfile, args...)
	if err := cmd.Run(); err != nil {
		v.t.Fatalf("%v\n%s", err, said)
	}
	return said.String()
}

// hang runs a build until its first step stands still.
func (v *vault) hang(dockerfile string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	v.t.Helper()
	v.armed.Store(true)
	cmd, said := v.command(v.t.Context(), dockerfile, args...)
	check(v.t, cmd.Start())
	select {
	case <-v.arrived:
	case <-time.After(time.Minute):
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		v.t.Fatalf("the step did not come so far\n%s", said)
	}
	return cmd, said
}

// clean fails the test where any of the secrets is in data.
func (v *vault) clean(where string, data []byte) {
	v.t.Helper()
	for what, b := range v.hidden {
		if bytes.Contains(data, b) {
			v.t.Errorf("%s: the %s is there", where, what)
		}
	}
}

// found lists the files that hold a secret, compressed or not, and the sockets, below everything the build may write to.
func (v *vault) found() []string {
	v.t.Helper()
	var list []string
	files := 0
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, v.dir)
		switch {
		case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // of a step's user
			return nil
		case err != nil:
			return err
		case d.IsDir() && rel == "/given":
			return fs.SkipDir
		case d.Type()&fs.ModeSocket != 0:
			list = append(list, rel)
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
				return nil
			} else if err != nil {
				return err
			}
			files++
			if v.within(data) {
				list = append(list, rel)
			}
		}
		return nil
	})
	check(v.t, err)
	if files < 10 {
		v.t.Fatalf("only %d files were looked at", files)
	}
	return list
}

var base64Run = regexp.MustCompile(`[A-Za-z0-9+/]{16,}={0,2}`)

// within reports whether data holds a secret as it is, in base64 or compressed.
func (v *vault) within(data []byte) bool {
	forms := [][]byte{data}
	if r, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
		plain, err := io.ReadAll(r)
		check(v.t, err)
		forms = append(forms, plain)
	} else if len(data) < 1<<20 {
		for _, run := range base64Run.FindAll(data, -1) {
			if plain, err := base64.StdEncoding.DecodeString(string(run)); err == nil {
				forms = append(forms, plain)
			}
		}
	}
	for _, form := range forms {
		for _, b := range v.hidden {
			if bytes.Contains(form, b) {
				return true
			}
		}
	}
	return false
}

// processes looks at the arguments and the environment of every process that is not the step's own, and reports how many
// belong to the step and have the variable.
func (v *vault) processes(front int) (own int) {
	v.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	check(v.t, err)
	children := 0 // of the build: the holder
	for _, dir := range dirs {
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // it has ended
		}
		line := regexp.MustCompile(`(?m)^NSpid:(.*)$`).FindSubmatch(status)
		if line == nil {
			v.t.Fatalf("%s/status has no NSpid", dir)
		}
		args, _ := os.ReadFile(dir + "/cmdline")
		environ, err := os.ReadFile(dir + "/environ") // of others' processes unreadable
		v.clean(dir+"/cmdline", args)
		switch depth := len(bytes.Fields(line[1])); {
		case depth >= 3: // in the pid namespace of a step
			if bytes.Contains(environ, []byte("TOKEN="+v.variable)) {
				own++
			}
			continue
		case bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", front)):
			children++
			if err != nil {
				v.t.Errorf("the holder's environment cannot be looked at: %v", err)
			}
		case dir == fmt.Sprintf("/proc/%d", front): // has what it was given
			environ = bytes.ReplaceAll(environ, []byte("GIVEN="+v.variable), nil)
		}
		v.clean(dir+"/environ", environ)
	}
	if children == 0 {
		v.t.Error("no holder was seen")
	}
	return own
}

// The bytes of secrets and ssh keys are where the step is that asked for them and nowhere else: in no layer, record, index,
// history, configuration, metadata file or other file of the store, the outputs and the temporary directory, in nothing that is
// shown, and in no other process; while the step runs, after it, and after a build that failed.
func TestSecretsLeaveNoTrace(t *testing.T) {
	v := newVault(t)
	cmd, said := v.hang(v.dockerfile(), "--progress", "plain", "-t", "app", "--iidfile", "iid", "--metadata-file", "meta.json",
		"-o", "type=image", "-o", "type=oci,tar=false,dest=layout", "-o", "type=local,dest=local")
	if v.processes(cmd.Process.Pid) == 0 {
		t.Error("the step's own processes do not have the variable: this looks at the wrong things")
	}
	if list := v.found(); len(list) > 0 {
		t.Errorf("while the step runs: %q", list)
	}
	v.armed.Store(false)
	close(v.leave)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	v.clean("what was shown", said.Bytes())
	if n := strings.Count(said.String(), "****"); n < 6 {
		t.Errorf("%d masks were shown, want one for each line of a secret that was printed:\n%s", n, said)
	}
	if got, err := os.ReadFile(v.dir + "/local/second"); err != nil || string(got) != "nothing\n" {
		t.Errorf("the step after it: %q, %v", got, err)
	}
	if list := v.found(); len(list) > 0 {
		t.Errorf("after the build: %q", list)
	}

	shown := v.run(v.dockerfile(), "--no-cache", "--progress", "rawjson")
	if !strings.Contains(shown, "went on") || v.within([]byte(shown)) {
		t.Errorf("--progress=rawjson shows a secret, or not what it should:\n%s", shown)
	}
	if !strings.Contains(shown, base64.StdEncoding.EncodeToString([]byte("****"))[:4]) {
		t.Errorf("--progress=rawjson has no masked line:\n%s", shown)
	}

	failing := strings.Replace(v.dockerfile(), "echo went on > /first", "exit 9", 1)
	cmd, said = v.command(t.Context(), failing, "--metadata-file", "failed.json")
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("%v\n%s", err, said)
	}
	v.clean("what a failure shows", said.Bytes())
	if list := v.found(); len(list) > 0 {
		t.Errorf("after a build that failed: %q", list)
	}

	// That all this can fail: what the step itself writes is found, in its layer and nowhere else.
	v.run("FROM base\nRUN --mount=type=secret,id=file cat /run/secrets/file > /kept\nRUN echo other > /other\n", "-o", "type=oci,tar=false,dest=kept")
	layers := regexp.MustCompile(`^/(store/(blobs/sha256/[0-9a-f]{64}|local/[^/]+/dir/.*/kept)|kept/blobs/sha256/[0-9a-f]{64})$`)
	list := v.found()
	for _, path := range list {
		if !layers.MatchString(path) {
			t.Errorf("%s holds what a step wrote to its layer", path)
		}
	}
	if len(list) < 2 {
		t.Errorf("what a step wrote is found only in %q", list)
	}
}

// A build that is killed leaves no secret and no socket either.
func TestKilledBuildLeavesNoSecret(t *testing.T) {
	v := newVault(t)
	cmd, _ := v.hang(v.dockerfile(), "--progress", "plain")
	check(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	close(v.leave)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := v.alive()
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("still there: %q", left)
		}
	}
	if list := v.found(); len(list) > 0 {
		t.Errorf("left behind: %q", list)
	}
	v.armed.Store(false)
	v.run(v.dockerfile(), "--progress", "plain")
	if list := v.found(); len(list) > 0 {
		t.Errorf("after the next build: %q", list)
	}
}

// alive are the processes of steps that have the variable.
func (v *vault) alive() []string {
	var list []string
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	check(v.t, err)
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte("TOKEN="+v.variable)) {
			list = append(list, f)
		}
	}
	return list
}
