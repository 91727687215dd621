package executor_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/testenv"
)

func TestChrootLeavesNoTrace(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	for _, d := range []string{"src/sub", "cache"} {
		must(t, os.MkdirAll(p.dir+"/"+d, 0o755))
	}
	must(t, os.WriteFile(p.dir+"/src/sub/file", []byte("source"), 0o644))
	must(t, os.WriteFile(p.host(tree)+"/etc/resolv.conf", []byte("the image's"), 0o600))
	must(t, os.Symlink("../run/hosts", p.host(tree)+"/etc/hosts"))
	must(t, os.WriteFile(p.host(tree)+"/dev/core", []byte("of the image"), 0o600))
	before := stateOf(t, p.host(tree))
	for _, tc := range [][2]string{
		{"nothing", `true`},
		{"failure", `exit 3`},
		{"attack", `rm -rf /dev/* /dev/.?* /etc/resolv.conf /src/* /tmp/x /new; mkdir /etc/resolv.conf /etc/resolv.conf/deep; echo x >/dev/left
			echo more >>/etc/hosts; echo x >/cache/left; echo x >/proc/left; echo x >/sys/left; mv /new/deep/target /new/deep/other; exit 0`},
	} {
		name, script := tc[0], tc[1]
		s := chrootSpec(tree, script)
		s.Resolv, s.Hosts = []byte("nameserver ::1\n"), []byte("::1 localhost\n")
		s.Mounts = []executor.Mount{
			{Target: "/src", Source: executor.BindPath{Path: "/store/src", ReadOnly: true}},
			{Target: "/new/deep/target", Source: executor.BindPath{Path: "/store/cache"}},
			{Target: "/tmp", Source: executor.Tmpfs{}},
			{Target: "/run/secrets/token", Source: executor.File{Data: []byte("s3cret-value"), Mode: 0o400}},
		}
		r := p.steps(t, s)[0]
		after := stateOf(t, p.host(tree))
		diff := changed(before, after, r.traces.Touched)
		if name == "attack" { // it changed these itself, which mount points would have forbidden
			diff = slices.DeleteFunc(diff, func(d string) bool { return d == "~" || d == "~etc" })
		}
		if len(diff) > 0 {
			t.Errorf("%s: %v; touched: %q; out: %s, %v", name, diff, r.traces.Touched, r.out, r.err)
		}
		if names, _ := filepath.Glob(filepath.Dir(p.host(tree)) + "/*"); len(names) != 1 {
			t.Errorf("%s: left beside the root: %v", name, names)
		}
		if _, err := os.Stat(p.dir + "/cache"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChrootMounts(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	must(t, os.MkdirAll(p.dir+"/src/sub", 0o755))
	must(t, os.WriteFile(p.dir+"/src/sub/file", []byte("source"), 0o640))
	must(t, os.Link(p.dir+"/src/sub/file", p.dir+"/src/link"))
	must(t, os.Symlink("/sub/file", p.dir+"/src/abs"))
	must(t, os.Chown(p.dir+"/src/sub", 5, 6))
	must(t, os.Mkdir(p.dir+"/cache", 0o711))
	must(t, os.WriteFile(p.dir+"/cache/kept", nil, 0o644))
	ino := func() uint64 {
		var st unix.Stat_t
		must(t, unix.Stat(p.dir+"/cache", &st))
		return st.Ino
	}
	was := ino()
	r := p.sh(t, tree, `set -e
test "$(cat /ctx/sub/file)" = source; test "$(stat -c %a:%u:%g /ctx/sub)" = 755:5:6; test "$(stat -c %a:%h /ctx/link)" = 640:2
test "$(cat /one)" = source; echo changed >/ctx/sub/file; test "$(cat /sub)" = source
test "$(stat -Lc %a /c)" = 711; test -e /c/kept; echo new >/c/new; test -e /again/new; ls -d /c/inner
test "$(stat -c %a:%u:%g /run/secret)" = 400:7:8; test "$(cat /run/secret)" = s3cret-value
test "$(stat -c %a /scratch)" = 700; echo x >/scratch/x
test "$(cat /etc/resolv.conf)" = there; grep -q name /etc/hosts
echo x >/dev/null; head -c 3 /dev/zero | wc -c; echo x >/dev/shm/x; test "$(stat -c %a /dev/shm)" = 1777
echo kept >/left`, func(s *executor.Spec) {
		s.Resolv, s.Hosts = []byte("there\n"), []byte("::1 name\n")
		s.Mounts = []executor.Mount{
			{Target: "/c/inner", Source: executor.Tmpfs{}},
			{Target: "/again", Source: executor.BindPath{Path: "/store/cache"}},
			{Target: "/ctx", Source: executor.BindPath{Path: "/store/src", ReadOnly: true}},
			{Target: "/one", Source: executor.BindPath{Path: "/store/src/sub/file", ReadOnly: true}},
			{Target: "/sub", Source: executor.BindPath{Path: "/store/src", Sub: "abs", ReadOnly: true}},
			{Target: "/c", Source: executor.BindPath{Path: "/store/cache"}},
			{Target: "/run/secret", Source: executor.File{Data: []byte("s3cret-value"), Mode: 0o400, UID: 7, GID: 8}},
			{Target: "/scratch", Source: executor.Tmpfs{Mode: 0o700}},
		}
	})
	if ino() != was {
		t.Error("the cache is another directory")
	}
	if b, _ := os.ReadFile(p.dir + "/cache/new"); string(b) != "new\n" {
		t.Errorf("what the step wrote to the cache: %q", b)
	}
	if _, err := os.Stat(p.dir + "/cache/inner"); err == nil {
		t.Error("a mount point was left in the cache")
	}
	if b, _ := os.ReadFile(p.dir + "/src/sub/file"); string(b) != "source" {
		t.Errorf("the step wrote through to the source: %q", b)
	}
	if b, _ := os.ReadFile(p.host(tree) + "/left"); string(b) != "kept\n" {
		t.Errorf("what the step wrote: %q", b)
	}
	if len(r.traces.Notes) != 1 || !strings.Contains(r.traces.Notes[0], "secret on /run/secret") {
		t.Errorf("notes: %q", r.traces.Notes)
	}
}

func TestChrootRefusesNoNetwork(t *testing.T) {
	p := newChrootPlace(t)
	s := chrootSpec(p.root(t, "busybox"), "true")
	s.Network = executor.NetworkNone
	r := p.steps(t, s)[0]
	e, ok := r.err.(*executor.SetupError)
	if !ok || !strings.Contains(e.Error(), "network namespace") || e.Fix == "" {
		t.Errorf("%v", r.err)
	}
}

// Copying Debian takes longer than all that is done in it.
func TestChrootDebian(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "debian")
	t.Run("holds", func(t *testing.T) { testChrootHolds(t, p, tree) })
	t.Run("identity", func(t *testing.T) { testChrootIdentity(t, p, tree) })
	t.Run("proc", func(t *testing.T) { testChrootProc(t, p, tree) })
	t.Run("socket", func(t *testing.T) { testChrootSocket(t, p, tree) })
	t.Run("packages", func(t *testing.T) { testChrootPackages(t, p, tree) })
}

// The ways out that a chroot is known to leave, and what else a step may not do.
func testChrootHolds(t *testing.T, p *chrootPlace, tree string) {
	must(t, os.WriteFile(p.dir+"/canary", []byte("found"), 0o644))
	copyFile(t, buildHelper(t), p.host(tree)+"/syscalls")
	r := p.sh(t, tree, `
mkdir -p /x; chroot / /bin/true 2>/dev/null && echo chroot
perl -e 'chroot "/x"; chdir ".." for 1..20; chroot "."; print "escaped\n" if -d "/store"; print "read\n" if open F, "</store/canary"'
grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status 2>/dev/null
unshare -U true 2>/dev/null && echo userns
unshare -m true 2>/dev/null && echo mountns
mount -t tmpfs x /x 2>/dev/null && echo mount
mknod /x/disk b 0 1 && cat /x/disk 2>/dev/null && echo device
kill -0 1 2>/dev/null && echo signal to init
kill -0 $PPID 2>/dev/null && echo signal to keeper
ls -d /store /builder 2>/dev/null
find / -xdev -name canary 2>/dev/null
echo fds: $(for i in 3 4 5 6 7 8 9 10 11 12; do eval "true <&$i" 2>/dev/null && echo $i; done)
true`)
	for _, bad := range []string{"chroot", "escaped", "read\n", "userns", "mountns", "\nmount", "device", "signal", "store", "builder", "canary"} {
		if strings.Contains("\n"+r.out, bad) {
			t.Errorf("%q in %s", bad, r.out)
		}
	}
	if !strings.Contains(r.out, "fds:\n") {
		t.Errorf("inherited descriptors: %s", r.out)
	}
}

// Nothing of a step outlives it, however it hides.
func TestChrootKillsLeftovers(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	p.put(t, chrootSpec(tree, `
sleep 1000 & setsid sleep 1001 & (setsid sh -c 'sleep 1002 & exec sleep 1003' &) ; nohup setsid sh -c '(sleep 1004 &) ; exit' &
(while true; do (sleep 1005 &); done) & sleep 1; exit 0`))
	out := p.Sh(t, `/builder; cat /proc/[0-9]*/cmdline | tr '\0' ' '; cat /store/result`)
	if strings.Contains(out, "sleep") || !strings.Contains(out, `"Text":""`) {
		t.Errorf("left: %s", out)
	}
}

// Parallel steps end on their own.
func TestChrootStepsAreApart(t *testing.T) {
	p := newChrootPlace(t)
	a, b := p.root(t, "busybox"), p.root(t, "busybox")
	// The first ends while the orphans of the second run, and the other way round.
	r := p.steps(t, chrootSpec(a, `(sleep 1000 &); sleep 0.2`), chrootSpec(b, `(sh -c 'sleep 0.6; echo still here >/late' &); sleep 1; cat /late`))
	if r[0].err != nil || r[1].err != nil || r[1].out != "still here\n" {
		t.Errorf("%v, %v: %s", r[0].err, r[1].err, r[1].out)
	}
}

// The builder is killed: its steps die, and what was moved comes back.
func TestChrootBuilderKilled(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	must(t, os.Mkdir(p.dir+"/cache", 0o755))
	must(t, os.WriteFile(p.dir+"/cache/kept", nil, 0o644))
	before := stateOf(t, p.host(tree))
	s := chrootSpec(tree, `(setsid sleep 1000 &); echo ready; sleep 1000`)
	s.Mounts = []executor.Mount{
		{Target: "/c", Source: executor.BindPath{Path: "/store/cache"}},
		{Target: "/run/secret", Source: executor.File{Data: []byte("s3cret-value"), Mode: 0o400}},
	}
	p.put(t, s)
	out := p.Sh(t, `
/builder & pid=$!
until grep -q ready /store/out0 2>/dev/null; do sleep 0.05; done
kill -9 $pid
for i in $(seq 100); do
	left=$(for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done 2>/dev/null | grep '^sleep 1000' || true)
	[ -n "$left" ] || [ ! -e /store/cache/kept ] || break
	sleep 0.05
done
echo "left: $left"`)
	if !strings.HasSuffix(out, "left: \n") {
		t.Errorf("%s", out)
	}
	if _, err := os.Stat(p.dir + "/cache/kept"); err != nil {
		t.Error(err)
	}
	var touched []string
	for path := range before {
		touched = append(touched, path) // nobody was there to be told
	}
	if diff := changed(before, stateOf(t, p.host(tree)), touched); len(diff) > 0 {
		t.Error(diff)
	}
	if data, err := exec.Command("grep", "-rl", "s3cret-value", p.dir, "--exclude=job").Output(); err == nil {
		t.Errorf("the secret is in %s", bytes.TrimSpace(data))
	}
}

// The keeper is killed: the builder still ends what it kept.
func TestChrootKeeperKilled(t *testing.T) {
	p := newChrootPlace(t)
	p.put(t, chrootSpec(p.root(t, "busybox"), `(setsid sleep 1000 &); echo ready; exec sleep 1001`))
	out := p.Sh(t, `
/builder & pid=$!
until grep -q ready /store/out0 2>/dev/null; do sleep 0.05; done
for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' <$p/cmdline)" = 'build-step-keeper ' ] && kill -9 ${p#/proc/}; done
wait $pid
for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; echo; done 2>/dev/null; cat /store/result`)
	if strings.Contains(out, "\nsleep") || !strings.Contains(out, "its keeper ended") {
		t.Error(out)
	}
}

func testChrootIdentity(t *testing.T, p *chrootPlace, tree string) {
	r := p.sh(t, tree, `id -u; id -g; id -G; pwd; stat -c %U .; echo $HOME; python3 -V 2>/dev/null; setpriv --dump | grep -i -E 'inh|amb|bound|no_new'`,
		func(s *executor.Spec) { s.User, s.Dir = "www-data", "/made/for" })
	want := "33\n33\n33\n/made/for\nwww-data\n/var/www\n"
	if !strings.HasPrefix(r.out, want) {
		t.Errorf("%s", r.out)
	}
	t.Log(r.out)
	var st syscall.Stat_t
	must(t, syscall.Stat(p.host(tree)+"/made/for", &st))
	if st.Uid != 33 {
		t.Errorf("the working directory belongs to %d", st.Uid)
	}
}

// What programs ask of /proc is answered, and nothing that is not the step's.
func testChrootProc(t *testing.T, p *chrootPlace, tree string) {
	script := `
cat <(echo substituted)
readlink /proc/self/exe
grep -c processor /proc/cpuinfo
awk '/MemTotal/ {print "mem"}' /proc/meminfo
cat /proc/sys/kernel/ostype
tr '\0' ' ' </proc/self/cmdline; echo end
echo to-stderr >/dev/stderr; echo to-stdout | tee /dev/stdout | wc -l
sleep 7 & grep -l '^sleep' /proc/[0-9]*/cmdline | wc -l
cd /proc/self && head -n 1 status; cd /
(exec 9</etc/passwd; ls /proc/self/fd; readlink /proc/$BASHPID/fd/9; head -n 1 /dev/fd/9)
install -m 640 /dev/stdin /tmp/made <<<content; cat /tmp/made
test -e /proc/1/environ && echo one
cat /proc/1/environ /proc/1/cmdline 2>/dev/null | wc -c
ls /proc | grep -x 1
ls /proc/1/root/store 2>/dev/null
cat /proc/self/root/etc/hostname 2>/dev/null
echo x 2>/dev/null >/proc/sys/vm/drop_caches || echo refused
cat /proc/self/mem 2>/dev/null | head -c 1
nproc; df / >/dev/null && echo df
perl -e 'open(F, "</proc/self/stat") or die; print "perl\n"'
setpriv --reuid 33 --regid 33 --clear-groups bash -c 'cat <(echo other user); readlink /proc/self/exe'
true`
	r := p.sh(t, tree, "", func(s *executor.Spec) { s.Args = []string{"/bin/bash", "-c", script} })
	t.Log(r.out)
	for _, want := range []string{"substituted\n", "/usr/bin/readlink\n", "mem\n", "Linux\n", "tr \\0   end\n", "to-stderr\n", "Name:\thead\n", "/etc/passwd\n", "root:x:0:0", "content\n", "refused\n", "df\n", "perl\n", "other user\n"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q", want)
		}
	}
	for _, bad := range []string{"one\n", "store", "EXECUTOR"} {
		if strings.Contains(r.out, bad) {
			t.Errorf("%q", bad)
		}
	}
	if len(r.traces.Notes) > 0 {
		t.Error(r.traces.Notes)
	}
}

// Real packages, with users, services and setuid programs of their own.
func testChrootPackages(t *testing.T, p *chrootPlace, tree string) {
	s := chrootSpec(tree, `exec 2>&1; apt-get update -q && apt-get install -qy --no-install-recommends procps dbus openssh-client && ps aux && stat -c '%a %U:%G' /usr/lib/dbus-1.0/dbus-daemon-launch-helper /usr/bin/ssh-agent`)
	s.Env = append(s.Env, "DEBIAN_FRONTEND=noninteractive")
	for _, e := range os.Environ() {
		if strings.Contains(strings.ToLower(e), "_proxy=") {
			s.Env = append(s.Env, e)
		}
	}
	s.Resolv, _ = os.ReadFile("/etc/resolv.conf")
	s.Hosts, _ = os.ReadFile("/etc/hosts")
	r := p.steps(t, s)[0]
	if r.err != nil || !strings.Contains(r.out, "4754 root:messagebus") {
		t.Errorf("%v: %s", r.err, r.out)
	}
}

// The file system of the store is the container's own, an overlay; and other containers than Docker's.
func TestChrootPlaces(t *testing.T) {
	for name, change := range map[string]func(*testenv.Container){
		"overlay":      func(*testenv.Container) {},
		"no_new_privs": func(c *testenv.Container) { c.NoNewPrivileges = true },
		"unconfined":   func(c *testenv.Container) { c.SeccompUnconfined = true },
		"few capabilities": func(c *testenv.Container) {
			c.Caps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_FSETID"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newChrootPlace(t)
			p.root(t, "busybox")
			must(t, os.Mkdir(p.dir+"/cache", 0o755))
			s := chrootSpec("/own/tree/fs", `set -e; cat <&0; echo word >/cache/word; chown 5:6 /cache/word; cat /proc/self/comm; rm -r /home; id -u; su nobody -s /bin/sh -c 'id -u; cat /proc/self/comm'`)
			s.Mounts = []executor.Mount{{Target: "/cache", Source: executor.BindPath{Path: "/own/cache"}}, {Target: "/tmp", Source: executor.Tmpfs{}}}
			p.put(t, s)
			change(&p.Container)
			p.Sh(t, `mkdir /own; cp -a /store/cache /own/cache; cp -a /store/tree1 /own/tree; /builder
				test "$(stat -c %u:%g /own/cache/word)" = 5:6; test ! -e /own/tree/fs/home; test ! -e /own/tree/fs/cache; ls -A /own/tree | wc -l`)
			out, err := os.ReadFile(p.dir + "/out0")
			must(t, err)
			if string(out) != "cat\n0\n65534\ncat\n" {
				res, _ := os.ReadFile(p.dir + "/result")
				t.Errorf("%s%s", out, res)
			}
		})
	}
}

