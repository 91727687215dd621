package executor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// This is Run where nothing but chroot is allowed: root in a container without namespaces and mounts (Docker's default,
// Kubernetes' Baseline). A step has a *keeper*, one small process of ours that
//
//   - puts what would be mounts into the tree by renaming and copying, and takes it out again (staging.go),
//   - is the subreaper of exactly this step: every process of it is the keeper's descendant, whatever it did to get away, and
//     none is left when the keeper is done (descend.go),
//   - answers what the step asks of /proc, which it does not have (procfs.go),
//   - outlives the process that called Run: its socket then ends, and it kills, puts back and wipes all the same.
//
// The step's first process, started by the keeper, is chrootenter.go.

// Traces are what a step in a chroot left that is not its own doing, and what it had to do without.
type Traces struct {
	// Touched are paths of the root, without leading slash ("" is the root itself), on which something was made and removed
	// again or that were moved aside and back. They are what they were, except for ctime, which cannot be put back. What lies
	// below a directory is not meant.
	Touched []string `json:",omitempty"`
	// Notes say, for people, what of the step's sandbox is not what it is elsewhere, and how.
	Notes []string `json:",omitempty"`
}

// Argument zero of the two processes.
const (
	argKeeper = "build-step-keeper"
	argEnter  = "build-step-enter"
)

// keeperPlan is what the keeper has to do.
type keeperPlan struct {
	Step   plan
	Tree   string // where the root lies; its parent directory is ours
	Mounts []Mount
	Hands  []int // by mount: index of the file that a socket's listening end goes to, -1
	Resolv []byte
	Hosts  []byte
	Groups int // how many files of control groups follow those of Hands, for the step to enter
}

// hands is how many files of sockets the keeper has.
func (p *keeperPlan) hands() (n int) {
	for _, h := range p.Hands {
		if h >= 0 {
			n++
		}
	}
	return n
}

// keeperResult is the keeper's last word.
type keeperResult struct {
	Setup  *SetupError `json:",omitempty"`
	Exit   *ExitError  `json:",omitempty"`
	Traces Traces
}

// sandboxCaps are a step's in a chroot. CAP_SYS_CHROOT is the way out of one.
const sandboxCaps = dockerCaps &^ (1 << unix.CAP_SYS_CHROOT)

func runChroot(ctx context.Context, spec *Spec, stdin, stdout, stderr *os.File) error {
	if err := chrootRefuses(spec); err != nil {
		return err
	}
	if err := becomeReaper(); err != nil {
		return setupError("become the reaper of what a step leaves", err)
	}
	k := &keeperRun{plan: keeperPlan{Tree: spec.Root.(Tree).Dir, Resolv: spec.Resolv, Hosts: spec.Hosts, Mounts: spec.Mounts}}
	defer k.close()
	if err := k.prepare(spec); err != nil {
		return err
	}
	err := k.run(ctx, stdin, stdout, stderr)
	if spec.Traces != nil {
		*spec.Traces = k.result.Traces
	}
	return err
}

// chrootRefuses names what cannot be had without namespaces and must not be left out.
func chrootRefuses(spec *Spec) error {
	if _, ok := spec.Root.(Tree); !ok {
		return &SetupError{Op: "check the step", Msg: fmt.Sprintf("a chroot needs a tree for its root, not %T", spec.Root)}
	}
	if spec.Network != NetworkHost {
		blocker, fix := blockerOf("namespaces")
		if fix == "" {
			fix = "run build where it may make user namespaces or has CAP_SYS_ADMIN; build doctor says what is missing"
		}
		return &SetupError{Op: "keep the step from this machine's network", Errno: unix.EPERM, Msg: "that takes a network namespace, and none can be made here", Blocker: blocker, Fix: fix}
	}
	for _, m := range spec.Mounts {
		if _, ok := m.Source.(BindTree); ok {
			return &SetupError{Op: "mount " + m.Target, Msg: "a tree of layers can be shown in a chroot only after it was unpacked"}
		}
	}
	return nil
}

// keeperRun is one keeper, seen from the process that started it.
type keeperRun struct {
	plan   keeperPlan
	root   *os.File
	hands  []*os.File // ours
	result keeperResult
	heard  bool       // the keeper has said its last word
	groups []*os.File // cgroup.procs of the step's groups; the caller's
}

