package fakeroot_test

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
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/owner"
	"build/internal/testenv"
	"build/internal/userns"
)

// The tests run steps in a user namespace with one id, as root and as any user. The binary starts itself again as the holder.

func TestMain(m *testing.M) {
	userns.Reentry(map[string]userns.Handler{"run": handleRun, "record": handleRecord, "remove": handleRemove, "open": handleOpen})
	code := m.Run()
	for _, h := range holders.started {
		h.Close()
	}
	os.Exit(code)
}

// nodes is the holder's table.
var nodes owner.Nodes

func handleRun(ctx context.Context, in json.RawMessage, files []*os.File) (any, error) {
	var spec executor.Spec
	if err := json.Unmarshal(in, &spec); err != nil {
		return nil, err
	}
	spec.Owners = &nodes
	return nil, executor.Run(ctx, &spec, files[0], files[1], files[2])
}

// handleRecord says what is recorded of a file that no step uses any more.
func handleRecord(_ context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var path string
	if err := json.Unmarshal(in, &path); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, owner.NodeMask|unix.STATX_BASIC_STATS, &st); err != nil {
		return nil, err
	}
	rec, ok, err := owner.Get(fd)
	if !ok && err == nil {
		rec, ok = nodes.Get(owner.NodeOf(&st))
	}
	return fmt.Sprintf("%v %d:%d %v", rec, st.Uid, st.Gid, ok), err
}

// handleOpen counts the holder's open files.
func handleOpen(context.Context, json.RawMessage, []*os.File) (any, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	return len(entries), err
}

func handleRemove(_ context.Context, in json.RawMessage, _ []*os.File) (any, error) {
	var dir string
	if err := json.Unmarshal(in, &dir); err != nil {
		return nil, err
	}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil && d != nil && d.IsDir() {
			os.Chmod(p, 0o700) // an overlay's work directory
		}
		return nil
	})
	return nil, os.RemoveAll(dir)
}

var holders struct {
	sync.Mutex
	started map[userns.IDs]*userns.Holder
}

// holder returns the holder with such ids that all tests of this process share, or skips.
func holder(t testing.TB, ids userns.IDs) *userns.Holder {
	t.Helper()
	holders.Lock()
	defer holders.Unlock()
	if h := holders.started[ids]; h != nil {
		return h
	}
	h, _, _, err := userns.Open(context.Background(), func(p userns.Plan) bool { return p.IDs == ids && !p.Plain })
	if err != nil {
		if ids == userns.IDsRange {
			t.Skipf("for a user with a range of ids: %v", err)
		}
		testenv.Skip(t, "user namespaces: "+err.Error())
	}
	if holders.started == nil {
		holders.started = map[userns.IDs]*userns.Holder{}
	}
	holders.started[ids] = h
	return h
}

// root is a root file system of busybox and the program calls.
type root struct {
	h                       *userns.Holder
	single                  bool
	dir, lower, upper, work string
}

var applets = strings.Fields("sh id ls cat stat chown chgrp chmod mkdir mknod mkfifo ln mv rm touch echo sleep su true cp env test sed tar")

func newRoot(t testing.TB, ids userns.IDs) *root {
	t.Helper()
	r := &root{h: holder(t, ids), single: ids == userns.IDsSingle}
	busybox := testenv.Tool(t, "busybox")
	dir, err := os.MkdirTemp("/tmp", "fakeroot-test-")
	must(t, err)
	t.Cleanup(func() { must(t, r.h.Call(context.Background(), "remove", dir, nil)) })
	must(t, os.Chmod(dir, 0o755))
	r.dir, r.lower, r.upper, r.work = dir, dir+"/lower", dir+"/upper", dir+"/work"
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "upper", "work"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(r.lower+"/tmp", 0o1777))
	copyProgram(t, busybox, r.lower+"/bin/busybox")
	for _, a := range applets {
		must(t, os.Symlink("busybox", r.lower+"/bin/"+a))
	}
	copyProgram(t, calls(t, ""), r.lower+"/bin/calls")
	must(t, os.WriteFile(r.lower+"/etc/passwd", []byte("root::0:0:root:/:/bin/sh\napp:x:1000:1001:App:/:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(r.lower+"/etc/group", []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\n"), 0o644))
	return r
}

var built sync.Map // by architecture

// calls returns testdata/calls as a program.
func calls(t testing.TB, arch string) string {
	t.Helper()
	if p, ok := built.Load(arch); ok {
		return p.(string)
	}
	dir, err := os.MkdirTemp("", "calls-")
	must(t, err)
	cmd := exec.Command(testenv.Tool(t, "go"), "build", "-o", dir+"/calls", "./testdata/calls")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local", "GOFLAGS=-mod=mod -buildvcs=false")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	built.Store(arch, dir+"/calls")
	return dir + "/calls"
}

func copyProgram(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o755))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spec runs a script.
func (r *root) spec(script string) *executor.Spec {
	return &executor.Spec{
		Means: executor.Means{Recorded: r.single},
		Root:  executor.Overlay{Lower: []string{r.lower}, Upper: r.upper, Work: r.work},
		Args:  []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"},
	}
}

// run runs a step and returns what it printed.
func (r *root) run(t testing.TB, ctx context.Context, spec *executor.Spec) (string, error) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	read, write, err := os.Pipe()
	must(t, err)
	defer read.Close()
	out := make(chan string)
	go func() {
		b, _ := io.ReadAll(read)
		out <- string(b)
	}()
	err = r.h.Call(ctx, "run", spec, nil, null, write, write)
	write.Close()
	var re *userns.RemoteError
	if errors.As(err, &re) {
		if typed := executor.FromRemote(re.Kind, re.Data); typed != nil {
			err = typed
		}
	}
	select {
	case s := <-out:
		return s, err
	case <-time.After(10 * time.Second):
		t.Fatal("something of the step still holds its standard output")
		return "", nil
	}
}

// sh runs a script on an empty upper directory and wants it to succeed.
func (r *root) sh(t testing.TB, script string, change ...func(*executor.Spec)) string {
	t.Helper()
	must(t, r.h.Call(context.Background(), "remove", r.upper, nil))
	must(t, os.Mkdir(r.upper, 0o755))
	return r.again(t, script, change...)
}

// again is sh on what the script before left.
func (r *root) again(t testing.TB, script string, change ...func(*executor.Spec)) string {
	t.Helper()
	must(t, r.h.Call(context.Background(), "remove", r.work, nil))
	must(t, os.Mkdir(r.work, 0o755))
	spec := r.spec(script)
	for _, c := range change {
		c(spec)
	}
	out, err := r.run(t, t.Context(), spec)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// record returns what is recorded of a file of the upper directory: the record, the owner on disk, whether there is one.
func (r *root) record(t testing.TB, name string) string {
	t.Helper()
	var out string
	must(t, r.h.Call(t.Context(), "record", filepath.Join(r.upper, name), &out))
	return out
}

func as(user string) func(*executor.Spec) {
	return func(s *executor.Spec) { s.User = user }
}
