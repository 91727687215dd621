package executor

import (
	"os"
	"strings"
)

// blockerOf guesses who answers EPERM to a primitive, and what would help.
func blockerOf(op string) (blocker, fix string) {
	read := func(f string) string {
		b, _ := os.ReadFile(f)
		return strings.TrimSpace(string(b))
	}
	switch {
	case strings.Contains(op, "/proc") && !strings.Contains(op, "mask"):
		return "parts of the /proc outside are masked, as in a container, and the kernel does not let a namespace see more than its creator",
			"Docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked"
	case filtered(read("/proc/self/status")):
		return seccompBlocker, seccompFix
	case read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "AppArmor restricts what a user namespace may do (sysctl kernel.apparmor_restrict_unprivileged_userns is 1)",
			"sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
	}
	return "", ""
}

const (
	seccompBlocker = "a seccomp filter of the container this runs in"
	seccompFix     = "run the container with --security-opt seccomp=unconfined (Kubernetes: seccompProfile: Unconfined)"
)

func filtered(status string) bool { return strings.Contains(status, "Seccomp:\t2") }

// blockerOfCall guesses why there is no such system call: filters made before a call existed say so, too.
func blockerOfCall() (blocker, fix string) {
	if b, _ := os.ReadFile("/proc/self/status"); filtered(string(b)) {
		return seccompBlocker, seccompFix
	}
	return "this kernel lacks the system call", "Linux 5.12 or later"
}
