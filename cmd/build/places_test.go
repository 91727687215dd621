package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/testenv"
)

// place is somewhere people run a builder.
type place struct {
	name string
	rung string // what the one line about isolation must say
	// One of these at most: a user of this machine, root of a user namespace on it, or a container.
	user      string // "" is root
	podUser   bool   // ids 0 to 65535 are others outside
	container *testenv.Container
	storeIn   string // in a container: "" is a volume, otherwise a directory of the container's own root
	flags     []string
}

// noHelpers is PATH without the helpers that give ordinary users ids.
const noHelpers = "/nowhere"

func places() []place {
	unconfined := func(c testenv.Container) *testenv.Container { c.SeccompUnconfined = true; return &c }
	user := testenv.Container{UID: 1000, GID: 1000, NoNewPrivileges: true}
	return []place{
		{name: "root", rung: "rung 0: namespaces of root, overlay"},
		{name: "root-tree", rung: "rung 0: namespaces of root, a private tree", flags: []string{"--isolation=tree"}},
		{name: "pod-without-host-users", rung: "rung 0: namespaces of root, overlay", podUser: true},
		{name: "user-range", rung: "rung 0: user namespace with a range of ids, overlay", user: testenv.UserWithRange},
		{name: "user-single", rung: "rung 1: user namespace with a single id, overlay", user: testenv.UserWithoutRange},
		{name: "docker-root", rung: "rung 2: chroot", container: &testenv.Container{}},
		{
			name: "docker-unconfined-root", rung: "rung 0: user namespace with a range of ids, without a pid namespace, overlay",
			container: unconfined(testenv.Container{}),
		},
		{
			name: "docker-unconfined-1000", rung: "rung 1: user namespace with a single id, without a pid namespace, overlay",
			container: unconfined(user),
		},
		{
			name: "docker-unconfined-1000-own-root", storeIn: "/tmp",
			rung: "rung 1: user namespace with a single id, without a pid namespace, a private tree", container: unconfined(user),
		},
		{
			name: "machine-from-an-image-1000", storeIn: "/tmp", // files there show other device numbers than directories
			rung:      "rung 1: user namespace with a single id, without a pid namespace, a private tree",
			container: unconfined(testenv.Container{UID: 1000, GID: 1000, RootInMemory: true}),
		},
		{
			name: "docker-unmasked-1000", rung: "rung 1: user namespace with a single id, overlay",
			container: &testenv.Container{UID: 1000, GID: 1000, SeccompUnconfined: true, ProcUnmasked: true},
		},
		{name: "kubernetes-baseline", rung: "rung 2: chroot", container: &testenv.Container{ReadOnlyRoot: true, Tmpfs: []string{"/tmp"}}},
	}
}

// TestPlaces builds one Dockerfile in every place and compares what its layers hold, entry by entry.
func TestPlaces(t *testing.T) {
	if testing.Short() {
		t.Skip("installs packages from the network, once in every place")
	}
	testenv.Root(t)
	w := newPlaceWorld(t)
	var want []map[string]string
	var first time.Duration // -parallel 1 makes the times comparable
	for i, p := range places() {
		t.Run(p.name, func(t *testing.T) {
			if i > 0 {
				t.Parallel()
			}
			began := time.Now()
			r := w.run(t, p, p.name, "Dockerfile")
			took := time.Since(began)
			if r.Code != 0 {
				t.Fatalf("exit code %d\n%s", r.Code, r.Stderr)
			}
			if i == 0 {
				first = took
			}
			t.Logf("%s; %.1f s, %.2f times the first place", isolationLine(r.Stderr), took.Seconds(), took.Seconds()/first.Seconds())
			if !strings.Contains(r.Stderr, p.rung) {
				t.Errorf("not on %q:\n%s", p.rung, isolationLine(r.Stderr))
			}
			got := layersOf(t, w.image(p))
			if i == 0 {
				want = got
			}
			compareLayers(t, got, want)
		})
	}
}

// TestPlacesWithoutRun: where nothing can isolate a command, everything else builds, and a RUN is refused before anything is read.
func TestPlacesWithoutRun(t *testing.T) {
	testenv.Root(t)
	w := newPlaceWorld(t)
	for name, c := range map[string]testenv.Container{
		"docker-1000":           {UID: 1000, GID: 1000},
		"kubernetes-restricted": {UID: 1000, GID: 1000, NoNewPrivileges: true, NoCaps: true, ReadOnlyRoot: true, Tmpfs: []string{"/tmp"}},
		"random-uid":            {UID: 1002310000, NoNewPrivileges: true, NoCaps: true, Env: []string{"HOME=/"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := place{container: &c}
			r := w.run(t, p, name, "Dockerfile.norun")
			if r.Code != 0 {
				t.Errorf("without RUN: exit code %d\n%s", r.Code, r.Stderr)
			}
			r = w.run(t, p, name, "Dockerfile")
			if r.Code != 6 {
				t.Errorf("with RUN: exit code %d, want 6\n%s", r.Code, r.Stderr)
			}
			for _, word := range []string{"Dockerfile:3:1", "user namespace", "seccomp", "Kubernetes:", "Docker:"} {
				if !strings.Contains(r.Stderr, word) {
					t.Errorf("%q is missing in:\n%s", word, r.Stderr)
				}
			}
			if strings.Contains(r.Stderr, "sha256:") {
				t.Errorf("something was fetched first:\n%s", r.Stderr)
			}
		})
	}
}

