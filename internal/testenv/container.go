package testenv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Container is a container as others start them, made by runc: the place in which a builder has to live. The zero value is
// what `docker run` makes of an image without USER: root with Docker's capabilities, seccomp profile, masked and read-only
// paths, on an overlay. It shares the machine's network, and ends with the command and the test.
type Container struct {
	Base string // base image that is its root filesystem; "" is debian. Each run has it fresh

	UID, GID          uint32
	Caps              []string // effective, permitted and bounding, CAP_…; nil: Docker's for root, none but the bounding set for others
	NoCaps            bool     // none at all, not even in the bounding set (drop: ALL)
	NoNewPrivileges   bool     // allowPrivilegeEscalation: false
	SeccompUnconfined bool
	ProcUnmasked      bool // systempaths=unconfined, procMount: Unmasked
	ReadOnlyRoot      bool
	RootInMemory      bool // what is written to its root: an overlay over two file systems, as on machines that start from an image

	Binds  []Bind
	Tmpfs  []string // targets of memory file systems
	Env    []string // besides PATH and the proxies that reach the package sources
	Dir    string   // working directory; "" is /
	Domain string   // hostname; "" is "container"
}

// Bind shows a file or directory of the machine. The target is made when missing. Nothing of the machine is nosuid or nodev.
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

// Result is what a container's command left.
type Result struct {
	Stdout, Stderr string
	Code           int // as a shell gives it
}

// Run runs a command in the container and waits for it.
func (c Container) Run(t testing.TB, argv ...string) Result {
	t.Helper()
	cmd := c.Command(t, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run a container: %v", err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Sh runs a shell script in the container, wants it to succeed, and returns what it printed.
func (c Container) Sh(t testing.TB, script string) string {
	t.Helper()
	r := c.Run(t, "/bin/sh", "-ec", script)
	if r.Code != 0 {
		t.Fatalf("in a container: %s\nexit code %d\n%s%s", script, r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

var containers atomic.Int64

// Command returns the command that runs argv in the container, to be started by the caller. Killing it leaves the container
// to the test's end, which removes it.
func (c Container) Command(t testing.TB, argv ...string) *exec.Cmd {
	t.Helper()
	Root(t)
	runc := Tool(t, "runc")
	if c.Base == "" {
		c.Base = "debian"
	}
	lower := unpacked(t, c.Base)
	bundle := t.TempDir()
	for _, d := range []string{"root/upper", "root/work", "rootfs", "state"} {
		if err := os.MkdirAll(filepath.Join(bundle, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(c.spec(t, argv))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("build-test-%d-%d", os.Getpid(), containers.Add(1))
	state := filepath.Join(bundle, "state")
	t.Cleanup(func() { _ = exec.Command(runc, "--root", state, "delete", "--force", id).Run() })
	// The root's mount is in a namespace of runc's own, so that no test can leave it behind.
	script := `mount -t overlay -o "lowerdir=$1,upperdir=$2/root/upper,workdir=$2/root/work" overlay "$2/rootfs" &&
exec "$3" --root "$2/state" run --bundle "$2" "$4"`
	if c.RootInMemory {
		script = `mount -t tmpfs tmpfs "$2/root" && mkdir "$2/root/upper" "$2/root/work" && ` + script
	}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", lower, bundle, runc, id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// dockerCaps are the capabilities of a container that was given none and denied none.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities are those that Docker gives for the container's user.
func (c Container) capabilities() *specs.LinuxCapabilities {
	switch {
	case c.NoCaps:
		return &specs.LinuxCapabilities{}
	case c.Caps != nil:
		return &specs.LinuxCapabilities{Bounding: c.Caps, Effective: c.Caps, Permitted: c.Caps}
	case c.UID != 0:
		return &specs.LinuxCapabilities{Bounding: dockerCaps}
	}
	return &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps}
}

func (c Container) spec(t testing.TB, argv []string) *specs.Spec {
	t.Helper()
	s := &specs.Spec{
		Version: "1.0.2", Hostname: c.Domain,
		Root: &specs.Root{Path: "rootfs", Readonly: c.ReadOnlyRoot},
		Process: &specs.Process{
			Args: argv, Env: c.env(), Cwd: "/", User: specs.User{UID: c.UID, GID: c.GID},
			Capabilities: c.capabilities(), NoNewPrivileges: c.NoNewPrivileges,
		},
		Mounts: c.mounts(),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
			Resources: &specs.LinuxResources{Devices: deviceRules()},
		},
	}
	if c.Dir != "" {
		s.Process.Cwd = c.Dir
	}
	if s.Hostname == "" {
		s.Hostname = "container"
	}
	if !c.ProcUnmasked {
		s.Linux.MaskedPaths = []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
		}
		s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	if !c.SeccompUnconfined {
		profile, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			t.Fatalf("docker's seccomp profile: %v", err)
		}
		s.Linux.Seccomp = profile
	}
	return s
}

// deviceRules are Docker's: nodes of any device can be made, few can be opened.
func deviceRules() []specs.LinuxDeviceCgroup {
	n := func(i int64) *int64 { return &i }
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
		{Allow: true, Type: "c", Major: n(136), Access: "rwm"},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(d[0]), Minor: n(d[1]), Access: "rwm"})
	}
	return rules
}

func (c Container) env() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasSuffix(strings.ToLower(name), "_proxy") {
			env = append(env, e)
		}
	}
	return append(env, c.Env...)
}

// mounts are Docker's, with the machine's names of hosts and servers, whose network it has.
func (c Container) mounts() []specs.Mount {
	strict := []string{"nosuid", "noexec", "nodev"}
	with := func(more ...string) []string { return append(append([]string{}, strict...), more...) }
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: strict},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: with("mode=1777", "size=65536k")},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: strict},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: with("ro")},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: with("ro")},
	}
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if _, err := os.Stat(f); err == nil {
			mounts = append(mounts, specs.Mount{Destination: f, Type: "bind", Source: f, Options: []string{"bind", "rprivate"}})
		}
	}
	for _, dir := range c.Tmpfs {
		mounts = append(mounts, specs.Mount{Destination: dir, Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}})
	}
	for _, b := range c.Binds {
		opts := []string{"rbind", "rprivate"}
		if b.ReadOnly {
			opts = append(opts, "ro")
		}
		mounts = append(mounts, specs.Mount{Destination: b.Target, Type: "bind", Source: b.Source, Options: opts})
	}
	return mounts
}
