package executor_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
)

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

func TestIdentity(t *testing.T) {
	r := newRootfs(t)
	for _, c := range []struct{ user, ids, home string }{
		{"", "0:0:0", "/root"},
		{"root", "0:0:0", "/root"},
		{"app", "1000:1001:1001 2000 2001", "/home/app"},
		{"1000", "1000:1001:1001 2000 2001", "/home/app"},
		{"app:extra", "1000:2000:2000", "/home/app"},
		{"app:7", "1000:7:7", "/home/app"},
		{"1000:1001", "1000:1001:1001", "/home/app"},
		{"4242", "4242:0:0", "/"},
		{"4242:app", "4242:1001:1001", "/"},
	} {
		out := r.sh(t, `echo "$(id -u):$(id -g):$(id -G)"; echo $HOME`, func(s *executor.Spec) { s.User = c.user })
		if got := lines(out); got[0] != c.ids || got[1] != c.home {
			t.Errorf("USER %q: %q, want %s %s", c.user, got, c.ids, c.home)
		}
	}
}

func TestIdentityRefused(t *testing.T) {
	r := newRootfs(t)
	for _, u := range []string{"nobody", "app:nogroup", "-1", "4294967296", "2147483648:0", "0:2147483648", "00", "0x0", "99999999999999999999"} {
		r.reset(t)
		s := r.spec("id")
		s.User = u
		if res := run(t, t.Context(), s); res.err == nil {
			t.Errorf("USER %s became %s", u, res.out)
		}
	}
	must(t, os.WriteFile(r.lower+"/etc/passwd", []byte("1000:x:0:0:::\nbad:x:zero:0:::\n"), 0o644))
	if out := r.sh(t, "id -u", func(s *executor.Spec) { s.User = "1000" }); out != "1000\n" {
		t.Errorf("a numeric name changed the uid: %s", out)
	}
	s := r.spec("id")
	s.User = "bad"
	if res := run(t, t.Context(), s); res.err == nil {
		t.Errorf("an entry without a valid id became %s", res.out)
	}
}

func TestPasswdThatIsNoFile(t *testing.T) {
	r := newRootfs(t)
	passwd := r.lower + "/etc/passwd"
	for name, make := range map[string]func() error{
		"fifo": func() error { return unix.Mkfifo(passwd, 0o644) },
		"huge": func() error {
			f, err := os.Create(passwd)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1 << 30)
		},
		"link out": func() error { return os.Symlink("../../../../../../../../etc/passwd", passwd) },
	} {
		must(t, os.Remove(passwd))
		must(t, make())
		r.reset(t)
		s := r.spec("id")
		s.User = "daemon"
		start := time.Now()
		if res := run(t, t.Context(), s); res.err == nil {
			t.Errorf("%s: became %s", name, res.out)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

func TestEnvironment(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "exec env", func(s *executor.Spec) { s.Env = []string{"PATH=/bin", "A=1", "B=2", "A=3"} })
	got := lines(out)
	slices.Sort(got)
	want := []string{"A=3", "B=2", "HOME=/root", "PATH=/bin", "PWD=/"}
	got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "SHLVL=") })
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
	if out := r.sh(t, "echo $HOME", func(s *executor.Spec) { s.Env = append(s.Env, "HOME=/x") }); out != "/x\n" {
		t.Errorf("HOME %q", out)
	}
}

func TestAnyBytes(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "echo \xff\xfe$X", func(s *executor.Spec) { s.Env = append(s.Env, "X=\xe9") })
	if out != "\xff\xfe\xe9\n" {
		t.Errorf("%q", out)
	}
	if _, err := json.Marshal(&executor.Spec{Dir: "/\xff"}); err == nil {
		t.Error("a directory that would change was sent")
	}
}

func TestSpecSurvivesJSON(t *testing.T) {
	in := executor.Spec{
		Root: executor.Overlay{Lower: []string{"/a", "/b"}, Upper: "/u", Work: "/w"}, Args: []string{"x", "\xff"}, Env: []string{"A=1"},
		Dir: "/d", User: "u:g", Network: executor.NetworkNone, Security: executor.Insecure, ShmSize: 5, Resolv: []byte("r"), Hosts: []byte{},
		Mounts: []executor.Mount{
			{Target: "/1", Source: executor.BindPath{Path: "/p", Sub: "s", ReadOnly: true}},
			{Target: "/2", Source: executor.Tmpfs{Size: 7, Mode: 0o700}},
			{Target: "/3", Source: executor.File{Data: []byte("\xff"), Mode: 0o400, UID: 1, GID: 2}},
			{Target: "/4", Source: executor.Socket{Hand: 3, Mode: 0o600, UID: 1, GID: 2}},
		},
		Rlimits: []executor.Rlimit{{Resource: 7, Soft: 1, Hard: 2}},
	}
	b, err := json.Marshal(in)
	must(t, err)
	var out executor.Spec
	must(t, json.Unmarshal(b, &out))
	if !reflect.DeepEqual(in, out) {
		t.Errorf("%+v became %+v", in, out)
	}
}

