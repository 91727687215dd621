// Package userns owns the way into the namespaces in which layers are unpacked and steps run: it decides which way is
// open to this user (Candidates), starts a second copy of the program there (Start) and lets the first call functions of
// the second (Holder.Call, Reentry).
//
// The second copy is called the holder. It is process 1 of a pid namespace of its own where that can be had, so that its death,
// however it comes about, ends every process it started; elsewhere those who start steps see to that (see package executor). It
// ends when the process that started it does. It runs in a session
// of its own: a terminal's Ctrl-C reaches only the front process, which decides what to cancel.
//
// The package knows nothing of layers and steps: methods are names, arguments JSON and open files. It refuses to pick a
// lesser isolation than asked for in silence: what does not work is an *Error that names the primitive, who blocks it and
// the smallest fix.
package userns

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KindRoot is the Kind of a plan that needs no user namespace because ids are what they are on the host, and KindSingle that of
// one in which every file is the caller's.
const (
	KindRoot   = "root"
	KindSingle = "single"
)

// IDMap maps Count ids starting at Inside (in the namespace) to those starting at Outside.
type IDMap struct{ Inside, Outside, Count uint32 }

// IDs says which ids a step can have.
type IDs string

const (
	IDsHost   IDs = "host"   // those of the caller, who is root: no user namespace is made
	IDsRange  IDs = "range"  // 0 and a range, through a user namespace
	IDsSingle IDs = "single" // 0 alone; all others are recorded, not real
)

// Plan says how to start a holder. The zero value is not useful; take it from Candidates.
type Plan struct {
	// Kind names what the ids of files on disk mean, for directories that must not be shared between different
	// meanings: "root", "single", or the hex digest of the id map.
	Kind string
	IDs  IDs
	// UIDs and GIDs are the maps of the user namespace to make; empty means: make none.
	UIDs, GIDs []IDMap
	// Newuidmap and Newgidmap are the paths of the helpers that write maps this process may not write itself.
	Newuidmap, Newgidmap string
	// SharePID makes no pid namespace: where parts of /proc are hidden, a fresh one cannot be mounted, and a pid namespace whose
	// /proc is another one's shows strangers under its own numbers.
	SharePID bool
	// Plain makes no namespaces at all. What the holder starts is confined by chroot alone.
	Plain bool
}

// NewUser reports whether the plan makes a user namespace.
func (p Plan) NewUser() bool { return len(p.UIDs) > 0 }

// Candidate is a way that may be open; Err says why it is not, as far as can be told without trying.
type Candidate struct {
	Plan Plan
	Err  error
}

// Error says why namespaces cannot be had: which primitive failed, who blocks it, and the smallest thing that would help.
type Error struct {
	Obstacle  Obstacle
	Primitive string // e.g. "user namespace"
	Blocker   string // e.g. "sysctl user.max_user_namespaces is 0"
	Fix       string // a command or a setting
	Err       error  // what the kernel or the helper said; may be nil
}

// Obstacle is the kind of thing that is in the way: what helps depends on it and on where one is.
type Obstacle string

const (
	ObstacleSeccomp  Obstacle = "seccomp"      // a filter of the container
	ObstacleAppArmor Obstacle = "apparmor"     // restricts unprivileged user namespaces
	ObstacleSysctl   Obstacle = "sysctl"       // forbids user namespaces
	ObstacleHelper   Obstacle = "newuidmap"    // missing or without power
	ObstacleSubID    Obstacle = "subuid"       // no range is granted
	ObstacleNNP      Obstacle = "no-new-privs" // helpers have no effect
	ObstacleProc     Obstacle = "masked-proc"  // parts of /proc are hidden
	ObstacleCaps     Obstacle = "capabilities" // root lacks some
	ObstacleUser     Obstacle = "not-root"     // an ordinary user
	ObstacleUnknown  Obstacle = "unknown"      // a security module, probably
)

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Primitive)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Blocker != "" {
		fmt.Fprintf(&b, ": %s", e.Blocker)
	}
	if e.Fix != "" {
		fmt.Fprintf(&b, " (fix: %s)", e.Fix)
	}
	return b.String()
}

// Unwrap returns what the kernel or the helper said.
func (e *Error) Unwrap() error { return e.Err }

// Candidates lists the ways to start a holder, best first. It only looks; nothing is started and nothing is changed. Whether
// a way is open shows when it is tried (Start): security modules and seccomp filters cannot be asked. Each is looked at when its
// turn comes.
func Candidates() iter.Seq[Candidate] { return candidates(systemHost()) }

// host is what Candidates looks at, so that tests can be other machines.
type host struct {
	euid, egid int
	caps       uint64 // effective
	noNewPrivs bool
	root       string // prefix of /etc and /proc files
	userName   func(uid int) string
	lookPath   func(name string) (string, error)
	privileged func(path string) bool // setuid root or file capabilities
}

