package main

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"build/internal/build"
)

func TestEmulatorFlag(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("written for amd64")
	}
	dir := t.TempDir()
	t.Chdir(dir)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir("emulators", 0o755))
	must(os.WriteFile("emulators/tool", nil, 0o755))
	files := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	path := dir + "/emulators:/usr/bin"
	for _, c := range []struct {
		args []string
		env  string
		want build.Emulators
	}{
		{nil, "", build.Emulators{Files: files()}},
		{[]string{"--emulator", "arm64=/q"}, "", build.Emulators{Files: files("arm64", "/q")}},
		{[]string{"--emulator", "linux/arm/v7=q/x", "--emulator=aarch64=../y"}, "", build.Emulators{Files: files("arm", dir+"/q/x", "arm64", filepath.Dir(dir)+"/y")}},
		{[]string{"--emulator", "arm/v6=/v6", "--emulator", "mips64el=/m", "--emulator", "i386=/i"}, "", build.Emulators{Files: files("arm", "/v6", "mips64le", "/m", "386", "/i")}},
		{[]string{"--emulator", "/opt/qemu-s390x-static"}, "", build.Emulators{Files: files("s390x", "/opt/qemu-s390x-static")}},
		{[]string{"--emulator", "riscv64=tool"}, "", build.Emulators{Files: files("riscv64", dir+"/emulators/tool")}},
		{[]string{"--emulator", "emulators"}, "arm=/not", build.Emulators{Files: files(), Dirs: []string{dir + "/emulators"}}},
		{nil, "arm=/a, emulators,qemu-aarch64", build.Emulators{Files: files("arm", "/a", "arm64", dir+"/qemu-aarch64"), Dirs: []string{dir + "/emulators"}}},
		{[]string{"--emulator", "arm=/first", "--emulator", "arm=/last"}, "", build.Emulators{Files: files("arm", "/last")}},
	} {
		o, _, err := parse(t, map[string]string{"HOME": "/h", "PATH": path, "BUILD_EMULATOR": c.env}, append(c.args, ".")...)
		c.want.Path = path
		if err != nil || !reflect.DeepEqual(o.Emulators, c.want) {
			t.Errorf("%q %q: %+v (%v), want %+v", c.args, c.env, o.Emulators, err, c.want)
		}
	}
	for value, words := range map[string][]string{
		"arm64=":          {"[ARCH=]PATH"},
		"":                {"[ARCH=]PATH"},
		"=/q":             {"unknown architecture"},
		"vax=/q":          {"unknown architecture", "vax", "riscv64"},
		"/q":              {"does not say which machine", "ARCH="},
		"amd64=/q":        {"itself"},
		"qemu-x86_64":     {"itself"},
		"windows/arm=/q":  {"unknown architecture"},
		"linux/arm/v7/=/": {"unknown architecture"},
	} {
		_, _, err := parse(t, map[string]string{"HOME": "/h"}, "--emulator", value, ".")
		wantUsage(t, err, append(words, "--emulator")...)
	}
	_, _, err := parse(t, map[string]string{"HOME": "/h", "BUILD_EMULATOR": "vax=/q"}, ".")
	wantUsage(t, err, "BUILD_EMULATOR")
}
