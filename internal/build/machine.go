package build

import (
	"encoding/binary"
	"os"
	"os/exec"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// This file is not in package executor, which a RUN passes through and which therefore must not need os/exec.

// machine describes the smallest program of an architecture: one that ends with 0.
type machine struct {
	elf   uint16 // e_machine
	wide  bool   // 64 bits
	big   bool   // big-endian
	flags uint32 // e_flags
	code  []byte // exit(0), in the order of bytes in memory
}

var machines = map[string]machine{
	"amd64":   {62, true, false, 0, []byte("\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05")},
	"386":     {3, false, false, 0, []byte("\x31\xdb\xb8\x01\x00\x00\x00\xcd\x80")},
	"arm64":   {183, true, false, 0, []byte("\x00\x00\x80\xd2\xa8\x0b\x80\xd2\x01\x00\x00\xd4")},
	"arm":     {40, false, false, 0x05000000, []byte("\x00\x00\xa0\xe3\x01\x70\xa0\xe3\x00\x00\x00\xef")},
	"riscv64": {243, true, false, 0, []byte("\x13\x05\x00\x00\x93\x08\xd0\x05\x73\x00\x00\x00")},
	"ppc64le": {21, true, false, 2, []byte("\x00\x00\x60\x38\x01\x00\x00\x38\x02\x00\x00\x44")},
	"s390x":   {22, true, true, 0, []byte("\xa7\x29\x00\x00\x0a\x01")},
	"loong64": {258, true, false, 0x43, []byte("\x04\x00\xc0\x02\x0b\x74\xc1\x02\x00\x00\x2b\x00")},
}

const loadAddress = 0x400000

// program writes the ELF file: a header, one segment that is the whole file, and the code.
func (m machine) program() []byte {
	var order binary.AppendByteOrder = binary.LittleEndian
	class, data := byte(1), byte(1)
	header, segment := 52, 32
	if m.big {
		order, data = binary.BigEndian, 2
	}
	if m.wide {
		class, header, segment = 2, 64, 56
	}
	total := uint64(header + segment + len(m.code))
	word := func(b []byte, v uint64) []byte { // an address, an offset or a size
		if m.wide {
			return order.AppendUint64(b, v)
		}
		return order.AppendUint32(b, uint32(v))
	}
	b := append([]byte("\x7fELF"), class, data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = order.AppendUint16(b, 2) // an executable that is not moved
	b = order.AppendUint16(b, m.elf)
	b = order.AppendUint32(b, 1)
	b = word(b, uint64(loadAddress+header+segment))
	b = word(b, uint64(header)) // of segments
	b = word(b, 0)              // of sections
	b = order.AppendUint32(b, m.flags)
	for _, v := range []uint16{uint16(header), uint16(segment), 1, 0, 0, 0} {
		b = order.AppendUint16(b, v)
	}
	const load, readAndExecute = 1, 5
	b = order.AppendUint32(b, load)
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

var tried sync.Map // of architecture to func() bool

// executesArch reports whether this machine executes programs of an architecture (in Go's spelling), itself or through an emulator
// that is registered with binfmt_misc. It finds out by trying, once for each.
func executesArch(arch string) bool {
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
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{r}
	return cmd.Run() == nil
}
