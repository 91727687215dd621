package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name, groups, mounts string
		v2                   string // its own directory, "" none
		v1                   map[string]string
	}{
		{
			name:   "unified, under systemd",
			groups: "0::/user.slice/user-1000.slice/session-3.scope\n",
			mounts: "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
			v2:     "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope",
		}, {
			name:   "in a container with a namespace of its own",
			groups: "0::/\n",
			mounts: "700 690 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
			v2:     "/sys/fs/cgroup",
		}, {
			name:   "in a container without one",
			groups: "5:memory:/docker/abc/inner\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
			mounts: "1 0 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n" +
				"2 0 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
			v1: map[string]string{memory: "/sys/fs/cgroup/memory/inner", cpu: "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct"},
		}, {
			name:   "mounted twice, white space, one of them writable",
			groups: "0::/a b\n",
			mounts: "1 0 0:30 / /ro ro - cgroup2 x rw\n2 0 0:30 /a\\040b /r\\134w rw - cgroup2 x rw\n3 0 0:30 / /later rw - cgroup2 x rw\n",
			v2:     `/r\w`,
		}, {
			name:   "the group is not below what is mounted",
			groups: "0::/other\n5:memory:/../..\n",
			mounts: "1 0 0:30 /docker /sys/fs/cgroup rw - cgroup2 x rw\n1 0 0:31 / /m rw - cgroup x rw,memory\n",
		},
		{name: "nothing", groups: "junk\n", mounts: "junk - cgroup2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := parseLayout(strings.NewReader(c.groups), strings.NewReader(c.mounts))
			if err != nil {
				t.Fatal(err)
			}
			if got := l.v2; (got == nil) != (c.v2 == "") || got != nil && got.own != c.v2 {
				t.Errorf("v2: %+v, want %q", got, c.v2)
			}
			if len(l.v1) != len(c.v1) {
				t.Errorf("v1: %v", l.v1)
			}
			for name, want := range c.v1 {
				if h := l.v1[name]; h == nil || h.own != want {
					t.Errorf("%s: %+v, want %q", name, h, want)
				}
			}
		})
	}
}

func TestParentPath(t *testing.T) {
	for in, want := range map[string]string{
		"foo": "/foo", "/foo/bar/": "/foo/bar", "a.slice": "/a.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice",
		"a-b.slice:build:": "/a.slice/a-b.slice", "/x/a-b.slice": "/x/a-b.slice", "..x": "/..x",
	} {
		if got, err := ParentPath(in); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "/", ".", "..", "../x", "/a/../../b", "a/..", "a:b:c", "a.slice:b", "foo:bar:", "-.slice", "a\x00b", "a--b.slice"} {
		if got, err := ParentPath(in); err == nil {
			t.Errorf("%q: accepted as %q", in, got)
		}
	}
}

func TestParseList(t *testing.T) {
	for in, want := range map[string][]int{"": nil, "0": {0}, "0-2,7": {0, 1, 2, 7}, "8191": {8191}} {
		if got, err := ParseList(in); !slices.Equal(got, want) || err != nil {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{",", "1-", "-1", "2-1", "a", "0, 1", "8192", "99999999999999999999"} {
		if got, err := ParseList(in); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// Shares and weights have the same ends, and the order of two does not change.
func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{2: 1, 1024: 39, 262144: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("%d: %d, want %d", shares, got, want)
		}
	}
}

// The lowest limit of all groups counts, whatever the innermost says.
func TestCPUs(t *testing.T) {
	files := func(t *testing.T, mountType, groups string, content map[string]string) string {
		dir := t.TempDir()
		for name, text := range content {
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "fs", filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, "fs", name), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		os.MkdirAll(dir+"/self", 0o755)
		os.WriteFile(dir+"/self/cgroup", []byte(groups), 0o644)
		os.WriteFile(dir+"/self/mountinfo", []byte("1 0 0:1 / "+dir+"/fs rw - "+mountType+"\n"), 0o644)
		return dir
	}
	v2 := files(t, "cgroup2 x rw", "0::/slice/scope\n", map[string]string{
		"slice/cpu.max": "150000 100000\n", "slice/scope/cpu.max": "max 100000\n",
	})
	if got := cpus(v2); got != 1.5 {
		t.Errorf("v2: %v", got)
	}
	v1 := files(t, "cgroup x rw,cpu,cpuacct", "3:cpu,cpuacct:/pod/container\n", map[string]string{
		"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n",
		"pod/cpu.cfs_quota_us": "50000\n", "pod/cpu.cfs_period_us": "100000\n",
		"pod/container/cpu.cfs_quota_us": "400000\n", "pod/container/cpu.cfs_period_us": "100000\n",
	})
	if got := cpus(v1); got != 0.5 {
		t.Errorf("v1: %v", got)
	}
	if got := cpus(t.TempDir()); got != 0 {
		t.Errorf("without groups: %v", got)
	}
}
