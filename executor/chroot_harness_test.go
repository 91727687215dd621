package executor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/testenv"
)

// Steps in a chroot run in a container as Docker makes them, with this test binary as the builder.

// chrootVar names the directory that holds the job of a process in the container, and takes its results.
const chrootVar = "EXECUTOR_TEST_CHROOT"

// chrootJob is what the process in the container does: all steps at once.
type chrootJob struct {
	Specs    []executor.Spec
	Cancel   bool // the first step, once it has printed something
	Listened bool // by a filter outside of the builder
	Agent    bool // add a socket on /agent to the first step, and say hello to whoever connects
}

type chrootResult struct {
	Kind   string // of the error, for FromRemote
	Error  json.RawMessage
	Text   string
	Traces executor.Traces
}

func chrootMain() {
	dir := os.Getenv(chrootVar)
	data, err := os.ReadFile(dir + "/job")
	if err != nil {
		panic(err)
	}
	var job chrootJob
	if err := json.Unmarshal(data, &job); err != nil {
		panic(err)
	}
	if job.Listened && len(os.Args) == 1 {
		listenOutside()
	}
	results := make([]chrootResult, len(job.Specs))
	done := make(chan int)
	for i := range job.Specs {
		go func() {
			spec := &job.Specs[i]
			spec.Traces = &results[i].Traces
			out, err := os.Create(fmt.Sprintf("%s/out%d", dir, i))
			if err != nil {
				panic(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				panic(err)
			}
			ctx, cancel := context.WithCancelCause(context.Background())
			written := make(chan bool)
			go func() {
				if job.Cancel {
					r.Read(make([]byte, 1))
					cancel(errors.New("not wanted any more"))
				}
				out.ReadFrom(r)
				close(written)
			}()
			if job.Agent {
				serveHello(spec)
			}
			err = executor.Run(ctx, spec, nil, w, w)
			w.Close()
			<-written
			if r, ok := err.(interface{ Remote() (string, any) }); ok {
				var v any
				results[i].Kind, v = r.Remote()
				results[i].Error, _ = json.Marshal(v)
			}
			if err != nil {
				results[i].Text = err.Error()
			}
			done <- i
		}()
	}
	for range job.Specs {
		<-done
	}
	data, err = json.Marshal(results)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(dir+"/result", data, 0o644); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// listenOutside executes the builder again below a filter that has a listener.
func listenOutside() {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	fd, err := executor.InstallListener()
	if err != nil {
		panic(err)
	}
	unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	panic(syscall.Exec("/builder", []string{"/builder", "again"}, os.Environ()))
}

// serveHello takes the listening end of the step's socket and answers the first who connects.
func serveHello(spec *executor.Spec) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	spec.Mounts = append(spec.Mounts, executor.Mount{Target: "/agent", Source: executor.Socket{Hand: fds[1], Mode: 0o600}})
	go func() {
		oob := make([]byte, unix.CmsgSpace(4))
		if _, _, _, _, err := unix.Recvmsg(fds[0], make([]byte, 1), oob, 0); err != nil {
			panic(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			panic(err)
		}
		got, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			panic(err)
		}
		conn, _, err := unix.Accept(got[0])
		if err != nil {
			panic(err)
		}
		unix.Write(conn, []byte("hello"))
		unix.Close(conn)
	}()
}

// chrootPlace is a container with a directory of its own, /store in it, for trees and caches.
type chrootPlace struct {
	testenv.Container
	dir   string
	trees int
}

func newChrootPlace(t testing.TB) *chrootPlace {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	exe, err := os.Executable()
	must(t, err)
	return &chrootPlace{dir: dir, Container: testenv.Container{
		Binds: []testenv.Bind{{Source: exe, Target: "/builder", ReadOnly: true}, {Source: dir, Target: "/store"}},
		Env:   []string{chrootVar + "=/store"},
	}}
}

// root makes a tree from a prepared base image and returns its name in the container.
func (p *chrootPlace) root(t testing.TB, base string) string {
	t.Helper()
	p.trees++
	name := fmt.Sprintf("tree%d", p.trees)
	must(t, os.Mkdir(filepath.Join(p.dir, name), 0o700))
	out, err := exec.Command("cp", "-a", "--reflink=auto", testenv.Unpacked(t, base), filepath.Join(p.dir, name, "fs")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return "/store/" + name + "/fs"
}

// host is the name outside for a name in the container.
func (p *chrootPlace) host(name string) string {
	return filepath.Join(p.dir, strings.TrimPrefix(name, "/store"))
}

func chrootSpec(tree, script string) executor.Spec {
	return executor.Spec{
		Means: executor.Means{Chroot: true}, Root: executor.Tree{Dir: tree}, Args: []string{"/bin/sh", "-c", script},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
}

// stepResult is how one step ended.
type stepResult struct {
	out    string
	err    error // an *executor.ExitError or *executor.SetupError, mostly
	traces executor.Traces
}

// put leaves a job for the next container.
func (p *chrootPlace) put(t testing.TB, specs ...executor.Spec) {
	t.Helper()
	p.putJob(t, chrootJob{Specs: specs})
}

func (p *chrootPlace) putJob(t testing.TB, job chrootJob) {
	t.Helper()
	data, err := json.Marshal(job)
	must(t, err)
	must(t, os.WriteFile(p.dir+"/job", data, 0o644))
}

func (p *chrootPlace) steps(t testing.TB, specs ...executor.Spec) []stepResult {
	t.Helper()
	return p.do(t, chrootJob{Specs: specs})
}

// do has a builder in a container do a job.
func (p *chrootPlace) do(t testing.TB, job chrootJob) []stepResult {
	t.Helper()
	p.putJob(t, job)
	r := p.Run(t, "/builder")
	if r.Code != 0 {
		t.Fatalf("the builder: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	data, err := os.ReadFile(p.dir + "/result")
	must(t, err)
	var results []chrootResult
	must(t, json.Unmarshal(data, &results))
	var out []stepResult
	for i, res := range results {
		text, err := os.ReadFile(fmt.Sprintf("%s/out%d", p.dir, i))
		must(t, err)
		s := stepResult{out: string(text), traces: res.Traces}
		if s.err = executor.FromRemote(res.Kind, res.Error); s.err == nil && res.Text != "" {
			s.err = fmt.Errorf("%s", res.Text)
		}
		out = append(out, s)
	}
	return out
}

// sh runs a script in a tree and wants it to succeed.
func (p *chrootPlace) sh(t testing.TB, tree, script string, change ...func(*executor.Spec)) stepResult {
	t.Helper()
	s := chrootSpec(tree, script)
	for _, c := range change {
		c(&s)
	}
	r := p.steps(t, s)[0]
	if r.err != nil {
		t.Fatalf("%s: %v\n%s", script, r.err, r.out)
	}
	return r
}

// state is what change detection sees of a file, and a bit more.
type fileState struct {
	ino          uint64
	mode         uint32
	uid, gid     uint32
	size         int64
	mtime, ctime int64
	links        uint64
}

func stateOf(t testing.TB, dir string) map[string]fileState {
	t.Helper()
	out := map[string]fileState{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		s := fileState{ino: st.Ino, mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), links: uint64(st.Nlink)}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			s.size = 0 // a directory of ext4 does not shrink
		}
		out[rel] = s
		return nil
	}))
	return out
}

// changed lists the differences of two states, ctime aside where the step says so.
func changed(before, after map[string]fileState, touched []string) []string {
	var out []string
	for p, b := range before {
		a, ok := after[p]
		if ok && slices.Contains(touched, p) {
			a.ctime = b.ctime
		}
		if !ok {
			out = append(out, "-"+p)
		} else if a != b {
			out = append(out, "~"+p)
		}
	}
	for p := range after {
		if _, ok := before[p]; !ok {
			out = append(out, "+"+p)
		}
	}
	slices.Sort(out)
	return out
}
