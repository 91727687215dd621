package cgroup

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groupPrefix begins the name of every group of a step, by which the leftovers of builds that were killed are found.
//
// Whether the owner of such a group is gone is told by a lock (flock) on its directory, and not by a process id in its name: ids
// mean nothing in another pid namespace, where a build in a container has its own, while the kernel gives up a lock with the last
// descriptor however its holder died, and shows it in every mount and every cgroup namespace (tried on 6.18 and 6.1, v1 and v2).
const groupPrefix = "build-step-"

// node is a directory of one hierarchy that holds the processes of one step. Its lock is held while dir is open.
type node struct {
	h     *hierarchy
	dir   *os.File
	procs *os.File // cgroup.procs, open for writing
}

// newNode makes a group below base. Somebody who sweeps may take a directory that is not locked yet; then another is made.
func newNode(h *hierarchy, base string) (*node, error) {
	for {
		var id [8]byte
		rand.Read(id[:])
		path := base + "/" + groupPrefix + hex.EncodeToString(id[:])
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, err
		}
		dir, err := lock(path)
		if err == nil && dir == nil {
			continue
		}
		if err != nil {
			os.Remove(path)
			return nil, err
		}
		procs, err := os.OpenFile(path+"/cgroup.procs", os.O_WRONLY, 0)
		if err != nil {
			os.Remove(path)
			dir.Close()
			return nil, err
		}
		return &node{h: h, dir: dir, procs: procs}, nil
	}
}

// lock takes the lock of a group. Nil means that it is somebody else's, or gone.
func lock(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		if err == unix.EWOULDBLOCK {
			return nil, nil
		}
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	var locked, there unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &locked) != nil || unix.Stat(path, &there) != nil || locked.Ino != there.Ino || locked.Dev != there.Dev {
		dir.Close()
		return nil, nil
	}
	return dir, nil
}

// remove ends whatever is left in the group, removes it and gives up its lock.
func (n *node) remove() error {
	if n.procs != nil {
		n.procs.Close()
	}
	defer n.dir.Close()
	return removeGroup(n.dir.Name())
}

// emptied is how long the kernel is given to take the last processes of a group out of it after they were killed.
const emptied = 5 * time.Second

// removeGroup removes the group and those that were made in it. A group is busy until its last process is reaped, which happens
// soon after its death.
func removeGroup(dir string) error {
	wait := time.Millisecond
	for end := time.Now().Add(emptied); ; wait = min(2*wait, 50*time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		killAll(dir)
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				_ = removeGroup(dir + "/" + e.Name()) // it shows when dir stays busy
			}
		}
		time.Sleep(wait)
	}
}

// killAll kills every process of the group: at once where cgroup.kill exists (v2, Linux 5.14), else one after the other, until a
// later turn finds none.
func killAll(dir string) {
	if write(dir+"/cgroup.kill", "1") == nil {
		return
	}
	for _, p := range words(dir + "/cgroup.procs") {
		pid, err := strconv.Atoi(p)
		if err != nil || pid <= 1 { // 0 is a process of another pid namespace
			continue
		}
		killMember(dir, pid)
	}
}

// killMember kills a process that is still in the group once it can no longer be taken for another.
func killMember(dir string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for _, p := range words(dir + "/cgroup.procs") {
		if p == strconv.Itoa(pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return
		}
	}
}

// sweep removes the groups below base whose builds are gone. What cannot be removed stays for the next build.
func sweep(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), groupPrefix) {
			continue
		}
		path := base + "/" + e.Name()
		if dir, err := lock(path); err == nil && dir != nil {
			_ = (&node{dir: dir}).remove()
		}
	}
}
