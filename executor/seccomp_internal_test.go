package executor

import (
	"math/rand/v2"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"build/internal/bpf"
)

// call is what a filter sees.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

// interpret runs a filter as the kernel does.
func interpret(t testing.TB, prog []unix.SockFilter, c call) uint32 {
	t.Helper()
	word := func(off uint32) uint32 {
		switch {
		case off == bpf.DataNr:
			return c.nr
		case off == bpf.DataArch:
			return c.arch
		case off >= bpf.DataArgs && off < bpf.DataArgs+48 && off%4 == 0:
			v := c.args[(off-bpf.DataArgs)/8]
			if off%8 == 4 {
				return uint32(v >> 32)
			}
			return uint32(v)
		}
		t.Fatalf("load from %d", off)
		return 0
	}
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = word(in.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(acc >= in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %#x", in.Code)
		}
	}
	t.Fatal("ran off the end")
	return 0
}

// holds is what a comparison means, said directly.
func holds(c comparison, v uint64, bits int) bool {
	want, two := c.Value, c.ValueTwo
	if bits == 32 || c.narrow {
		v, want, two = v&(1<<32-1), want&(1<<32-1), two&(1<<32-1)
	}
	switch c.Op {
	case specs.OpEqualTo:
		return v == want
	case specs.OpNotEqual:
		return v != want
	case specs.OpLessThan:
		return v < want
	case specs.OpLessEqual:
		return v <= want
	case specs.OpGreaterThan:
		return v > want
	case specs.OpGreaterEqual:
		return v >= want
	case specs.OpMaskedEqual:
		return v&want == two
	}
	return false
}

func expect(table map[uint32][]rule, def uint32, a bpf.ABI, c call) uint32 {
	if a.Limit != 0 && c.nr >= a.Limit {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	for _, r := range table[c.nr] {
		ok := true
		for _, arg := range r.args {
			ok = ok && holds(arg, c.args[arg.Index], a.Bits)
		}
		if ok {
			return r.action
		}
	}
	return def
}

func testFilter(t *testing.T, p *specs.LinuxSeccomp, abis []bpf.ABI, rnd *rand.Rand, rounds int) {
	t.Helper()
	prog, err := compileFilter(p, abis)
	if err != nil {
		t.Fatal(err)
	}
	def, err := returnValue(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range abis {
		table, err := rulesFor(p.Syscalls, a)
		if err != nil {
			t.Fatal(err)
		}
		values := []uint64{0, 1, 2, 37, 38, 39, 40, 41, 0x20000, 0x7E020000, 0xffffffff, 1 << 32, 1<<32 | 38, 1<<63 | 1, ^uint64(0)}
		for nr := range uint32(600) {
			for range rounds {
				c := call{nr: nr, arch: a.Audit}
				for i := range c.args {
					c.args[i] = values[rnd.IntN(len(values))]
				}
				if a.Bits == 32 {
					for i := range c.args {
						c.args[i] &= 1<<32 - 1
					}
				}
				if got, want := interpret(t, prog, c), expect(table, def, a, c); got != want {
					t.Fatalf("arch %#x call %d args %#x: %#x, want %#x", a.Audit, nr, c.args, got, want)
				}
			}
		}
		for _, nr := range []uint32{bpf.X32Bit, bpf.X32Bit + 1, 1<<32 - 1} {
			c := call{nr: nr, arch: a.Audit}
			if got, want := interpret(t, prog, c), expect(table, def, a, c); got != want {
				t.Fatalf("arch %#x call %d: %#x, want %#x", a.Audit, nr, got, want)
			}
		}
	}
	if got := interpret(t, prog, call{arch: unix.AUDIT_ARCH_S390X}); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("a foreign architecture gets %#x", got)
	}
}

func TestCompiledProfile(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capNames(dockerCaps)}}}
	p, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	abis, err := bpf.HostABIs()
	if err != nil {
		t.Skip(err)
	}
	testFilter(t, p, abis, rand.New(rand.NewPCG(1, 2)), 20)
	prog, err := sandboxFilter()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(prog))
}

// TestCompiledRandomly compiles profiles nobody would write.
func TestCompiledRandomly(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual,
	}
	values := []uint64{0, 1, 38, 40, 0xffffffff, 1 << 32, 1<<32 | 38, 1 << 63}
	names := []string{"read", "socket", "clone", "personality", "openat2", "mount", "futex", "getpid"}
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for range rnd.IntN(12) {
			errno := uint(rnd.IntN(100))
			c := specs.LinuxSyscall{Action: specs.ActAllow, ErrnoRet: &errno}
			if rnd.IntN(2) == 0 {
				c.Action = specs.ActErrno
			}
			for range 1 + rnd.IntN(3) {
				c.Names = append(c.Names, names[rnd.IntN(len(names))])
			}
			for range rnd.IntN(4) {
				c.Args = append(c.Args, specs.LinuxSeccompArg{
					Index: uint(rnd.IntN(6)), Op: ops[rnd.IntN(len(ops))], Value: values[rnd.IntN(len(values))], ValueTwo: values[rnd.IntN(len(values))],
				})
			}
			p.Syscalls = append(p.Syscalls, c)
		}
		abis := []bpf.ABI{
			{Audit: unix.AUDIT_ARCH_X86_64, Numbers: bpf.Native(), Limit: bpf.X32Bit, Bits: 64},
			{Audit: unix.AUDIT_ARCH_I386, Numbers: bpf.Compat(), Bits: 32},
		}
		testFilter(t, p, abis, rnd, 3)
	}
}

func TestUnknownActionsAreRefused(t *testing.T) {
	for _, p := range []*specs.LinuxSeccomp{
		{DefaultAction: "SCMP_ACT_WHATEVER"},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_NOTIFY"}}},
		{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6}}}}},
	} {
		abis, err := bpf.HostABIs()
		if err != nil {
			t.Skip(err)
		}
		if _, err := compileFilter(p, abis); err == nil {
			t.Errorf("%+v was compiled", p)
		}
	}
}