func TestProcessState(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "grep -E '^(Cap|NoNewPrivs|Seccomp:|SigIgn|SigBlk)' /proc/self/status; echo pid $$; umask; hostname; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l")
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t2", "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000",
		"pid 1", "0022", executor.DefaultHostname,
	} {
		if !slices.Contains(lines(out), want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	out = r.sh(t, "grep Cap /proc/self/status", func(s *executor.Spec) { s.User = "app" })
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000"} {
		if !slices.Contains(lines(out), want) {
			t.Errorf("as app: no line %q in\n%s", want, out)
		}
	}
}

func TestNoInheritedFiles(t *testing.T) {
	r := newRootfs(t)
	var fds []int
	for len(fds) < 18 {
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0) // not close-on-exec
		must(t, err)
		fds = append(fds, fd)
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	// Read without a process in between: the descriptor of the directory itself is the only other one.
	out := r.sh(t, "", func(s *executor.Spec) { s.Args = []string{"ls", "/proc/self/fd"} })
	if got := strings.Fields(out); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
		t.Errorf("open files %q", got)
	}
}

func TestExitStatus(t *testing.T) {
	r := newRootfs(t)
	must(t, os.WriteFile(r.lower+"/noexec", []byte("#!/bin/sh\n"), 0o644))
	must(t, os.WriteFile(r.lower+"/badformat", []byte("garbage"), 0o755))
	must(t, os.WriteFile(r.lower+"/badinterp", []byte("#!/no/such\n"), 0o755))
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"/bin/sh", "-c", "exit 3"}, 3, "exit code: 3"},
		{[]string{"nonesuch"}, 127, `"nonesuch": executable file not found in $PATH`},
		{[]string{"/no/such"}, 127, "no such file or directory"},
		{[]string{"/noexec"}, 126, "permission denied"},
		{[]string{"/badformat"}, 126, "exec format error"},
		{[]string{"/badinterp"}, 127, "no such file or directory"},
		{[]string{"/etc"}, 126, "permission denied"},
	} {
		r.reset(t)
		s := r.spec("")
		s.Args = c.args
		res := run(t, t.Context(), s)
		if got := res.code(t); got != c.code || !strings.Contains(res.err.Error(), c.text) {
			t.Errorf("%q: code %d, %v", c.args, got, res.err)
		}
	}
}

func TestSignalled(t *testing.T) {
	r := newRootfs(t)
	// The first process must not be process 1 to die of a signal it sends; a child's death is the shell's 137.
	res := run(t, t.Context(), r.spec("sh -c 'kill -9 $$'; exit $?"))
	if res.code(t) != 137 {
		t.Fatal(res.err)
	}
}

func TestNothingSurvives(t *testing.T) {
	r := newRootfs(t)
	marker := "31536" + time.Now().Format("150405")
	start := time.Now()
	r.sh(t, "sleep "+marker+" & (setsid nohup sleep "+marker+" >/dev/null 2>&1 &) ; sleep 0.1; ps | grep -c 'sleep'")
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("waited for a background process: %v", d)
	}
	if n := countProcesses(t, marker); n != 0 {
		t.Errorf("%d processes survive", n)
	}
}

// countProcesses counts processes of the machine with the text in their command line.
func countProcesses(t testing.TB, text string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	n := 0
	for _, d := range dirs {
		b, _ := os.ReadFile(d)
		if strings.Contains(strings.ReplaceAll(string(b), "\x00", " "), "sleep "+text) {
			n++
		}
	}
	return n
}

func TestCancel(t *testing.T) {
	for _, u := range []string{"", "app"} {
		r := newRootfs(t)
		marker := "27182" + time.Now().Format("150405")
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		var canceled time.Time
		go func() {
			for i := 0; i < 1000 && countProcesses(t, marker) < 2; i++ {
				time.Sleep(20 * time.Millisecond)
			}
			canceled = time.Now()
			cancel(cause)
		}()
		s := r.spec("trap '' TERM INT HUP; sleep " + marker + " & setsid sleep " + marker + " & wait; wait; wait")
		s.User = u
		res := run(t, ctx, s)
		took := time.Since(canceled)
		if !errors.Is(res.err, cause) {
			t.Errorf("USER %q: %v", u, res.err)
		}
		if n := countProcesses(t, marker); n != 0 {
			t.Errorf("USER %q: %d processes survive", u, n)
		}
		if took > time.Second {
			t.Errorf("USER %q: took %v to end", u, took)
		}
		t.Logf("USER %q: gone after %v", u, took)
		if c := r.changes(t); len(c) != 0 {
			t.Errorf("changes: %q", c)
		}
	}
}

