package executor

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock is what stands behind a chroot's walls: files outside of the tree are denied by the file itself, whichever way it is
// reached, and where the kernel can (ABI 6, Linux 6.12) neither signals nor abstract sockets leave the step. A process of the
// domain can trace none outside of it. It needs no privilege but no_new_privs.

// landlockABI is the version the kernel speaks; 0: none.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// firstUsableLandlock is the first ABI that can be told to let files move between directories; the one before forbids it.
const firstUsableLandlock = 2

// fileAccess are all rights that an ABI knows about files.
func fileAccess(abi int) uint64 {
	access := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1)
	for _, r := range []struct {
		abi   int
		right uint64
	}{{2, unix.LANDLOCK_ACCESS_FS_REFER}, {3, unix.LANDLOCK_ACCESS_FS_TRUNCATE}, {5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}} {
		if abi >= r.abi {
			access |= r.right
		}
	}
	return access
}

// confineTo restricts the calling thread, for good, to the tree open as root. It needs no_new_privs. A kernel without usable
// Landlock is no error: the chroot holds without.
func confineTo(root int) error {
	abi := landlockABI()
	if abi < firstUsableLandlock {
		return nil
	}
	access := fileAccess(abi)
	// The first versions of the struct end after the first, and the second, member.
	attr := unix.LandlockRulesetAttr{Handled_access_fs: access}
	size := uintptr(8)
	if abi >= 6 {
		attr.Scoped, size = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET|unix.LANDLOCK_SCOPE_SIGNAL, 24
	}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("make a ruleset: %w", errno)
	}
	defer unix.Close(int(set))
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(root)}
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, set, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	runtime.KeepAlive(&rule)
	if errno != 0 {
		return fmt.Errorf("allow the tree: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return fmt.Errorf("enter the domain: %w", errno)
	}
	return nil
}
