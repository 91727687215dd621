package executor

import (
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A chroot has no /proc, and none can be mounted. In its place the step finds a directory of names, so that what looks for a
// file of /proc, or lists it, finds it; calls that open, read or examine one of the names are answered from the kernel's own
// /proc (procserve.go), but only with what is about the step.

// procGlobal are the files of /proc that say something about the machine and that containers are shown.
var procGlobal = []string{
	"cgroups", "cmdline", "consoles", "cpuinfo", "crypto", "devices", "diskstats", "filesystems", "loadavg", "locks", "meminfo",
	"misc", "modules", "partitions", "softirqs", "stat", "swaps", "uptime", "version", "vmstat", "zoneinfo",
}

// procSys are the settings that programs look for. Others are answered, too, but not found by those who look first.
var procSys = []string{
	"sys/crypto/fips_enabled", "sys/fs/file-max", "sys/fs/nr_open", "sys/fs/pipe-max-size", "sys/kernel/cap_last_cap",
	"sys/kernel/hostname", "sys/kernel/msgmax", "sys/kernel/ngroups_max", "sys/kernel/osrelease", "sys/kernel/ostype",
	"sys/kernel/overflowgid", "sys/kernel/overflowuid", "sys/kernel/pid_max", "sys/kernel/random/boot_id",
	"sys/kernel/random/entropy_avail", "sys/kernel/random/uuid", "sys/kernel/sem", "sys/kernel/shmall", "sys/kernel/shmmax",
	"sys/kernel/threads-max", "sys/kernel/version", "sys/net/core/somaxconn", "sys/vm/max_map_count", "sys/vm/overcommit_memory",
	"sys/vm/swappiness",
}

// procSelf are the files of a process.
var procSelf = []string{
	"auxv", "cgroup", "cmdline", "comm", "cwd", "environ", "exe", "fd/0", "fd/1", "fd/2", "fdinfo/0", "io", "limits", "loginuid",
	"maps", "mountinfo", "mounts", "mountstats", "net/dev", "net/if_inet6", "net/route", "net/tcp", "net/tcp6", "net/udp", "ns/pid",
	"oom_score", "oom_score_adj", "root", "sched", "smaps", "stat", "statm", "status", "task/0", "wchan",
}

// fakeProc is that directory.
type fakeProc struct {
	dir   int
	proc  int
	names map[inode]string // what stands for which file, so that links and relative paths to it are recognized
	pids  map[int]bool     // directories made for processes
}

// procNames covers the root's /proc with the names.
func (s *staging) procNames() (*fakeProc, error) {
	dir, err := s.cover("proc", 0o555)
	if err != nil {
		return nil, err
	}
	f := &fakeProc{dir: dir, proc: s.proc, names: map[inode]string{}, pids: map[int]bool{}}
	all := append(append([]string{"mounts"}, procGlobal...), procSys...)
	for _, n := range procSelf {
		all = append(all, "self/"+n)
	}
	all = append(all, "thread-self/stat")
	for _, n := range all {
		if err := f.add(n); err != nil {
			return nil, setupError("make /proc/"+n, err)
		}
	}
	if err := unix.Symlinkat("self/net", dir, "net"); err != nil {
		return nil, setupError("make /proc/net", err)
	}
	return f, f.note("")
}

// add makes an empty file and the directories it is in, if the kernel has such a file.
func (f *fakeProc) add(name string) error {
	var st unix.Stat_t
	if !strings.HasPrefix(name, "self/task") && unix.Fstatat(f.proc, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		if err := unix.Mkdirat(f.dir, name[:i], 0o555); err == nil {
			if err := f.note(name[:i]); err != nil {
				return err
			}
		} else if err != unix.EEXIST {
			return err
		}
	}
	if path.Dir(name) == "self/task" {
		return nil
	}
	fd, err := unix.Openat(f.dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	unix.Close(fd)
	return f.note(name)
}

func (f *fakeProc) note(name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(f.dir, "./"+name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	f.names[inode{st.Dev, st.Ino}] = name
	return nil
}

// fill copies what the files about the machine say now: for a step that no call is answered for.
func (f *fakeProc) fill() {
	for _, name := range f.names {
		if strings.HasPrefix(name, "self/") || strings.HasPrefix(name, "thread-self/") {
			continue
		}
		data, err := readAt(f.proc, name)
		if err != nil {
			continue
		}
		if fd, err := unix.Openat(f.dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			for len(data) > 0 {
				n, err := unix.Write(fd, data)
				if err != nil {
					break
				}
				data = data[n:]
			}
			unix.Close(fd)
		}
	}
}

// list makes a directory for each of the step's processes, and removes those of the ones that are gone, before somebody lists
// /proc.
func (f *fakeProc) list(running []process) {
	now := map[int]bool{}
	for _, p := range running {
		now[p.pid] = true
		if f.pids[p.pid] {
			continue
		}
		name := strconv.Itoa(p.pid)
		var st unix.Stat_t
		if unix.Fstatat(f.proc, name, &st, 0) != nil || unix.Mkdirat(f.dir, name, 0o555) != nil {
			continue
		}
		unix.Fchownat(f.dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
		f.pids[p.pid] = true
	}
	for pid := range f.pids {
		if !now[pid] {
			removeAt(f.dir, strconv.Itoa(pid))
			delete(f.pids, pid)
		}
	}
}

// entries makes, of the names that a directory of a process has now, a directory that the step can list, and opens it: an open
// directory of the kernel's /proc would lead to all the others.
func (f *fakeProc) entries(pid int, sub string, names []string) (int, error) {
	parent := strconv.Itoa(pid)
	if err := unix.Mkdirat(f.dir, parent, 0o555); err != nil && err != unix.EEXIST {
		return -1, err
	}
	f.pids[pid] = true
	// A new one for everybody who asks. Whoever still reads the one before keeps that.
	at := parent + "/" + strings.ReplaceAll(sub, "/", ".")
	removeAt(f.dir, at)
	if err := unix.Mkdirat(f.dir, at, 0o555); err != nil {
		return -1, err
	}
	for _, n := range names {
		fd, err := unix.Openat(f.dir, at+"/"+n, unix.O_CREAT|unix.O_EXCL|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
		if err != nil {
			return -1, err
		}
		unix.Close(fd)
	}
	return unix.Openat(f.dir, at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
