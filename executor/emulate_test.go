package executor_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/testenv"
)

// arm64 is what QEMU's own registration for it says, with the ABI and what follows it left out.
func arm64(t testing.TB) executor.Emulator {
	t.Helper()
	return executor.Emulator{
		Path: testenv.Emulators(t) + "/qemu-aarch64-static", Name: "qemu-arm64", KeepArgv0: true,
		Magic: []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"),
		Mask:  []byte("\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff"),
	}
}

func emulated(t testing.TB, change ...func(*executor.Emulator)) func(*executor.Spec) {
	e := arm64(t)
	for _, c := range change {
		c(&e)
	}
	return func(s *executor.Spec) { s.Emulators = []executor.Emulator{e} }
}

// newForeignRootfs is newRootfs of another machine, with this machine's programs in /native.
func newForeignRootfs(t testing.TB) *rootfs {
	t.Helper()
	r := newRootfs(t)
	skipWithoutOwnTable(t)
	must(t, os.Mkdir(r.lower+"/native", 0o755))
	must(t, os.Rename(r.lower+"/bin/busybox", r.lower+"/native/busybox"))
	must(t, os.WriteFile(r.lower+"/bin/busybox", testenv.FileOf(t, "busybox-arm64", "bin/busybox"), 0o755))
	must(t, os.Symlink("busybox", r.lower+"/bin/uname"))
	return r
}

func skipWithoutOwnTable(t testing.TB) {
	t.Helper()
	var c executor.Check
	must(t, holder(t).Call(context.Background(), "probe-emulation", nil, &c))
	if !c.OK && strings.Contains(c.Fix, "Linux") {
		t.Skipf("missing: %s: %s", c.Name, c.Fix)
	}
	if !c.OK {
		t.Fatalf("%s: %s: %s", c.Name, c.Detail, c.Blocker)
	}
}

// onHost tries to execute a program for another machine outside of every step.
func onHost(t testing.TB) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "busybox")
	must(t, os.WriteFile(file, testenv.FileOf(t, "busybox-arm64", "bin/busybox"), 0o755))
	return exec.Command(file, "true").Run()
}

