package userns

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeHost is a machine on which an ordinary user with a range can do everything.
func fakeHost(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	all := map[string]string{
		"/etc/subuid": "other:1:5\nann:100000:65536\n# ann:7:7\nann:x:1\n1000:300000:10\n", "/etc/subgid": "ann:200000:65536\n",
		"/proc/self/uid_map": "0 0 4294967295\n", "/proc/self/gid_map": "0 0 4294967295\n",
	}
	for k, v := range files {
		all[k] = v
	}
	for name, text := range all {
		if text == "" {
			continue
		}
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return host{
		euid: 1000, egid: 100, root: root,
		userName:   func(int) string { return "ann" },
		lookPath:   func(n string) (string, error) { return "/usr/bin/" + n, nil },
		privileged: func(string) bool { return true },
	}
}

// best is the first candidate, whether its way is open or not.
func best(h host) (Plan, error) {
	c := slices.Collect(candidates(h))
	return c[0].Plan, c[0].Err
}

func TestCandidateRange(t *testing.T) {
	h := fakeHost(t, nil)
	p, err := best(h)
	if err != nil {
		t.Fatal(err)
	}
	uids := []IDMap{{0, 1000, 1}, {1, 100000, 65536}, {65537, 300000, 10}}
	gids := []IDMap{{0, 100, 1}, {1, 200000, 65536}}
	if !slices.Equal(p.UIDs, uids) || !slices.Equal(p.GIDs, gids) || !p.NewUser() || len(p.Kind) != 32 {
		t.Errorf("%+v", p)
	}
	other, err := best(fakeHost(t, map[string]string{"/etc/subuid": "ann:100001:65536\n"}))
	if err != nil || other.Kind == p.Kind {
		t.Errorf("another map has the same kind: %v", err)
	}
}

func TestCandidateRoot(t *testing.T) {
	h := fakeHost(t, nil)
	h.euid, h.caps = 0, 1<<unix.CAP_SYS_ADMIN
	if p, err := best(h); err != nil || p.Kind != KindRoot || p.NewUser() {
		t.Errorf("%+v %v", p, err)
	}
	h = fakeHost(t, map[string]string{"/proc/self/uid_map": "0 1000 1\n1 100000 65536\n"})
	h.euid, h.caps = 0, 1<<unix.CAP_SYS_ADMIN
	if p, err := best(h); err != nil || p.Kind == KindRoot || p.NewUser() {
		t.Errorf("root of a namespace is taken for the machine's: %+v %v", p, err)
	}
}

func TestCandidateBlocked(t *testing.T) {
	for name, c := range map[string]struct {
		files         map[string]string
		change        func(*host)
		primitive, by string
		fix           string
	}{
		"no user namespaces": {map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, nil, "user namespace", "max_user_namespaces is 0", "sysctl -w"},
		"old Debian":         {map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, nil, "user namespace", "unprivileged_userns_clone", "sysctl -w"},
		"no range":           {map[string]string{"/etc/subuid": "bob:1:1\n"}, nil, "subordinate ids", "no range for ann in /etc/subuid", "usermod --add-subuids"},
		"no group range":     {map[string]string{"/etc/subgid": "bob:1:1\n"}, nil, "subordinate ids", "/etc/subgid", "usermod"},
		"no file":            {map[string]string{"/etc/subuid": ""}, nil, "subordinate ids", "/etc/subuid", "usermod"},
		"no helper": {nil, func(h *host) {
			h.lookPath = exec.LookPath
			h.lookPath = func(string) (string, error) { return "", exec.ErrNotFound }
		}, "newuidmap", "not installed", "uidmap"},
		"helper without power": {nil, func(h *host) { h.privileged = func(string) bool { return false } }, "newuidmap", "setuid", "chmod u+s"},
		"no_new_privs":         {nil, func(h *host) { h.noNewPrivs = true }, "newuidmap", "no_new_privs", "allowPrivilegeEscalation"},
		"root in a container":  {nil, func(h *host) { h.euid = 0 }, "mount and pid namespaces", "CAP_SYS_ADMIN", "--cap-add"},
	} {
		h := fakeHost(t, c.files)
		if c.change != nil {
			c.change(&h)
		}
		_, err := best(h)
		var e *Error
		if !errors.As(err, &e) || e.Primitive != c.primitive || !strings.Contains(e.Blocker, c.by) || !strings.Contains(e.Fix, c.fix) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMapRanges(t *testing.T) {
	m := mapRanges(1000, []idRange{{1000, 5}, {100, 950}, {5000, 10}, {5005, 1}, {1 << 31, 1<<31 - 2}, {9000, 3}})
	want := []IDMap{{0, 1000, 1}, {1, 5000, 10}, {11, 1 << 31, 1<<31 - 2}, {1<<31 + 9, 9000, 3}}
	if !slices.Equal(m, want) {
		t.Errorf("%v", m)
	}
}

func FuzzParseSubIDs(f *testing.F) {
	f.Add("ann:1:2\n1000:4294967295:1\nann:0:4294967295\n")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := parseSubIDs(strings.NewReader(text), "ann", 1000)
		if err != nil {
			return
		}
		next := uint64(0)
		for _, e := range mapRanges(1000, ranges) {
			if uint64(e.Inside) != next || e.Count == 0 || uint64(e.Outside)+uint64(e.Count) > 1<<32 {
				t.Fatalf("bad map entry %v", e)
			}
			next += uint64(e.Count)
		}
	})
}

func TestWhoForbids(t *testing.T) {
	for file, want := range map[string][2]string{
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns=1": {"AppArmor", "sysctl"},
		"/proc/self/status=Seccomp:\t2":                            {"seccomp", "unconfined"},
		"/proc/sys/user/max_user_namespaces=0":                     {"max_user_namespaces", "sysctl"},
		"/x=1":                                                     {"security module", ""},
	} {
		name, text, _ := strings.Cut(file, "=")
		h := fakeHost(t, map[string]string{name: text})
		_, blocker, fix := whoForbids(h.root)
		if !strings.Contains(blocker, want[0]) || !strings.Contains(fix, want[1]) {
			t.Errorf("%s: %s, %s", file, blocker, fix)
		}
	}
}

func TestExplainClone(t *testing.T) {
	p := Plan{UIDs: []IDMap{{0, 1, 1}}}
	for _, errno := range []syscall.Errno{unix.EPERM, unix.ENOSPC, unix.EUSERS, unix.EINVAL} {
		err := explainClone(p, &os.PathError{Op: "fork/exec", Err: errno})
		var e *Error
		if !errors.As(err, &e) || e.Primitive != "user namespace" || e.Blocker == "" || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// TestAsUser repeats the tests as an ordinary user with subordinate ids.
func TestAsUser(t *testing.T) {
	if os.Getenv(asUser) != "" || os.Geteuid() != 0 {
		t.Skip("not root, or the second run")
	}
	const name = "buildusernstest"
	for _, tool := range []string{"useradd", "userdel", "newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	var out []byte
	var err error
	for range 20 { // another useradd may hold the lock
		if _, err = user.Lookup(name); err == nil {
			break
		}
		if out, err = exec.Command("useradd", "--no-create-home", "--home-dir", "/nonexistent", name).CombinedOutput(); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Skipf("cannot make a user: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("userdel", name).Run() })
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile("/etc/subuid"); !strings.Contains(string(b), name+":") {
		t.Skip("useradd gave the new user no range in /etc/subuid")
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	cmd := exec.Command("/proc/self/exe", "-test.timeout=60s", "-test.v")
	cmd.Dir = "/"
	cmd.Env = []string{asUser + "=1", "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// The order is the ladder; what is wrong with each rung is known without trying where it can be.
func TestLadder(t *testing.T) {
	const docker = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SYS_CHROOT
	for name, c := range map[string]struct {
		files map[string]string
		euid  int
		caps  uint64
		want  string // each candidate, with ! where it is known to be closed
	}{
		"user with a range":    {nil, 1000, 0, "range single !chroot"},
		"user without":         {map[string]string{"/etc/subuid": ""}, 1000, 0, "!range single !chroot"},
		"root":                 {nil, 0, 1<<unix.CAP_SYS_ADMIN | docker, "host range single chroot"},
		"root in a container":  {nil, 0, docker, "!host range single chroot"},
		"root without caps":    {nil, 0, 0, "!host !range single !chroot"},
		"root of one id":       {map[string]string{"/proc/self/uid_map": "0 1000 1\n", "/proc/self/gid_map": "0 1000 1\n"}, 0, 1<<unix.CAP_SYS_ADMIN | docker, "single !range single chroot"},
		"no namespaces at all": {map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, 1000, 0, "!range !single !chroot"},
	} {
		h := fakeHost(t, c.files)
		h.euid, h.caps = c.euid, c.caps
		var got []string
		for c := range candidates(h) {
			s := string(c.Plan.IDs)
			if c.Plan.Plain {
				s = "chroot"
			}
			if c.Err != nil {
				s = "!" + s
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, got, c.want)
		}
	}
}

func TestMapOfContainerIsKept(t *testing.T) {
	h := fakeHost(t, map[string]string{"/proc/self/uid_map": "0 100000 65536\n", "/proc/self/gid_map": "0 100000 1000\n5000 7 3\n"})
	h.euid, h.caps = 0, 1<<unix.CAP_SETUID|1<<unix.CAP_SETGID
	p := slices.Collect(candidates(h))[1].Plan
	if !slices.Equal(p.UIDs, []IDMap{{0, 0, 65536}}) || !slices.Equal(p.GIDs, []IDMap{{0, 0, 1000}, {5000, 5000, 3}}) || p.Kind == KindRoot {
		t.Errorf("%+v", p)
	}
}
