// Package executor runs one command in one sandbox: paths and data in, exit status out.
//
// It owns the step's root filesystem while the step runs (overlay or plain tree, made of detached mounts in the step's own
// mount namespace, so that nothing stays mounted whatever dies), its namespaces, its view of /proc, /dev and /sys, its
// identity, capabilities, system call filter and limits, and the traces that mount points leave in the tree.
//
// It knows neither layers nor Dockerfiles, does not decide what a step may see, and does not make user namespaces: its caller
// has CAP_SYS_ADMIN in the user namespace whose ids the files have (see internal/userns). It refuses what it cannot isolate;
// it never runs a command with less than was asked.
//
// Where the machine allows neither namespaces nor mounts (Means.Chroot), a step is confined by chroot, Landlock and a filter, and what would be
// mounted is moved and copied: see chroot.go.
//
// Reading order: Spec, Run (run.go), stepInit (init.go).
package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"build/internal/owner"
)

// Means says what this machine lets a sandbox be made of. Whoever starts the process that calls Run found it out by trying.
type Means struct {
	// Chroot: no namespaces at all. The root is a Tree, and mounts are made by moving and copying.
	Chroot bool `json:",omitempty"`
	// BoundProc: namespaces, but parts of /proc are hidden here, so the kernel allows no fresh one: the caller's is shown and
	// there is no pid namespace.
	BoundProc bool `json:",omitempty"`
	// Recorded: of all ids only 0 is mapped. Every other owner is recorded beside the file, and system calls that would fail or
	// show it are answered by a supervisor.
	Recorded bool `json:",omitempty"`
}

// Spec says what to run and what it sees.
type Spec struct {
	Means   Means
	Root    Root
	Args    []string // Args[0] is looked up in Env's PATH when it has no slash
	Env     []string // NAME=value; of equal names the last wins. HOME comes from the root's passwd file when absent or empty
	Dir     string   // working directory, absolute; made if missing, owned by the user; "" is /
	User    string   // name|uid[:group|gid] as in USER; "" is 0
	Mounts  []Mount  // on top of the root, parents before children
	Network Network
	// Interface and Attach belong to NetworkPrivate. Attach takes over the packets: a socket on which the Ethernet frames of eth0
	// come and go. An error of it ends the step.
	Interface *Interface                   `json:",omitempty"`
	Attach    func(packets *os.File) error `json:"-"`
	Hostname  string                       // "" is the name BuildKit gives
	Resolv    []byte                       // content of /etc/resolv.conf; nil: what the root has
	Hosts     []byte                       // content of /etc/hosts; nil: what the root has
	Security  Security
	Rlimits   []Rlimit
	ShmSize   int64 // of /dev/shm in bytes; 0 is 64 MiB
	CPUs      []int // the step starts on these; none: on the caller's

	Cgroups *Cgroups `json:"-"` // nil: the step stays in the caller's
	Ahead   *Ahead   `json:"-"` // may have the first process; nil: it is started now

	Traces *Traces `json:"-"` // filled by Run when not nil
	// Emulators execute the programs that this machine does not.
	Emulators []Emulator
	// Owners holds the records of files that cannot carry their own, where Means or the range of ids make records necessary. Run
	// adds to it; nil: nobody wants to see them.
	Owners *owner.Nodes `json:"-"`
}

// DefaultHostname is the name of a sandbox whose Spec gives none.
const DefaultHostname = "buildkitsandbox"

// Root is the root filesystem: Overlay or Tree.
type Root interface{ root() }

// Overlay is a stack of read-only directories under a writable one. Lower is bottom first and may be empty. Upper and Work are
// on one file system; Work is empty. Upper is used directly once Run has returned.
type Overlay struct {
	Lower []string
	Upper string
	Work  string
}

// Tree is one directory, written in place.
type Tree struct{ Dir string }

func (Overlay) root() {}
func (Tree) root()    {}

// Network says which network a step has.
type Network uint8

const (
	NetworkHost    Network = iota // the caller's
	NetworkNone                   // a live loopback and nothing else
	NetworkPrivate                // a live loopback, and an interface whose other end is Spec.Attach's
)

// Security says how much a step may do.
type Security uint8

const (
	Sandbox  Security = iota // Docker's default capabilities, seccomp profile, masked and read-only paths
	Insecure                 // all capabilities of the user namespace, no filter but the one for owners, no masks
)

// Rlimit is one resource limit; Resource is a RLIMIT_ number.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Mount puts a source on a path of the root. A missing target is made, and removed afterwards.
type Mount struct {
	Target string // absolute, resolved inside the root
	Source Source
}

// Source is what is mounted: BindPath, BindTree, Tmpfs, File or Socket.
type Source interface{ source() }

// BindPath is a file or directory of the host. Sub, if any, is a path below Path whose symlinks are resolved as if Path were
// the root.
//
// In a chroot a directory that is not ReadOnly, and on the root's file system, is moved into the root while the step runs: it
// is missing from its place meanwhile, so nobody else may use it. Anything else is a copy, and what is written to it is lost.
type BindPath struct {
	Path     string
	Sub      string `json:",omitempty"`
	ReadOnly bool   `json:",omitempty"`
}

// Tmpfs is an empty memory file system. Size 0 is the kernel's default, Mode 0 is 1777.
type Tmpfs struct {
	Size     int64  `json:",omitempty"`
	Mode     uint32 `json:",omitempty"`
	ReadOnly bool   `json:",omitempty"`
}