// hostTable lists what is registered for the whole machine. Only root may look.
func hostTable(t testing.TB) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	dir := t.TempDir()
	must(t, unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	entries, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestEmulatedStep(t *testing.T) {
	r := newForeignRootfs(t)
	out := lines(r.sh(t, "uname -m; id -u; readlink /proc/self/exe; echo x > /file; chown app /file; cat /proc/1/status | grep Seccomp:; "+
		"ls /proc/sys/fs/binfmt_misc; /native/busybox echo native too", emulated(t)))
	want := []string{"aarch64", "0", "/bin/busybox", "Seccomp:\t2", "native too"}
	if !slices.Equal(out, want) {
		t.Errorf("%q, want %q", out, want)
	}
	if got := r.changes(t); !slices.Equal(got, []string{"file"}) {
		t.Errorf("the step left %q", got)
	}
}

// What is registered for a step is seen by no other, nor by the machine, and ends with the step.
func TestEmulatorIsTheStepsAlone(t *testing.T) {
	r := newForeignRootfs(t)
	if onHost(t) == nil {
		t.Skip("this machine executes programs for arm64 already")
	}
	table := hostTable(t)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	done := make(chan result, 1)
	s := r.spec("echo up > /up; sleep 60")
	emulated(t)(s)
	go func() { done <- run(t, ctx, s) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(r.upper + "/up"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the emulated step does nothing")
		}
	}
	other := newForeignRootfs(t)
	check := func(when string) {
		t.Helper()
		if err := onHost(t); !errors.Is(err, unix.ENOEXEC) {
			t.Errorf("%s: on the machine: %v", when, err)
		}
		if now := hostTable(t); !slices.Equal(now, table) {
			t.Errorf("%s: the machine's table is %q, was %q", when, now, table)
		}
		other.reset(t)
		if res := run(t, t.Context(), other.spec("true")); res.err == nil || res.code(t) != 126 {
			t.Errorf("%s: in another step: %v %s", when, res.err, res.out)
		}
	}
	check("during the step")
	end()
	<-done
	check("after the step")
}

// The program that emulates is a file of the machine, and a step can get hold of it. Its root may be the file's owner.
func TestEmulatorCannotBeOverwritten(t *testing.T) {
	r := newForeignRootfs(t)
	data, err := os.ReadFile(arm64(t).Path)
	must(t, err)
	own := r.dir + "/emulator"
	must(t, os.WriteFile(own, data, 0o777))
	r.reset(t)
	s := r.spec("")
	emulated(t, func(e *executor.Emulator) { e.Path = own })(s)
	s.Args = []string{"/native/busybox", "sh", "-c", `
		/bin/sleep 60 & p=$!
		i=0; while [ $i -lt 1000 ] && ! /native/busybox grep -q qemu /proc/$p/cmdline; do i=$((i+1)); done
		exec 3</proc/$p/exe
		/native/busybox dd bs=4 count=1 <&3 2>/dev/null | /native/busybox od -An -c
		kill -9 $p; wait $p
		echo evil >>/proc/self/fd/3`}
	res := run(t, t.Context(), s)
	if !strings.Contains(res.out, "E   L   F") || !strings.Contains(res.out, "Read-only file system") && !strings.Contains(res.out, "Text file busy") {
		t.Errorf("%v: %s", res.err, res.out)
	}
	after, err := os.ReadFile(own)
	must(t, err)
	if sha256.Sum256(data) != sha256.Sum256(after) {
		t.Error("the emulator was changed")
	}
}

// Nothing in a step's /proc tells where on the machine the emulator lies, and arguments come as they were given.
func TestEmulatedArguments(t *testing.T) {
	r := newForeignRootfs(t)
	const show = "/native/busybox cat /proc/1/cmdline | /native/busybox tr '\\0' ' '; echo; /native/busybox readlink /proc/1/exe; true"
	name := func(e *executor.Emulator) { e.KeepArgv0 = false }
	with, without := lines(r.sh(t, show, emulated(t))), lines(r.sh(t, show, emulated(t, name)))
	if !strings.HasPrefix(with[0], "qemu-arm64 /bin/sh /bin/sh -c ") || !strings.HasPrefix(without[0], "qemu-arm64 /bin/sh -c ") {
		t.Errorf("%q and without argument zero %q", with, without)
	}
	for _, dir := range []string{"build-test", "emulators", "/usr"} {
		if strings.Contains(with[1], dir) {
			t.Errorf("/proc/1/exe is %s", with[1])
		}
	}
	r.reset(t)
	s := r.spec("")
	emulated(t)(s)
	s.Args = []string{"busybox", "echo", "a b", "", "c"}
	if res := run(t, t.Context(), s); res.err != nil || res.out != "a b  c\n" {
		t.Errorf("%v: %q", res.err, res.out)
	}
}

// Setuid programs become what they would on their machine: flag C.
func TestEmulatedSetuid(t *testing.T) {
	r := newForeignRootfs(t)
	bb, err := os.ReadFile(r.lower + "/bin/busybox")
	must(t, err)
	must(t, os.Remove(r.lower+"/bin/su"))
	must(t, os.WriteFile(r.lower+"/bin/su", bb, 0o755))
	must(t, os.Chmod(r.lower+"/bin/su", 0o755|os.ModeSetuid))
	must(t, os.WriteFile(r.lower+"/bin/unreadable", bb, 0o711))
	must(t, os.WriteFile(r.lower+"/etc/passwd", []byte("root::0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"), 0o644))
	out := r.sh(t, "id -u; /bin/su root -c 'id -u; touch /root/made'; stat -c %u /root/made 2>&1; /bin/unreadable 2>&1 | head -1", emulated(t), func(s *executor.Spec) { s.User = "app" })
	if got := lines(out); len(got) != 4 || got[0] != "1000" || got[1] != "0" || got[2] != "0" || !strings.HasPrefix(got[3], "unreadable: applet") {
		t.Errorf("app to root: %q", out)
	}
}

// An emulator takes nothing out of the sandbox.
func TestEmulatedSystemCalls(t *testing.T) {
	r := newForeignRootfs(t)
	copyFile(t, buildHelper(t, "GOARCH=arm64"), r.lower+"/bin/syscalls")
	out := r.sh(t, "/bin/syscalls", emulated(t))
	for _, w := range []string{"mount EPERM", "unshare-user EPERM", "unshare-ns EPERM", "setns EPERM", "pivot_root EPERM", "af_inet ok", "af_unix ok", "getpid ok"} {
		if !slices.Contains(lines(out), w) {
			t.Errorf("no line %q in\n%s", w, out)
		}
	}
	out = r.sh(t, "umount /proc 2>&1; mknod /n c 1 5 2>&1; /native/busybox mount -t binfmt_misc none /tmp 2>&1; ls /tmp", emulated(t))
	want := []string{"can't unmount /proc", "mount: permission denied"}
	if os.Geteuid() == 0 { // elsewhere a supervisor records what the device would be
		want = append(want, "mknod: /n: Operation not permitted")
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
}

func TestEmulatedWithoutNetworkAndWithLimits(t *testing.T) {
	r := newForeignRootfs(t)
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &lim))
	more := lim
	more.Max += 1000
	if unix.Prlimit(0, unix.RLIMIT_MSGQUEUE, &more, nil) == nil { // as root on the machine itself, and in no user namespace
		must(t, unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &lim))
		lim = more
	}
	out := r.sh(t, "ifconfig | grep -c UP; grep msgqueue /proc/self/limits", emulated(t), func(s *executor.Spec) {
		s.Network = executor.NetworkNone
		s.Rlimits = []executor.Rlimit{{Resource: unix.RLIMIT_MSGQUEUE, Soft: 100, Hard: lim.Max}}
	})
	if got := strings.Fields(out); got[0] != "1" || got[len(got)-2] != strconv.FormatUint(lim.Max, 10) {
		t.Errorf("%q, want 1 and %d", got, lim.Max)
	}
}

