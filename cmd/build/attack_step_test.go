package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// attacker is what this test binary is in a step, called so: attacks that a shell cannot carry out.
func attacker() {
	runtime.LockOSThread()
	switch {
	case len(os.Args) == 3 && os.Args[1] == "connect":
		c, err := net.Dial("unix", os.Args[2])
		if err == nil {
			_ = c.Close()
			fmt.Println(" BREACH: connected to", os.Args[2])
		} else {
			fmt.Println("no connection:", err)
		}
		return
	case len(os.Args) == 5 && os.Args[1] == "flip":
		if err := flip(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	fmt.Println("BREACH of the test itself:", os.Args)
	os.Exit(1)
}

// bringAttacker puts this binary into the context, as sys/bin/attacker, and what it needs to be executed there beside it.
func (a *arena) bringAttacker() {
	a.t.Helper()
	a.bringLibraries()
	a.bring("/proc/self/exe", "sys/bin/attacker")
}

// bringLibraries puts into the context, below sys, what this binary is linked with: with the race detector it is not static.
func (a *arena) bringLibraries() {
	a.t.Helper()
	check(a.t, os.MkdirAll(a.dir+"/ctx/sys", 0o755))
	f, err := elf.Open("/proc/self/exe")
	check(a.t, err)
	defer f.Close()
	interp := f.Section(".interp")
	if interp == nil {
		return
	}
	path, err := interp.Data()
	check(a.t, err)
	a.bring(strings.TrimRight(string(path), "\x00"), "sys/"+strings.TrimRight(string(path), "\x00"))
	libs, err := f.ImportedLibraries()
	check(a.t, err)
	for _, lib := range libs {
		found := false
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
			if _, err := os.Stat(dir + "/" + lib); err == nil && !found {
				a.bring(dir+"/"+lib, "sys"+dir+"/"+lib)
				found = true
			}
		}
		if !found {
			a.t.Fatalf("%s is not where libraries are", lib)
		}
	}
}

func (a *arena) bring(from, to string) {
	a.t.Helper()
	data, err := os.ReadFile(from)
	check(a.t, err)
	a.write(to, string(data))
}

// stepAttacks is what a step tries that may be anything inside its sandbox. What it prints after BREACH is what it could do.
// Nothing of it would do lasting harm: files are opened for writing and not written.
const stepAttacks = `
exec 2>/dev/null
# C2: descriptors that were open when the builder was started
for fd in $(ls /proc/self/fd); do [ $fd -gt 3 ] && echo " BREACH: descriptor $fd is $(readlink /proc/self/fd/$fd)"; done
for fd in $(seq 3 63); do (cd /proc/self/fd/$fd) && echo " BREACH: cd to descriptor $fd"; ls /proc/1/fd/$fd/ >/dev/null && echo " BREACH: descriptor $fd of process 1"; done
# D4, D5, P11: what belongs to whoever builds
for p in $HOST_DIR $HOST_HOME $HOST_SOCKET /var/run/docker.sock /run/docker.sock; do ls -d $p && echo " BREACH: $p is here"; done
for d in /proc/1/root /proc/1/cwd /proc/self/root /.. / ; do ls -d $d/../../../../../..$HOST_DIR && echo " BREACH: the host through $d"; done
cat /proc/*/environ /proc/*/cmdline | grep -aq 'canary-of-the-[e]nvironment' && echo " BREACH: environment of the builder"
[ $(ls -d /proc/[0-9]* | wc -l) -gt 9 ] && echo " BREACH: processes of others: $(ls -d /proc/[0-9]*)"
if [ "$ISOLATION" != tree ]; then # whose root is a directory of the store, and says so
  cut -d' ' -f4- /proc/self/mountinfo | grep -v ' /cached ' | grep $HOST_STORE && echo " BREACH: paths of the host in mountinfo"
fi
# P12, P13
[ "$(id -G)" = "0" ] || echo " BREACH: groups $(id -G)"
docker=00000000a80425fb
[ "$ISOLATION" = chroot ] && docker='00000000a[08]0025fb' # without CAP_SYS_CHROOT, and perhaps CAP_MKNOD
for want in CapInh:0000000000000000 CapAmb:0000000000000000 CapPrm:$docker CapBnd:$docker; do
  grep -q "^${want%:*}:.${want#*:}" /proc/self/status || echo " BREACH: $(grep ${want%:*} /proc/self/status)"
done
# C9, C11, C12: the kernel's own files
for f in $(find /proc/sys /sys /proc/irq /proc/bus /proc/fs -type f -perm -200 | head -n 3000) /proc/sysrq-trigger; do
  [ "$ISOLATION:$f" = chroot:/proc/sysrq-trigger ] && [ ! -e $f ] && continue # one that is made is a file of the tree
  (: >> $f) && echo " BREACH: $f opens for writing"; done
mkdir /sys/fs/cgroup/made && echo " BREACH: made a cgroup"
for f in /proc/keys /proc/timer_list /proc/interrupts /proc/kcore /proc/sched_debug /proc/timer_stats /proc/latency_stats; do [ -e $f ] && [ "$(head -c 1 $f | wc -c)" != 0 ] && echo " BREACH: $f is readable"; done
for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap; do [ -n "$(ls -A $d)" ] && echo " BREACH: $d is not empty"; done
# D7: more privileges
mount -t tmpfs none /mnt && echo " BREACH: mount"
mount -o remount,rw /sys && echo " BREACH: remount"
umount /proc/keys && echo " BREACH: umount"
mount -t proc none /mnt && echo " BREACH: a fresh /proc"
unshare -U true && echo " BREACH: user namespace"
unshare -m true && echo " BREACH: mount namespace"
mknod /disk b $HOST_DISK && head -c 1 /disk | grep -q . && echo " BREACH: disk $HOST_DISK"
mknod /dev/shm/zero c 1 5 && [ "$(head -c 1 /dev/shm/zero | wc -c)" = 1 ] && echo " BREACH: a device in /dev/shm"
mknod /cached/zero c 1 5 && [ "$(head -c 1 /cached/zero | wc -c)" = 1 ] && echo " BREACH: a device in a cache mount"
# The devices of /dev are not the host's to change
for f in /dev/stdin /dev/full /dev/tty /dev/random /proc/self/fd/0 /dev/null /proc/keys /proc/timer_list; do chmod 604 $f; chown 1 $f; done
[ -e /dev/console ] && echo " BREACH: /dev/console"
(: < /dev/tty) && echo " BREACH: a terminal"
kill -9 -1
echo came to the end
`

// A step that may do anything finds nothing of the host, whatever was open or set when the builder was started.
func TestAttackFromStep(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		root, err := os.Open("/")
		check(t, err)
		defer root.Close()
		for range 18 { // 3 to 20
			a.files = append(a.files, root)
		}
		a.env = []string{"CANARY=canary-of-the-environment", "SSH_AUTH_SOCK=" + a.dir + "/agent"}
		agent, err := net.Listen("unix", a.dir+"/agent")
		check(t, err)
		defer agent.Close()
		a.write("steal.sh", stepAttacks)
		var st syscall.Stat_t
		check(t, syscall.Stat(a.dir, &st))
		out := a.ok(fmt.Sprintf(`FROM base
COPY steal.sh /
RUN --mount=type=cache,target=/cached ISOLATION=%s HOST_DIR=%s HOST_HOME=%s HOST_SOCKET=%s HOST_STORE=%s HOST_DISK='%d %d' sh /steal.sh
RUN [ "$(stat -c %%a:%%u /dev/null)" = 666:0 ] || [ $(stat -c %%u /dev/null) != 0 ] || echo " BREACH: /dev/null is $(stat -c %%a:%%u /dev/null)"
`, a.mode, a.host, a.dir+"/home", a.dir+"/agent", a.dir, st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&0xfff00))
		if !strings.Contains(out, " came to the end") {
			t.Errorf("the attacks were not all tried:\n%s", out)
		}
	})
}

