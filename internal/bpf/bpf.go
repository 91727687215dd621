// Package bpf assembles the classic BPF programs that the kernel's seccomp filters are, and has the system call numbers they
// compare. It knows no profile and decides nothing about any call: executor writes the sandbox's filter with it, internal/fakeroot
// the one that asks for help.
package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:generate go run gen_sysnum.go

// Offsets in struct seccomp_data, which programs load from. Both supported machines are little-endian: the lower half of an
// argument comes first.
const (
	DataNr   = 0
	DataArch = 4
	DataArgs = 16 // six words of 64 bits
)

// X32Bit marks the numbers of the x32 ABI, which shares AUDIT_ARCH_X86_64. Distributions do not build it; where it is built its
// calls should fail as they do everywhere else, with ENOSYS.
const X32Bit = 0x40000000

// ABI is one way of entering the kernel.
type ABI struct {
	Audit   uint32            // AUDIT_ARCH_*
	Numbers map[string]uint32 // system calls by name
	Limit   uint32            // numbers from here on belong to an ABI we do not know (x32); 0: no limit
	Bits    int               // of an argument
}

// HostABIs returns the native ABI of this program and the 32-bit one that the same kernel may also have.
func HostABIs() ([]ABI, error) {
	switch runtime.GOARCH {
	case "amd64":
		return []ABI{
			{unix.AUDIT_ARCH_X86_64, Native(), X32Bit, 64},
			{unix.AUDIT_ARCH_I386, Compat(), 0, 32},
		}, nil
	case "arm64":
		return []ABI{
			{unix.AUDIT_ARCH_AARCH64, Native(), 0, 64},
			{unix.AUDIT_ARCH_ARM, Compat(), 0, 32},
		}, nil
	}
	return nil, fmt.Errorf("no system call table for %s", runtime.GOARCH)
}

// Assembler collects instructions whose jumps go to labels, always forwards. The zero value is empty.
type Assembler struct {
	code   []instruction
	labels []int // by label: index of an instruction, -1 until placed
}

// Label is a place in a program.
type Label int

// FallThrough as a jump target is the next instruction.
const FallThrough Label = -1

type instruction struct {
	op     uint16
	k      uint32
	jt, jf Label
}

// NewLabel returns a label that is still to be placed.
func (a *Assembler) NewLabel() Label {
	a.labels = append(a.labels, -1)
	return Label(len(a.labels) - 1)
}

// Place puts a label here.
func (a *Assembler) Place(l Label) { a.labels[l] = len(a.code) }

// Emit adds an instruction; jf is for conditional jumps only.
func (a *Assembler) Emit(op uint16, k uint32, jt, jf Label) {
	a.code = append(a.code, instruction{op, k, jt, jf})
}

// Load loads the word at an offset of struct seccomp_data.
func (a *Assembler) Load(offset uint32) {
	a.Emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, FallThrough, FallThrough)
}

// Ret ends with a SECCOMP_RET_ value.
func (a *Assembler) Ret(v uint32) {
	a.Emit(unix.BPF_RET|unix.BPF_K, v, FallThrough, FallThrough)
}

// Jump goes to a label, however far.
func (a *Assembler) Jump(l Label) { a.Emit(unix.BPF_JMP|unix.BPF_JA, 0, l, FallThrough) }

// JumpIf compares the loaded word with k. Conditional jumps reach 255 instructions, less than a whole table, so a distant jf is
// reached through an unconditional jump.
func (a *Assembler) JumpIf(cond uint16, k uint32, jt, jf Label) {
	if jt == FallThrough && jf != FallThrough {
		over := a.NewLabel()
		a.Emit(unix.BPF_JMP|cond|unix.BPF_K, k, over, FallThrough)
		a.Jump(jf)
		a.Place(over)
		return
	}
	a.Emit(unix.BPF_JMP|cond|unix.BPF_K, k, jt, jf)
}

// Case is a run of numbers, from Start to the next Case's, and what to do when the loaded word is one of them.
type Case struct {
	Start uint32
	Emit  func(*Assembler) // ends with Ret or Jump on all of its ways
}

// Search emits a binary search for the loaded word. The cases are ascending and the first starts at 0.
func (a *Assembler) Search(cases []Case) {
	if len(cases) == 1 {
		cases[0].Emit(a)
		return
	}
	mid := len(cases) / 2
	low := a.NewLabel()
	a.JumpIf(unix.BPF_JGE, cases[mid].Start, FallThrough, low)
	a.Search(cases[mid:])
	a.Place(low)
	a.Search(cases[:mid])
}

// Assemble resolves the labels.
func (a *Assembler) Assemble() ([]unix.SockFilter, error) {
	if len(a.code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter has %d instructions, at most %d", len(a.code), unix.BPF_MAXINSNS)
	}
	out := make([]unix.SockFilter, len(a.code))
	for i, in := range a.code {
		distance := func(l Label) (int, error) {
			if l == FallThrough {
				return 0, nil
			}
			d := a.labels[l] - i - 1
			if a.labels[l] < 0 || d < 0 {
				return 0, fmt.Errorf("seccomp filter: instruction %d jumps backwards", i)
			}
			return d, nil
		}
		jt, err := distance(in.jt)
		if err != nil {
			return nil, err
		}
		jf, err := distance(in.jf)
		if err != nil {
			return nil, err
		}
		f := unix.SockFilter{Code: in.op, K: in.k}
		if in.op == unix.BPF_JMP|unix.BPF_JA {
			f.K = uint32(jt)
		} else if jt > 255 || jf > 255 {
			return nil, fmt.Errorf("seccomp filter: instruction %d jumps too far", i)
		} else {
			f.Jt, f.Jf = uint8(jt), uint8(jf)
		}
		out[i] = f
	}
	return out, nil
}

// Install puts a program in front of the system calls of the calling thread and of what it will start. The result is a
// descriptor if the flags ask for a listener. The thread needs CAP_SYS_ADMIN in its user namespace or no_new_privs.
func Install(program []unix.SockFilter, flags uintptr) (int, error) {
	if len(program) == 0 {
		return -1, errors.New("there is no filter")
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	r, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// Listen installs a program with a listener, whose descriptor it returns: calls for which the program returns
// SECCOMP_RET_USER_NOTIF wait there for an answer. EBUSY means that a program in front of this process has a listener already: the
// kernel allows one.
//
// From 5.19 on a signal that does not kill waits until the call is answered. Before, it interrupts the call, which is then made
// a second time: a mkdir could find its own directory.
func Listen(program []unix.SockFilter) (listener int, err error) {
	fd, err := Install(program, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if err == unix.EINVAL {
		fd, err = Install(program, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	}
	return fd, err
}