func systemHost() host {
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return host{
		euid:       os.Geteuid(),
		egid:       os.Getegid(),
		caps:       effectiveCaps(),
		noNewPrivs: nnp == 1,
		userName: func(uid int) string {
			u, err := user.LookupId(strconv.Itoa(uid))
			if err != nil {
				return ""
			}
			return u.Username
		},
		lookPath:   exec.LookPath,
		privileged: canRaiseIDs,
	}
}

func (h host) has(capability int) bool { return h.caps&(1<<capability) != 0 }

func candidates(h host) iter.Seq[Candidate] {
	ways := []func() (Plan, error){h.rangePlan}
	if h.euid == 0 {
		ways = []func() (Plan, error){h.hostPlan, h.sameMapPlan}
	}
	ways = append(ways, h.singlePlan, h.plainPlan)
	return func(yield func(Candidate) bool) {
		for _, way := range ways {
			if p, err := way(); !yield(Candidate{p, err}) {
				return
			}
		}
	}
}

// hostPlan uses the caller's own user namespace.
func (h host) hostPlan() (Plan, error) {
	p := Plan{Kind: h.rootKind(), IDs: IDsHost}
	if p.Kind == KindSingle {
		p.IDs = IDsSingle
	}
	if h.has(unix.CAP_SYS_ADMIN) {
		return p, nil
	}
	return p, &Error{
		Obstacle: ObstacleCaps, Primitive: "mount and pid namespaces",
		Blocker: "root without CAP_SYS_ADMIN, as in a container with default settings",
		Fix:     "run the container as an ordinary user with --security-opt seccomp=unconfined, or with --cap-add SYS_ADMIN",
		Err:     unix.EPERM,
	}
}

// sameMapPlan gives a container's root a user namespace with the ids it has anyway, and with them the capabilities it lacks. The
// kernel lets whoever has CAP_SETUID and CAP_SETGID write such a map.
func (h host) sameMapPlan() (Plan, error) {
	uids, err1 := h.ownMap("/proc/self/uid_map")
	gids, err2 := h.ownMap("/proc/self/gid_map")
	p := Plan{Kind: h.rootKind(), IDs: IDsRange, UIDs: uids, GIDs: gids}
	switch err := errors.Join(err1, err2); {
	case err != nil:
		return p, &Error{Primitive: "user namespace", Blocker: "the id map of this process cannot be read", Err: err}
	case !h.has(unix.CAP_SETUID) || !h.has(unix.CAP_SETGID):
		return p, &Error{
			Obstacle: ObstacleCaps, Primitive: "user namespace with more than one id", Blocker: "root without CAP_SETUID and CAP_SETGID",
			Fix: "--cap-add SETUID --cap-add SETGID", Err: unix.EPERM,
		}
	case p.Kind == KindSingle:
		return p, &Error{Primitive: "user namespace with more than one id", Blocker: "this process has one id itself", Err: unix.EPERM}
	}
	return p, h.sysctlBlocks()
}