func TestWorkingDirectory(t *testing.T) {
	r := newRootfs(t)
	must(t, os.Symlink("/home/app", r.lower+"/link"))
	must(t, os.WriteFile(r.lower+"/file", nil, 0o644))
	for _, c := range []struct{ dir, pwd string }{{"", "/"}, {"/home/app", "/home/app"}, {"/link", "/home/app"}, {"/../..", "/"}, {"/tmp/../etc", "/etc"}} {
		if out := r.sh(t, "/bin/pwd -P", func(s *executor.Spec) { s.Dir = c.dir }); out != c.pwd+"\n" {
			t.Errorf("WORKDIR %q is %q", c.dir, out)
		}
	}
	out := r.sh(t, "stat -c '%u:%g %a' /new /new/dir", func(s *executor.Spec) { s.Dir, s.User = "/new/dir", "app" })
	if out != "1000:1001 755\n1000:1001 755\n" {
		t.Errorf("made as %q", out)
	}
	if got := r.changes(t); !slices.Equal(got, []string{"new", "new/dir"}) {
		t.Errorf("changes %q", got)
	}
	dirs := []string{"/file", "/file/x", "/proc/self/cwd", "/proc/self/root/etc", "/dev/fd/3"}
	for i := range 64 {
		dirs = append(dirs, "/proc/self/fd/"+itoa(i))
	}
	must(t, os.Symlink("/proc/self/fd/7", r.lower+"/sneaky"))
	for _, d := range append(dirs, "/sneaky", "/sneaky/..") {
		r.reset(t)
		s := r.spec("ls -la")
		s.Dir = d
		if res := run(t, t.Context(), s); !blamesRoot(res.err) {
			t.Errorf("WORKDIR %s: %v: %s", d, res.err, res.out)
		}
	}
}

func TestManyLowers(t *testing.T) {
	r := newRootfs(t)
	lower := []string{r.lower}
	for i := range 199 {
		d := filepath.Join(r.dir, "a-layer-directory-with-a-long-name-such-as-a-digest-would-have", itoa(i))
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(filepath.Join(d, "f"+itoa(i)), nil, 0o644))
		must(t, os.WriteFile(filepath.Join(d, "top"), []byte(itoa(i)), 0o644))
		lower = append(lower, d)
	}
	out := r.sh(t, "ls / | grep -c '^f[0-9]'; cat /top", func(s *executor.Spec) {
		s.Root = executor.Overlay{Lower: lower, Upper: r.upper, Work: r.work}
	})
	if out != "199\n198" {
		t.Errorf("%q", out)
	}
}

func TestScratch(t *testing.T) {
	r := newRootfs(t)
	bb := r.dir + "/only"
	must(t, os.Mkdir(bb, 0o755))
	must(t, os.Rename(r.lower+"/bin", bb+"/bin"))
	at := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(r.upper, at, at))
	s := r.spec("true")
	s.Root = executor.Overlay{Lower: []string{bb}, Upper: r.upper, Work: r.work}
	s.Resolv, s.Hosts = []byte("nameserver 192.0.2.1\n"), []byte("127.0.0.1 localhost\n")
	if res := run(t, t.Context(), s); res.err != nil {
		t.Fatal(res.err)
	}
	if got := r.changes(t); !slices.Equal(got, []string{"dev", "proc", "sys"}) {
		t.Errorf("changes %q", got)
	}
	st, err := os.Stat(r.upper)
	must(t, err)
	if !st.ModTime().Equal(at) {
		t.Errorf("the root's modification time became %v", st.ModTime())
	}
	r.reset(t)
	s = r.spec("true")
	s.Root = executor.Overlay{Upper: r.upper, Work: r.work}
	if res := run(t, t.Context(), s); res.code(t) != 127 {
		t.Errorf("without any layer: %v", res.err)
	}
}

