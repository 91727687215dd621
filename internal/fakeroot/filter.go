package fakeroot

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"build/internal/bpf"
	"build/internal/owner"
)

// condition emits the test of a call's arguments: it falls through when the call needs help and jumps to pass when not.
type condition func(a *bpf.Assembler, pass bpf.Label)

// creates holds for open flags that can make a file.
func creates(arg int) condition {
	const tmpFile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	return func(a *bpf.Assembler, pass bpf.Label) {
		a.Load(bpf.DataArgs + 8*uint32(arg))
		a.Emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.O_CREAT|tmpFile, bpf.FallThrough, bpf.FallThrough)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, pass, bpf.FallThrough)
	}
}

// equals holds for an argument of 32 bits that has this value.
func equals(arg int, value uint32) condition {
	return func(a *bpf.Assembler, pass bpf.Label) {
		a.Load(bpf.DataArgs + 8*uint32(arg))
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, value, bpf.FallThrough, pass)
	}
}

func both(x, y condition) condition {
	return func(a *bpf.Assembler, pass bpf.Label) { x(a, pass); y(a, pass) }
}

func either(x, y condition) condition {
	return func(a *bpf.Assembler, pass bpf.Label) {
		other, help := a.NewLabel(), a.NewLabel()
		x(a, other)
		a.Jump(help)
		a.Place(other)
		y(a, pass)
		a.Place(help)
	}
}

// device holds for the mode of a device node.
func device(arg int) condition {
	return func(a *bpf.Assembler, pass bpf.Label) {
		help := a.NewLabel()
		a.Load(bpf.DataArgs + 8*uint32(arg))
		a.Emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.S_IFMT, bpf.FallThrough, bpf.FallThrough)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, unix.S_IFCHR, help, bpf.FallThrough)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, unix.S_IFBLK, bpf.FallThrough, pass)
		a.Place(help)
	}
}

// outside holds when one of two arguments is an id that is not mapped.
func outside(m owner.Map, uidArg, gidArg int) condition {
	return func(a *bpf.Assembler, pass bpf.Label) {
		help := a.NewLabel()
		users, all := m.UIDs()
		oneOutside(a, uidArg, users, all, help)
		groups, all := m.GIDs()
		oneOutside(a, gidArg, groups, all, help)
		a.Jump(pass)
		a.Place(help)
	}
}

// oneOutside jumps to help if the argument is in none of the ranges, and falls through otherwise.
func oneOutside(a *bpf.Assembler, arg int, ranges []owner.Range, all bool, help bpf.Label) {
	if all {
		return
	}
	inside := a.NewLabel()
	a.Load(bpf.DataArgs + 8*uint32(arg))
	a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, unchanged, inside, bpf.FallThrough)
	for _, r := range ranges {
		next := a.NewLabel()
		a.Emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, r.First, bpf.FallThrough, next)
		a.Emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, r.First+(r.Count-1), bpf.FallThrough, inside)
		a.Place(next)
	}
	a.Jump(help)
	a.Place(inside)
}

// maxRanges bounds what fits before a conditional jump. A map with more is rare (the kernel allows 340 lines); then every id is
// looked at here.
const maxRanges = 50

// conditions says which calls need help; nil is always.
func conditions(m owner.Map, whole bool) map[string]condition {
	if !whole {
		out := map[string]condition{"mknod": device(1), "mknodat": device(2)}
		users, _ := m.UIDs()
		groups, _ := m.GIDs()
		chown := func(uid, gid int) condition {
			if len(users)+len(groups) > maxRanges {
				return nil
			}
			return outside(m, uid, gid)
		}
		for _, name := range []string{"chown", "lchown", "fchown", "chown32", "lchown32", "fchown32"} {
			out[name] = chown(1, 2)
		}
		out["fchownat"] = chown(2, 3)
		return out
	}
	out := map[string]condition{}
	for _, table := range []map[string]handler{nativeCalls, compatCalls} {
		for name := range table {
			out[name] = nil
		}
	}
	out["open"], out["openat"] = creates(1), creates(2)
	out["prctl"] = either(equals(0, unix.PR_SET_KEEPCAPS), equals(0, unix.PR_SET_SECUREBITS))
	out["getsockopt"] = both(equals(1, unix.SOL_SOCKET), equals(2, unix.SO_PEERCRED))
	return out
}

