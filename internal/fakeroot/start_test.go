package fakeroot

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"build/internal/owner"
)

// A supervisor that cannot work says so, and leaves no listener that a step would wait for.
func TestStartRefusesAStrangeProc(t *testing.T) {
	listener, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	_, err = Start(listener, Config{Proc: dir, Root: dir, Records: NewRecords(owner.Single(), nil, -1)}, func(error) {})
	if err == nil || !strings.Contains(err.Error(), "procfs") {
		t.Errorf("got %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(listener), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the listener is still open: %v", err)
	}
}

// What can be received is not what a listener is: the step's calls fail rather than wait, and whoever started the step is told.
func TestBrokenListenerIsTold(t *testing.T) {
	listener, err := unix.Eventfd(1, unix.EFD_CLOEXEC) // readable, and no listener
	if err != nil {
		t.Fatal(err)
	}
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	told := make(chan error, 1)
	s, err := Start(listener, Config{Proc: proc, Root: proc, Records: NewRecords(owner.Single(), nil, -1)}, func(err error) { told <- err })
	if err != nil {
		if os.Geteuid() != 0 {
			t.Skipf("this user cannot do what a holder can: %v", err)
		}
		t.Fatal(err)
	}
	if err := <-told; err == nil {
		t.Error("told nothing")
	}
	if err := s.Close(); err == nil {
		t.Error("Close says that all is well")
	}
}
