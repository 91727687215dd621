package emulator

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"build/internal/testenv"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// static is a statically linked program of this machine, to stand where an emulator would: what it does is not asked here.
func static(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(testenv.Tool(t, "busybox"))
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o755))
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	a, b := dir+"/a", dir+"/b"
	static(t, a+"/qemu-aarch64")
	static(t, b+"/qemu-aarch64-static")
	static(t, b+"/buildkit-qemu-riscv64")
	static(t, dir+"/own")
	t.Chdir(dir)
	for _, c := range []struct {
		config Config
		arch   string
		want   string
	}{
		{Config{Path: a + ":" + b}, "arm64", a + "/qemu-aarch64"},
		{Config{Path: b + ":" + a}, "arm64", b + "/qemu-aarch64-static"},
		{Config{Path: a, Dirs: []string{b}}, "arm64", b + "/qemu-aarch64-static"},
		{Config{Path: a, Dirs: []string{b}, Files: map[string]string{"arm64": dir + "/own"}}, "arm64", dir + "/own"},
		{Config{Path: a, Files: map[string]string{"arm": dir + "/own"}}, "arm64", a + "/qemu-aarch64"},
		{Config{Path: "::" + b}, "riscv64", b + "/buildkit-qemu-riscv64"},
		{Config{Path: "a:b:."}, "arm64", ""}, // a directory of whoever called is no place for programs
		{Config{Path: a}, "riscv64", ""},
		{Config{Path: a}, "pdp11", ""},
		{Config{}, "arm64", ""},
		{Config{Path: a, Files: map[string]string{"arm64": dir + "/missing"}}, "arm64", ""}, // and no other
	} {
		got, err := c.config.Find(c.arch)
		if c.want == "" && err == nil || c.want != "" && (err != nil || got != c.want) {
			t.Errorf("%+v: %s: %s %v, want %q", c.config, c.arch, got, err, c.want)
		}
	}
	_, err := Config{Files: map[string]string{"arm64": dir + "/missing"}}.Find("arm64")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/qemu-aarch64"
	other := Program("s390x")
	for why, make := range map[string]func() error{
		"dynamically linked": func() error { return exec.Command("cp", "/bin/ls", path).Run() },
		"a script":           func() error { return os.WriteFile(path, []byte("#!/bin/sh\nexec true\n"), 0o755) },
		"not executable":     func() error { return os.WriteFile(path, Program(runtime.GOARCH), 0o644) },
		"not for this":       func() error { return os.WriteFile(path, other, 0o755) },
		"no file":            func() error { return os.Mkdir(path, 0o755) },
		"no such file":       func() error { return os.Symlink("nowhere", path) },
	} {
		must(t, os.RemoveAll(path))
		must(t, make())
		var e *Error
		if err := check(path); !errors.As(err, &e) || !strings.Contains(err.Error(), why) || e.Path != path {
			t.Errorf("%s: %v", why, err)
		}
		if _, err := (Config{Path: dir}).Find("arm64"); err == nil || !strings.Contains(err.Error(), why) && why != "no such file" {
			t.Errorf("%s: %v", why, err)
		}
	}
	// The same file under two names is told of once.
	must(t, os.RemoveAll(path))
	must(t, exec.Command("cp", "/bin/ls", path).Run())
	must(t, os.Symlink(dir, dir+"/link"))
	var missing *NotFoundError
	if _, err := (Config{Path: dir + ":" + dir + "/link"}).Find("arm64"); !errors.As(err, &missing) || len(missing.Unusable) != 1 {
		t.Errorf("%v", err)
	}
}

