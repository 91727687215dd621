package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"build/executor"
	"build/internal/emulator"
	"build/internal/testenv"
)

var linuxARM64 = platforms.MustParse("linux/arm64")

// emulators lets a build find those of the set-up.
func emulators(t testing.TB) mod {
	t.Helper()
	dir := testenv.Emulators(t)
	return func(o *Options) { o.Emulators.Dirs = []string{dir} }
}

// armBase offers the image "arm".
func armBase(t testing.TB) mod {
	t.Helper()
	return named("arm", "oci-layout://"+testenv.Base(t, "busybox-arm64"))
}

// needTable skips where a step cannot have emulators of its own.
func needTable(t testing.TB, w *world) {
	t.Helper()
	needIDs(t)
	d, err := Doctor(t.Context(), StoreOptions{Root: w.tmp + "/doctor"}, Isolation{}, Emulators{})
	must(t, err)
	for _, f := range d.Primitives {
		if f.Name == executor.EmulationCheck && !f.OK {
			t.Skipf("missing: %s: %s %s", f.Name, f.Blocker, f.Fix)
		}
	}
}

func (r *recorder) told(word string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.messages {
		if strings.Contains(m, word) {
			n++
		}
	}
	return n
}

func TestEmulatedRun(t *testing.T) {
	w := newWorld(t)
	needTable(t, w)
	if emulator.Executes("arm64") {
		t.Skip("this machine executes programs for arm64 already")
	}
	dockerfile := from(`
		FROM --platform=$BUILDPLATFORM base AS tools
		RUN uname -m > /native
		FROM arm
		ARG TARGETARCH
		RUN uname -m > /m && echo $TARGETARCH >> /m && chown 5:77 /m
		USER 1000:1000
		RUN id -u > /tmp/u
		COPY --from=tools /native /native
	`)
	armed, arm := platformsOfBuild(linuxARM64), armBase(t)
	archive := output(Output{Type: OutputOCI, Dest: w.tmp + "/oci", OCIMediaTypes: true})
	res, rec := w.ok(dockerfile, armed, arm, emulators(t), archive)
	if n := rec.told("emulated: programs for linux/arm64 are executed by " + testenv.Emulators(t)); n != 2 {
		t.Errorf("told %d times that a step is emulated: %q", n, rec.messages)
	}
	dir, rec := w.out(dockerfile, armed, arm)
	has(t, dir+"/m", "aarch64\narm64\n")
	has(t, dir+"/tmp/u", "1000\n")
	has(t, dir+"/native", map[string]string{"amd64": "x86_64\n", "arm64": "aarch64\n"}[hostPlatform().Architecture])
	// Without any emulator, and with the same one elsewhere: what stands in for a machine is in no key.
	wantRan(t, "again, without an emulator", rec)
	other := w.tmp + "/other-emulator"
	must(t, exec.Command("cp", testenv.Emulators(t)+"/qemu-aarch64-static", other).Run())
	again, rec := w.ok(dockerfile, armed, arm, archive, func(o *Options) { o.Emulators.Files = map[string]string{"arm64": other} })
	wantRan(t, "again, with another emulator", rec)
	if again.Digest != res.Digest {
		t.Errorf("%s and then %s", res.Digest, again.Digest)
	}
	// Nor is anything of it in the image.
	if found := filesWith(t, dir, "qemu"); len(found) != 0 {
		t.Errorf("of the emulator, the image has %q", found)
	}
}

// filesWith lists files below dir whose name has a word.
func filesWith(t *testing.T, dir, word string) (found []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(p), word) {
			found = append(found, p)
		}
		return nil
	}))
	return found
}

// One index of two machines, with the same RUN on both.
func TestEmulatedPlatforms(t *testing.T) {
	w := newWorld(t)
	needTable(t, w)
	layout := w.tmp + "/index"
	res, rec := w.ok(platformsOfBuild(platforms.MustParse("linux/amd64"), linuxARM64), emulators(t),
		named("both::linux/amd64", "oci-layout://"+testenv.Base(t, "busybox"), "both::linux/arm64", "oci-layout://"+testenv.Base(t, "busybox-arm64")),
		output(Output{Type: OutputOCI, Dest: layout, OCIMediaTypes: true}), from(`
			FROM both
			RUN echo "This is $(uname -m)." && uname -m > /m
		`))
	if res.Descriptor.MediaType != ocispec.MediaTypeImageIndex {
		t.Errorf("%v", res.Descriptor)
	}
	for _, m := range []string{"x86_64", "aarch64"} {
		if !strings.Contains(rec.log("RUN"), "This is "+m+".") {
			t.Errorf("no %s in %q", m, rec.log("RUN"))
		}
	}
}

