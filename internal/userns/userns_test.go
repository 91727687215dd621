package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type typedError struct{ N int }

func (e *typedError) Error() string         { return fmt.Sprint("typed ", e.N) }
func (e *typedError) Remote() (string, any) { return "test.typed", e }

// handlers are the holder's side of the tests.
var handlers = map[string]Handler{
	"echo": func(_ context.Context, in json.RawMessage, _ []*os.File) (any, error) { return in, nil },
	"state": func(context.Context, json.RawMessage, []*os.File) (any, error) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return nil, err
		}
		maps, err := os.ReadFile("/proc/self/uid_map")
		if err != nil {
			return nil, err
		}
		dump, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		sid, _ := unix.Getsid(0)
		return map[string]any{
			"pid": os.Getpid(), "uid": os.Getuid(), "gid": os.Getgid(), "status": string(status), "map": string(maps),
			"dumpable": dump, "env": len(os.Environ()), "sid": sid,
		}, err
	},
	"files": func(_ context.Context, _ json.RawMessage, files []*os.File) (any, error) {
		var out []string
		for _, f := range files {
			b, err := io.ReadAll(f)
			if err != nil {
				return nil, err
			}
			out = append(out, string(b))
		}
		return out, nil
	},
	"fds": func(context.Context, json.RawMessage, []*os.File) (any, error) {
		out, err := exec.Command("/bin/ls", "/proc/self/fd").Output()
		return strings.Fields(string(out)), err
	},
	"fail": func(_ context.Context, in json.RawMessage, _ []*os.File) (any, error) {
		switch string(in) {
		case `"plain"`:
			return nil, errors.New("plain text")
		case `"errno"`:
			return nil, fmt.Errorf("write: %w", &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC})
		case `"typed"`:
			return nil, fmt.Errorf("around: %w", &typedError{7})
		case `"unencodable"`:
			return func() {}, nil
		}
		var m map[string]int
		m["x"] = 1 // panics
		return nil, nil
	},
	"wait": func(ctx context.Context, _ json.RawMessage, files []*os.File) (any, error) {
		for _, f := range files {
			f.Write([]byte("started"))
		}
		<-ctx.Done()
		return nil, ctx.Err()
	},
	"sleep": func(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
		var n string
		if err := json.Unmarshal(in, &n); err != nil {
			return nil, err
		}
		cmd := exec.Command("/bin/sleep", n)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return nil, cmd.Start()
	},
}

const (
	frontVar = "USERNS_TEST_FRONT"
	asUser   = "USERNS_TEST_AS_USER"
)

func TestMain(m *testing.M) {
	Reentry(handlers)
	if n := os.Getenv(frontVar); n != "" {
		front(n)
	}
	os.Exit(m.Run())
}

// front is a second front process: it starts a holder with a process in it and waits to be killed.
func front(marker string) {
	h, _, _, err := Open(context.Background(), nil)
	if err == nil {
		err = h.Call(context.Background(), "sleep", marker, nil)
	}
	fmt.Println("ready", err)
	select {}
}

func start(t testing.TB) *Holder {
	t.Helper()
	h, _, _, err := Open(t.Context(), nil)
	if err == nil {
		t.Cleanup(func() { h.Close() })
		return h
	}
	if os.Getenv(asUser) != "" {
		t.Fatal(err)
	}
	t.Skipf("no namespaces here: %v", err)
	return nil
}

func TestState(t *testing.T) {
	h := start(t)
	var s struct {
		Pid, UID, GID, Dumpable, Env, Sid int
		Status, Map                       string
	}
	if err := h.Call(t.Context(), "state", nil, &s); err != nil {
		t.Fatal(err)
	}
	if s.Pid != 1 || s.UID != 0 || s.GID != 0 || s.Dumpable != 0 || s.Env != 0 || s.Sid != 1 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(s.Status, "CapEff:\t000001") {
		t.Errorf("capabilities:\n%s", s.Status)
	}
	lines := len(strings.Split(strings.TrimSpace(s.Map), "\n"))
	if hasRange := slices.Collect(Candidates())[0].Err == nil; os.Geteuid() != 0 && (lines > 1) != hasRange {
		t.Errorf("map:\n%s", s.Map)
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	h := start(t)
	err := h.Call(t.Context(), "fail", "plain", nil)
	if err == nil || err.Error() != "plain text" {
		t.Error(err)
	}
	err = h.Call(t.Context(), "fail", "errno", nil)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/x") {
		t.Error(err)
	}
	var re *RemoteError
	err = h.Call(t.Context(), "fail", "typed", nil)
	if !errors.As(err, &re) || re.Kind != "test.typed" || string(re.Data) != `{"N":7}` || re.Msg != "around: typed 7" {
		t.Errorf("%v %+v", err, re)
	}
	err = h.Call(t.Context(), "fail", "panic", nil)
	if !errors.As(err, &re) || re.Kind != KindPanic || !strings.Contains(string(re.Data), "userns_test.go") {
		t.Errorf("%v %+v", err, re)
	}
	if err = h.Call(t.Context(), "fail", "unencodable", nil); err == nil {
		t.Error("a result that cannot be encoded was sent")
	}
	if err = h.Call(t.Context(), "nonesuch", nil, nil); !errors.As(err, &re) || re.Kind != KindMethod {
		t.Error(err)
	}
	if err = h.Call(t.Context(), "echo", func() {}, nil); err == nil {
		t.Error("an argument that cannot be encoded was sent")
	}
	if err = h.Call(t.Context(), "echo", "still there", nil); err != nil {
		t.Error(err)
	}
}

