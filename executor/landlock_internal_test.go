package executor

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// What a step that got out of its chroot would find: its own tree, and nothing else.
func TestLandlockConfines(t *testing.T) {
	if landlockABI() < firstUsableLandlock {
		testenv.Skip(t, "Landlock")
	}
	in, out := t.TempDir(), t.TempDir()
	for _, dir := range []string{in, out} {
		if err := os.WriteFile(dir+"/file", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir+"/dir", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(in, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			t.Error(err)
			return
		}
		if err := confineTo(root); err != nil {
			t.Error(err)
			return
		}
		tries := map[string]func(dir string) error{
			"read":   func(dir string) error { return openClose(dir+"/file", unix.O_RDONLY) },
			"write":  func(dir string) error { return openClose(dir+"/file", unix.O_WRONLY) },
			"list":   func(dir string) error { return openClose(dir, unix.O_RDONLY|unix.O_DIRECTORY) },
			"create": func(dir string) error { return openClose(dir+"/new", unix.O_WRONLY|unix.O_CREAT) },
			"move":   func(dir string) error { return unix.Rename(dir+"/file", dir+"/dir/file") },
			"link":   func(dir string) error { return unix.Link(dir+"/dir/file", dir+"/linked") },
			"remove": func(dir string) error { return unix.Unlink(dir + "/linked") },
		}
		for _, name := range []string{"read", "write", "list", "create", "move", "link", "remove"} {
			if err := tries[name](in); err != nil {
				t.Errorf("%s inside: %v", name, err)
			}
			if err := tries[name](out); err == nil {
				t.Errorf("%s outside: allowed", name)
			}
		}
		if err := unix.Kill(os.Getppid(), 0); landlockABI() >= 6 && err != unix.EPERM {
			t.Errorf("signal to the outside: %v", err)
		}
	}()
	<-done
}

func openClose(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
