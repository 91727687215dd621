package executor_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"build/executor"
)

func TestView(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, `
		[ "$(stat -c %d:%i /)" = "$(stat -c %d:%i /..)" ] && echo root-is-top
		ls /dev | tr '\n' ' '; echo
		echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
		readlink /dev/stdout; echo to-stdout > /dev/stdout; echo to-stderr > /dev/stderr
		for f in /proc/keys /proc/timer_list /proc/interrupts /proc/kcore; do [ -e $f ] && wc -c < $f; done | sort -u
		ls -A /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v : | grep -v '^$' | wc -l
		for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/x /sys/x /sys/fs/cgroup/x /proc/sys/vm/drop_caches; do echo x > $f && echo "wrote $f"; done 2>/dev/null
		(echo x > /dev/tty) 2>/dev/null && echo has-tty
		mount | cut -d' ' -f3 | sort | tr '\n' ' '; echo
		ls /proc | grep -c '^[0-9]'
		true`)
	for _, want := range []string{
		"root-is-top", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ", "/proc/self/fd/1", "to-stdout", "to-stderr",
	} {
		if !slices.Contains(lines(out), want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	for _, bad := range []string{"wrote", "has-tty", "/work", "/home/", "/tmp "} {
		if strings.Contains(out, bad) {
			t.Errorf("%q in\n%s", bad, out)
		}
	}
	if !strings.Contains(out, "\n0\n0\n") {
		t.Errorf("masked files are not empty:\n%s", out)
	}
}

func TestStdoutAsUser(t *testing.T) {
	r := newRootfs(t)
	if out := r.sh(t, "echo a > /dev/stdout; echo b > /proc/self/fd/2", func(s *executor.Spec) { s.User = "app" }); out != "a\nb\n" {
		t.Errorf("%q", out)
	}
}

func TestNetworkNone(t *testing.T) {
	r := newRootfs(t)
	out := r.sh(t, "ip -o link; ip -o addr; cat /proc/net/route | wc -l; ls /sys/class/net", func(s *executor.Spec) { s.Network = executor.NetworkNone })
	if !strings.Contains(out, "127.0.0.1/8") || !strings.Contains(out, "LOOPBACK,UP") {
		t.Errorf("no live loopback:\n%s", out)
	}
	if strings.Contains(out, "eth") || strings.Contains(out, "veth") {
		t.Errorf("other interfaces:\n%s", out)
	}
	if out := r.sh(t, "readlink /proc/self/ns/net"); len(out) == 0 {
		t.Error("no network namespace")
	}
}

func TestSystemCalls(t *testing.T) {
	r := newRootfs(t)
	helper := buildHelper(t)
	copyFile(t, helper, r.lower+"/bin/syscalls")
	out := r.sh(t, "/bin/syscalls")
	want := []string{
		"mount EPERM", "unshare-user EPERM", "unshare-ns EPERM", "keyctl EPERM", "add_key EPERM", "bpf EPERM", "io_uring EPERM", "clone3 ENOSYS",
		"clone-newuser EPERM", "af_alg EPERM", "af_alg-high-bits EPERM", "af_vsock EPERM", "af_inet ok", "af_unix ok", "personality-0 ok",
		"personality-bad EPERM", "setns EPERM", "open_by_handle EPERM", "kexec EPERM", "reboot EPERM", "swapon EPERM", "pivot_root EPERM",
		"getpid ok", "x32 ENOSYS", "unknown EPERM",
	}
	for _, w := range want {
		if !slices.Contains(lines(out), w) {
			t.Errorf("no line %q in\n%s", w, out)
		}
	}
	if b, err := os.ReadFile("/proc/sys/abi/vsyscall32"); err == nil && len(b) > 0 { // 32-bit programs run here
		helper32 := buildHelper(t, "GOARCH=386")
		copyFile(t, helper32, r.lower+"/bin/syscalls")
		out := r.sh(t, "/bin/syscalls")
		for _, w := range []string{"mount EPERM", "keyctl EPERM", "af_alg EPERM", "af_inet ok", "clone3 ENOSYS", "unshare-user EPERM", "getpid ok"} {
			if !slices.Contains(lines(out), w) {
				t.Errorf("32-bit: no line %q in\n%s", w, out)
			}
		}
	}
}

// buildHelper compiles testdata/syscalls. As an ordinary user the first run's binaries are used.
func buildHelper(t *testing.T, env ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil || os.Getenv(asUserVar) != "" {
		name := "syscalls" + strings.Join(env, "")
		p := filepath.Join(filepath.Dir(os.Args[0]), name)
		if _, err := os.Stat(p); err != nil {
			t.Skip("no go command to build testdata/syscalls with")
		}
		return p
	}
	out := filepath.Join(t.TempDir(), "syscalls")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/syscalls")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

func TestSetuid(t *testing.T) {
	r := newRootfs(t)
	bb, err := os.ReadFile(r.lower + "/bin/busybox")
	must(t, err)
	must(t, os.Remove(r.lower+"/bin/su"))
	must(t, os.WriteFile(r.lower+"/bin/su", bb, 0o755))
	must(t, os.Chmod(r.lower+"/bin/su", 0o755|os.ModeSetuid))
	if out := r.sh(t, "/bin/su app -c 'id -u'"); out != "1000\n" {
		t.Errorf("root to app: %q", out)
	}
	must(t, os.WriteFile(r.lower+"/etc/passwd", []byte("root::0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"), 0o644))
	if out := r.sh(t, "id -u; /bin/su root -c 'id -u'", func(s *executor.Spec) { s.User = "app" }); out != "1000\n0\n" {
		t.Errorf("app to root: %q", out)
	}
}

func TestDeviceNodesDoNotWork(t *testing.T) {
	r := newRootfs(t)
	r.reset(t)
	res := run(t, t.Context(), r.spec("mknod /n c 1 5 && (head -c1 /n | wc -c; mknod /dev/n c 1 5 && head -c1 /dev/n | wc -c; mknod /dev/shm/n c 1 5 && head -c1 /dev/shm/n | wc -c) 2>&1"))
	if strings.Contains(res.out, "1\n") {
		t.Errorf("a device made by the step works:\n%s", res.out)
	}
}

func TestOwnProgramIsProtected(t *testing.T) {
	r := newRootfs(t)
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	r.reset(t)
	s := r.spec("")
	s.Args = []string{"/proc/self/exe", "-test.run=^$"}
	run(t, t.Context(), s)
	must(t, os.WriteFile(r.lower+"/bang", []byte("#!/proc/self/exe\n"), 0o755))
	r.reset(t)
	s = r.spec("")
	s.Args = []string{"/bang"}
	run(t, t.Context(), s)
	after, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	if !bytes.Equal(exe, after) {
		t.Fatal("the program changed")
	}
}

func TestMounts(t *testing.T) {
	r := newRootfs(t)
	src := r.dir + "/src"
	must(t, os.MkdirAll(src+"/sub", 0o755))
	must(t, os.WriteFile(src+"/file", []byte("content\n"), 0o644))
	must(t, os.Symlink("/sub", src+"/link"))
	must(t, os.WriteFile(src+"/sub/inner", []byte("inner\n"), 0o644))
	before := time.Unix(1_234_567_890, 123456789)
	for _, d := range []string{"/etc", "/home", "/tmp"} {
		must(t, os.Chtimes(r.lower+d, before, before))
	}
	out := r.sh(t, `set -e
		cat /mnt/ro/file; echo x 2>/dev/null > /mnt/ro/new && echo wrote-ro
		cat /mnt/sub/inner; echo y > /rw/made
		cat /one; stat -c %a:%u:%g /one /tmp/t; echo z > /tmp/t/f; cat /tmp/t/nested/inner
		cat /etc/resolv.conf /etc/hosts; stat -c %Y /etc /home /tmp; ls /dev/pipes
		true`, func(s *executor.Spec) {
		s.Resolv, s.Hosts = []byte("resolv\n"), []byte("hosts\n")
		s.Mounts = []executor.Mount{
			{Target: "/tmp/t/nested", Source: executor.BindPath{Path: src + "/sub"}},
			{Target: "/mnt/ro", Source: executor.BindPath{Path: src, ReadOnly: true}},
			{Target: "/mnt/sub", Source: executor.BindPath{Path: src, Sub: "link"}},
			{Target: "/rw", Source: executor.BindPath{Path: src}},
			{Target: "/one", Source: executor.File{Data: []byte("secret\n"), Mode: 0o400, UID: 1000, GID: 1001}},
			{Target: "/tmp/t", Source: executor.Tmpfs{Size: 1 << 20, Mode: 0o700}},
			{Target: "/home/deep/er/file", Source: executor.File{Data: []byte("x"), Mode: 0o444}},
			{Target: "/dev/pipes/EOF", Source: executor.File{Data: []byte("x"), Mode: 0o444}},
		}
	})
	want := "content\ninner\nsecret\n400:1000:1001\n700:0:0\ninner\nresolv\nhosts\n" + strings.Repeat("1234567890\n", 3) + "EOF\n"
	// "set -e" does not end at the refused write: it is followed by &&.
	if strings.ReplaceAll(out, "/bin/sh: can't create /mnt/ro/new: Read-only file system\n", "") != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if got := r.changes(t); len(got) != 0 {
		t.Errorf("changes %q", got)
	}
	if _, err := os.Stat(src + "/made"); err != nil {
		t.Error("a writable bind mount was not written to")
	}
}

func TestStubsGoOnlyWhenOurs(t *testing.T) {
	r := newRootfs(t)
	canary := r.dir + "/canary"
	must(t, os.MkdirAll(canary+"/stub", 0o755))
	must(t, os.WriteFile(canary+"/file", nil, 0o644))
	mounts := func(s *executor.Spec) {
		s.Mounts = []executor.Mount{
			{Target: "/a/b/stub", Source: executor.Tmpfs{}},
			{Target: "/c/file", Source: executor.File{Data: []byte("x"), Mode: 0o444}},
			{Target: "/d/e", Source: executor.Tmpfs{}},
		}
	}
	// The step moves the parents away, puts links to the host's directory in their place, and uses one for itself.
	r.sh(t, fmt.Sprintf("mv /a /moved; ln -s %s /a; mv /c /c2 && ln -s %s /c; echo mine > /d/own", canary, canary), mounts)
	if got := r.changes(t); !slices.Equal(got, []string{"a", "c", "c2", "d", "d/own", "moved"}) {
		t.Errorf("changes %q", got)
	}
	if _, err := os.Stat(canary + "/stub"); err != nil {
		t.Error("a directory of the host was removed")
	}
	if _, err := os.Stat(canary + "/file"); err != nil {
		t.Error("a file of the host was removed")
	}
}

func TestDirectoryChangedBesideStub(t *testing.T) {
	r := newRootfs(t)
	at := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(r.lower+"/etc", at, at))
	hosts := func(s *executor.Spec) { s.Hosts = []byte("x") }
	r.sh(t, "touch /etc/new; rm /etc/new", hosts) // leaves a newer time, which is a change
	if got := r.changes(t); !slices.Equal(got, []string{"etc"}) {
		t.Errorf("changes %q", got)
	}
	r.sh(t, "chmod 700 /etc", hosts)
	if got := r.changes(t); !slices.Equal(got, []string{"etc"}) {
		t.Errorf("changes %q", got)
	}
	r.sh(t, "rm /etc/passwd", hosts)
	if got := r.changes(t); !slices.Equal(got, []string{"etc", "etc/passwd"}) {
		t.Errorf("changes %q", got)
	}
}

func TestSymlinkedTargets(t *testing.T) {
	r := newRootfs(t)
	canary := r.dir + "/canary"
	must(t, os.Mkdir(canary, 0o755))
	up := "../../../../../../../../../.."
	must(t, os.Symlink(up+canary, r.lower+"/out"))
	must(t, os.Symlink("../run/resolve/stub.conf", r.lower+"/etc/resolv.conf"))
	must(t, os.Symlink("/proc", r.lower+"/p"))
	out := r.sh(t, "cat /etc/resolv.conf /run/resolve/stub.conf; ls -d "+canary+"/x", func(s *executor.Spec) {
		s.Resolv = []byte("r\n")
		s.Mounts = []executor.Mount{{Target: "/out/x", Source: executor.Tmpfs{}}}
	})
	if out != "r\nr\n"+canary+"/x\n" {
		t.Errorf("%q", out)
	}
	if c := r.changes(t); len(c) != 0 {
		t.Errorf("changes %q", c)
	}
	if es, _ := os.ReadDir(canary); len(es) != 0 {
		t.Errorf("the host's directory was written: %v", es)
	}
	for _, target := range []string{"/proc", "/proc/self/attr", "/sys", "/sys/x", "/p", "/p/self", "/sys/fs/cgroup", "/proc/self/fd/5/x", "/", "/etc/passwd", "/etc/passwd/x"} {
		r.reset(t)
		s := r.spec("true")
		s.Mounts = []executor.Mount{{Target: target, Source: executor.Tmpfs{}}}
		if res := run(t, t.Context(), s); !blamesRoot(res.err) {
			t.Errorf("a mount on %s: %v", target, res.err)
		}
	}
	must(t, os.Symlink("loop", r.lower+"/loop"))
	r.reset(t)
	s := r.spec("true")
	s.Mounts = []executor.Mount{{Target: "/loop/x", Source: executor.Tmpfs{}}}
	if res := run(t, t.Context(), s); !blamesRoot(res.err) {
		t.Errorf("a loop: %v", res.err)
	}
}

func TestSymlinkedBaseDirectories(t *testing.T) {
	for _, name := range []string{"proc", "dev", "sys"} {
		r := newRootfs(t)
		canary := r.dir + "/host"
		must(t, os.Mkdir(canary, 0o755))
		must(t, os.WriteFile(canary+"/null", []byte("canary"), 0o644))
		must(t, os.Mkdir(r.lower+"/x", 0o755))
		for _, link := range []string{"/x", "../../../../../../../../.." + canary, "."} {
			must(t, os.Remove(r.lower+"/"+name))
			must(t, os.Symlink(link, r.lower+"/"+name))
			r.reset(t)
			if res := run(t, t.Context(), r.spec("true")); !blamesRoot(res.err) {
				t.Errorf("/%s -> %s: %v", name, link, res.err)
			}
		}
		if b, _ := os.ReadFile(canary + "/null"); string(b) != "canary" {
			t.Errorf("the host's file changed through /%s", name)
		}
		if es, _ := os.ReadDir(canary); len(es) != 1 {
			t.Errorf("the host's directory changed through /%s", name)
		}
	}
}

// blamesRoot reports whether an error says that the root or the instruction is wrong, and not the machine.
func blamesRoot(err error) bool {
	var e *executor.ExitError
	return errors.As(err, &e) && e.Code == 126 && e.Msg != ""
}

func TestNoMountsLeft(t *testing.T) {
	r := newRootfs(t)
	r.sh(t, "true")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", holder(t).Pid()))
	if err != nil {
		b, err = os.ReadFile("/proc/self/mountinfo")
	}
	must(t, err)
	if bytes.Contains(b, []byte(r.dir)) || bytes.Contains(b, []byte("executor-test-")) {
		t.Errorf("mounts left:\n%s", b)
	}
}
