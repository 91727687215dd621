package cgroup

import (
	"errors"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// openParent makes the bases below the group that was asked for. There is no other way to be in that group: what fails here is an
// error.
func (g *Groups) openParent(lay *layout, not blocked) error {
	name, err := ParentPath(g.limits.Parent)
	if err != nil {
		return err
	}
	want := g.limits.needs()
	for _, h := range lay.inUse(want) {
		var mine []string
		for _, c := range want {
			if h.v2 && lay.v1[c] == nil || lay.v1[c] == h {
				mine = append(mine, c)
			}
		}
		dir := h.mount + name
		if err := g.makeParent(h, dir, mine); err != nil {
			e := refused(base{h: h, dir: dir}, err)
			e.What = "--cgroup-parent " + g.limits.Parent + ": " + e.What
			return e
		}
		g.addBase(h, dir, "")
		g.bases[len(g.bases)-1].controllers = mine
	}
	if len(g.bases) == 0 {
		return &Error{What: "--cgroup-parent", Blocker: "no hierarchy of control groups is mounted here", Fix: fixMount}
	}
	if err := g.tryAll(not); err != nil {
		return err
	}
	for _, c := range slices.Sorted(maps.Keys(not)) {
		e := *not[c]
		e.What = "--cgroup-parent " + g.limits.Parent + ": " + e.What
		return &e
	}
	return nil
}

// inUse lists the hierarchies that a step is put into when a parent is named: those that the limits need, or, without limits, all
// that have a controller which limits may come from.
func (l *layout) inUse(want []string) []*hierarchy {
	asked := len(want) > 0
	if !asked {
		want = Controllers
	}
	var out []*hierarchy
	for _, c := range want {
		h := l.v1[c]
		if h == nil && l.v2 != nil && (asked || has(l.v2.mount, c)) {
			h = l.v2
		}
		if h != nil && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

// makeParent makes the groups down to dir that are missing, which Close removes again, and gives those below the controllers.
func (g *Groups) makeParent(h *hierarchy, dir string, controllers []string) error {
	var steps []string
	for d := dir; len(d) > len(h.mount); d = path.Dir(d) {
		steps = append(steps, d)
	}
	above := h.mount
	for _, d := range slices.Backward(steps) {
		if err := give(h, above, controllers); err != nil {
			return err
		}
		if err := os.Mkdir(d, 0o755); err == nil {
			g.undo = append(g.undo, func() { _ = os.Remove(d) }) // stays while another build is in it
			if err := fillCPUSet(h, d); err != nil {
				return err
			}
		} else if !errors.Is(err, os.ErrExist) {
			return err
		}
		above = d
	}
	return give(h, dir, controllers)
}

// give enables the controllers of v2 for the children of a group.
func give(h *hierarchy, dir string, controllers []string) error {
	if !h.v2 {
		return nil
	}
	for _, c := range controllers {
		if enabled(dir, []string{c}) {
			continue
		}
		if err := write(dir+"/cgroup.subtree_control", "+"+c); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return &Error{What: "give +" + c + " to the groups in " + dir, Blocker: "it holds processes itself (" + others(dir) + ")", Err: err}
			}
			return err
		}
	}
	return nil
}

// ParentPath turns what docker, BuildKit and systemd call a parent group into a path below the top of a hierarchy, beginning with
// a slash. A slice NAME.slice (or NAME.slice:PREFIX:) lies where systemd puts it: a-b.slice in a.slice. Paths that climb are
// refused: groups are made below the hierarchy that this process sees and nowhere else.
func ParentPath(parent string) (string, error) {
	bad := func(why string) error { return &Error{What: "--cgroup-parent " + parent, Blocker: why} }
	if slice, _, ok := strings.Cut(parent, ":"); ok {
		if !strings.HasSuffix(slice, ".slice") || !strings.HasSuffix(parent, ":") {
			return "", bad("the form is PATH, NAME.slice or NAME.slice:PREFIX:")
		}
		parent = slice
	}
	if strings.IndexByte(parent, 0) >= 0 || strings.IndexByte(parent, '\n') >= 0 {
		return "", bad("a path has no such characters")
	}
	if slices.Contains(strings.Split(parent, "/"), "..") {
		return "", bad("a path with .. would leave the hierarchy")
	}
	if name, ok := strings.CutSuffix(parent, ".slice"); ok && !strings.Contains(parent, "/") {
		parts := strings.Split(name, "-")
		parent = ""
		for i, p := range parts {
			if p == "" {
				return "", bad("no name of a systemd slice")
			}
			parent += "/" + strings.Join(parts[:i+1], "-") + ".slice"
		}
	}
	clean := path.Join("/", parent)
	if clean == "/" {
		return "", bad("the top of the hierarchy is no parent")
	}
	return clean, nil
}
