// Package testenv tells tests what the machine they run on offers, and makes a skip honest: `make test` prepares the
// machine and sets BUILD_TEST_REQUIRE=1, and from then on a test that skips for want of something the preparation was to
// bring fails instead. It is imported by tests only.
//
// What cannot be brought about is a different identity: a test for root skips under a user and the other way round,
// required or not, because `make test` runs both passes.
package testenv

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The environment variables that `make test` sets.
const (
	RequireVar = "BUILD_TEST_REQUIRE" // not empty: what is missing is a failure
	CacheVar   = "BUILD_TEST_CACHE"   // where testdata/setup left the base images
)

// defaultCache is where testdata/setup/bases.sh puts the base images unless told otherwise.
const defaultCache = "/var/cache/build-test"

// The unprivileged users that testdata/setup/users.sh makes.
const (
	UserWithRange    = "buildtest"  // has a range of subordinate ids
	UserWithoutRange = "buildtest0" // has none
)

// Required reports whether a missing requirement is a failure.
func Required() bool { return os.Getenv(RequireVar) != "" }

// Skip ends the test because what it needs is not here: as skipped, or as failed when everything was to be here.
func Skip(t testing.TB, missing string) {
	t.Helper()
	if Required() {
		t.Fatalf("missing: %s (%s is set, so this is a failure: see testdata/setup)", missing, RequireVar)
	}
	t.Skipf("missing: %s (make test sets it up)", missing)
}

// Device opens what the kernel offers under /dev. Nothing can bring it to a machine that lacks it, so a test that needs it skips
// there, required or not; the file is closed at the test's end.
func Device(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	for _, lacks := range []error{syscall.ENOENT, syscall.ENODEV, syscall.ENXIO, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, lacks) {
			t.Skipf("missing: %v (the machine's kernel does not offer it)", err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Root skips a test that only root can run.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("for root; the other pass of make test runs it")
	}
}

// NotRoot skips a test that only an ordinary user can run.
func NotRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("for an unprivileged user; the other pass of make test runs it")
	}
}

// Tool returns the path of a program, and skips when it is not on PATH.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "program "+name)
	}
	return path
}

// Base returns the directory of the OCI layout of a prepared base image ("busybox" or "debian", tag "latest").
func Base(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(CacheDir(), name)
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		Skip(t, "base image "+dir)
	}
	return stored(t, dir)
}

// CacheDir returns the directory that holds the prepared base images.
func CacheDir() string {
	if dir := os.Getenv(CacheVar); dir != "" {
		return dir
	}
	return defaultCache
}

// Credential returns what to put into SysProcAttr to run a program as one of the prepared users. Only root can.
func Credential(t testing.TB, name string) (*syscall.Credential, *user.User) {
	t.Helper()
	Root(t)
	u, err := user.Lookup(name)
	if err != nil {
		Skip(t, "user "+name)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatalf("uid of %s: %v", name, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatalf("gid of %s: %v", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, u
}

// HasRange reports whether the calling user has subordinate ids, which decides the kind of namespace a build gets.
func HasRange(t testing.TB) bool {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatalf("current user: %v", err)
	}
	data, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		owner, _, _ := strings.Cut(line, ":")
		if owner == u.Username || owner == u.Uid {
			return true
		}
	}
	return false
}