// An insecure step has all that the container gives, and programs with a setuid bit raise privileges.
func TestChrootInsecure(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	must(t, unix.Chmod(p.host(tree)+"/bin/busybox", 0o4755))
	for _, tc := range []struct {
		sec  executor.Security
		want string
	}{{executor.Insecure, "0\n"}, {executor.Sandbox, "1000\n"}} {
		s := chrootSpec(tree, `id -u nobody >/dev/null; su -s /bin/sh root -c 'id -u' 2>/dev/null || id -u; false`)
		s.User, s.Security = "1000", tc.sec
		must(t, os.WriteFile(p.host(tree)+"/etc/passwd", []byte("root::0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"), 0o644))
		r := p.steps(t, s)[0]
		told := strings.Contains(strings.Join(r.traces.Notes, "\n"), "no_new_privs")
		if r.out != tc.want || told != (tc.sec == executor.Sandbox) {
			t.Errorf("%d: %q, %v, notes: %q", tc.sec, r.out, r.err, r.traces.Notes)
		}
	}
	r := p.sh(t, tree, `chroot / true && echo chroot; cat /proc/sys/kernel/ostype`, func(s *executor.Spec) { s.Security = executor.Insecure })
	if r.out != "chroot\nLinux\n" {
		t.Errorf("%q", r.out)
	}
}