// Every known machine's smallest program runs, on no base at all, and its exit code is the step's.
func TestEveryMachine(t *testing.T) {
	w := newWorld(t)
	needTable(t, w)
	for _, arch := range emulator.Architectures() {
		if _, err := (emulator.Config{Dirs: []string{testenv.Emulators(t)}}).Find(arch); err != nil && !emulator.Executes(arch) {
			t.Errorf("%s: %v", arch, err)
			continue
		}
		w.write("program", string(emulator.Program(arch)))
		w.fails(ExitStep, []string{"exit code: 3"}, emulators(t), platformsOfBuild(platforms.MustParse("linux/"+arch)), from(`
			FROM scratch
			COPY --chmod=755 program /bin/program
			RUN ["/bin/program", "a", "b"]
		`))
	}
}

// What cannot work is found out before anything is done, whatever else there is to do.
func TestNoEmulator(t *testing.T) {
	w := newWorld(t)
	needTable(t, w)
	if emulator.Executes("arm64") {
		t.Skip("this machine executes programs for arm64 already")
	}
	dir := w.tmp + "/bin"
	must(t, os.Mkdir(dir, 0o755))
	path := dir + "/qemu-aarch64-static"
	use := func(o *Options) { o.Emulators = Emulators{Path: "relative:" + dir} }
	given := func(o *Options) {
		o.Emulators = Emulators{Files: map[string]string{"arm64": path}, Dirs: []string{testenv.Emulators(t)}}
	}
	busybox := testenv.Tool(t, "busybox")
	for _, c := range []struct {
		name  string
		make  string
		words []string
		mods  []mod
	}{
		{"nothing", "true", []string{"qemu-aarch64-static, qemu-aarch64, buildkit-qemu-aarch64 was found"}, []mod{use}},
		{"dynamic", "cp /bin/ls " + path, []string{path, "dynamically linked"}, []mod{use, given}},
		{"script", "printf '#!/bin/sh\n' > " + path + "; chmod 755 " + path, []string{path, "script"}, []mod{use, given}},
		{"no emulator", "cp " + busybox + " " + path, []string{path, "exit code: 127"}, []mod{use, given}},
		{"no permission", "chmod 644 " + path, []string{path, "not executable"}, []mod{use, given}},
		{"for itself", "install -m 755 " + testenv.Emulators(t) + "/qemu-arm-static " + path, []string{path, "does not execute them"}, []mod{use, given}},
		{"not there", "rm " + path, []string{path, "no such file"}, []mod{given}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := exec.Command("sh", "-c", c.make).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, m := range c.mods {
				rec := newRecorder()
				_, err := Run(t.Context(), w.options(rec, platformsOfBuild(linuxARM64), armBase(t), m, from(`
					FROM --platform=$BUILDPLATFORM base AS build
					RUN echo must not run
					FROM arm
					COPY --from=build /etc/passwd /p
					RUN echo hi
					RUN echo again
				`)))
				w.failed(ExitEnvironment, append(c.words, "Dockerfile:5", "line 6", "linux/arm64", "--emulator arm64=PATH", "BUILDPLATFORM"), rec, err)
				if ran := rec.ran(); len(ran) != 0 {
					t.Errorf("ran %q", ran)
				}
			}
		})
	}
	// Not even for a key is anything fetched.
	p := newPlace(t)
	url := p.put(t, "f", "x")
	w.fails(ExitEnvironment, []string{"Dockerfile:3"}, online, platformsOfBuild(linuxARM64), armBase(t), from("FROM arm\nADD "+url+" /f\nRUN echo hi\n"))
	if p.sent["/f"] != 0 {
		t.Error("a build that cannot succeed has fetched something")
	}
	// Steps that run nothing need none.
	w.ok(platformsOfBuild(linuxARM64), armBase(t), from("FROM arm\nWORKDIR /x\nCOPY --from=base /etc/passwd /x/\nENV a=b\n"))
}

// machineVar makes this test binary another machine: one on which an emulator is registered with these flags. A user namespace has
// a table of its own, so nothing is registered on the real one.
const machineVar = "BUILD_TEST_MACHINE"

