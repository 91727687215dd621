package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mainGroup is where this process goes when the group it is in shall get children with controllers: cgroup v2 lets a group other
// than the root have either those or processes. All builds in one group share it.
const mainGroup = "build-main"

// delegation makes the group of this process the base of the steps', which thus stay within the limits it has. Where others are
// in it, too, they cannot stay there, and they are not ours to move; then the group above will do, if that has given its children
// the controllers already and the group itself sets no limit that would be escaped so: the usual case of root in a shell.
func (g *Groups) delegation(h *hierarchy, want []string, not blocked) {
	dir := h.own
	if path.Base(dir) == mainGroup && dir != h.mount {
		dir = path.Dir(dir)
	}
	var able []string
	for _, c := range want {
		if has(dir, c) {
			able = append(able, c)
			continue
		}
		not[c] = &Error{
			What: "controller " + c, Blocker: "the group " + dir + " was not given it",
			Fix: "systemd: Delegate=" + c + " for user@.service in /etc/systemd/system/user@.service.d/, then log in again; else +" + c + " in cgroup.subtree_control of the groups above",
		}
	}
	if len(able) == 0 {
		return
	}
	d := &delegated{dir: dir}
	err := d.enable(able)
	if err == nil {
		g.undo = append(g.undo, d.restore)
	} else {
		d.restore()
		above := path.Dir(dir)
		if !errors.Is(err, unix.EBUSY) || dir == h.mount || limited(dir) || !enabled(above, able) || unix.Access(above, unix.W_OK) != nil {
			for _, c := range able {
				not[c] = d.explain(err)
			}
			return
		}
		dir = above
	}
	for _, c := range able {
		g.addBase(h, dir, c)
	}
}

// delegated is what was done to a group to make it a base.
type delegated struct {
	dir  string
	lock *os.File // shared by all builds that use the group
}

// enable gives the children of the group the controllers.
func (d *delegated) enable(controllers []string) error {
	var err error
	if d.lock, err = os.Open(d.dir); err != nil {
		return err
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_SH); err != nil {
		return err
	}
	if err := d.vacate(); err != nil {
		return err
	}
	for _, c := range controllers {
		if enabled(d.dir, []string{c}) {
			continue
		}
		if err := write(d.dir+"/cgroup.subtree_control", "+"+c); err != nil {
			return err
		}
	}
	return nil
}

// vacate moves this process out of the group. The root of the hierarchy alone, which has no type, may keep its processes. EBUSY
// says that others are in it. The kernel would say so only for some controllers: with cpu, cpuset and pids the group becomes one
// of threads, and no process can be put into the groups below ("Threads" in Documentation/admin-guide/cgroup-v2.rst).
func (d *delegated) vacate() error {
	if _, err := os.Stat(d.dir + "/cgroup.type"); err != nil {
		return nil
	}
	inside := words(d.dir + "/cgroup.procs")
	if slices.Contains(inside, strconv.Itoa(os.Getpid())) {
		main := d.dir + "/" + mainGroup
		if err := os.Mkdir(main, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := write(main+"/cgroup.procs", "0"); err != nil {
			return err
		}
		inside = words(d.dir + "/cgroup.procs")
	}
	if len(inside) > 0 {
		return unix.EBUSY
	}
	return nil
}

// restore puts this process back where it was, so that others can be started there again, unless another build uses the group:
// the last one does. Controllers that somebody else may rely on by then stay.
func (d *delegated) restore() {
	if d.lock == nil {
		return
	}
	defer d.lock.Close()
	main := d.dir + "/" + mainGroup
	if unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !slices.Contains(words(main+"/cgroup.procs"), strconv.Itoa(os.Getpid())) {
		return
	}
	entries, _ := os.ReadDir(d.dir)
	for _, e := range entries {
		if e.IsDir() && e.Name() != mainGroup {
			return
		}
	}
	for _, c := range words(d.dir + "/cgroup.subtree_control") {
		_ = write(d.dir+"/cgroup.subtree_control", "-"+c)
	}
	if write(d.dir+"/cgroup.procs", "0") == nil {
		_ = os.Remove(main) // fails while others are in it
	}
}

// explain says why the group cannot be a base.
func (d *delegated) explain(err error) *Error {
	if !errors.Is(err, unix.EBUSY) {
		return refused(base{h: &hierarchy{v2: true}, dir: d.dir}, err)
	}
	return &Error{
		What:    "make control groups in " + d.dir,
		Blocker: "it holds other processes (" + others(d.dir) + "), and a group of cgroup v2 has either processes or children with controllers",
		Fix:     fixDelegate + ", or name a group without processes with --cgroup-parent",
		Err:     err,
	}
}

// others names some of the processes in a group besides this one.
func others(dir string) string {
	var out []string
	for _, pid := range words(dir + "/cgroup.procs") {
		if pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		if len(out) == 3 {
			out = append(out, "…")
			break
		}
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s", pid, comm)))
	}
	return strings.Join(out, ", ")
}

// enabled reports whether the children of a group have the controllers.
func enabled(dir string, controllers []string) bool {
	have := words(dir + "/cgroup.subtree_control")
	return !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(have, c) })
}

// limited reports whether a group sets a limit by itself.
func limited(dir string) bool {
	for _, file := range []string{"memory.max", "memory.high", "memory.swap.max", "cpu.max", "pids.max", "cpuset.cpus", "cpuset.mems"} {
		if w := words(dir + "/" + file); len(w) > 0 && w[0] != "max" {
			return true
		}
	}
	return false
}
