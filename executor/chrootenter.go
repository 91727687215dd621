package executor

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// enterInit is a step's first process in a chroot: it takes the tree for its root, becomes the user, gives up what a step may
// not have, and becomes the command. Its socket leads to the keeper.
func enterInit() { giveUp(enter()) }

func enter() error {
	p, err := begin()
	if err != nil {
		return err
	}
	if err := enterGroups(p); err != nil {
		return err
	}
	if err := defaultOOMScore(); err != nil {
		return setupError("set oom_score_adj", err)
	}
	// A keyring of its own, where a container lets anybody have one: then the caller's may hold keys.
	unix.KeyctlJoinSessionKeyring("step")
	for _, r := range p.Rlimits {
		if err := setRlimit(r); err != nil {
			return setupError(fmt.Sprintf("set resource limit %d", r.Resource), err)
		}
	}
	if err := enterChroot(p); err != nil {
		return err
	}
	if err := confine(p); err != nil {
		return err
	}
	return execute(p)
}

func enterChroot(p *plan) error {
	if err := unix.Fchdir(initRoot); err != nil {
		return setupError("enter the root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return setupError("chroot", err)
	}
	m, err := newMaker(initRoot)
	if err != nil {
		return setupError("open the root", err)
	}
	where := p.Dir
	if where == "" {
		where = "/"
	}
	dir, err := m.directory(where, madeBy{uid: p.UID, gid: p.GID})
	if err != nil {
		return pathError("working directory "+where, err)
	}
	if err := unix.Fchdir(dir); err != nil {
		return setupError("enter the working directory", err)
	}
	if wd, err := os.Getwd(); err != nil || !strings.HasPrefix(wd, "/") {
		return &SetupError{Op: "enter the working directory", Msg: "it is outside of the root"}
	}
	return nil
}

// confine takes on the user and gives up what a step may not have.
//
// Without CAP_SYS_ADMIN no_new_privs is what a process pays for installing filters and for Landlock, and a sandboxed step pays
// it: it needs the filter where the container has none, and Landlock keeps steps apart from each other and from us. What is
// lost is that a program with a setuid bit raises privileges: sudo, for steps that do not run as root. (An insecure step has
// neither, and keeps that.)
func confine(p *plan) error {
	giveStdio(p.UID)
	if p.Insecure {
		if err := setIDs(p); err != nil {
			return err
		}
		return setupError("drop capabilities", limitCaps(p.KeepCaps))
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return setupError("set no_new_privs", err)
	}
	// Where CAP_SETPCAP is missing the set stays as it is. With no_new_privs it gives nobody anything.
	if err := dropBounding(p.KeepCaps); err != nil && err != unix.EPERM {
		return setupError("drop capabilities", err)
	}
	if err := setIDs(p); err != nil {
		return err
	}
	if err := limitCaps(p.KeepCaps); err != nil {
		return setupError("drop capabilities", err)
	}
	// After the change of user, which ends it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return setupError("set the parent-death signal", err)
	}
	if err := confineTo(initRoot); err != nil {
		return setupError("confine the step to its root (Landlock)", err)
	}
	if _, err := bpf.Install(p.Filter, 0); err != nil {
		return setupError("install the seccomp filter", err)
	}
	return watch(p)
}

// watch lets the keeper answer what the step asks of /proc. Where that cannot be had, as in a container whose own runtime
// listens to such calls, the step is told about the machine by files, and waits until they are there.
func watch(p *plan) error {
	if len(p.Watch) == 0 {
		return nil
	}
	fd, err := bpf.Listen(p.Watch)
	if err == nil {
		report(message{Watched: true}, fd)
		return setupError("start the step", unix.Close(fd))
	}
	report(message{Blind: err.Error()})
	_, err = eintr(func() (int, error) { return unix.Read(initSocket, make([]byte, 1)) })
	return setupError("start the step", err)
}