// File is a read-only file in memory.
type File struct {
	Data     []byte
	Mode     uint32
	UID, GID uint32
}

func (BindPath) source() {}
func (Tmpfs) source()    {}
func (File) source()     {}

// check refuses values that have no meaning, so that none of them can come to mean "no isolation".
func (s *Spec) check() error {
	switch {
	case len(s.Args) == 0:
		return errors.New("no command")
	case s.Root == nil:
		return errors.New("no root filesystem")
	case s.Network > NetworkPrivate:
		return fmt.Errorf("unknown network mode %d", s.Network)
	case s.Security > Insecure:
		return fmt.Errorf("unknown security mode %d", s.Security)
	case s.ShmSize < 0:
		return fmt.Errorf("negative size of /dev/shm: %d", s.ShmSize)
	case len(s.Hostname) > 64:
		return fmt.Errorf("hostname of %d bytes, at most 64", len(s.Hostname))
	}
	if len(s.Emulators) > 0 && s.Means.Chroot {
		return errors.New("an emulator of its own needs namespaces")
	}
	for i := range s.Emulators {
		if err := s.Emulators[i].check(); err != nil {
			return err
		}
	}
	if s.Network == NetworkPrivate {
		if err := s.Interface.Check(); err != nil {
			return err
		}
		if s.Attach == nil {
			return errors.New("a private network that nobody serves")
		}
	}
	for _, m := range s.Mounts {
		if m.Source == nil {
			return fmt.Errorf("mount on %s: no source", m.Target)
		}
		if len(m.Target) == 0 || m.Target[0] != '/' {
			return fmt.Errorf("mount target %q is not absolute", m.Target)
		}
	}
	return nil
}

// The JSON form of Spec is that of its fields, with the two sums as objects of which exactly one member is set.

type rootJSON struct {
	Overlay *Overlay `json:",omitempty"`
	Tree    *Tree    `json:",omitempty"`
}

type mountJSON struct {
	Target   string
	BindPath *BindPath `json:",omitempty"`
	BindTree *BindTree `json:",omitempty"`
	Tmpfs    *Tmpfs    `json:",omitempty"`
	File     *File     `json:",omitempty"`
	Socket   *Socket   `json:",omitempty"`
}

// rawStrings are strings of any bytes. In JSON, which would silently replace bytes that are not UTF-8, they are base64.
type rawStrings []string

func (r rawStrings) MarshalJSON() ([]byte, error) {
	out := make([][]byte, len(r))
	for i, s := range r {
		out[i] = []byte(s)
	}
	return json.Marshal(out)
}

func (r *rawStrings) UnmarshalJSON(b []byte) error {
	var in [][]byte
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*r = make([]string, len(in))
	for i, s := range in {
		(*r)[i] = string(s)
	}
	return nil
}

// MarshalJSON makes Spec fit to be sent to the process that runs it.
func (s Spec) MarshalJSON() ([]byte, error) {
	type plain Spec
	var r rootJSON
	switch v := s.Root.(type) {
	case Overlay:
		r.Overlay = &v
	case Tree:
		r.Tree = &v
	}
	if err := s.checkText(); err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		plain
		Root      rootJSON
		Args, Env rawStrings
	}{plain(s), r, s.Args, s.Env})
}

// checkText refuses names that would be other names at the other end.
func (s *Spec) checkText() error {
	names := []string{s.Dir, s.User, s.Hostname}
	switch r := s.Root.(type) {
	case Overlay:
		names = append(append(names, r.Upper, r.Work), r.Lower...)
	case Tree:
		names = append(names, r.Dir)
	}
	for _, e := range s.Emulators {
		names = append(names, e.Path, e.Name)
	}
	for _, m := range s.Mounts {
		names = append(names, m.Target)
		if b, ok := m.Source.(BindPath); ok {
			names = append(names, b.Path, b.Sub)
		}
		if b, ok := m.Source.(BindTree); ok {
			names = append(append(names, b.Sub, b.Overlay.Upper, b.Overlay.Work), b.Overlay.Lower...)
		}
	}
	for _, n := range names {
		if !utf8.ValidString(n) {
			return fmt.Errorf("%q is not valid UTF-8", n)
		}
	}
	return nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Spec) UnmarshalJSON(b []byte) error {
	type plain Spec
	v := struct {
		*plain
		Root      rootJSON
		Args, Env rawStrings
	}{plain: (*plain)(s)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	s.Args, s.Env = v.Args, v.Env
	switch {
	case v.Root.Overlay != nil:
		s.Root = *v.Root.Overlay
	case v.Root.Tree != nil:
		s.Root = *v.Root.Tree
	}
	return nil
}

// MarshalJSON makes Mount fit to be sent to the process that makes it.
func (m Mount) MarshalJSON() ([]byte, error) {
	j := mountJSON{Target: m.Target}
	switch v := m.Source.(type) {
	case BindPath:
		j.BindPath = &v
	case BindTree:
		j.BindTree = &v
	case Tmpfs:
		j.Tmpfs = &v
	case File:
		j.File = &v
	case Socket:
		j.Socket = &v
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Mount) UnmarshalJSON(b []byte) error {
	var j mountJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	m.Target = j.Target
	switch {
	case j.BindPath != nil:
		m.Source = *j.BindPath
	case j.BindTree != nil:
		m.Source = *j.BindTree
	case j.Tmpfs != nil:
		m.Source = *j.Tmpfs
	case j.File != nil:
		m.Source = *j.File
	case j.Socket != nil:
		m.Source = *j.Socket
	}
	return nil
}
