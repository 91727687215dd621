package executor

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
	"build/internal/fakeroot"
	"build/internal/owner"
)

// ownership is what a step needs where its user namespace does not have all ids: see package fakeroot.
type ownership struct {
	records *fakeroot.Records
	id      identity
	upper   int // of an overlay; -1
	filter  rawFilter

	supervisor *fakeroot.Supervisor
	err        error // why there is none although one was asked for
}

// namespace is our user namespace: who files can belong to, and the filter that this makes necessary.
type namespace struct {
	owners owner.Map
	filter rawFilter
}

var ownNamespace = sync.OnceValues(func() (namespace, error) {
	ids, err := owner.ReadMap()
	if err != nil {
		return namespace{}, err
	}
	filter, err := fakeroot.Filter(ids)
	if err != nil {
		return namespace{}, fmt.Errorf("compile the filter for owners: %w", err)
	}
	return namespace{ids, filter}, nil
})

// prepareOwnership finds out what must be recorded. Without Means.Recorded help with ids outside of the range is an extra, which
// a namespace with one id would not get half of.
func prepareOwnership(spec *Spec, id identity) (*ownership, error) {
	o := &ownership{id: id, upper: -1}
	ns, err := ownNamespace()
	if err != nil {
		return nil, setupError("prepare the step's owners", err)
	}
	if !spec.Means.Recorded && fakeroot.Single(ns.owners) {
		ns = namespace{}
	}
	ids := ns.owners
	o.filter = ns.filter
	if r, ok := spec.Root.(Overlay); ok && !ids.Full() {
		if o.upper, err = unix.Open(r.Upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, setupError("open "+r.Upper, err)
		}
	}
	o.records = fakeroot.NewRecords(ids, spec.Owners, o.upper)
	return o, nil
}

func (o *ownership) close() {
	if o.upper >= 0 {
		unix.Close(o.upper)
		o.upper = -1
	}
}

// supervise starts to answer the calls that arrive at listener, which it takes over.
func (o *ownership) supervise(listener int, root *os.File, p *firstProcess) {
	proc, err := ownProc()
	if err != nil {
		unix.Close(listener)
		o.err = fmt.Errorf("open /proc: %w", err)
		p.kill()
		return
	}
	o.supervisor, o.err = fakeroot.Start(listener, fakeroot.Config{
		Proc: proc, Root: int(root.Fd()), Records: o.records, UID: o.id.uid, GID: o.id.gid, Groups: append([]uint32{o.id.gid}, o.id.groups...),
	}, func(error) { p.kill() })
	if o.err != nil {
		p.kill()
	}
}

// end stops the supervisor and returns why it failed, if so. Every process of the step is gone.
func (o *ownership) end() error {
	if o.supervisor != nil {
		o.err = o.supervisor.Close()
		o.supervisor = nil
	}
	return setupError("answer for the owners of files", o.err)
}

// ownProc is a procfs of our pid namespace, which the one on /proc need not be. Where no fresh one can be had it is, because then
// there is only one namespace.
var ownProc = sync.OnceValues(func() (int, error) {
	fd, err := newMount("proc", strictAttrs)
	if err != nil {
		return unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	return fd, nil
})

// installSupervised puts the filter for owners in front of the step and hands over its listener.
func installSupervised(p *plan) error {
	if len(p.OwnersFilter) == 0 {
		return nil
	}
	fd, err := bpf.Listen(p.OwnersFilter)
	if err != nil && !p.Recorded {
		return nil // chown to ids outside of the range is then refused by the kernel, with its own words
	}
	if err == unix.EBUSY {
		return &SetupError{
			Op: "install the filter for owners", Errno: unix.EBUSY,
			Blocker: "a supervisor of system calls outside of this build (LXC, for example, can have one), and the kernel allows one only",
			Fix:     "a range of ids in /etc/subuid and /etc/subgid, with which none is needed",
		}
	}
	if err != nil {
		return setupError("install the filter for owners", err)
	}
	report(message{Listener: true}, fd)
	unix.Close(fd)
	return nil
}

// give makes an open file the owner's.
func (o madeBy) give(fd int) error {
	if !o.recorded {
		return unix.Fchownat(fd, "", int(o.uid), int(o.gid), unix.AT_EMPTY_PATH)
	}
	if !owner.Single().Needs(o.uid, o.gid) {
		return nil
	}
	return owner.Set(fd, owner.Record{UID: o.uid, GID: o.gid})
}