func TestEmulatorRefused(t *testing.T) {
	r := newForeignRootfs(t)
	notProgram := r.dir + "/not"
	must(t, os.WriteFile(notProgram, []byte("x"), 0o644))
	for name, change := range map[string]func(*executor.Emulator){
		"missing":        func(e *executor.Emulator) { e.Path = r.dir + "/missing" },
		"relative":       func(e *executor.Emulator) { e.Path = "qemu-aarch64-static" },
		"not executable": func(e *executor.Emulator) { e.Path = notProgram },
		"no magic":       func(e *executor.Emulator) { e.Magic, e.Mask = nil, nil },
		"uneven":         func(e *executor.Emulator) { e.Mask = e.Mask[1:] },
		"name":           func(e *executor.Emulator) { e.Name = "../x" },
	} {
		r.reset(t)
		s := r.spec("true")
		emulated(t, change)(s)
		var setup *executor.SetupError
		if res := run(t, t.Context(), s); !errors.As(res.err, &setup) || res.out != "" {
			t.Errorf("%s: %v %s", name, res.err, res.out)
		}
	}
}

func BenchmarkEmulatedStep(b *testing.B) {
	r := newForeignRootfs(b)
	for _, c := range []struct {
		name   string
		change func(*executor.Spec)
	}{
		{"native", func(s *executor.Spec) { s.Args = []string{"/native/busybox", "sh", "-c", "exit"} }},
		{"native in a user namespace", func(s *executor.Spec) { emulated(b)(s); s.Args = []string{"/native/busybox", "sh", "-c", "exit"} }},
		{"emulated", func(s *executor.Spec) { emulated(b)(s); s.Args = []string{"/bin/busybox", "sh", "-c", "exit"} }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				r.reset(b)
				s := r.spec("")
				c.change(s)
				b.StartTimer()
				if res := run(b, b.Context(), s); res.err != nil {
					b.Fatal(res.err, res.out)
				}
			}
		})
	}
}
