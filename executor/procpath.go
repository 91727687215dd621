package executor

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// This file finds out which file of /proc a call is about, and whether the step may see it.

// pathCall is a watched call in one form. A relative path starts at the working directory: others are not watched.
type pathCall struct {
	*notification
	op       string // open, readlink, stat, statx, access
	pathAddr uint64
	flags    uint64 // of open; AT_ flags of the others
	out      uint64 // where the answer goes
	size     uint64 // and how large it may be
	mode     uint64
}

func parseCall(name string, n *notification) pathCall {
	a := n.args
	c := pathCall{notification: n, op: name, pathAddr: a[1]}
	switch name {
	case "open":
		c.pathAddr, c.flags = a[0], a[1]
	case "openat":
		c.op, c.flags = "open", a[2]
	case "readlink":
		c.pathAddr, c.out, c.size = a[0], a[1], a[2]
	case "readlinkat":
		c.op, c.out, c.size = "readlink", a[2], a[3]
	case "stat":
		c.pathAddr, c.out = a[0], a[1]
	case "lstat":
		c.op, c.pathAddr, c.out, c.flags = "stat", a[0], a[1], unix.AT_SYMLINK_NOFOLLOW
	case "newfstatat":
		c.op, c.out, c.flags = "stat", a[2], a[3]
	case "statx":
		c.out, c.flags, c.mode = a[4], a[2], a[3]
	case "access":
		c.pathAddr, c.mode = a[0], a[1]
	case "faccessat", "faccessat2":
		c.op, c.mode = "access", a[2]
		if name == "faccessat2" {
			c.flags = a[3]
		}
	}
	return c
}

// recognize returns which file of /proc a path means: by its text, or because it leads to one of the names made for it.
func (s *procServer) recognize(c *pathCall, text string) (rel string, ok bool) {
	nofollow := c.op == "readlink" || c.op != "open" && c.flags&unix.AT_SYMLINK_NOFOLLOW != 0 || c.op == "open" && c.flags&unix.O_NOFOLLOW != 0
	clean := path.Clean(text)
	if clean == "/proc" {
		return "", true
	}
	if rest, ok := strings.CutPrefix(clean, "/proc/"); ok {
		return rest, true
	}
	if rest, ok := strings.CutPrefix(clean, "/dev/"); ok {
		if fd, ok := strings.CutPrefix(rest, "fd/"); ok {
			return "self/fd/" + fd, true
		}
		if i := slices.Index([]string{"stdin", "stdout", "stderr"}, rest); i >= 0 && !nofollow {
			return "self/fd/" + strconv.Itoa(i), true
		}
	}
	dir, where := unix.AT_FDCWD, text
	if text[0] != '/' {
		dir, where = s.proc, strconv.Itoa(int(c.pid))+"/cwd/"+text
	}
	flags := 0
	if nofollow {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	var st unix.Stat_t
	if unix.Fstatat(dir, where, &st, flags) == nil {
		rel, ok = s.fake.names[inode{st.Dev, st.Ino}]
		return rel, ok
	}
	if text[0] == '/' {
		return "", false
	}
	// Not there, by a relative path: of something that only calls find, if the working directory is one of /proc.
	var cwd [64]byte
	n, err := unix.Readlinkat(s.proc, strconv.Itoa(int(c.pid))+"/cwd", cwd[:])
	if err != nil {
		return "", false
	}
	return strings.CutPrefix(path.Clean(string(cwd[:n])+"/"+text), "/proc/")
}

// target is a file of the kernel's /proc that a step may see.
type target struct {
	dir  int    // its process, O_PATH, or /proc; to be closed in the first case
	name string // in it
	pid  int    // 0: a file about the machine
	link bool   // the last name is one of the kernel's links, which are followed
}

func (t *target) close() {
	if t.pid != 0 {
		unix.Close(t.dir)
	}
}

// resolve finds the file for a name below /proc.
func (s *procServer) resolve(c *pathCall, rel string) (t target, ok bool) {
	first, rest, _ := strings.Cut(rel, "/")
	switch {
	case first == "mounts":
		first, rest = "self", "mounts"
	case first == "net":
		first, rest = "self", path.Join("net", rest)
	case first == "sys" && rest != "", slices.Contains(procGlobal, rel):
		return target{dir: s.proc, name: rel}, true
	}
	pid := int(c.pid)
	switch n, err := strconv.Atoi(first); {
	case first == "self" || first == "thread-self":
	case err == nil && n > 0:
		pid = n
	default:
		return t, false
	}
	if rest == "" {
		return t, false
	}
	dir, err := unix.Openat(s.proc, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return t, false
	}
	// The open directory is that of one process and of none that has its pid later.
	if pid != int(c.pid) && !s.ofStep(dir) {
		unix.Close(dir)
		return t, false
	}
	if first == "self" { // of the process, and not of the thread that asks
		if tgid, err := s.statusField(pid, "Tgid:"); err == nil {
			pid = tgid
		}
	}
	last := path.Base(rest)
	link := path.Dir(rest) == "fd" || rest == "exe" || rest == "cwd" || rest == "root"
	if t = (target{dir: dir, name: rest, pid: pid, link: link}); last == "mem" || last == "map_files" || last == "clear_refs" {
		t.close()
		return target{}, false
	}
	return t, true
}

// ofStep reports whether the process whose directory is open descends from us.
func (s *procServer) ofStep(dir int) bool {
	p, err := processAt(dir, "stat", 0)
	for i := 0; err == nil && i < 1000; i++ {
		if p.parent == os.Getpid() {
			return true
		}
		if p.parent <= 1 {
			return false
		}
		p, err = processAt(s.proc, strconv.Itoa(p.parent)+"/stat", p.parent)
	}
	return false
}

// openTarget opens a file without following anything but the last link of a process.
func openTarget(t *target, flags int) (int, error) {
	if t.link {
		return unix.Openat(t.dir, t.name, flags|unix.O_CLOEXEC, 0)
	}
	return unix.Openat2(t.dir, t.name, &unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}
