package executor

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// assembler writes the rules of a profile.
type assembler struct{ *bpf.Assembler }

// search emits a binary search for the system call number in the accumulator.
func (a assembler) search(spans []span, bits int, def uint32) {
	cases := make([]bpf.Case, len(spans))
	for i, s := range spans {
		cases[i] = bpf.Case{Start: s.start, Emit: func(*bpf.Assembler) {
			if len(s.rules) == 0 {
				a.Ret(s.ret)
			} else {
				a.rules(s.rules, bits, def)
			}
		}}
	}
	a.Search(cases)
}

// rules emits the conditional rules of one call: the first that holds decides.
func (a assembler) rules(rs []rule, bits int, def uint32) {
	for _, r := range rs {
		next := a.NewLabel()
		for _, arg := range r.args {
			a.compare(arg, bits, next)
		}
		a.Ret(r.action)
		a.Place(next)
	}
	a.Ret(def)
}

// compare falls through when the comparison holds and jumps to no when it does not. Arguments have 64 bits, BPF words 32; both
// supported machines are little-endian.
func (a assembler) compare(arg comparison, bits int, no bpf.Label) {
	offset := uint32(bpf.DataArgs + 8*arg.Index)
	lo, hi := uint32(arg.Value), uint32(arg.Value>>32)
	wide := bits == 64 && !arg.narrow
	switch arg.Op {
	case specs.OpEqualTo:
		if wide {
			a.Load(offset + 4)
			a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, bpf.FallThrough, no)
		}
		a.Load(offset)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, lo, bpf.FallThrough, no)
	case specs.OpNotEqual:
		yes := a.NewLabel()
		if wide {
			a.Load(offset + 4)
			a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, bpf.FallThrough, yes)
		}
		a.Load(offset)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, lo, no, bpf.FallThrough)
		a.Place(yes)
	case specs.OpMaskedEqual: // Value is the mask, ValueTwo what must remain
		if wide {
			a.Load(offset + 4)
			a.Emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, hi, bpf.FallThrough, bpf.FallThrough)
			a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, uint32(arg.ValueTwo>>32), bpf.FallThrough, no)
		}
		a.Load(offset)
		a.Emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, lo, bpf.FallThrough, bpf.FallThrough)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, uint32(arg.ValueTwo), bpf.FallThrough, no)
	case specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		a.order(arg.Op, offset, hi, lo, wide, no)
	default: // an unknown comparison never holds
		a.Emit(unix.BPF_JMP|unix.BPF_JA, 0, no, bpf.FallThrough)
	}
}

func (a assembler) order(op specs.LinuxSeccompOperator, offset, hi, lo uint32, wide bool, no bpf.Label) {
	yes := a.NewLabel()
	greater, less := yes, no
	if op == specs.OpLessThan || op == specs.OpLessEqual {
		greater, less = no, yes
	}
	if wide {
		same := a.NewLabel()
		a.Load(offset + 4)
		a.Emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, hi, greater, bpf.FallThrough)
		a.Emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, same, less)
		a.Place(same)
	}
	a.Load(offset)
	switch op {
	case specs.OpGreaterThan:
		a.Emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, lo, yes, no)
	case specs.OpGreaterEqual:
		a.Emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, lo, yes, no)
	case specs.OpLessThan:
		a.Emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, lo, no, yes)
	case specs.OpLessEqual:
		a.Emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, lo, no, yes)
	}
	a.Place(yes)
}
