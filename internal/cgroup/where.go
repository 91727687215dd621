package cgroup

import (
	"bufio"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// hierarchy is one tree of groups as this process sees it: that of cgroup v2, or one of v1 with the controllers bound to it.
type hierarchy struct {
	v2          bool
	controllers []string // v1: those bound to it; v2: nil, they differ from group to group
	mount       string   // where its visible top is
	own         string   // directory of the group this process is in
}

// layout is what is known of the groups of this process.
type layout struct {
	v2 *hierarchy            // nil: not mounted here
	v1 map[string]*hierarchy // by controller
}

// look finds out where this process is, from the files below proc ("/proc").
func look(proc string) (*layout, error) {
	groups, err := os.Open(proc + "/self/cgroup")
	if err != nil {
		return nil, err
	}
	defer groups.Close()
	mounts, err := os.Open(proc + "/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	return parseLayout(groups, mounts)
}

// parseLayout reads the two files that cgroups(7) and proc(5) describe. A hierarchy that is not mounted where this process could
// see its own group is left out.
func parseLayout(groups, mounts io.Reader) (*layout, error) {
	mounted, err := parseMounts(mounts)
	if err != nil {
		return nil, err
	}
	l := &layout{v1: map[string]*hierarchy{}}
	for sc := bufio.NewScanner(groups); sc.Scan(); {
		f := strings.SplitN(sc.Text(), ":", 3)
		if len(f) != 3 {
			continue
		}
		h := &hierarchy{v2: f[0] == "0" && f[1] == ""}
		if !h.v2 {
			h.controllers = strings.Split(f[1], ",")
		}
		if !h.find(mounted, f[2]) {
			continue
		}
		if h.v2 {
			l.v2 = h
		}
		for _, c := range h.controllers {
			l.v1[c] = h
		}
	}
	return l, nil
}

// cgroupMount is one line of mountinfo.
type cgroupMount struct {
	v2      bool
	root    string // which part of the hierarchy is mounted
	at      string
	ro      bool
	options []string // of the superblock; those of v1 name its controllers
}

func parseMounts(r io.Reader) ([]cgroupMount, error) {
	var out []cgroupMount
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - "); ok {
			head, tail := strings.Fields(before), strings.Fields(after)
			if len(head) >= 6 && len(tail) >= 3 && (tail[0] == "cgroup" || tail[0] == "cgroup2") {
				out = append(out, cgroupMount{
					v2: tail[0] == "cgroup2", root: unescape(head[3]), at: unescape(head[4]),
					ro:      slices.Contains(strings.Split(head[5], ","), "ro"),
					options: strings.Split(tail[2], ","),
				})
			}
		}
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// unescape undoes what mountinfo does to white space and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// find sets mount and own from the mounts, preferring one that can be written. group is what /proc/self/cgroup says; in a mount
// of a part of the hierarchy, as in a container, it begins with the root of that part.
func (h *hierarchy) find(mounts []cgroupMount, group string) bool {
	found, writable := false, false
	for _, m := range mounts {
		if m.v2 != h.v2 || (!h.v2 && !slices.Contains(m.options, h.controllers[0])) {
			continue
		}
		below, ok := within(m.root, group)
		if !ok || (found && (writable || m.ro)) {
			continue
		}
		h.mount, h.own = m.at, path.Join(m.at, below)
		found, writable = true, !m.ro
	}
	return found
}

// within returns what follows root in group, if it lies there.
func within(root, group string) (string, bool) {
	if strings.HasPrefix(group, "/..") { // outside of the cgroup namespace
		return "", false
	}
	if root == "/" || root == group {
		return strings.TrimPrefix(group, root), true
	}
	return strings.CutPrefix(group, root+"/")
}

// has reports whether a v2 group may use a controller.
func has(dir, controller string) bool {
	return slices.Contains(words(dir+"/cgroup.controllers"), controller)
}

// words reads the words of a file; none when it cannot be read.
func words(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}
