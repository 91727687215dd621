package executor

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// assembler collects BPF instructions whose jumps go to labels, always forwards.
type assembler struct {
	code   []instruction
	labels []int // by label: index of an instruction, -1 until placed
}

type label int

// fallThrough as a jump target is the next instruction.
const fallThrough label = -1

type instruction struct {
	op     uint16
	k      uint32
	jt, jf label
}

func (a *assembler) newLabel() label {
	a.labels = append(a.labels, -1)
	return label(len(a.labels) - 1)
}

func (a *assembler) place(l label) { a.labels[l] = len(a.code) }

func (a *assembler) emit(op uint16, k uint32, jt, jf label) {
	a.code = append(a.code, instruction{op, k, jt, jf})
}

func (a *assembler) load(offset uint32) {
	a.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, fallThrough, fallThrough)
}

func (a *assembler) ret(v uint32) {
	a.emit(unix.BPF_RET|unix.BPF_K, v, fallThrough, fallThrough)
}

// jumpIf compares the accumulator with k. Conditional jumps reach 255 instructions, less than a whole table, so a distant jf is
// reached through an unconditional jump.
func (a *assembler) jumpIf(cond uint16, k uint32, jt, jf label) {
	if jt == fallThrough && jf != fallThrough {
		over := a.newLabel()
		a.emit(unix.BPF_JMP|cond|unix.BPF_K, k, over, fallThrough)
		a.emit(unix.BPF_JMP|unix.BPF_JA, 0, jf, fallThrough)
		a.place(over)
		return
	}
	a.emit(unix.BPF_JMP|cond|unix.BPF_K, k, jt, jf)
}

// search emits a binary search for the system call number in the accumulator.
func (a *assembler) search(spans []span, bits int, def uint32) {
	if len(spans) == 1 {
		if len(spans[0].rules) == 0 {
			a.ret(spans[0].ret)
		} else {
			a.rules(spans[0].rules, bits, def)
		}
		return
	}
	mid := len(spans) / 2
	low := a.newLabel()
	a.jumpIf(unix.BPF_JGE, spans[mid].start, fallThrough, low)
	a.search(spans[mid:], bits, def)
	a.place(low)
	a.search(spans[:mid], bits, def)
}

// rules emits the conditional rules of one call: the first that holds decides.
func (a *assembler) rules(rs []rule, bits int, def uint32) {
	for _, r := range rs {
		next := a.newLabel()
		for _, arg := range r.args {
			a.compare(arg, bits, next)
		}
		a.ret(r.action)
		a.place(next)
	}
	a.ret(def)
}

// compare falls through when the comparison holds and jumps to no when it does not. Arguments have 64 bits, BPF words 32; both
// supported machines are little-endian.
func (a *assembler) compare(arg comparison, bits int, no label) {
	offset := uint32(dataArgs + 8*arg.Index)
	lo, hi := uint32(arg.Value), uint32(arg.Value>>32)
	wide := bits == 64 && !arg.narrow
	switch arg.Op {
	case specs.OpEqualTo:
		if wide {
			a.load(offset + 4)
			a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, fallThrough, no)
		}
		a.load(offset)
		a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, lo, fallThrough, no)
	case specs.OpNotEqual:
		yes := a.newLabel()
		if wide {
			a.load(offset + 4)
			a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, fallThrough, yes)
		}
		a.load(offset)
		a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, lo, no, fallThrough)
		a.place(yes)
	case specs.OpMaskedEqual: // Value is the mask, ValueTwo what must remain
		if wide {
			a.load(offset + 4)
			a.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, hi, fallThrough, fallThrough)
			a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, uint32(arg.ValueTwo>>32), fallThrough, no)
		}
		a.load(offset)
		a.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, lo, fallThrough, fallThrough)
		a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, uint32(arg.ValueTwo), fallThrough, no)
	case specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		a.order(arg.Op, offset, hi, lo, wide, no)
	default: // an unknown comparison never holds
		a.emit(unix.BPF_JMP|unix.BPF_JA, 0, no, fallThrough)
	}
}

func (a *assembler) order(op specs.LinuxSeccompOperator, offset, hi, lo uint32, wide bool, no label) {
	yes := a.newLabel()
	greater, less := yes, no
	if op == specs.OpLessThan || op == specs.OpLessEqual {
		greater, less = no, yes
	}
	if wide {
		same := a.newLabel()
		a.load(offset + 4)
		a.emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, hi, greater, fallThrough)
		a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, hi, same, less)
		a.place(same)
	}
	a.load(offset)
	switch op {
	case specs.OpGreaterThan:
		a.emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, lo, yes, no)
	case specs.OpGreaterEqual:
		a.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, lo, yes, no)
	case specs.OpLessThan:
		a.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, lo, no, yes)
	case specs.OpLessEqual:
		a.emit(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, lo, no, yes)
	}
	a.place(yes)
}

// assemble resolves the labels.
func (a *assembler) assemble() ([]unix.SockFilter, error) {
	if len(a.code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter has %d instructions, at most %d", len(a.code), unix.BPF_MAXINSNS)
	}
	out := make([]unix.SockFilter, len(a.code))
	for i, in := range a.code {
		distance := func(l label) (int, error) {
			if l == fallThrough {
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
