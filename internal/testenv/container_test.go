package testenv

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a builder may do in the containers of others, so that a test in one of them tests what it says.
func TestContainer(t *testing.T) {
	Root(t)
	const status = `grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t\n'; id -u`
	for _, tc := range []struct {
		name string
		c    Container
		want string
	}{
		{"docker", Container{}, "CapEff:00000000a80425fbCapBnd:00000000a80425fbNoNewPrivs:0Seccomp:20"},
		{"docker, no_new_privs", Container{NoNewPrivileges: true}, "CapEff:00000000a80425fbCapBnd:00000000a80425fbNoNewPrivs:1Seccomp:20"},
		{"docker, user", Container{UID: 1000, GID: 1000}, "CapEff:0000000000000000CapBnd:00000000a80425fbNoNewPrivs:0Seccomp:21000"},
		{"restricted", Container{UID: 1000, NoCaps: true, NoNewPrivileges: true}, "CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1Seccomp:21000"},
		{"unconfined", Container{SeccompUnconfined: true}, "CapEff:00000000a80425fbCapBnd:00000000a80425fbNoNewPrivs:0Seccomp:00"},
	} {
		if got := strings.TrimSpace(tc.c.Sh(t, status)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestContainerForbids(t *testing.T) {
	Root(t)
	out := Container{}.Sh(t, `
unshare -U true 2>&1 || echo no-userns
mount -t tmpfs x /mnt 2>&1 || echo no-mount
mknod /tmp/null c 1 3 && echo x >/tmp/null && echo null
chroot / true && echo chroot
test ! -s /proc/keys && echo masked
echo 1 2>&1 >/proc/sys/vm/drop_caches || echo read-only
`)
	for _, want := range []string{"no-userns", "no-mount", "null", "chroot", "masked", "read-only"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

func TestContainerBinds(t *testing.T) {
	Root(t)
	dir := t.TempDir()
	c := Container{Binds: []Bind{{Source: dir, Target: "/shared"}, {Source: dir, Target: "/shown", ReadOnly: true}}, Env: []string{"WORD=hello"}}
	c.Sh(t, `echo $WORD >/shared/file; echo x 2>/dev/null >/shown/file && exit 1; test "$(cat /shown/file)" = hello; touch /left`)
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
	c.Sh(t, `test ! -e /left`)
	if r := c.Run(t, "/bin/sh", "-c", "exit 7"); r.Code != 7 {
		t.Errorf("exit code %d, want 7: %s", r.Code, r.Stderr)
	}
}
