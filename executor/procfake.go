package executor

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A chroot has no /proc, and none can be mounted. In its place the step finds a directory of names, so that what looks for a
// file of /proc, or lists it, finds it; calls that open, read or examine one of the names are answered from the kernel's own
// /proc (procserve.go), but only with what is about the step.

// procGlobal are the files of /proc that say something about the machine and that containers are shown.
var procGlobal = []string{
	"cgroups", "cmdline", "cpuinfo", "crypto", "devices", "diskstats", "filesystems", "loadavg", "meminfo", "misc", "partitions",
	"stat", "swaps", "uptime", "version", "vmstat",
}

// procDirs are those that programs enter; what is in them is found when it is asked for by its whole name.
var procDirs = []string{"self", "self/fd", "sys", "sys/fs", "sys/kernel", "sys/vm"}

// procLinked are files that links of an image lead to: /etc/mtab, /dev/stdin and the logs of servers.
var procLinked = []string{"self/mounts", "self/fd/0", "self/fd/1", "self/fd/2"}

// procSys are the settings that programs look for, for steps that no call is answered for.
var procSys = []string{
	"sys/fs/file-max", "sys/fs/nr_open", "sys/kernel/cap_last_cap", "sys/kernel/hostname", "sys/kernel/ngroups_max",
	"sys/kernel/osrelease", "sys/kernel/ostype", "sys/kernel/overflowgid", "sys/kernel/overflowuid", "sys/kernel/pid_max",
	"sys/kernel/shmmax", "sys/kernel/threads-max", "sys/kernel/version", "sys/vm/max_map_count", "sys/vm/overcommit_memory",
}

// fakeProc is that directory.
type fakeProc struct {
	dir   int
	proc  int
	names map[inode]string // what stands for which file, so that links and relative paths to it are recognized
	pids  map[int]bool     // directories made for processes
	full  bool             // procGlobal is there, too
}

// procNames covers the root's /proc with the names.
func (s *staging) procNames() (*fakeProc, error) {
	dir, err := s.cover("proc", 0o555)
	if err != nil {
		return nil, err
	}
	f := &fakeProc{dir: dir, proc: s.proc, names: map[inode]string{}, pids: map[int]bool{}}
	for _, n := range procDirs {
		if err := unix.Mkdirat(dir, n, 0o555); err != nil {
			return nil, setupError("make /proc/"+n, err)
		}
		if err := f.note(n); err != nil {
			return nil, setupError("make /proc/"+n, err)
		}
	}
	for _, n := range procLinked {
		if err := f.add(n); err != nil {
			return nil, setupError("make /proc/"+n, err)
		}
	}
	for _, l := range [][2]string{{"mounts", "self/mounts"}, {"net", "self/net"}, {"thread-self", "self"}} {
		if err := unix.Symlinkat(l[1], dir, l[0]); err != nil {
			return nil, setupError("make /proc/"+l[0], err)
		}
	}
	return f, f.note("")
}

// add makes an empty file.
func (f *fakeProc) add(name string) error {
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
	for _, name := range slices.Concat(procGlobal, procSys) {
		data, err := readAt(f.proc, name)
		if err != nil {
			continue
		}
		fd, err := unix.Openat(f.dir, name, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o444)
		if err != nil {
			continue
		}
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

// list makes what somebody who lists /proc expects there: the files about the machine, and a directory for each of the step's
// processes. Those of processes that are gone are removed.
func (f *fakeProc) list(running []process) {
	if !f.full {
		f.full = true
		for _, n := range procGlobal {
			f.add(n) // who finds a name less than there is finds the file all the same
		}
	}
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