// A step that is not wanted any more ends at once, and what was put into its root is taken out all the same.
func TestChrootCancel(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	must(t, os.Mkdir(p.dir+"/cache", 0o755))
	before := stateOf(t, p.host(tree))
	s := chrootSpec(tree, `(setsid sleep 1000 &); echo ready; sleep 1001`)
	s.Mounts = []executor.Mount{{Target: "/c", Source: executor.BindPath{Path: "/store/cache"}}}
	r := p.do(t, chrootJob{Specs: []executor.Spec{s}, Cancel: true})[0]
	if r.err == nil || r.err.Error() != "not wanted any more" {
		t.Errorf("%v", r.err)
	}
	if diff := changed(before, stateOf(t, p.host(tree)), r.traces.Touched); len(diff) > 0 {
		t.Error(diff)
	}
	if _, err := os.Stat(p.dir + "/cache"); err != nil {
		t.Error(err)
	}
}

func testChrootSocket(t *testing.T, p *chrootPlace, tree string) {
	s := chrootSpec(tree, "")
	s.Args = []string{"perl", "-MSocket", "-e", `socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un("/agent")) or die $!; print <S>`}
	r := p.do(t, chrootJob{Specs: []executor.Spec{s}, Agent: true})[0]
	if r.err != nil || r.out != "hello" {
		t.Errorf("%v: %s", r.err, r.out)
	}
	if _, err := os.Lstat(p.host(tree) + "/agent"); err == nil {
		t.Error("the socket is left")
	}
}

// Only one may listen to a process's calls. Where somebody else does, there are copies.
func TestChrootCannotListen(t *testing.T) {
	p := newChrootPlace(t)
	tree := p.root(t, "busybox")
	before := stateOf(t, p.host(tree))
	s := chrootSpec(tree, `cat /proc/sys/kernel/ostype; grep -c processor /proc/cpuinfo >/dev/null && echo cpus; cat /proc/self/stat 2>/dev/null || echo none`)
	r := p.do(t, chrootJob{Specs: []executor.Spec{s}, Listened: true})[0]
	if r.err != nil || r.out != "Linux\ncpus\nnone\n" || len(r.traces.Notes) != 1 || !strings.Contains(r.traces.Notes[0], "copies") {
		t.Errorf("%v: %q, %q", r.err, r.out, r.traces.Notes)
	}
	if diff := changed(before, stateOf(t, p.host(tree)), r.traces.Touched); len(diff) > 0 {
		t.Error(diff)
	}
}
