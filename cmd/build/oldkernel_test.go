package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"build/internal/testenv"
)

// oldDockerfile uses what older kernels do in another way (many lower layers, mounts, owners, deletions) and writes nothing that
// depends on the time.
const oldDockerfile = `FROM bb AS one
RUN mkdir /d && echo one >/d/a && ln /d/a /d/b && ln -s a /d/c && chown -R 1000:1001 /d && chmod 4711 /d/b
RUN rm /d/b && echo two >>/d/a && mkdir -p /x/y && touch /x/y/z && rm -r /home
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch --mount=type=bind,from=bb,target=/base \
    echo hidden >/scratch/f && echo kept >/cache/f && cp /base/etc/passwd /copied
FROM bb
COPY --from=one /d /d
USER daemon
RUN id >/tmp/id
`

// vmScript runs the tests of the groups, then the build. What it prints between the lines with == is looked at below.
const vmScript = `
cd /tmp
export SOURCE_DATE_EPOCH=1700000000 BUILD_ROOT=/disk/store
uname -r
/files/cgroup.test -test.v 2>&1 && echo "== groups pass"
b() { /files/build --progress plain --build-context bb=oci-layout:///files/busybox "$@"; }
b -o type=oci,dest=/dev/null,rewrite-timestamp=true /files/context && echo "== build ends"
b --no-cache -m 96m --pids-limit 100 --cpus 1.5 -f /files/limited/Dockerfile /files/limited && echo "== limits end"
b --no-cache -m 32m -f /files/limited/greedy /files/limited || echo "== exit $?"
mkdir /sys/fs/cgroup/pod; echo 150m >/sys/fs/cgroup/pod/memory.max
(echo 0 >/sys/fs/cgroup/pod/cgroup.procs; b --no-cache -f /files/limited/alone /files/limited) || echo "== pod $?"
cat /proc/self/cgroup; ls /sys/fs/cgroup | grep build; cat /sys/fs/cgroup/cgroup.procs >/dev/null && echo "== all done"
`

// TestOldKernel boots Linux 6.1, whose control groups are those of cgroup v2 and whose mount calls are older than what newer
// kernels offer. In one boot: the tests of the groups, as root and as a user to whom one was delegated; limits of a real build;
// and a build whose image must be the one made here, byte by byte.
func TestOldKernel(t *testing.T) {
	testenv.Root(t) // the machine inside is root's; once is enough
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	dir := t.TempDir()
	compile(t, "build", "-trimpath", "-o", filepath.Join(dir, "build"), ".")
	compile(t, "test", "-c", "-o", filepath.Join(dir, "cgroup.test"), "../../internal/cgroup")
	for name, text := range map[string]string{
		"context/Dockerfile": oldDockerfile,
		"limited/Dockerfile": "FROM bb\nRUN cd /sys/fs/cgroup && echo max $(cat memory.max) $(cat pids.max) $(cat cpu.max) && cat /proc/self/cgroup && ! echo 1 >pids.max\n",
		"limited/alone":      "FROM bb\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n",
		"limited/greedy":     "FROM bb\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1; echo after $?; exit 3\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base := testenv.Base(t, "busybox")
	out := testenv.Boot(t, map[string]string{
		"build": filepath.Join(dir, "build"), "cgroup.test": filepath.Join(dir, "cgroup.test"), "busybox": base,
		"context": filepath.Join(dir, "context"), "limited": filepath.Join(dir, "limited"),
	}, vmScript)
	for _, want := range []string{
		"== groups pass", "== build ends", "== limits end", "== exit 3", "== pod 3", "limit 150MiB of /sys/fs/cgroup/pod", "== all done",
		"--- PASS: TestDelegated/TestRestored", "--- PASS: TestAbove", "--- PASS: TestMemoryLimit", "--- PASS: TestWatch",
		"max 100663296 100 150000 100000", "0::/\n", "Read-only file system",
		"out of memory (limit 32MiB", "raise --memory",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out, "no overlay") {
		t.Error("overlay does not work there")
	}
	here := exec.Command(filepath.Join(dir, "build"), "--build-context", "bb=oci-layout://"+base,
		"-o", "type=oci,dest=/dev/null,rewrite-timestamp=true", filepath.Join(dir, "context"))
	here.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "BUILD_ROOT="+filepath.Join(dir, "store"))
	digest, err := here.Output()
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`(?m)^sha256:[0-9a-f]{64}$`)
	if there, here := image.FindString(out), image.FindString(string(digest)); here == "" || there != here {
		t.Errorf("the image made there is %s, here %s", there, here)
	}
	if t.Failed() {
		t.Log(out)
	}
}

// compile runs the go command for a static binary.
func compile(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
