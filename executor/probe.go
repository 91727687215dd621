package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// Arguments zero of the process that tries what needs new namespaces.
const (
	argProbe       = "build-probe"
	argProbeBound  = "build-probe-bound" // without a fresh /proc
	argProbeChroot = "build-probe-chroot"
)

// Report is what Probe found, in the order in which a step needs it.
type Report struct{ Checks []Check }

// Check is one primitive, tried.
type Check struct {
	Name    string
	OK      bool
	Detail  string        `json:",omitempty"` // which way it works, or what the kernel said
	Errno   syscall.Errno `json:",omitempty"`
	Blocker string        `json:",omitempty"` // who is in the way, as far as can be told
	Fix     string        `json:",omitempty"`
}

// OK reports whether everything a sandboxed step needs works.
func (r Report) OK() bool {
	for _, c := range r.Checks {
		if !c.OK {
			return false
		}
	}
	return len(r.Checks) > 0
}

func newCheck(name, detail string, err error) Check {
	if err == nil {
		return Check{Name: name, OK: true, Detail: detail}
	}
	c := Check{Name: name}
	var e *SetupError
	if errors.As(setupError(name, err), &e) {
		c.Errno, c.Blocker, c.Fix = e.Errno, e.Blocker, e.Fix
	}
	c.Detail = err.Error()
	return c
}

// Probe tries, by doing, each primitive that Run uses with these means, with files on the file system of dir (where it makes and
// removes a directory). It must be called where Run would be.
func Probe(ctx context.Context, dir string, m Means) Report {
	var r Report
	add := func(name, detail string, err error) { r.Checks = append(r.Checks, newCheck(name, detail, err)) }
	if !m.Chroot {
		way, err := tryOverlay(dir)
		add("overlay with userxattr on "+dir, way, err)
		inside, err := probeInside(ctx, m)
		add(namespaceNames(m), "", err)
		r.Checks = append(r.Checks, inside...)
	} else {
		inside, err := probeInside(ctx, m)
		add("a process for a step", "", err)
		r.Checks = append(r.Checks, inside...)
	}
	_, err := sandboxFilter()
	add("seccomp profile for "+runtime.GOARCH, "", err)
	if err == nil && !m.Chroot {
		_, err = protectedExe()
		add("protected copy of the program", "", err)
	}
	return r
}

func namespaceNames(m Means) string {
	if m.BoundProc {
		return "mount, ipc, uts, cgroup and network namespaces"
	}
	return "mount, pid, ipc, uts, cgroup and network namespaces"
}

// ProbeOverlay tries whether overlays work on the file system of dir, where it makes and removes a directory.
func ProbeOverlay(dir string) error {
	_, err := tryOverlay(dir)
	return err
}

