package snapshot

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"build/internal/tree"
)

// insideVar tells the re-executed test binary that it is in the namespace, and where its store is.
const insideVar = "SNAPSHOT_TEST_STORE"

// TestUserNamespace runs TestInsideUserNamespace in a user namespace with a range of ids, as a holder does for an ordinary
// user: no devices, no trusted attributes, no ids above the range.
func TestUserNamespace(t *testing.T) {
	needRoot(t)
	const first, count = 300000, 65536
	root := t.TempDir()
	for dir := root; dir != "/" && strings.HasPrefix(dir, os.TempDir()+"/"); dir = dir[:strings.LastIndexByte(dir, '/')] {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(root, first, first); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	self := root + "/test"
	if err := copyFile(self, exe); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestInsideUserNamespace$", "-test.v")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), insideVar+"="+root+"/store", "TMPDIR="+root)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: count}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Skipf("missing: a user namespace: %v", err)
	}
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInsideUserNamespace") {
		t.Errorf("in the namespace: %v", err)
	}
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// TestInsideUserNamespace is the part of TestUserNamespace that runs inside.
func TestInsideUserNamespace(t *testing.T) {
	root := os.Getenv(insideVar)
	if root == "" {
		t.Skip("run by TestUserNamespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	l := openLayers(t, root)
	dev := tarEntry{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666}, ""}
	far := tFile("far", "x")
	far.Uid, far.Gid, far.Mode = 100000, 5, 0o6755
	cap := tFile("ping", "elf")
	cap.PAXRecords = map[string]string{xattrRecord + capabilityXattr: capability(2)}
	base := importTar(t, l, tarOf(t, tDir("dev"), dev, far, cap, tDir("d"), tFile("d/x", "x"), tFile("gone", "x")))

	dir, err := l.Unpack(t.Context(), []digest.Digest{base}, 0)
	if err != nil {
		t.Fatal(err)
	}
	checkRecorded(t, l, base, dir)

	var seen string
	layer := change(t, l, []digest.Digest{base}, func(root string) {
		sh(t, root, `umask 022; chmod 600 dev/null; rm gone; rm -r d; mkdir d; echo hi > d/y; chown 33:44 d/y; touch ping2`)
		if err := unix.Setxattr(root+"/ping2", capabilityXattr, []byte(capability(2)), 0); err != nil {
			t.Fatal(err)
		}
		seen = dumpDir(t, root, true)
	})
	want := `"d" directory 0755 0:0 opaque
"d/y" file 0644 33:44 3 98ea6e4f
"dev" directory 0755 0:0
"dev/null" character device 0600 0:0 1,3
"gone" whiteout
"ping2" file 0644 0:0 0 e3b0c442 security.capability=` + quoted(capability(2)) + "\n"
	if got := dump(t, l, layer.DiffID); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := merged(t, l, []digest.Digest{base, layer.DiffID}); got != seen {
		t.Errorf("the committed directory shows\n%s\nwhile the command saw\n%s", got, seen)
	}
	path, report, err := applyTar(t.Context(), t, readTar(t, l, layer.DiffID))
	if err != nil || report.Placeholders != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if got := dumpDir(t, path, false); !strings.Contains(got, `"gone" whiteout`) || !strings.Contains(got, `"d" directory 0755 0:0 opaque`) {
		t.Errorf("applied:\n%s", got)
	}
}

// checkRecorded looks at what the disk could not hold: it is in the index, and the disk has something harmless.
func checkRecorded(t *testing.T, l *Layers, base digest.Digest, dir string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(dir+"/dev/null", &st); err != nil || st.Mode != unix.S_IFREG|0o666 || st.Size != 0 {
		t.Errorf("placeholder: mode %o, %v", st.Mode, err)
	}
	if err := unix.Lstat(dir+"/far", &st); err != nil || st.Mode != unix.S_IFREG|0o6755 || st.Uid != 65535 || st.Gid != 5 {
		t.Errorf("unmapped owner: mode %o, %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	x, err := l.Index(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	e, ok, err := x.Lookup("far")
	if err != nil || !ok || e.UID != 100000 || e.Mode != 0o6755 {
		t.Errorf("index: %+v, %v", e, err)
	}
	if e, ok, err = x.Lookup("dev/null"); err != nil || !ok || e.Type != tree.Char || e.Minor != 3 {
		t.Errorf("index: %+v, %v", e, err)
	}
	b := make([]byte, 64)
	n, err := unix.Getxattr(dir+"/ping", capabilityXattr, b)
	if err != nil || !bytes.Equal(b[:n], []byte(capability(2))) {
		t.Errorf("capability %x, %v", b[:n], err)
	}
}
