package build

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// The programs are what the kernel and emulators take them for.
func TestSmallestPrograms(t *testing.T) {
	emulators := map[string]string{"amd64": "x86_64", "386": "i386", "arm64": "aarch64", "loong64": "loongarch64"}
	for arch, m := range machines {
		f, err := elf.NewFile(bytes.NewReader(m.program()))
		if err != nil {
			t.Errorf("%s: %v", arch, err)
			continue
		}
		text := make([]byte, len(m.code))
		if _, err := f.Progs[0].ReadAt(text, int64(f.Entry-f.Progs[0].Vaddr)); err != nil || !bytes.Equal(text, m.code) || uint16(f.Machine) != m.elf {
			t.Errorf("%s: machine %v, entry %x: % x (%v)", arch, f.Machine, f.Entry, text, err)
		}
		name, ok := emulators[arch]
		if !ok {
			name = arch
		}
		qemu, err := exec.LookPath("qemu-" + name + "-static")
		if err != nil {
			continue // nothing here can execute it
		}
		file := filepath.Join(t.TempDir(), arch)
		if err := os.WriteFile(file, m.program(), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(qemu, file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", arch, err, out)
		}
	}
}

func TestExecutes(t *testing.T) {
	if !executesArch(runtime.GOARCH) {
		t.Errorf("this machine does not execute its own programs for %s", runtime.GOARCH)
	}
	if executesArch("pdp11") {
		t.Error("an architecture nobody knows")
	}
	for arch := range machines {
		t.Logf("%s: %v", arch, executesArch(arch))
	}
}
