package emulator

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// machine describes an architecture and its smallest program: one that ends with the number of its arguments, argument zero
// included. The number tells whether an emulator and the kernel agree on how arguments are passed (see Emulator.KeepArgv0 of
// package executor).
type machine struct {
	elf   uint16 // e_machine
	wide  bool   // 64 bits
	big   bool   // big-endian
	flags uint32 // e_flags
	code  []byte // exit(argc), in the order of bytes in memory
	qemu  string // what QEMU calls it
}

var machines = map[string]machine{
	"amd64":    {62, true, false, 0, []byte("\x5f\xb8\x3c\x00\x00\x00\x0f\x05"), "x86_64"},
	"386":      {3, false, false, 0, []byte("\x5b\xb8\x01\x00\x00\x00\xcd\x80"), "i386"},
	"arm64":    {183, true, false, 0, []byte("\xe0\x03\x40\xf9\xa8\x0b\x80\xd2\x01\x00\x00\xd4"), "aarch64"},
	"arm":      {40, false, false, 0x05000000, []byte("\x00\x00\x9d\xe5\x01\x70\xa0\xe3\x00\x00\x00\xef"), "arm"},
	"riscv64":  {243, true, false, 0, []byte("\x03\x35\x01\x00\x93\x08\xd0\x05\x73\x00\x00\x00"), "riscv64"},
	"ppc64le":  {21, true, false, 2, []byte("\x00\x00\x61\xe8\x01\x00\x00\x38\x02\x00\x00\x44"), "ppc64le"},
	"s390x":    {22, true, true, 0, []byte("\xe3\x20\xf0\x00\x00\x04\x0a\x01"), "s390x"},
	"loong64":  {258, true, false, 0x43, []byte("\x64\x00\xc0\x28\x0b\x74\xc1\x02\x00\x00\x2b\x00"), "loongarch64"},
	"mips64le": {8, true, false, 0x80000006, []byte("\x00\x00\xa4\xdf\xc2\x13\x02\x34\x0c\x00\x00\x00"), "mips64el"},
	"mips64":   {8, true, true, 0x80000006, []byte("\xdf\xa4\x00\x00\x34\x02\x13\xc2\x00\x00\x00\x0c"), "mips64"},
}

// Architectures lists those that are known here, sorted.
func Architectures() []string {
	var out []string
	for arch := range machines {
		out = append(out, arch)
	}
	slices.Sort(out)
	return out
}

// Program returns the smallest program of an architecture: an ELF file that exits with the number of its arguments, argument
// zero included. It is nil when the architecture is not known.
func Program(arch string) []byte {
	m, ok := machines[arch]
	if !ok {
		return nil
	}
	return m.program()
}

const loadAddress = 0x400000

func (m machine) order() interface {
	binary.ByteOrder
	binary.AppendByteOrder
} {
	if m.big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// ident is the beginning of every program: magic, class, order of bytes, version.
func (m machine) ident() []byte {
	class, data := byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB)
	if m.wide {
		class = byte(elf.ELFCLASS64)
	}
	if m.big {
		data = byte(elf.ELFDATA2MSB)
	}
	return append([]byte(elf.ELFMAG), class, data, byte(elf.EV_CURRENT))
}

// program writes the ELF file: a header, one segment that is the whole file, and the code.
func (m machine) program() []byte {
	order := m.order()
	header, segment := 52, 32
	if m.wide {
		header, segment = 64, 56
	}
	total := uint64(header + segment + len(m.code))
	word := func(b []byte, v uint64) []byte { // an address, an offset or a size
		if m.wide {
			return order.AppendUint64(b, v)
		}
		return order.AppendUint32(b, uint32(v))
	}
	b := append(m.ident(), make([]byte, elf.EI_NIDENT-elf.EI_OSABI)...)
	b = order.AppendUint16(b, uint16(elf.ET_EXEC))
	b = order.AppendUint16(b, m.elf)
	b = order.AppendUint32(b, 1)
	b = word(b, uint64(loadAddress+header+segment))
	b = word(b, uint64(header)) // of segments
	b = word(b, 0)              // of sections
	b = order.AppendUint32(b, m.flags)
	for _, v := range []uint16{uint16(header), uint16(segment), 1, 0, 0, 0} {
		b = order.AppendUint16(b, v)
	}
	const readAndExecute = uint32(elf.PF_R | elf.PF_X)
	b = order.AppendUint32(b, uint32(elf.PT_LOAD))
	if m.wide {
		b = order.AppendUint32(b, readAndExecute)
	}
	b = word(b, 0)
	b = word(b, loadAddress)
	b = word(b, loadAddress)
	b = word(b, total)
	b = word(b, total)
	if !m.wide {
		b = order.AppendUint32(b, readAndExecute)
	}
	b = word(b, 0x1000)
	return append(b, m.code...)
}

// Where an ELF file says what it is (Tool Interface Standard, ELF header).
const (
	typeAt    = 16
	machineAt = 18
)

// Magic returns what the programs of an architecture begin with, and which bits of it count: what the kernel's own loader looks at.
// It ignores the ABI and the padding after it, and takes programs at fixed addresses (2) and those that can be moved (3).
func Magic(arch string) (magic, mask []byte) {
	m, ok := machines[arch]
	if !ok {
		return nil, nil
	}
	ident, order := m.ident(), m.order()
	magic, mask = make([]byte, machineAt+2), make([]byte, machineAt+2)
	copy(magic, ident)
	copy(mask, bytes.Repeat([]byte{0xff}, len(ident)))
	order.PutUint16(magic[typeAt:], uint16(elf.ET_EXEC))
	order.PutUint16(mask[typeAt:], 0xfffe)
	order.PutUint16(magic[machineAt:], m.elf)
	order.PutUint16(mask[machineAt:], 0xffff)
	return magic, mask
}

// ArchOfProgram tells the architecture of a program by its beginning; "" when it is no ELF file or not of a known one.
func ArchOfProgram(head []byte) string {
	for arch := range machines {
		if magic, mask := Magic(arch); matches(head, magic, mask) {
			return arch
		}
	}
	return ""
}

// IsELF reports whether a file that begins with head is a program in the form that every machine's has.
func IsELF(head []byte) bool {
	return len(head) >= machineAt+2 && bytes.HasPrefix(head, []byte(elf.ELFMAG))
}

func matches(head, magic, mask []byte) bool {
	if len(head) < len(magic) {
		return false
	}
	for i := range magic {
		if (head[i]^magic[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

var tried sync.Map // of architecture to func() bool

// Executes reports whether this machine executes programs of an architecture, itself or through an emulator that is registered
// with binfmt_misc. It finds out by trying, once for each. An emulator that was registered without the flag F does so here and may
// still do nothing in the root file system of an image.
func Executes(arch string) bool {
	try, _ := tried.LoadOrStore(arch, sync.OnceValue(func() bool {
		m, ok := machines[arch]
		return ok && m.executes()
	}))
	return try.(func() bool)()
}

func (m machine) executes() bool {
	fd, err := unix.MemfdCreate("build-probe", unix.MFD_CLOEXEC)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "build-probe")
	defer f.Close()
	if _, err := f.Write(m.program()); err != nil {
		return false
	}
	// Opened again without the right to write: a file that is open for writing is not executed.
	r, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return false
	}
	defer r.Close()
	f.Close()
	cmd := exec.Command("/proc/self/fd/3", "an argument")
	cmd.ExtraFiles = []*os.File{r}
	_ = cmd.Run() // how it ended is what counts
	return cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == len(cmd.Args)
}
