package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Groups makes the groups of one build's steps.
type Groups struct {
	limits   Limits
	bases    []base
	fallback Fallback
	undo     []func() // in the order of what was done

	mu    sync.Mutex
	spare *Group // made when it was tried whether one can be made
	steps int
}

// base is a group in which those of the steps are made.
type base struct {
	h           *hierarchy
	dir         string
	controllers []string // that the limits need in this hierarchy
}

// blocked says, by controller, why a limit cannot be had.
type blocked map[string]*Error

// Open finds out where groups with these limits can be made, and makes the first. It may move this process into a group of its
// own below the one it is in (see delegation), so it comes before the processes that start steps. Groups must be closed.
//
// Errors are of type *Error: a limit that cannot be had in any way, or a value that the kernel refuses.
func Open(l Limits) (*Groups, error) {
	g := &Groups{limits: l}
	lay, err := look("/proc")
	if err != nil {
		lay = &layout{}
	}
	not := blocked{}
	if l.Parent != "" {
		err = g.openParent(lay, not)
	} else {
		g.openOwn(lay, l.needs(), not)
		err = g.tryAll(not)
	}
	if err == nil {
		g.fallback, err = fallback(l, not)
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// openOwn chooses the bases where no parent was named.
func (g *Groups) openOwn(lay *layout, want []string, not blocked) {
	var unified []string
	for _, c := range want {
		switch h := lay.v1[c]; {
		case h != nil:
			g.addBase(h, h.own, c)
		case lay.v2 != nil:
			unified = append(unified, c)
		default:
			not[c] = &Error{What: "controller " + c, Blocker: "no hierarchy of control groups with it is mounted here", Fix: fixMount}
		}
	}
	if len(unified) > 0 {
		g.delegation(lay.v2, unified, not)
	}
}

func (g *Groups) addBase(h *hierarchy, dir, controller string) {
	for i := range g.bases {
		if g.bases[i].h == h {
			g.bases[i].controllers = append(g.bases[i].controllers, controller)
			return
		}
	}
	b := base{h: h, dir: dir}
	if controller != "" {
		b.controllers = []string{controller}
	}
	g.bases = append(g.bases, b)
}

// tryAll makes a group in every base. Bases in which that fails are dropped and their controllers blocked.
func (g *Groups) tryAll(not blocked) error {
	first := &Group{}
	kept := g.bases[:0]
	for _, b := range g.bases {
		sweep(b.dir)
		n, err := g.makeNode(b)
		var s *settingError
		switch {
		case err == nil:
			first.nodes = append(first.nodes, n)
			kept = append(kept, b)
			continue
		case errors.As(err, &s) && s.refused() != nil:
			first.Remove()
			return s.refused()
		case len(b.controllers) == 0:
			first.Remove()
			return refused(b, err)
		}
		for _, c := range b.controllers {
			not[c] = refused(b, err)
		}
	}
	g.bases = kept
	if len(kept) > 0 {
		g.spare = first
	}
	return nil
}

// refused explains why no group can be made or limited in a base.
func refused(b base, err error) *Error {
	e := &Error{What: "make a control group in " + b.dir, Err: err}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Err = errno
	}
	switch {
	case errors.Is(err, unix.EROFS):
		e.Blocker, e.Fix = "it is mounted read-only, as in a container with default settings", fixMount
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		if b.h.v2 {
			e.Blocker, e.Fix = "it was not delegated to this user", fixDelegate
		} else {
			e.Blocker, e.Fix = "cgroup v1 belongs to root", fixV1
		}
	}
	return e
}

// The smallest thing that helps, by situation.
const (
	fixDelegate = "start it in a group of its own: systemd-run --user --scope -p Delegate=yes build …"
	fixV1       = "run it as root, or boot with systemd.unified_cgroup_hierarchy=1 and start it with systemd-run --user --scope -p Delegate=yes build …"
	fixMount    = "docker run --privileged --cgroupns=private, or -v /sys/fs/cgroup:/sys/fs/cgroup:rw"
)

// makeNode makes a group with the limits in a base.
func (g *Groups) makeNode(b base) (*node, error) {
	n, err := newNode(b.h, b.dir)
	if err != nil {
		return nil, err
	}
	err = apply(n.dir.Name(), g.limits.settings(b.h.v2), b.controllers)
	if err == nil {
		err = fillCPUSet(b.h, n.dir.Name())
	}
	if err != nil {
		n.remove()
		return nil, err
	}
	return n, nil
}

// fillCPUSet gives a new v1 group the CPUs and memory nodes of the one it is in. No process can enter it before.
func fillCPUSet(h *hierarchy, dir string) error {
	if h.v2 || !slices.Contains(h.controllers, cpuset) {
		return nil
	}
	parent := dir[:strings.LastIndexByte(dir, '/')]
	for _, file := range []string{"cpus", "mems"} {
		if len(words(dir+"/cpuset."+file)) > 0 {
			continue
		}
		all := words(parent + "/cpuset." + file)
		if len(all) == 0 {
			all = words(parent + "/cpuset.effective_" + file)
		}
		if err := write(dir+"/cpuset."+file, strings.Join(all, "")); err != nil {
			return err
		}
	}
	return nil
}

// New makes the group of one step. It is nil when no limit is kept by a group.
func (g *Groups) New() (*Group, error) {
	g.mu.Lock()
	g.steps++
	ready := g.spare
	g.spare = nil
	g.mu.Unlock()
	if ready != nil || len(g.bases) == 0 {
		return ready, nil
	}
	out := &Group{}
	for _, b := range g.bases {
		n, err := g.makeNode(b)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make a control group in %s: %w", b.dir, err), out.Remove())
		}
		out.nodes = append(out.nodes, n)
	}
	return out, nil
}

// Fallback is what steps get in place of the limits that no group keeps.
func (g *Groups) Fallback() Fallback {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.fallback
	f.turn = g.steps
	return f
}

// Close removes what Open made and puts this process back where it was. Groups of steps are removed before.
func (g *Groups) Close() error {
	var err error
	if g.spare != nil {
		err = g.spare.Remove()
		g.spare = nil
	}
	for _, f := range slices.Backward(g.undo) {
		f()
	}
	g.undo = nil
	return err
}

// Group is what one step runs in: a group in every hierarchy that a limit needs.
type Group struct{ nodes []*node }

// Dir is the directory of the group of v2, for CLONE_INTO_CGROUP, or nil.
func (g *Group) Dir() *os.File {
	for _, n := range g.nodes {
		if n.h.v2 {
			return n.dir
		}
	}
	return nil
}

// Procs are the files into which a process writes "0" to enter the group, one for each hierarchy, that of v2 last.
func (g *Group) Procs() []*os.File {
	var out, last []*os.File
	for _, n := range g.nodes {
		if n.h.v2 {
			last = append(last, n.procs)
		} else {
			out = append(out, n.procs)
		}
	}
	return append(out, last...)
}

// Remove kills what is left in the group and removes it.
func (g *Group) Remove() error {
	var errs []error
	for _, n := range g.nodes {
		errs = append(errs, n.remove())
	}
	g.nodes = nil
	return errors.Join(errs...)
}
