// Package emulator finds programs that execute the programs of other machines, and says what can be known of them before they
// are used: which file emulates which architecture, whether it can work where nothing of this machine's file system is seen, which
// programs it is for, and what this machine has registered for them itself.
//
// Architectures are named as Go and images name them. The package registers nothing and runs nothing in a sandbox; package
// executor does. It refuses emulators that need other files, because a step sees the files of its image only.
package emulator

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Config says where emulators are looked for. The zero value has none.
type Config struct {
	Files map[string]string // by architecture: this file and no other
	Dirs  []string          // before Path
	Path  string            // as in $PATH; directories that are not absolute are left out
}

// Error says why a file cannot emulate.
type Error struct {
	Path string
	Why  string
	Err  error // what the kernel said; may be nil
}

func (e *Error) Error() string { return e.Path + ": " + e.Why }

// Unwrap returns what the kernel said.
func (e *Error) Unwrap() error { return e.Err }

// NotFoundError says that there is no emulator, and which files could have been one.
type NotFoundError struct {
	Arch     string
	Names    []string // that were looked for; none when the architecture is not known here
	Unusable []*Error
}

func (e *NotFoundError) Error() string {
	if len(e.Names) == 0 {
		return "no emulator of " + e.Arch + " is known"
	}
	if len(e.Unusable) == 0 {
		return "none of " + strings.Join(e.Names, ", ") + " was found"
	}
	var said []string
	for _, u := range e.Unusable {
		said = append(said, u.Error())
	}
	return strings.Join(said, "; ")
}

// Given reports whether somebody said which file emulates an architecture.
func (c Config) Given(arch string) bool { return c.Files[arch] != "" }

// Find returns the path of the emulator of an architecture, a file that can be used. The error is an *Error when the file that was
// given cannot be, else a *NotFoundError.
func (c Config) Find(arch string) (string, error) {
	if path := c.Files[arch]; path != "" {
		return path, check(path)
	}
	m, known := machines[arch]
	if !known {
		return "", &NotFoundError{Arch: arch}
	}
	missing := &NotFoundError{Arch: arch, Names: m.files()}
	for _, dir := range append(c.Dirs[:len(c.Dirs):len(c.Dirs)], filepath.SplitList(c.Path)...) {
		if !filepath.IsAbs(dir) {
			continue
		}
		for _, name := range missing.Names {
			path := filepath.Join(dir, name)
			err := check(path)
			if err == nil {
				return path, nil
			}
			var e *Error
			if errors.As(err, &e) && !errors.Is(err, fs.ErrNotExist) && !missing.lists(path) {
				missing.Unusable = append(missing.Unusable, e)
			}
		}
	}
	return "", missing
}

// lists reports whether the file a path leads to is known to be unusable already: /bin is a link to /usr/bin on most machines.
func (e *NotFoundError) lists(path string) bool {
	st, err := os.Stat(path)
	for _, u := range e.Unusable {
		if other, err2 := os.Stat(u.Path); err == nil && err2 == nil && os.SameFile(st, other) {
			return true
		}
	}
	return false
}

// files are the names under which distributions install an emulator. Debian, Ubuntu, Fedora and Arch say -static when it is;
// elsewhere the plain name may be either. The last is BuildKit's own.
func (m machine) files() []string {
	return []string{"qemu-" + m.qemu + "-static", "qemu-" + m.qemu, "buildkit-qemu-" + m.qemu}
}

// ArchOf tells the architecture an emulator is for by its file's name; "" when the name does not say.
func ArchOf(path string) string {
	name := filepath.Base(path)
	for arch, m := range machines {
		for _, known := range m.files() {
			if name == known {
				return arch
			}
		}
	}
	return ""
}

// Known returns an architecture's name in Go's spelling, given that or QEMU's; "" when it is not known here.
func Known(name string) string {
	if _, ok := machines[name]; ok {
		return name
	}
	for arch, m := range machines {
		if m.qemu == name {
			return arch
		}
	}
	return ""
}

// check finds out whether a file can be executed in a root file system that has nothing of this machine's: it must be a program
// for this machine that asks for no loader and no libraries. The kernel opens the emulator itself outside of that root, but looks
// for a loader in it.
func check(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return &Error{path, errors.Unwrap(err).Error(), err}
	}
	switch {
	case !st.Mode().IsRegular():
		return &Error{Path: path, Why: "it is no file"}
	case st.Mode().Perm()&0o111 == 0:
		return &Error{Path: path, Why: "it is not executable"}
	}
	f, err := elf.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return &Error{path, "permission denied", err}
		}
		return &Error{Path: path, Why: "it is no program but perhaps a script, which would have to be in the image"}
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return &Error{Path: path, Why: fmt.Sprintf("it is no program but %v", f.Type)}
	}
	if own := machines[runtime.GOARCH]; uint16(f.Machine) != own.elf || (f.Class == elf.ELFCLASS64) != own.wide {
		return &Error{Path: path, Why: fmt.Sprintf("it is a program for %v, not for this machine", f.Machine)}
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return &Error{Path: path, Why: "it is dynamically linked, and its libraries are not in the image; a statically linked one works"}
		}
	}
	return nil
}
