package executor

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// sandboxFilter is Docker's default seccomp profile for Docker's default capabilities, as a BPF program. It is compiled once
// per process.
var sandboxFilter = sync.OnceValues(func() ([]unix.SockFilter, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capNames(dockerCaps)}}}
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("load the seccomp profile: %w", err)
	}
	abis, err := bpf.HostABIs()
	if err != nil {
		return nil, err
	}
	return compileFilter(profile, abis)
})

// rawFilter is a program whose JSON form is its bytes, in base64: as numbers, encoding and decoding it took a tenth of the time
// a step takes to start.
type rawFilter []unix.SockFilter

// instructionSize is what the kernel says: two bytes of code, two jumps, four bytes of operand.
const instructionSize = 8

func (f rawFilter) MarshalJSON() ([]byte, error) {
	out := make([]byte, 0, len(f)*instructionSize)
	for _, in := range f {
		out = binary.NativeEndian.AppendUint16(out, in.Code)
		out = append(out, in.Jt, in.Jf)
		out = binary.NativeEndian.AppendUint32(out, in.K)
	}
	return json.Marshal(out)
}

func (f *rawFilter) UnmarshalJSON(b []byte) error {
	var in []byte
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if len(in)%instructionSize != 0 {
		return fmt.Errorf("a filter of %d bytes ends within an instruction", len(in))
	}
	*f = make(rawFilter, 0, len(in)/instructionSize)
	for ; len(in) > 0; in = in[instructionSize:] {
		*f = append(*f, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(in), Jt: in[2], Jf: in[3], K: binary.NativeEndian.Uint32(in[4:]),
		})
	}
	return nil
}

// compileFilter translates a profile. Its meaning is libseccomp's: of the rules for one system call an unconditional one wins,
// otherwise the first whose comparisons all hold; a call without rule gets the default action; a foreign architecture is
// killed.
func compileFilter(p *specs.LinuxSeccomp, abis []bpf.ABI) ([]unix.SockFilter, error) {
	def, err := returnValue(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	a := assembler{&bpf.Assembler{}}
	a.Load(bpf.DataArch)
	for _, abi := range abis {
		next := a.NewLabel()
		a.JumpIf(unix.BPF_JEQ, abi.Audit, bpf.FallThrough, next)
		rules, err := rulesFor(p.Syscalls, abi)
		if err != nil {
			return nil, err
		}
		a.Load(bpf.DataNr)
		if abi.Limit != 0 {
			known := a.NewLabel()
			a.JumpIf(unix.BPF_JGE, abi.Limit, bpf.FallThrough, known)
			a.Ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
			a.Place(known)
		}
		a.search(ranges(rules, def), abi.Bits, def)
		a.Place(next)
	}
	a.Ret(unix.SECCOMP_RET_KILL_PROCESS)
	return a.Assemble()
}

// rule is one line of a profile for one system call: action if all comparisons hold.
type rule struct {
	action uint32
	args   []comparison
}

// comparison is one argument's test; narrow ones look at the lower half of the register only.
type comparison struct {
	specs.LinuxSeccompArg
	narrow bool
}

// narrowArgs are calls whose compared arguments the kernel declares as 32-bit. It ignores the upper halves of their registers,
// so a filter that looks at them can be lied to: socket(1<<32|AF_ALG, …) is AF_ALG.
var narrowArgs = []string{"socket", "personality"}

func rulesFor(calls []specs.LinuxSyscall, abi bpf.ABI) (map[uint32][]rule, error) {
	out := map[uint32][]rule{}
	for _, c := range calls {
		action, err := returnValue(c.Action, c.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range c.Names {
			nr, ok := abi.Numbers[name]
			if !ok {
				continue // a call of other architectures, or newer than our tables: the default action holds
			}
			r := rule{action: action}
			for _, arg := range c.Args {
				if arg.Index > 5 {
					return nil, fmt.Errorf("seccomp rule for %s compares argument %d", name, arg.Index)
				}
				r.args = append(r.args, comparison{arg, slices.Contains(narrowArgs, name)})
			}
			out[nr] = append(out[nr], r)
		}
	}
	for nr, rs := range out {
		if i := slices.IndexFunc(rs, func(r rule) bool { return len(r.args) == 0 }); i >= 0 {
			out[nr] = rs[i : i+1]
		}
	}
	return out, nil
}

// span is a run of system call numbers, from start to the next span's, that are treated alike.
type span struct {
	start uint32
	ret   uint32 // when rules is empty
	rules []rule
}

// ranges turns a sparse table into spans that cover all numbers.
func ranges(table map[uint32][]rule, def uint32) []span {
	nrs := make([]uint32, 0, len(table))
	for nr := range table {
		nrs = append(nrs, nr)
	}
	slices.SortFunc(nrs, cmp.Compare[uint32])
	spans := []span{{start: 0, ret: def}}
	add := func(s span) {
		last := &spans[len(spans)-1]
		switch {
		case last.start == s.start:
			*last = s
			if n := len(spans); n > 1 && len(s.rules) == 0 && len(spans[n-2].rules) == 0 && spans[n-2].ret == s.ret {
				spans = spans[:n-1]
			}
		case len(last.rules) == 0 && len(s.rules) == 0 && last.ret == s.ret:
		default:
			spans = append(spans, s)
		}
	}
	for _, nr := range nrs {
		rs := table[nr]
		if len(rs) == 1 && len(rs[0].args) == 0 {
			add(span{start: nr, ret: rs[0].action})
		} else {
			add(span{start: nr, rules: rs})
		}
		add(span{start: nr + 1, ret: def})
	}
	return spans
}

func returnValue(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch action {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		e := uint(unix.EPERM)
		if errno != nil {
			e = *errno
		}
		return unix.SECCOMP_RET_ERRNO | uint32(e)&unix.SECCOMP_RET_DATA, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp action %q is not supported", action)
}
