package userns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// explainClone says why the kernel did not make the namespaces.
func explainClone(p Plan, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return &Error{Primitive: "namespace holder", Err: err}
	}
	e := &Error{Primitive: "mount and pid namespaces", Err: errno}
	if p.NewUser() {
		e.Primitive = "user namespace"
	}
	switch errno {
	case unix.ENOSPC:
		e.Blocker = "the limit of namespaces per user is reached (sysctl user.max_user_namespaces, max_mnt_namespaces, max_pid_namespaces)"
		e.Fix = "sudo sysctl -w user.max_user_namespaces=15000"
	case unix.EUSERS:
		e.Blocker = "user namespaces are nested too deep"
	case unix.EINVAL, unix.ENOSYS:
		e.Blocker = "this kernel was built without user namespaces"
	case unix.EPERM, unix.EACCES:
		e.Obstacle, e.Blocker, e.Fix = whoForbids("")
	}
	return e
}

// explainMap says why a helper could not write a map.
func explainMap(helper string, err error) error {
	name := filepath.Base(helper)
	e := &Error{Obstacle: ObstacleHelper, Primitive: name, Err: err}
	switch msg := err.Error(); {
	case strings.Contains(msg, "not allowed"):
		e.Obstacle = ObstacleSubID
		e.Blocker = "the range is not granted to this user, or is in use twice, in /etc/subuid and /etc/subgid"
	case strings.Contains(msg, "not permitted"):
		e.Blocker = "the helper has no privileges here (container without setuid, or a mount with nosuid)"
		e.Fix = "sudo chmod u+s " + helper
	}
	return e
}

// explainSetup says why the holder could not prepare its namespaces after they were made: on systems that let anybody make a
// user namespace and then deny it every capability, this is where it shows.
func explainSetup(p Plan, err error) error {
	e := &Error{Primitive: "namespace holder", Err: err}
	if withoutProc(err) {
		e.Obstacle, e.Primitive = ObstacleProc, "fresh /proc"
		e.Blocker = "parts of /proc are hidden here, as in a container, and the kernel shows a namespace no more than its maker sees"
		e.Fix = "Docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked"
		return e
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		e.Primitive = "mounts in the new namespaces"
		e.Obstacle, e.Blocker, e.Fix = whoForbids("")
	}
	return e
}

// whoForbids guesses who answers EPERM to namespaces and mounts. root is a prefix for tests.
func whoForbids(root string) (o Obstacle, blocker, fix string) {
	read := func(f string) string {
		b, _ := os.ReadFile(root + f)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("/proc/sys/user/max_user_namespaces") == "0":
		return ObstacleSysctl, "sysctl user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=15000"
	case read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return ObstacleSysctl, "sysctl kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return ObstacleAppArmor, "AppArmor restricts user namespaces to programs with a profile (sysctl kernel.apparmor_restrict_unprivileged_userns is 1)",
			"sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with the line `userns,` for this program"
	case strings.Contains(read("/proc/self/status"), "Seccomp:\t2"):
		return ObstacleSeccomp, "a seccomp filter of the container this runs in",
			"run the container with --security-opt seccomp=unconfined (Kubernetes: seccompProfile: Unconfined)"
	}
	return ObstacleUnknown, "a security module or missing capabilities", ""
}
