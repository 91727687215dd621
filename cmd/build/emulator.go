package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/platforms"

	"build/internal/build"
	"build/internal/emulator"
)

func (f *buildFlags) fillEmulators(a *app, o *build.Options) (err error) {
	o.Emulators, err = a.emulators(f.emulators)
	return err
}

// emulators reads --emulator, or the environment where there is none. Each value is ARCH=PATH, the PATH of a file whose name
// says what it emulates, or a directory. Whether a file can emulate is found out when a step needs it.
func (a *app) emulators(given []string) (build.Emulators, error) {
	where := "--emulator"
	if env := a.getenv("BUILD_EMULATOR"); len(given) == 0 && env != "" {
		given, where = strings.Split(env, ","), "BUILD_EMULATOR"
	}
	out := build.Emulators{Files: map[string]string{}, Path: a.getenv("PATH")}
	for _, s := range given {
		arch, path, named := strings.Cut(strings.TrimSpace(s), "=")
		if !named {
			arch, path = "", arch
		}
		if path == "" {
			return build.Emulators{}, usagef("invalid %s %q: the form is [ARCH=]PATH", where, s)
		}
		path, err := a.findFile(path)
		if err != nil {
			return build.Emulators{}, usagef("invalid %s %q: %v", where, s, err)
		}
		if st, err := os.Stat(path); !named && err == nil && st.IsDir() {
			out.Dirs = append(out.Dirs, path)
			continue
		}
		known := emulator.ArchOf(path)
		if named {
			known = parseArch(arch)
		}
		switch {
		case known == "" && !named:
			return build.Emulators{}, usagef("invalid %s %q: the name does not say which machine it emulates: write ARCH=%s, with ARCH one of %s", where, s, path, architectures())
		case known == "":
			return build.Emulators{}, usagef("invalid %s %q: unknown architecture %q; the choices are %s", where, s, arch, architectures())
		case known == runtime.GOARCH:
			return build.Emulators{}, usagef("invalid %s %q: this machine executes programs for %s itself", where, s, known)
		}
		out.Files[known] = path
	}
	return out, nil
}

// findFile makes a path absolute; a name without a slash is looked up as a command.
func (a *app) findFile(path string) (string, error) {
	if !strings.Contains(path, "/") {
		for _, dir := range filepath.SplitList(a.getenv("PATH")) {
			full := filepath.Join(dir, path)
			if st, err := os.Stat(full); filepath.IsAbs(full) && err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
				return full, nil
			}
		}
	}
	return filepath.Abs(path)
}

// parseArch reads an architecture as platforms have it, linux/arm/v7 and arm/v7 as well as arm, or as QEMU calls it.
func parseArch(s string) string {
	if arch := emulator.Known(s); arch != "" {
		return arch
	}
	p, err := platforms.Parse("linux/" + strings.TrimPrefix(s, "linux/"))
	if err != nil {
		return ""
	}
	return emulator.Known(platforms.Normalize(p).Architecture)
}

func architectures() string {
	var out []string
	for _, arch := range emulator.Architectures() {
		if arch != runtime.GOARCH {
			out = append(out, arch)
		}
	}
	return strings.Join(out, ", ")
}