// C2: a working directory is never one of the builder's descriptors.
func TestAttackWorkingDirectory(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		root, err := os.Open("/")
		check(t, err)
		defer root.Close()
		for range 18 {
			a.files = append(a.files, root)
		}
		var d strings.Builder
		d.WriteString("FROM base AS b\n")
		for fd := 3; fd < 24; fd++ {
			fmt.Fprintf(&d, "FROM b AS s%d\nWORKDIR /proc/self/fd/%d\nRUN ls ../../../..%s && echo ' BREACH'\n", fd, fd, a.host)
		}
		// In a chroot such a directory is one of the tree.
		refused := func(word, dockerfile string, args ...string) {
			if a.mode == "chroot" {
				a.noBreach(a.build(dockerfile, args...))
				return
			}
			a.refused(word, dockerfile, args...)
		}
		for _, fd := range []string{"3", "7", "9", "20"} {
			refused("/proc", d.String(), "--target", "s"+fd)
		}
		a.image("wd", config{"WorkingDir": "/proc/self/fd/8", "Env": []string{"PATH=/bin"}})
		refused("/proc", "FROM wd\nRUN ls ../../../.."+a.host+" && echo ' BREACH'\n")
		a.image("dots", config{"WorkingDir": up + a.host, "Env": []string{"PATH=/bin"}})
		a.ok("FROM dots\nRUN [ -e secret ] && echo ' BREACH'; touch made\n")
		a.image("linked", config{"WorkingDir": "/d", "Env": []string{"PATH=/bin"}}, []entry{link("d", "/proc/self/fd/9")})
		refused("symbolic links", "FROM linked\nRUN ls ../../../.."+a.host+" && echo ' BREACH'\n")
	})
}

