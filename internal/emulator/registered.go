package emulator

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// table is where the kernel shows the registrations of this machine, when somebody mounted it there.
const table = "/proc/sys/fs/binfmt_misc"

// Registration is an entry of binfmt_misc. The kernel documents its form in Documentation/admin-guide/binfmt-misc.rst.
type Registration struct {
	Name        string
	Interpreter string // path of the emulator when it was registered
	Fixed       bool   // flag F: opened then, and so the same in every root file system
}

// Registered returns the entry that executes programs of an architecture on this machine. There may be one that cannot be
// seen here: inside of a container, for instance.
func Registered(arch string) (Registration, bool) { return registered(table, arch) }

func registered(dir, arch string) (Registration, bool) {
	program := Program(arch)
	if status, err := os.ReadFile(filepath.Join(dir, "status")); program == nil || err != nil || string(bytes.TrimSpace(status)) != "enabled" {
		return Registration{}, false
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Registration{}, false
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		if r, ok := parseEntry(string(text), program); ok {
			r.Name = e.Name()
			return r, true
		}
	}
	return Registration{}, false
}

// parseEntry reads one entry and reports whether it is enabled and for the program.
func parseEntry(text string, program []byte) (r Registration, ok bool) {
	var magic, mask []byte
	offset, enabled := 0, false
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		var err error
		switch key {
		case "enabled":
			enabled = true
		case "interpreter":
			r.Interpreter = value
		case "flags:":
			r.Fixed = strings.Contains(value, "F")
		case "offset":
			offset, err = strconv.Atoi(value)
		case "magic":
			magic, err = hex.DecodeString(value)
		case "mask":
			mask, err = hex.DecodeString(value)
		}
		if err != nil {
			return r, false
		}
	}
	if mask == nil {
		mask = bytes.Repeat([]byte{0xff}, len(magic))
	}
	if !enabled || len(magic) == 0 || len(mask) != len(magic) || offset < 0 || offset > len(program) {
		return r, false
	}
	return r, matches(program[offset:], magic, mask)
}
