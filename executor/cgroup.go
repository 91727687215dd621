package executor

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Cgroups are the control groups a step runs in. Whoever made them removes them once Run has returned.
type Cgroups struct {
	Dir   *os.File   // directory of the group of cgroup v2, to start inside of it; nil: there is none
	Procs []*os.File // cgroup.procs of every group, open for writing, that of Dir last
}

// startProcess starts the step's first process, inside of its v2 group where the kernel allows that: it is cheaper than to move a
// process, and no moment passes outside. Else, and with cgroup v1 always, the process enters the groups before it does anything
// else, through files that were opened by somebody with the right to. The cgroup namespace comes after that, made by the
// process itself: one made together with the process would have the group of the caller as its top.
func (s *step) startProcess(name string, attr *os.ProcAttr) (*os.Process, error) {
	g := s.cgroups
	if g == nil {
		return os.StartProcess(initExePath, []string{name}, attr)
	}
	if attr.Sys.Cloneflags&unix.CLONE_NEWCGROUP != 0 {
		attr.Sys.Cloneflags &^= unix.CLONE_NEWCGROUP
		s.plan.NewCgroupNS = true
	}
	first := len(attr.Files)
	attr.Files = append(attr.Files, g.Procs...)
	s.plan.Enter = nil
	for i := range g.Procs {
		s.plan.Enter = append(s.plan.Enter, first+i)
	}
	start := func() (*os.Process, error) { // with a plan that says what is left to do
		planFile, err := writePlan(s.plan)
		if err != nil {
			return nil, err
		}
		defer planFile.Close()
		attr.Files[initPlan] = planFile
		return os.StartProcess(initExePath, []string{name}, attr)
	}
	if g.Dir == nil {
		return start()
	}
	all := s.plan.Enter
	s.plan.Enter = all[:len(all)-1]
	attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.Dir.Fd())
	p, err := start()
	for _, not := range []error{unix.EACCES, unix.EPERM, unix.ENOSYS, unix.EINVAL} {
		if errors.Is(err, not) { // an old kernel, a filter of system calls, or not ours to start processes in
			s.plan.Enter = all
			attr.Sys.UseCgroupFD = false
			return start()
		}
	}
	return p, err
}

// enterGroups puts the process into the groups of the step, of which the step then sees nothing above.
func enterGroups(p *plan) error {
	if len(p.Enter) > 0 || p.NewCgroupNS {
		if err := joinGroups(p); err != nil {
			return err
		}
	}
	if len(p.CPUs) == 0 {
		return nil
	}
	var set unix.CPUSet
	for _, c := range p.CPUs {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return setupError("choose CPUs", err)
	}
	return nil
}

func joinGroups(p *plan) error {
	before := v1Groups()
	for _, fd := range p.Enter {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return setupError("enter the control group", err)
		}
	}
	for controllers, group := range v1Groups() {
		if before[controllers] != group {
			p.hierarchies = append(p.hierarchies, controllers)
		}
	}
	if p.NewCgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return setupError("make the cgroup namespace", err)
		}
	}
	return nil
}
