package executor

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// protectedExe is our own program in a form that a step which gets hold of it (through /proc/1/exe, say) cannot write: in a user
// namespace the file belongs to the step's root. Opened once per process and kept.
var protectedExe = sync.OnceValues(func() (*os.File, error) {
	if f, err := readOnlyExe(); err == nil {
		return f, nil
	}
	f, err := sealedExe()
	if err != nil {
		return nil, fmt.Errorf("protect our own program: %w", err)
	}
	return f, nil
})

// readOnlyExe is a read-only bind mount, attached nowhere. It costs microseconds.
func readOnlyExe() (*os.File, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	fd, err := cloneMount(path, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	var want, have unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &want); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Fstat(fd, &have); err != nil {
		f.Close()
		return nil, err
	}
	if want.Dev != have.Dev || want.Ino != have.Ino {
		f.Close()
		return nil, fmt.Errorf("%s is not the running program", path)
	}
	return f, nil
}

// sealedExe is a copy in memory that nobody can change, for when the file cannot be reached by its name any more.
func sealedExe() (*os.File, error) {
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer src.Close()
	const exec = 0x10 // MFD_EXEC, which kernels before 6.3 do not know
	fd, err := unix.MemfdCreate("build", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|exec)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("build", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "build")
	if _, err := io.Copy(f, src); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