// C1: the program itself, which on every rung but a range of foreign ids belongs to the step's root. A step becomes the builder
// by executing /proc/self/exe, and has it start the image's credential helper, which finds it as /proc/1/exe.
func TestAttackOnProgram(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		if a.mode == "chroot" {
			return // /proc/self/exe is not executed there
		}
		bin, err := exec.LookPath("build")
		check(t, err)
		bin, err = filepath.EvalSymlinks(bin)
		check(t, err)
		before := fingerprint(t, bin)[bin]
		a.bringLibraries()
		a.write("sys/bin/docker-credential-evil", `#!/bin/sh
exec >> /words/log 2>&1
exe=/proc/1/exe
case $(readlink $exe) in /bin/*) ;; *) echo the builder runs here; esac
chmod 4777 $exe && echo ' BREACH: chmod of the program'
chown 1:1 $exe && echo ' BREACH: chown of the program'
touch $exe && echo ' BREACH: time of the program'
(: >> $exe) && echo ' BREACH: the program opens for writing'
exit 1
`)
		a.write("sys/root/.docker/config.json", `{"credsStore":"evil"}`)
		registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		defer registry.Close()
		a.write("sys/root/Dockerfile", "FROM "+strings.TrimPrefix(registry.URL, "http://")+"/x\n")
		inside := a.build(`FROM base
COPY sys /
RUN ln -s /proc/self/exe /bin/build
RUN --mount=type=cache,target=/words ["/bin/build", "--root", "/tmp/store", "/root"]
`)
		if said := a.ok("FROM base\nRUN --mount=type=cache,target=/words cat /words/log\n"); !strings.Contains(said, "the builder runs here") {
			t.Errorf("the attack was not tried:\n%s\n%s", inside.out, said)
		}
		if after := fingerprint(t, bin)[bin]; after != before {
			t.Errorf("the program is now %s, was %s", after, before)
		}
	})
}

// D6: an abstract socket of the host is out of reach of a step without network. That the attack works is seen with one.
func TestAttackAbstractSocket(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		if a.mode == "chroot" {
			a.refused("network", "FROM base\nRUN --network=none echo ' BREACH'\n")
			return
		}
		name := "@build-attack-" + random()
		l, err := net.Listen("unix", name)
		check(t, err)
		defer l.Close()
		a.bringAttacker()
		df := "FROM base\nCOPY sys /\nRUN attacker connect " + name + "\n"
		if r := a.build(df); r.code != 0 || !strings.Contains(r.out, "BREACH: connected") {
			t.Errorf("the attack does not work where it should: exit code %d\n%s", r.code, r.out)
		}
		if out := a.ok(df, "--network", "none"); !strings.Contains(out, "no connection") {
			t.Errorf("not tried:\n%s", out)
		}
	})
}

// D1, D2: what a step leaves running ends with it, and everything ends with the builder, whatever it has become.
func TestAttackOutlivesBuild(t *testing.T) {
	attack(t, func(t *testing.T, a *arena) {
		mark := strconv.Itoa(31000000 + os.Getpid())
		start := time.Now()
		a.ok("FROM base\nRUN sleep " + mark + " & (setsid nohup sleep " + mark + " >/dev/null 2>&1 &) ; sleep 0.1\n")
		if left := running(t, mark); left != 0 || time.Since(start) > attempt {
			t.Errorf("%d processes outlive their step", left)
		}
		cmd := a.command(t.Context(), append(a.args(), "-f", "-", a.dir+"/ctx")...)
		cmd.Stdin = strings.NewReader("FROM base\nUSER nobody\nRUN trap '' TERM INT HUP; setsid sleep " + mark + " & sleep " + mark + " & echo MARK; wait; wait; sleep " + mark + "\n")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		check(t, cmd.Start())
		for end := time.Now().Add(attempt); running(t, mark) < 2; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				_ = cmd.Process.Kill()
				t.Fatal("the step did not come so far")
			}
		}
		check(t, cmd.Process.Kill())
		_ = cmd.Wait()
		killed := time.Now()
		for running(t, mark) > 0 {
			if time.Since(killed) > attempt {
				t.Fatal("processes outlive the builder")
			}
			time.Sleep(time.Millisecond)
		}
		t.Logf("gone %v after the builder", time.Since(killed))
	})
}

// running counts the processes of the machine that have an argument.
func running(t *testing.T, arg string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	n := 0
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && bytes.HasPrefix(data, []byte("sleep\x00"+arg+"\x00")) {
			n++
		}
	}
	return n
}
