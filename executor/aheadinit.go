package executor

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// argAhead is argument zero of a first process that does not know its step yet: see Ahead.
const argAhead = "build-step-ahead"

// Directories of the scaffold, the file system on which /proc, /dev and /sys are made before there is a root to put them on.
const scaffoldMemory = "memory" // where the step's memory file system is attached

// aheadParts are what is made on the scaffold, in the order in which it goes to the root.
var aheadParts = []string{"proc", "dev", "sys"}

func aheadInit() { giveUp(runAhead()) }

func runAhead() error {
	// It mounts before it is told anything: in namespaces that are not its own these would be the machine's /proc and /dev.
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, argAhead+": this is the first process of a step, which only a build can start")
		os.Exit(1)
	}
	if err := unix.CloseRange(initSocket, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return setupError("protect inherited files", err)
	}
	unix.Umask(0o022)
	if err := separate(); err != nil {
		return err
	}
	t, err := buildAhead()
	if err != nil {
		return err
	}
	practise()
	report(message{Ready: true})
	sources, err := awaitFiles()
	if err != nil {
		return setupError("take the step's files", err)
	}
	p := &plan{}
	if err := readPlan(p); err != nil {
		return setupError("read the plan", err)
	}
	if err := prepareProcess(p); err != nil {
		return err
	}
	if err := t.finish(p, sources); err != nil {
		return err
	}
	dir, err := enterRoot(p, initRoot)
	if err != nil {
		return err
	}
	if err := become(p, dir); err != nil {
		return err
	}
	return execute(p)
}

// practise reads a plan once: the first time takes longer.
func practise() {
	data, err := json.Marshal(&plan{Args: rawStrings{""}, Rlimits: []Rlimit{{}}, Filter: rawFilter{{}}, Mounts: []preparedMount{{}}})
	if err == nil {
		_ = json.Unmarshal(data, &plan{})
	}
}

// buildAhead makes what is the same in every sandbox, on a file system of its own.
func buildAhead() (*tree, error) {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, setupError("make mounts private", err)
	}
	scaffold, err := openScaffold()
	if err != nil {
		return nil, setupError("make room for the sandbox", err)
	}
	t := &tree{plan: &plan{CgroupView: true, ShmSize: defaultShmSize}, root: scaffold, scratch: scaffold}
	if t.empty, err = unix.Openat(scaffold, memoryEmpty, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return nil, setupError("make room for the sandbox", err)
	}
	for _, part := range []func() error{t.proc, t.dev, t.sys, t.mask} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// openScaffold attaches a memory file system to /proc, as stage does with the step's.
func openScaffold() (int, error) {
	fd, err := newMount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=0700")
	if err != nil {
		return -1, err
	}
	for _, dir := range append([]string{memoryEmpty, scaffoldMemory}, aheadParts...) {
		if err := unix.Mkdirat(fd, dir, 0o755); err != nil {
			return -1, err
		}
	}
	return fd, unix.MoveMount(fd, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// awaitFiles waits for the step and puts its files where they belong. It returns those of its sources, which stay where they came: a
// process of several threads whose table of descriptors has to grow, which is above 64 first, waits for all processors
// (synchronize_rcu in expand_fdtable of the kernel's fs/file.c), several times as long as everything else takes.
func awaitFiles() (sources []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxAhead))
	var b [1]byte
	var oobn int
	n, err := eintr(func() (n int, err error) {
		n, oobn, _, _, err = unix.Recvmsg(initSocket, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil || n == 0 {
		os.Exit(1) // there is no further step
	}
	fds := receivedFDs(oob[:oobn])
	places := []int{0, 1, 2, initPlan, initRoot} // taken since the process was started, so that nothing was received there
	if len(fds) <= len(places) {
		return nil, unix.EBADMSG
	}
	for i, place := range places {
		flags := unix.O_CLOEXEC
		if place < initSocket {
			flags = 0
		}
		if err := unix.Dup3(fds[i], place, flags); err != nil {
			return nil, err
		}
	}
	closeFDs(fds[:len(places)])
	return fds[len(places):], nil
}

// finish puts what was made ahead on the root and adds what is the step's own: what buildTree does in another order.
func (t *tree) finish(p *plan, sources []int) error {
	scaffold := t.root
	t.plan, t.root, t.sources = p, initRoot, sources
	if err := t.stageOn(scaffold, scaffoldMemory); err != nil {
		return setupError("attach the root", err)
	}
	var err error
	if t.make, err = newMaker(t.root); err != nil {
		return setupError("open the root", err)
	}
	for _, part := range []func() error{func() error { return t.move(scaffold) }, t.shmSize, t.mounts} {
		if err := part(); err != nil {
			t.reportStubs()
			return err
		}
	}
	t.reportStubs()
	return nil
}

// move takes the parts from the scaffold to the root.
func (t *tree) move(scaffold int) error {
	for _, name := range aheadParts {
		target, err := t.base(name)
		if err != nil {
			return setupError("make /"+name, err)
		}
		part, err := unix.Openat(scaffold, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			unix.Close(target)
			return setupError("mount /"+name, err)
		}
		if err := attach(part, target); err != nil {
			return setupError("attach /"+name, err)
		}
	}
	return t.ownFiles()
}

// shmSize gives /dev/shm the size that the step wants.
func (t *tree) shmSize() error {
	if t.plan.ShmSize == defaultShmSize {
		return nil
	}
	fd, err := unix.Openat(t.root, "dev/shm", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return setupError("open /dev/shm", err)
	}
	defer unix.Close(fd)
	fs, err := unix.Fspick(fd, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return setupError("resize /dev/shm", err)
	}
	defer unix.Close(fs)
	if err = setOption(fs, "size="+strconv.FormatInt(t.plan.ShmSize, 10)); err == nil {
		err = unix.FsconfigReconfigure(fs)
	}
	return setupError("resize /dev/shm", err)
}