// placeWorld is what all places see: the program, the context and the base image, and a volume of their own.
type placeWorld struct{ dir, program string }

func newPlaceWorld(t *testing.T) *placeWorld {
	t.Helper()
	testenv.Base(t, "debian")
	dir, err := os.MkdirTemp("", "build-places-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &placeWorld{dir: dir, program: filepath.Join(dir, "bin", "build")}
	// Not this test's binary, which may be built with the race detector: the program as people have it.
	cmd := exec.Command("go", "build", "-trimpath", "-o", w.program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := os.CopyFS(filepath.Join(dir, "context"), os.DirFS("../../testdata/places")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "debian"), os.DirFS(filepath.Join(testenv.CacheDir(), "debian"))); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("chmod", "-R", "a+rX", dir).Run(); err != nil {
		t.Fatal(err)
	}
	return w
}

// image is where a place leaves its image.
func (w *placeWorld) image(p place) string { return filepath.Join(w.dir, "volumes", p.name, "image") }

// run runs one build in a place.
func (w *placeWorld) run(t *testing.T, p place, volume, dockerfile string) testenv.Result {
	t.Helper()
	vol := filepath.Join(w.dir, "volumes", volume)
	at, in := vol, w.dir
	if p.container != nil {
		at, in = "/volume", "/places"
	}
	store := filepath.Join(at, "store")
	if p.storeIn != "" {
		store = p.storeIn + "/store"
	}
	argv := append([]string{
		in + "/bin/build", "--progress=plain", "--root=" + store,
		"--build-context", "debian:bookworm-slim=oci-layout://" + in + "/debian", "--secret", "id=token,src=" + in + "/context/token",
		"-f", in + "/context/" + dockerfile, "-o", "type=oci,tar=false,dest=" + filepath.Join(at, "image"),
	}, append(p.flags, in+"/context")...)
	uid, gid := 0, 0
	switch {
	case p.container != nil:
		uid, gid = int(p.container.UID), int(p.container.GID)
	case p.podUser:
		uid, gid = podIDs, podIDs
	case p.user != "":
		cred, _ := testenv.Credential(t, p.user)
		uid, gid = int(cred.Uid), int(cred.Gid)
	}
	if err := os.MkdirAll(vol, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(vol, uid, gid); err != nil {
		t.Fatal(err)
	}
	if p.container == nil {
		return p.onHost(t, argv)
	}
	c := *p.container
	c.Binds = []testenv.Bind{{Source: vol, Target: "/volume"}, {Source: w.dir, Target: "/places", ReadOnly: true}}
	if p.storeIn != "" {
		c.Tmpfs = nil
	}
	return c.Run(t, argv...)
}

// podIDs is where the ids of a pod with hostUsers: false begin.
const podIDs = 200000

func (p place) onHost(t *testing.T, argv []string) testenv.Result {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if p.user == testenv.UserWithoutRange {
		cmd.Env[0] = "PATH=" + noHelpers
	}
	for _, v := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if s, ok := os.LookupEnv(v); ok {
			cmd.Env = append(cmd.Env, v+"="+s)
		}
	}
	switch {
	case p.user != "":
		cred, _ := testenv.Credential(t, p.user)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	case p.podUser:
		ids := []syscall.SysProcIDMap{{HostID: podIDs, Size: 65536}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{}, // root inside
		}
	}
	var out, shown strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &shown
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return testenv.Result{Stdout: out.String(), Stderr: shown.String(), Code: cmd.ProcessState.ExitCode()}
}

func isolationLine(log string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "[internal] isolation: ") {
			return strings.TrimSpace(line)
		}
	}
	return "no line about isolation"
}

// layersOf reads the layers of an OCI layout: of each, what every path is, without times.
func layersOf(t *testing.T, layout string) []map[string]string {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	blob := func(d ocispec.Descriptor) string {
		return filepath.Join(layout, "blobs", string(d.Digest.Algorithm()), d.Digest.Encoded())
	}
	var manifest ocispec.Manifest
	readJSON(t, blob(index.Manifests[0]), &manifest)
	var out []map[string]string
	for _, l := range manifest.Layers {
		out = append(out, layerEntries(t, blob(l)))
	}
	return out
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func layerEntries(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatal(err)
		}
		var xattrs []string
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				xattrs = append(xattrs, fmt.Sprintf("%s=%q", k, h.PAXRecords[k]))
			}
		}
		out[h.Name] = fmt.Sprintf("%c %o %d:%d %d %q %d,%d %s %s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Linkname,
			h.Devmajor, h.Devminor, hex.EncodeToString(sum.Sum(nil)[:6]), strings.Join(xattrs, " "))
	}
}

func compareLayers(t *testing.T, got, want []map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d layers instead of %d", len(got), len(want))
	}
	for i := range want {
		all := maps.Clone(want[i])
		maps.Copy(all, got[i])
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if got[i][name] != want[i][name] {
				t.Errorf("layer %d: %s\n  is  %s\n  not %s", i, name, got[i][name], want[i][name])
			}
		}
	}
}