// ownMap maps every id this process knows to itself.
func (h host) ownMap(file string) ([]IDMap, error) {
	b, err := os.ReadFile(h.root + file)
	if err != nil {
		return nil, err
	}
	var out []IDMap
	f := strings.Fields(string(b))
	for i := 0; i+3 <= len(f); i += 3 {
		inside, err1 := strconv.ParseUint(f[i], 10, 32)
		count, err2 := strconv.ParseUint(f[i+2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		out = append(out, IDMap{Inside: uint32(inside), Outside: uint32(inside), Count: uint32(count)})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	return out, nil
}

// singlePlan maps 0 to the caller. Anybody may write that map.
func (h host) singlePlan() (Plan, error) {
	return Plan{
		Kind: KindSingle, IDs: IDsSingle,
		UIDs: []IDMap{{0, uint32(h.euid), 1}}, GIDs: []IDMap{{0, uint32(h.egid), 1}},
	}, h.sysctlBlocks()
}

// plainCaps are what root needs to own files as it likes and to become others in another root.
var plainCaps = []struct {
	number int
	name   string
}{
	{unix.CAP_CHOWN, "CHOWN"}, {unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE"}, {unix.CAP_FOWNER, "FOWNER"}, {unix.CAP_SETGID, "SETGID"},
	{unix.CAP_SETUID, "SETUID"}, {unix.CAP_SYS_CHROOT, "SYS_CHROOT"},
}

// plainPlan makes no namespaces: root with the capabilities that containers have by default.
func (h host) plainPlan() (Plan, error) {
	p := Plan{Kind: h.rootKind(), IDs: IDsHost, Plain: true}
	if h.euid != 0 {
		return p, &Error{
			Obstacle: ObstacleUser, Primitive: "chroot", Blocker: "user " + strconv.Itoa(h.euid) + " is not root",
			Fix: "run the container as root (Kubernetes: runAsUser: 0) with its default capabilities", Err: unix.EPERM,
		}
	}
	var missing []string
	for _, c := range plainCaps {
		if !h.has(c.number) {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return p, &Error{
			Obstacle: ObstacleCaps, Primitive: "chroot", Blocker: "root without the capabilities " + strings.Join(missing, ", "),
			Fix: "--cap-add " + strings.Join(missing, " --cap-add "), Err: unix.EPERM,
		}
	}
	return p, nil
}

// rootKind is "root" where ids are the machine's own, "single" where there is but one, and otherwise the digest of the map: when
// this root is one of a user namespace that somebody else made, the files it writes have other owners on disk.
func (h host) rootKind() string {
	uids, err1 := os.ReadFile(h.root + "/proc/self/uid_map")
	gids, err2 := os.ReadFile(h.root + "/proc/self/gid_map")
	if err1 != nil || err2 != nil || (isWholeMap(uids) && isWholeMap(gids)) {
		return KindRoot
	}
	if isSingleMap(uids) || isSingleMap(gids) {
		return KindSingle
	}
	return digestOf(strings.Join(strings.Fields(string(uids)), " ") + "\n" + strings.Join(strings.Fields(string(gids)), " "))
}

func isSingleMap(m []byte) bool {
	f := strings.Fields(string(m))
	return len(f) == 3 && f[2] == "1"
}

func isWholeMap(m []byte) bool {
	f := strings.Fields(string(m))
	return len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

// sysctlBlocks reports settings that forbid user namespaces outright.
func (h host) sysctlBlocks() error {
	for _, s := range []struct{ file, name, want string }{
		{"/proc/sys/user/max_user_namespaces", "user.max_user_namespaces", "15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone", "1"},
	} {
		b, err := os.ReadFile(h.root + s.file)
		if err == nil && strings.TrimSpace(string(b)) == "0" {
			return &Error{
				Obstacle: ObstacleSysctl, Primitive: "user namespace",
				Blocker: "sysctl " + s.name + " is 0",
				Fix:     "sudo sysctl -w " + s.name + "=" + s.want,
				Err:     unix.EPERM,
			}
		}
	}
	return nil
}

// rangePlan maps 0 to the caller and 1..N to its ranges of subordinate ids.
func (h host) rangePlan() (Plan, error) {
	p := Plan{IDs: IDsRange}
	err := h.sysctlBlocks()
	if err != nil {
		return p, err
	}
	if p.Newuidmap, err = h.helper("newuidmap"); err != nil {
		return p, err
	}
	if p.Newgidmap, err = h.helper("newgidmap"); err != nil {
		return p, err
	}
	if h.noNewPrivs {
		return p, &Error{
			Obstacle: ObstacleNNP, Primitive: "newuidmap",
			Blocker: "no_new_privs is set on this process, so setuid helpers have no effect",
			Fix:     "Kubernetes: allowPrivilegeEscalation: true; systemd: NoNewPrivileges=no",
			Err:     unix.EPERM,
		}
	}
	name := h.userName(h.euid)
	if p.UIDs, err = h.idMap("/etc/subuid", name, h.euid); err != nil {
		return p, err
	}
	if p.GIDs, err = h.idMap("/etc/subgid", name, h.egid); err != nil {
		return p, err
	}
	p.Kind = digestOf(fmt.Sprint(p.UIDs, p.GIDs))
	return p, nil
}

func (h host) helper(name string) (string, error) {
	path, err := h.lookPath(name)
	if err != nil {
		return "", &Error{
			Obstacle: ObstacleHelper, Primitive: name,
			Blocker: "not installed",
			Fix:     "sudo apt-get install uidmap (Fedora: shadow-utils, Alpine: shadow-subids)",
			Err:     errors.Unwrap(err),
		}
	}
	if !h.privileged(path) {
		return "", &Error{
			Obstacle: ObstacleHelper, Primitive: name,
			Blocker: path + " is neither setuid root nor has it the capability to set ids, or its file system is mounted nosuid",
			Fix:     "sudo chmod u+s " + path,
		}
	}
	return path, nil
}

func (h host) idMap(file, name string, id int) ([]IDMap, error) {
	missing := func(err error) error {
		who := name
		if who == "" {
			who = strconv.Itoa(h.euid)
		}
		return &Error{
			Obstacle: ObstacleSubID, Primitive: "subordinate ids",
			Blocker: fmt.Sprintf("no range for %s in %s", who, file),
			Fix:     "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + who,
			Err:     err,
		}
	}
	f, err := os.Open(h.root + file)
	if err != nil {
		return nil, missing(err)
	}
	defer f.Close()
	ranges, err := parseSubIDs(f, name, h.euid)
	if err != nil {
		return nil, &Error{Primitive: "subordinate ids", Blocker: file + " cannot be read", Err: err}
	}
	m := mapRanges(uint32(id), ranges)
	if len(m) == 1 {
		return nil, missing(nil)
	}
	return m, nil
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

func effectiveCaps() uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
}

// canRaiseIDs reports whether executing path can give it the power to write id maps.
func canRaiseIDs(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err == nil && fs.Flags&unix.ST_NOSUID != 0 {
		return false
	}
	if st.Mode&unix.S_ISUID != 0 && st.Uid == 0 {
		return true
	}
	n, err := unix.Getxattr(path, "security.capability", nil)
	return err == nil && n > 0
}
