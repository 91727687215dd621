package emulator

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// The programs are what the kernel and emulators take them for.
func TestSmallestPrograms(t *testing.T) {
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
		if got := ArchOfProgram(m.program()); got != arch {
			t.Errorf("the program for %s is taken for one for %q", arch, got)
		}
		qemu, err := Config{Path: os.Getenv("PATH")}.Find(arch)
		if err != nil {
			continue // nothing here can execute it
		}
		file := filepath.Join(t.TempDir(), arch)
		if err := os.WriteFile(file, m.program(), 0o755); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			err := exec.Command(qemu, append([]string{file}, make([]string, n)...)...).Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != n+1 {
				t.Errorf("%s under %s with %d arguments: %v", arch, qemu, n, err)
			}
		}
	}
}

func TestExecutes(t *testing.T) {
	if !Executes(runtime.GOARCH) {
		t.Errorf("this machine does not execute its own programs for %s", runtime.GOARCH)
	}
	if Executes("pdp11") {
		t.Error("an architecture nobody knows")
	}
	for arch := range machines {
		t.Logf("%s: %v", arch, Executes(arch))
	}
}
