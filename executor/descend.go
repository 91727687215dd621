package executor

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Without a pid namespace nothing but parenthood ties a step's processes together. A subreaper inherits what its descendants
// leave behind, so that they stay its descendants whatever session, group or double fork they hide in.

// process is one line of /proc. A pid is used again some time; a pid and its start time are not.
type process struct {
	pid, parent int
	start       uint64
	zombie      bool
}

// openProc opens the kernel's /proc.
func openProc() (int, error) {
	fd, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return -1, &SetupError{Op: "open /proc", Msg: "it is not the kernel's"}
	}
	return fd, nil
}

// readAt reads a small file below an open directory.
func readAt(dir int, path string) ([]byte, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 4096)
	for {
		n, err := eintr(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return out, nil
		}
		out = append(out, buf[:n]...)
	}
}

// processAt reads PID/stat below dir. The name in it may hold anything, parentheses and newlines too.
func processAt(dir int, path string, pid int) (process, error) {
	data, err := readAt(dir, path)
	if err != nil {
		return process{}, err
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return process{}, unix.EINVAL
	}
	p := process{pid: pid, zombie: fields[0] == "Z" || fields[0] == "X"}
	if p.parent, err = strconv.Atoi(fields[1]); err != nil {
		return process{}, err
	}
	p.start, err = strconv.ParseUint(fields[19], 10, 64)
	return p, err
}

// processes lists all that this /proc shows.
func processes(proc int) ([]process, error) {
	dir, err := unix.Openat(proc, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dir), "proc")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []process
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if p, err := processAt(proc, n+"/stat", pid); err == nil { // else it is gone
			out = append(out, p)
		}
	}
	return out, nil
}

// below returns those of all that descend from pid.
func below(all []process, pid int) []process {
	children := map[int][]process{}
	for _, p := range all {
		children[p.parent] = append(children[p.parent], p)
	}
	var out []process
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		for _, c := range children[todo[0]] {
			out = append(out, c)
			todo = append(todo, c.pid)
		}
	}
	return out
}

// kill sends a signal to the process that was listed, and to no other that has its pid by now.
func (p process) kill(proc int, sig unix.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := processAt(proc, strconv.Itoa(p.pid)+"/stat", p.pid); err == nil && now.start == p.start {
		unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// killDescendants returns when the calling process, a subreaper, has no child left. A process that forks meanwhile leaves us
// its child, which is found the next time around; what is killed forks no more.
func killDescendants(proc int) error {
	for {
		all, err := processes(proc)
		if err != nil {
			return err
		}
		for _, p := range below(all, os.Getpid()) {
			if !p.zombie {
				p.kill(proc, unix.SIGKILL)
			}
		}
		// Whoever was killed and is not our child comes to us when its parent is gone. The first time may have to wait; what
		// else has ended is collected with it.
		for flags := 0; ; flags = unix.WNOHANG {
			pid, err := syscall.Wait4(-1, nil, flags, nil)
			if err == unix.EINTR {
				continue
			}
			if err == unix.ECHILD {
				return nil
			}
			if err != nil {
				return err
			}
			if pid == 0 {
				break
			}
		}
	}
}

// becomeReaper makes this process the one to which the orphans of a keeper that was killed come.
var becomeReaper = sync.OnceValue(func() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })

// keepers are the pids of the keepers of this process.
var keepers = pidSet{pids: map[int]bool{}}

type pidSet struct {
	mu   sync.Mutex
	pids map[int]bool
}

func (s *pidSet) add(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pids[pid] = true
}

func (s *pidSet) remove(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pids, pid)
}

func (s *pidSet) has(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pids[pid]
}

// killStrays kills the children that keepers who were killed left to us, with all below them. They are told from the children
// that this process started for other reasons by their bounding set, which lacks CAP_SYS_CHROOT and can never have it again.
func killStrays() {
	proc, err := openProc()
	if err != nil {
		return
	}
	defer unix.Close(proc)
	for {
		all, err := processes(proc)
		if err != nil {
			return
		}
		found := false
		for _, p := range all {
			if p.parent != os.Getpid() || keepers.has(p.pid) || !confined(proc, p.pid) {
				continue
			}
			found = true
			for _, c := range append(below(all, p.pid), p) {
				c.kill(proc, unix.SIGKILL)
			}
			syscall.Wait4(p.pid, nil, 0, nil)
		}
		if !found {
			return
		}
	}
}

// confined reports whether a process is of a step: without CAP_SYS_CHROOT in its bounding set.
func confined(proc, pid int) bool {
	data, err := readAt(proc, strconv.Itoa(pid)+"/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && set&(1<<unix.CAP_SYS_CHROOT) == 0
		}
	}
	return false
}