func TestTreeRoot(t *testing.T) {
	r := newRootfs(t)
	s := r.spec("echo x > /made; cat /etc/hosts")
	s.Root = executor.Tree{Dir: r.lower}
	s.Hosts = []byte("h\n")
	res := run(t, t.Context(), s)
	if res.err != nil || res.out != "h\n" {
		t.Fatal(res.out, res.err)
	}
	if _, err := os.Stat(r.lower + "/made"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.lower + "/etc/hosts"); err == nil {
		t.Error("the mount point stayed")
	}
}

// TestFileTypes checks that a step can make what layers hold.
func TestFileTypes(t *testing.T) {
	r := newRootfs(t)
	if setcap, err := exec.LookPath("setcap"); err == nil {
		// A dynamic program of the host, with the libraries it names.
		out, err := exec.Command("ldd", setcap).Output()
		must(t, err)
		for _, f := range strings.Fields(string(out)) {
			if strings.HasPrefix(f, "/") {
				copyFile(t, f, r.lower+f)
			}
		}
		copyFile(t, setcap, r.lower+"/bin/setcap")
	}
	out := r.sh(t, `set -e
		mkfifo /fifo; ln -s x /dangling; echo a > /a; ln /a /b; chown 1000:1001 /a; chmod 4755 /a
		dd if=/dev/zero of=/sparse bs=1 count=1 seek=1048576 2>/dev/null
		touch "$(printf 'odd\377name')"
		stat -c '%n %F %a %u:%g %h' /fifo /a
		if [ -x /bin/setcap ]; then cp() { dd if=$1 of=$2 2>/dev/null; }; cp /bin/busybox /capped; setcap cap_net_raw+ep /capped; fi`)
	if out != "/fifo fifo 644 0:0 1\n/a regular file 4755 1000:1001 2\n" {
		t.Errorf("%q", out)
	}
	want := []string{"a", "b", "capped", "dangling", "fifo", "odd\xffname", "sparse"}
	if _, err := os.Stat(r.lower + "/bin/setcap"); err != nil {
		want = slices.DeleteFunc(want, func(s string) bool { return s == "capped" })
	}
	if got := r.changes(t); !slices.Equal(got, want) {
		t.Errorf("changes %q", got)
	}
	if slices.Contains(want, "capped") {
		buf := make([]byte, 64)
		if n, err := unix.Lgetxattr(r.upper+"/capped", "security.capability", buf); err != nil || n < 20 {
			t.Errorf("capability attribute: %d bytes, %v", n, err)
		}
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(t, os.WriteFile(to, b, 0o755))
}

func TestInsecure(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "grep -E '^(CapBnd|Seccomp:)' /proc/self/status; mount -t tmpfs x /tmp && echo mounted; cat /proc/keys >/dev/null && echo keys",
		func(s *executor.Spec) { s.Security = executor.Insecure })
	filter := "Seccomp:\t0"
	if os.Geteuid() != 0 {
		filter = "Seccomp:\t2" // for owners outside of the range
	}
	for _, want := range []string{filter, "mounted"} {
		if !slices.Contains(lines(out), want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "a80425fb") {
		t.Errorf("capabilities were dropped:\n%s", out)
	}
}

func TestRlimits(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "ulimit -n; ulimit -Hn; df -k /dev/shm | grep -c ' 1024 '", func(s *executor.Spec) {
		s.Rlimits = []executor.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 123, Hard: 456}}
		s.ShmSize = 1 << 20
	})
	if out != "123\n456\n1\n" {
		t.Errorf("%q", out)
	}
}

func TestRefusedSpecs(t *testing.T) {
	r := newRootfs(t)
	for name, change := range map[string]func(*executor.Spec){
		"security": func(s *executor.Spec) { s.Security = 7 },
		"network":  func(s *executor.Spec) { s.Network = 9 },
		"no args":  func(s *executor.Spec) { s.Args = nil },
		"relative": func(s *executor.Spec) { s.Mounts = []executor.Mount{{Target: "x", Source: executor.Tmpfs{}}} },
		"no root":  func(s *executor.Spec) { s.Root = nil },
		"source":   func(s *executor.Spec) { s.Mounts = []executor.Mount{{Target: "/x"}} },
		"missing lower": func(s *executor.Spec) {
			s.Root = executor.Overlay{Lower: []string{"/no/such"}, Upper: r.upper, Work: r.work}
		},
	} {
		s := r.spec("true")
		change(s)
		var e *executor.SetupError
		if res := run(t, t.Context(), s); !errors.As(res.err, &e) {
			t.Errorf("%s: %v", name, res.err)
		}
	}
}

func itoa(i int) string {
	if i >= 10 {
		return itoa(i/10) + itoa(i%10)
	}
	return string(rune('0' + i))
}
