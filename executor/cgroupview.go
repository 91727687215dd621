package executor

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupDir = "sys/fs/cgroup"

// cgroupView shows the step its own groups at /sys/fs/cgroup, where programs look for the limits they have to fit into. Their
// controllers belong to v2 or to v1; of v1 those are shown in which the step has a group of its own: the others have nothing to say about it, and
// name the groups of others.
func (t *tree) cgroupView(attrs int) error {
	target, err := openInRoot(t.root, cgroupDir, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		return nil // a kernel without cgroups
	}
	if err != nil {
		return setupError("open /"+cgroupDir, err)
	}
	if len(t.plan.hierarchies) > 0 {
		return setupError("show /"+cgroupDir, t.cgroupV1(target, attrs, t.plan.hierarchies))
	}
	fd, err := newMount("cgroup2", attrs)
	if err != nil {
		fd, err = cloneFD(t.empty, 0, unix.MOUNT_ATTR_RDONLY) // hidden rather than the host's
	}
	if err != nil {
		unix.Close(target)
		return setupError("hide /"+cgroupDir, err)
	}
	return setupError("attach /"+cgroupDir, attach(fd, target))
}

// v1Groups is the group of this process in each v1 hierarchy, by its controllers ("cpu,cpuacct"). It is asked before the tree is
// staged, which hides /proc.
func v1Groups() map[string]string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && f[1] != "" && !strings.Contains(f[1], "=") {
			out[f[1]] = f[2]
		}
	}
	return out
}

// cgroupV1 mounts the hierarchies in directories named after their controllers, as every distribution and runtime does.
func (t *tree) cgroupV1(target, attrs int, hierarchies []string) error {
	top, err := newMount("tmpfs", attrs&^unix.MOUNT_ATTR_RDONLY, "mode=0755", "size=64k")
	if err != nil {
		unix.Close(target)
		return err
	}
	if err := attach(top, target); err != nil {
		return err
	}
	dir, err := openInRoot(t.root, cgroupDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for _, controllers := range hierarchies {
		names := strings.Split(controllers, ",")
		fd, err := newMount("cgroup", attrs, names...)
		if err != nil {
			continue // not to be shown in this namespace: missing is better than the host's
		}
		if err := mountUnder(dir, controllers, func() (int, error) { return fd, nil }); err != nil {
			return err
		}
		if len(names) == 1 {
			continue
		}
		for _, name := range names {
			if err := unix.Symlinkat(controllers, dir, name); err != nil {
				return err
			}
		}
	}
	readOnly := unix.MountAttr{Attr_set: uint64(attrs) & unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(dir, "", unix.AT_EMPTY_PATH, &readOnly)
}