// TestConcurrentCalls mixes small and large messages with and without files.
func TestConcurrentCalls(t *testing.T) {
	h := start(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			text := strings.Repeat(fmt.Sprint(i, " "), 1+i*i*30)
			var got string
			if err := h.Call(t.Context(), "echo", text, &got); err != nil || got != text {
				t.Errorf("echo %d: %d bytes instead of %d, %v", i, len(got), len(text), err)
			}
			var files []*os.File
			var want []string
			for j := range i % 7 {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				want = append(want, fmt.Sprint(i, ".", j))
				f.WriteString(want[j])
				f.Seek(0, 0)
				files = append(files, f)
			}
			var contents []string
			if err := h.Call(t.Context(), "files", text, &contents, files...); err != nil || !slices.Equal(contents, want) {
				t.Errorf("files %d: %q instead of %q, %v", i, contents, want, err)
			}
		})
	}
	wg.Wait()
	if err := h.Call(t.Context(), "files", nil, nil, make([]*os.File, maxFiles+1)...); err == nil {
		t.Error("too many files were sent")
	}
}

func TestCancel(t *testing.T) {
	h := start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go func() {
		r.Read(make([]byte, 7))
		cancel(cause)
	}()
	if err := h.Call(ctx, "wait", nil, nil, w); err != cause {
		t.Error(err)
	}
	if err := h.Call(ctx, "echo", 1, nil); err != cause {
		t.Error(err)
	}
	if err := h.Call(t.Context(), "echo", 1, nil); err != nil {
		t.Error(err)
	}
}

func TestInheritedFiles(t *testing.T) {
	for range 10 {
		fd, err := unix.Open("/", unix.O_RDONLY, 0) // not close-on-exec
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	h := start(t)
	var fds []string
	if err := h.Call(t.Context(), "fds", nil, &fds); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(fds, []string{"0", "1", "2", "3"}) { // 3 is the directory ls reads
		t.Errorf("a child of the holder has files %q", fds)
	}
}

func TestCloseAndDeath(t *testing.T) {
	h := start(t)
	marker := sleepMarker()
	if err := h.Call(t.Context(), "sleep", marker, nil); err != nil {
		t.Fatal(err)
	}
	h.Close()
	h.Close()
	if err := h.Call(t.Context(), "echo", 1, nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if sleeping(marker) {
		t.Error("a process survived Close")
	}

	h = start(t)
	if err := h.Call(t.Context(), "sleep", marker, nil); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	go func() {
		r.Read(make([]byte, 7))
		syscall.Kill(h.Pid(), syscall.SIGKILL)
	}()
	err = h.Call(t.Context(), "wait", nil, nil, w)
	if err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Error(err)
	}
	<-h.Done()
	if sleeping(marker) {
		t.Error("a process survived its holder")
	}
}

func TestFrontKilled(t *testing.T) {
	start(t).Close()
	marker := sleepMarker()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), frontVar+"="+marker)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, _ := out.Read(b)
	if string(b[:n]) != "ready <nil>\n" {
		t.Fatalf("%q", b[:n])
	}
	// A started process has the name of its program a moment after its starter knows that it has been started.
	waitUntil(t, 20*time.Second, "the process runs", func() bool { return sleeping(marker) })
	cmd.Process.Kill()
	cmd.Wait()
	waitUntil(t, time.Second, "no process survives the front process", func() bool { return !sleeping(marker) })
}

func waitUntil(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", within, what)
		}
	}
}

func TestStartEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if h, _, _, err := Open(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(h, err)
	}
}

func sleepMarker() string { return fmt.Sprint(200000 + time.Now().UnixNano()%1e6) }

func sleeping(marker string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if strings.HasSuffix(string(b), "sleep\x00"+marker+"\x00") {
			return true
		}
	}
	return false
}
