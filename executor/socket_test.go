package executor_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"build/executor"
)

// A socket is in memory, belongs to whom the Spec says, leaves no trace in the tree, and listens at the descriptor that was
// handed over.
func TestSocket(t *testing.T) {
	r := newRootfs(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	s := r.spec("stat -c '%F %a %u %g' /made/up/s && stat -f -c %T /made/up/s")
	s.User = "app"
	s.Mounts = []executor.Mount{{Target: "/made/up/s", Source: executor.Socket{Hand: 3, Mode: 0o620, UID: 1000, GID: 1001}}}
	must(t, holder(t).Call(t.Context(), "run", s, nil, null, out, out, theirs))
	said, err := os.ReadFile(out.Name())
	must(t, err)
	if got, want := string(said), "socket 620 1000 1001\ntmpfs\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if left, err := os.ReadDir(r.upper); err != nil || len(left) > 0 {
		t.Errorf("left in the tree: %v, %v", left, err)
	}

	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(ours.Fd()), make([]byte, 8), oob, unix.MSG_CMSG_CLOEXEC)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	must(t, err)
	if n != 1 || len(messages) != 1 {
		t.Fatalf("%d bytes and %d messages were handed over", n, len(messages))
	}
	got, err := unix.ParseUnixRights(&messages[0])
	must(t, err)
	f := os.NewFile(uintptr(got[0]), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatalf("what was handed over does not listen: %v", err)
	}
	l.Close()

	r.reset(t)
	s.Mounts[0].Source = executor.Socket{Hand: -1}
	if res := run(t, t.Context(), s); res.err == nil || !strings.Contains(res.err.Error(), "hand over") {
		t.Errorf("nobody to hand it to: %v", res.err)
	}
}