func (k *keeperRun) close() {
	for _, f := range append(k.hands, k.root) {
		if f != nil {
			f.Close()
		}
	}
}

// prepare decides everything that can be decided without touching the tree.
func (k *keeperRun) prepare(spec *Spec) error {
	fd, err := unix.Open(k.plan.Tree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return setupError("open the root", fmt.Errorf("%s: %w", k.plan.Tree, err))
	}
	k.root = os.NewFile(uintptr(fd), k.plan.Tree)
	id, err := resolveUser(fd, spec.User)
	if err != nil {
		return &ExitError{Code: cannotExecute, Msg: err.Error()}
	}
	p := &k.plan.Step
	*p = plan{
		Args: spec.Args, Env: environment(spec.Env, id.home), Dir: spec.Dir, UID: id.uid, GID: id.gid, Groups: id.groups,
		Hostname: spec.Hostname, ShmSize: spec.ShmSize, Rlimits: spec.Rlimits, CPUs: spec.CPUs,
	}
	if g := spec.Cgroups; g != nil {
		k.groups, k.plan.Groups = g.Procs, len(g.Procs)
		for i := range g.Procs {
			p.Enter = append(p.Enter, initFirst+i)
		}
	}
	if spec.Security == Insecure {
		p.Insecure, p.KeepCaps = true, ^uint64(0)
	} else {
		p.KeepCaps = sandboxCaps
		if p.Filter, err = sandboxFilter(); err != nil {
			return setupError("compile the seccomp filter", err)
		}
		if p.Watch, err = watchFilter(watchedCalls, watchedCallsAt); err != nil {
			return setupError("compile the filter for /proc", err)
		}
	}
	k.plan.Hands = make([]int, len(spec.Mounts))
	for i, m := range spec.Mounts {
		k.plan.Hands[i] = -1
		if s, ok := m.Source.(Socket); ok {
			fd, err := unix.FcntlInt(uintptr(s.Hand), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return setupError("prepare the mount on "+m.Target, err)
			}
			k.plan.Hands[i] = len(k.hands)
			k.hands = append(k.hands, os.NewFile(uintptr(fd), m.Target))
		}
	}
	return nil
}

// start starts the keeper. It is not killed with its parent: it has things to put back.
func (k *keeperRun) start(stdin, stdout, stderr, sock *os.File) (*os.Process, error) {
	planFile, err := writePlan(&k.plan)
	if err != nil {
		return nil, err
	}
	defer planFile.Close()
	// Its program is out of the step's reach: there is no /proc in the chroot, and what is answered in its place is the step's.
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []*os.File{stdin, stdout, stderr, sock, planFile, k.root, exe}
	for i := range initSocket {
		if files[i] == nil {
			files[i] = null
		}
	}
	return os.StartProcess(initExePath, []string{argKeeper}, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: slices.Concat(files, k.hands, k.groups), Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

func (k *keeperRun) run(ctx context.Context, stdin, stdout, stderr *os.File) error {
	ours, theirs, err := messagePair()
	if err != nil {
		return setupError("make a socket", err)
	}
	defer ours.Close()
	defer theirs.Close()
	p, err := k.start(stdin, stdout, stderr, theirs)
	if err != nil {
		return setupError("start the keeper of the step", err)
	}
	theirs.Close()
	keepers.add(p.Pid)
	defer keepers.remove(p.Pid)
	// The end of what it reads tells the keeper to finish, as our own end would.
	fd, shut := int(ours.Fd()), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Shutdown(fd, unix.SHUT_WR)
		close(shut)
	})
	defer func() { // before the descriptor is closed
		if !stop() {
			<-shut
		}
	}()
	for {
		buf, _, err := receive(ours, nil)
		if err != nil || len(buf) == 0 {
			break
		}
		k.heard = json.Unmarshal(buf, &k.result) == nil
	}
	state, err := p.Wait()
	switch {
	case !k.heard:
		// Somebody killed it. What it kept has come to us.
		killStrays()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &SetupError{Op: "keep the step", Msg: fmt.Sprintf("its keeper ended before it was done (%v, %v); what it had put into the root is still there", state, err)}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case k.result.Exit != nil:
		return k.result.Exit
	case k.result.Setup != nil:
		return k.result.Setup
	}
	return nil
}