// tryOverlay says which way of mounting works, and that the overlay then does what layers need: an overlay without userxattr
// in a user namespace mounts and then fails to remove directories.
func tryOverlay(dir string) (way string, err error) {
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	o := Overlay{Lower: []string{tmp + "/lower"}, Upper: tmp + "/upper", Work: tmp + "/work"}
	for _, d := range []string{"lower/dir/sub", "upper", "work"} {
		if err := os.MkdirAll(tmp+"/"+d, 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(tmp+"/lower/file", nil, 0o644); err != nil {
		return "", err
	}
	fd, way, err := mountOverlay(o, unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return "", err
	}
	defer os.Chmod(tmp+"/work/work", 0o700) // so that it can be removed
	defer unix.Close(fd)
	return way, useOverlay(fd, o.Upper)
}

func useOverlay(fd int, upper string) error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"remove a file", func() error { return unix.Unlinkat(fd, "file", 0) }},
		{"remove a directory's directory", func() error { return unix.Unlinkat(fd, "dir/sub", unix.AT_REMOVEDIR) }},
		{"remove a directory", func() error { return unix.Unlinkat(fd, "dir", unix.AT_REMOVEDIR) }},
		{"make it again", func() error { return unix.Mkdirat(fd, "dir", 0o755) }},
		{"find the whiteout", func() error {
			var st unix.Stat_t
			if err := unix.Lstat(upper+"/file", &st); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
				return errors.New("it is not a device 0:0")
			}
			return nil
		}},
		{"find the directory opaque", func() error {
			_, err := unix.Lgetxattr(upper+"/dir", "user.overlay.opaque", make([]byte, 8))
			return err
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// probeInside starts a process like a step's first, which tries the rest.
func probeInside(ctx context.Context, m Means) ([]Check, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	arg, flags := argProbe, uintptr(stepNamespaces|unix.CLONE_NEWNET)
	switch {
	case m.Chroot:
		arg, flags = argProbeChroot, 0
	case m.BoundProc:
		arg, flags = argProbeBound, flags&^unix.CLONE_NEWPID
	}
	p, err := os.StartProcess("/proc/self/exe", []string{arg}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, null, w},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: flags},
	})
	null.Close()
	w.Close()
	if err != nil {
		return nil, startError(err)
	}
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	data, rerr := io.ReadAll(r)
	state, err := p.Wait()
	stop()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("the probing process: %w", err)
	case !state.Success():
		return nil, fmt.Errorf("the probing process: %s", state)
	case rerr != nil:
		return nil, rerr
	}
	var checks []Check
	if err := json.Unmarshal(data, &checks); err != nil {
		return nil, fmt.Errorf("the probing process: %w", err)
	}
	return checks, nil
}

// prober is that process. What it mounts is attached nowhere; its namespaces end with it.
type prober struct {
	means  Means
	checks []Check
}

func (p *prober) try(name string, err error) { p.checks = append(p.checks, newCheck(name, "", err)) }

func probeInit(arg string) {
	runtime.LockOSThread()
	p := prober{means: Means{Chroot: arg == argProbeChroot, BoundProc: arg == argProbeBound}}
	if p.means.Chroot {
		p.chroot()
	} else {
		p.mounts()
	}
	_, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	p.try("openat2", err)
	p.filters()
	if json.NewEncoder(os.NewFile(initSocket, "report")).Encode(p.checks) != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// mounts tries what a step's file systems are made of.
func (p *prober) mounts() {
	mount := func(fstype string, options ...string) error {
		fd, err := newMount(fstype, strictAttrs, options...)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	p.try("private mounts", unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	if p.means.BoundProc {
		_, err := cloneMount("/proc", unix.MOUNT_ATTR_NOSUID)
		p.try("copy of /proc", err)
	} else {
		p.try("fresh /proc", mount("proc"))
	}
	err := mount("sysfs")
	if errors.Is(err, unix.EPERM) {
		_, err = cloneMount("/sys", unix.MOUNT_ATTR_RDONLY)
	}
	p.try("/sys", err)
	p.try("tmpfs", mount("tmpfs", "mode=0755"))
	p.try("devpts", mount("devpts", "newinstance"))
	for _, d := range devices {
		fd, err := openDevice(d.name, d.major, d.minor)
		if err == nil {
			_, err = cloneFD(fd, 0, unix.MOUNT_ATTR_NOSUID)
		}
		if err != nil {
			p.try("/dev/"+d.name, err)
		}
	}
	p.try("loopback interface", loopbackUp())
}

// chroot tries what a step without namespaces needs.
func (p *prober) chroot() {
	p.try("chroot", unix.Chroot("/"))
	groups := []uint32{0}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0)
	p.try("setgroups", nilErrno(errno))
}

// filters tries system call filters, last because they stay: one that sends calls to a supervisor first, because a process can have
// only one of those and the other would not let it be installed.
func (p *prober) filters() {
	if p.means.Chroot {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			p.try("no_new_privs", err)
		}
	}
	p.try("seccomp notification", tryListener())
	filter, err := sandboxFilter()
	if err == nil {
		_, err = bpf.Install(filter, 0)
	}
	p.try("seccomp filter", err)
}

// tryListener installs a program that lets everything pass and has a listener.
func tryListener() error {
	fd, err := bpf.Listen([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}})
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func nilErrno(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
