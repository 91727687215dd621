package executor

import (
	"path"
	"slices"
)

// argInit is argument zero of a step's first process, which sets up the sandbox from inside and then becomes the command.
const argInit = "build-step-init"

// Descriptors the step's first process finds open.
const (
	initSocket = 3 // SOCK_SEQPACKET; messages go from the step to the process that started it
	initPlan   = 4 // a file with the plan
	initRoot   = 5 // the root as a detached mount
	initExe    = 6 // protectedExe
	initFirst  = 7 // sources.files, of which the first is the memory file system
)

// initExePath names initExe to execve.
const initExePath = "/proc/self/fd/6"

// initEnv is the environment of that process, not of the command: one thread is enough for it, and its runtime need not find out
// how many the cgroup allows.
var initEnv = []string{"GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}

// plan is what the step's first process has to do. Everything that could be decided outside has been.
type plan struct {
	Args, Env  rawStrings
	Dir        string
	UID, GID   uint32
	Groups     []uint32
	Hostname   string
	Loopback   bool       // bring up lo: the network namespace is new
	Interface  *Interface // make it in a network namespace behind the new one
	Insecure   bool
	ShmSize    int64
	Rlimits    []Rlimit
	CPUs       []int
	Enter      []int     // open cgroup.procs of the groups to enter
	Filter     rawFilter // none when Insecure
	KeepCaps   uint64
	Mounts     []preparedMount
	CgroupView bool // mount the cgroup hierarchy, read-only in a sandbox

	NewCgroupNS bool // make the cgroup namespace, which the process was not started in

	hierarchies []string  // of cgroup v1, of which the step is in groups of its own; found by the first process
	Watch       rawFilter // calls that somebody answers for the step; see procserve.go
	// Emulators are registered in a user namespace that is then the step's own.
	Emulators    []preparedEmulator
	BoundProc    bool      // /proc is the caller's: see Means
	Recorded     bool      // the user is not a user of this namespace: see Means
	OwnersFilter rawFilter // of package fakeroot; none where every id is mapped
}

// message is what the step's first process says. A step that says nothing more and closes the socket has become the command.
type message struct {
	Ready   bool        `json:",omitempty"` // it waits for its step: see Ahead
	Stubs   []stubName  `json:",omitempty"` // with two descriptors each: parent, stub
	Touched []touched   `json:",omitempty"`
	Attach  bool        `json:",omitempty"` // with one descriptor: the packets of the interface
	Setup   *SetupError `json:",omitempty"`
	Exit    *ExitError  `json:",omitempty"`
	Watched bool        `json:",omitempty"` // with one descriptor, the listener of plan.Watch
	Blind   string      `json:",omitempty"` // why there is none; the step waits for the end of its socket
	// Table comes with one descriptor: see Emulator.
	Table    bool `json:",omitempty"`
	Listener bool `json:",omitempty"` // with one descriptor: of OwnersFilter
}

type stubName struct {
	Name string
	Dir  bool
}

// replacesShm reports whether a mount of the Spec takes the place of the /dev/shm that every step has.
func (p *plan) replacesShm() bool {
	return slices.ContainsFunc(p.Mounts, func(m preparedMount) bool { return isShm(m.Target) })
}

func isShm(target string) bool { return path.Clean(target) == "/dev/shm" }