func TestRegisteredEmulator(t *testing.T) {
	if flags, ok := os.LookupEnv(machineVar); ok {
		onMachine(t, flags)
		return
	}
	testenv.Root(t)
	w := newWorld(t)
	needTable(t, w)
	before, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	must(t, err)
	for _, flags := range []string{"POCF", "P"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestRegisteredEmulator$", "-test.v="+fmt.Sprint(testing.Verbose()))
		cmd.Env = append(os.Environ(), machineVar+"="+flags)
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Errorf("flags %s: %v\n%s", flags, err, out)
		}
		t.Logf("flags %s:\n%s", flags, out)
	}
	after, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	must(t, err)
	if len(before) != len(after) {
		t.Errorf("the machine's own table was %v and is %v", before, after)
	}
}

func onMachine(t *testing.T, flags string) {
	must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	const table = "/proc/sys/fs/binfmt_misc"
	must(t, unix.Mount("binfmt_misc", table, "binfmt_misc", 0, ""))
	qemu := testenv.Emulators(t) + "/qemu-aarch64-static"
	var magic, mask strings.Builder
	for i, m := range [][]byte{first(emulator.Magic("arm64")), second(emulator.Magic("arm64"))} {
		for _, b := range m {
			fmt.Fprintf([]*strings.Builder{&magic, &mask}[i], `\x%02x`, b)
		}
	}
	must(t, os.WriteFile(table+"/register", []byte(":arm:M::"+magic.String()+":"+mask.String()+":"+qemu+":"+flags), 0))
	if !emulator.Executes("arm64") {
		t.Fatal("the registered emulator does not work")
	}
	w := newWorld(t)
	dockerfile, arm := from("FROM arm\nRUN uname -m\n"), platformsOfBuild(linuxARM64)
	if strings.Contains(flags, "F") {
		_, rec := w.ok(dockerfile, arm, armBase(t))
		if rec.told("executed by "+qemu+", which this machine has registered") != 1 {
			t.Errorf("%q", rec.messages)
		}
		// What the user names comes first, and is used even though another would do.
		other := w.tmp + "/qemu-aarch64-static"
		must(t, exec.Command("cp", qemu, other).Run())
		_, rec = w.ok(dockerfile, arm, armBase(t), noCache, func(o *Options) { o.Emulators.Files = map[string]string{"arm64": other} })
		if rec.told("executed by "+other) != 1 {
			t.Errorf("%q", rec.messages)
		}
		return
	}
	w.fails(ExitEnvironment, []string{"Dockerfile:2", qemu, "without the flag F"}, dockerfile, arm, armBase(t))
	w.ok(dockerfile, arm, armBase(t), emulators(t))
	// An image may bring what such a registration needs.
	data, err := os.ReadFile(qemu)
	must(t, err)
	w.write("qemu", string(data))
	image := w.tmp + "/brings"
	w.ok(from("FROM arm\nCOPY --chmod=755 qemu "+qemu+"\n"), arm, armBase(t), output(Output{Type: OutputOCI, Dest: image, OCIMediaTypes: true}))
	w.ok(from("FROM brings\nRUN uname -m\n"), arm, named("brings", "oci-layout://"+image))
}

func first(a, _ []byte) []byte  { return a }
func second(_, b []byte) []byte { return b }

// The doctor says which emulators a build would use, and which lie about without being of use.
func TestDoctorListsEmulators(t *testing.T) {
	w := newWorld(t)
	needIDs(t)
	dir := w.tmp + "/bin"
	must(t, os.Mkdir(dir, 0o755))
	must(t, exec.Command("cp", "/bin/ls", dir+"/qemu-s390x").Run())
	d, err := Doctor(t.Context(), StoreOptions{Root: w.tmp + "/doctor"}, Isolation{}, Emulators{
		Files: map[string]string{"arm64": testenv.Emulators(t) + "/qemu-aarch64-static"}, Path: dir,
	})
	must(t, err)
	by := map[string]Finding{}
	for _, f := range d.Emulators {
		by[f.Name] = f
	}
	if f := by["linux/arm64"]; !f.OK || !strings.Contains(f.Detail, "qemu-aarch64-static") && !emulator.Executes("arm64") {
		t.Errorf("%+v", f)
	}
	if f := by["linux/s390x"]; !emulator.Executes("s390x") && (f.OK || !strings.Contains(f.Detail, "dynamically linked")) {
		t.Errorf("%+v", f)
	}
	if _, ok := by["linux/"+hostPlatform().Architecture]; ok {
		t.Error("an emulator of this machine")
	}
	if _, err := json.Marshal(d); err != nil {
		t.Error(errors.Unwrap(err))
	}
}