func TestNames(t *testing.T) {
	for path, want := range map[string]string{
		"/usr/bin/qemu-aarch64-static": "arm64", "qemu-i386": "386", "/x/buildkit-qemu-ppc64le": "ppc64le", "qemu-mips64el-static": "mips64le",
		"qemu-arm-static": "arm", "qemu-armeb-static": "", "qemu-system-arm": "", "aarch64": "",
	} {
		if got := ArchOf(path); got != want {
			t.Errorf("%s is for %q, want %q", path, got, want)
		}
	}
	for name, want := range map[string]string{"arm64": "arm64", "aarch64": "arm64", "x86_64": "amd64", "loongarch64": "loong64", "vax": ""} {
		if got := Known(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if all := Architectures(); !slices.IsSorted(all) || !slices.Contains(all, "s390x") {
		t.Errorf("%q", all)
	}
}

// What is registered matches the programs of one machine and of no other, at fixed addresses and not, whatever the ABI.
func TestMagic(t *testing.T) {
	for _, arch := range Architectures() {
		magic, mask := Magic(arch)
		for _, other := range Architectures() {
			if got := matches(Program(other), magic, mask); got != (arch == other) {
				t.Errorf("a program for %s is taken for one for %s: %v", other, arch, got)
			}
		}
		moved := Program(arch)
		moved[7], moved[8] = 3, 'A' // Linux, and an AppImage
		if at := typeAt; machines[arch].big {
			moved[at+1] = 3
		} else {
			moved[at] = 3
		}
		if !matches(moved, magic, mask) {
			t.Errorf("a program for %s that can be moved is not recognised", arch)
		}
		if moved[4] = 9; matches(moved, magic, mask) || ArchOfProgram(moved) != "" {
			t.Errorf("%s: any class will do", arch)
		}
	}
	if magic, _ := Magic("pdp11"); magic != nil || ArchOfProgram([]byte("#!/bin/sh")) != "" || IsELF([]byte("\x7fELF")) {
		t.Error("unknown things are known")
	}
}

func TestRegistered(t *testing.T) {
	dir := t.TempDir()
	entry := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	const magic = "magic 7f454c460201010000000000000000000200b700"
	const mask = "mask ffffffffffffff00fffffffffffffffffeffffff"
	write := func(name, text string) { must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)) }
	write("status", "enabled\n")
	write("register", "")
	write("python", entry("enabled", "interpreter /usr/bin/python3", "flags: ", "offset 0", "magic 550d0d0a"))
	write("jar", entry("enabled", "interpreter /usr/bin/jexec", "flags: ", "extension .jar"))
	write("qemu-off", entry("disabled", "interpreter /off", "flags: F", "offset 0", magic, mask))
	if r, ok := registered(dir, "arm64"); ok {
		t.Errorf("%+v", r)
	}
	write("qemu-on", entry("enabled", "interpreter /usr/bin/qemu aarch64", "flags: POCF", "offset 0", magic, mask))
	if r, ok := registered(dir, "arm64"); !ok || r != (Registration{"qemu-on", "/usr/bin/qemu aarch64", true}) {
		t.Errorf("%+v %v", r, ok)
	}
	if r, ok := registered(dir, "arm"); ok {
		t.Errorf("%+v", r)
	}
	write("qemu-on", entry("enabled", "interpreter /q", "flags: OC", "offset 0", magic, mask))
	if r, ok := registered(dir, "arm64"); !ok || r.Fixed {
		t.Errorf("%+v %v", r, ok)
	}
	write("status", "disabled\n")
	if r, ok := registered(dir, "arm64"); ok {
		t.Errorf("all are disabled: %+v", r)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add("enabled\ninterpreter /q\nflags: F\noffset 0\nmagic 7f\nmask ff\n")
	f.Add("enabled\noffset -1\nmagic 7f4")
	f.Add("enabled\noffset 99999\nmagic 7f45\nmask ff")
	program := Program("arm64")
	f.Fuzz(func(t *testing.T, text string) {
		if _, ok := parseEntry(text, program); ok && !bytes.Contains([]byte(text), []byte("enabled")) {
			t.Error("an entry that is not enabled")
		}
	})
}