// Single reports whether everything about ids is answered by the supervisor under this map.
func Single(m owner.Map) bool {
	users, allUsers := m.UIDs()
	groups, allGroups := m.GIDs()
	return len(users) == 0 && !allUsers || len(groups) == 0 && !allGroups
}

// Filter returns the program that stops the calls that need help in a user namespace with these ids; nil if none does.
func Filter(m owner.Map) ([]unix.SockFilter, error) {
	if m.Full() {
		return nil, nil
	}
	abis, err := bpf.HostABIs()
	if err != nil {
		return nil, err
	}
	a := &bpf.Assembler{}
	a.Load(bpf.DataArch)
	for i, abi := range abis {
		next := a.NewLabel()
		a.JumpIf(unix.BPF_JEQ, abi.Audit, bpf.FallThrough, next)
		a.Load(bpf.DataNr)
		handled := nativeCalls
		if i > 0 {
			handled = compatCalls
		}
		a.Search(cases(abi, handled, conditions(m, Single(m)), Single(m)))
		a.Place(next)
	}
	a.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)) // an ABI nobody would answer for
	return a.Assemble()
}

// refused are calls that would go past us where everything is answered here. No filter sees what is done through io_uring, which
// is refused the way profiles of containers do it; instead of the others, which are new in 6.13, programs use older ones.
var refused = map[string]unix.Errno{
	"io_uring_setup": unix.EPERM, "io_uring_enter": unix.EPERM, "io_uring_register": unix.EPERM,
	"setxattrat": unix.ENOSYS, "removexattrat": unix.ENOSYS, "listxattrat": unix.ENOSYS,
}

func cases(abi bpf.ABI, handled map[string]handler, when map[string]condition, whole bool) []bpf.Case {
	type stop struct {
		nr   uint32
		emit func(*bpf.Assembler)
	}
	var stops []stop
	for name := range handled {
		nr, known := abi.Numbers[name]
		cond, wanted := when[name]
		if !known || !wanted {
			continue
		}
		stops = append(stops, stop{nr, func(a *bpf.Assembler) {
			pass := a.NewLabel()
			if cond != nil {
				cond(a, pass)
			}
			a.Ret(unix.SECCOMP_RET_USER_NOTIF)
			a.Place(pass)
			if cond != nil {
				a.Ret(unix.SECCOMP_RET_ALLOW)
			}
		}})
	}
	for name, errno := range refused {
		if nr, ok := abi.Numbers[name]; ok && whole {
			stops = append(stops, stop{nr, func(a *bpf.Assembler) { a.Ret(unix.SECCOMP_RET_ERRNO | uint32(errno)) }})
		}
	}
	slices.SortFunc(stops, func(x, y stop) int { return cmp.Compare(x.nr, y.nr) })
	allow := func(a *bpf.Assembler) { a.Ret(unix.SECCOMP_RET_ALLOW) }
	out := []bpf.Case{{Start: 0, Emit: allow}}
	add := func(c bpf.Case) {
		if out[len(out)-1].Start == c.Start {
			out[len(out)-1] = c
			return
		}
		out = append(out, c)
	}
	for _, s := range stops {
		add(bpf.Case{Start: s.nr, Emit: s.emit})
		add(bpf.Case{Start: s.nr + 1, Emit: allow})
	}
	if abi.Limit != 0 {
		out = append(out, bpf.Case{Start: abi.Limit, Emit: func(a *bpf.Assembler) { a.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)) }})
	}
	return out
}
