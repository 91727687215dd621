package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// argProbeTable is argument zero of the process that tries to have a table of emulators of its own.
const argProbeTable = "build-probe-emulators"

// EmulationCheck is the name of what ProbeEmulation tries.
const EmulationCheck = "emulators registered for one step alone"

// ProbeEmulation tries, by doing, whether a step can have emulators of its own (Spec.Emulators). It must be called where Run would
// be. It takes as long as starting the program twice.
func ProbeEmulation(ctx context.Context) Check {
	check, err := probeTable(ctx)
	if err != nil {
		return newCheck(EmulationCheck, "", err)
	}
	check.Name = EmulationCheck
	return check
}

// probeTable starts a process as an emulated step starts, and lets it register a handler that nothing matches.
func probeTable(ctx context.Context) (Check, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return Check{}, err
	}
	defer exe.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Check{}, err
	}
	defer null.Close()
	ours, theirs, err := messagePair()
	if err != nil {
		return Check{}, err
	}
	defer ours.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{argUnmapped}, &os.ProcAttr{
		Dir: "/", Env: initEnv, Files: []*os.File{null, null, null, theirs, null, null, exe},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL},
	})
	theirs.Close()
	if err != nil {
		return Check{}, startError(err)
	}
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	defer stop()
	defer p.Wait()
	if err := mapIDs(p, nil, ours, argProbeTable); err != nil {
		p.Kill()
		return Check{}, setupError("make a user namespace", err)
	}
	said, err := io.ReadAll(&messageReader{ours})
	var check Check
	if err == nil {
		err = json.Unmarshal(said, &check)
	}
	if err != nil {
		return Check{}, fmt.Errorf("the probing process said %q: %w", said, err)
	}
	return check, nil
}

// messageReader reads what comes in messages as one text. An empty one is the end.
type messageReader struct{ socket *os.File }

func (r *messageReader) Read(b []byte) (int, error) {
	n, err := eintr(func() (int, error) { return unix.Read(int(r.socket.Fd()), b) })
	if err == nil && n == 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// probeTableInit is that process.
func probeTableInit() {
	table, err := newHandlerTable()
	if err == nil {
		never := Emulator{Name: "probe", Magic: []byte("\x7fprobe\x00"), Mask: []byte("\xff\xff\xff\xff\xff\xff\xff")}
		err = register(table, never.handler(initExePath))
	}
	check := newCheck("", "", err)
	if e := new(SetupError); errors.As(err, &e) { // who is in the way has a field of its own
		check.Detail = (&SetupError{Op: e.Op, Msg: e.Msg, Errno: e.Errno}).Error()
	}
	said, merr := json.Marshal(check)
	if merr != nil {
		os.Exit(1)
	}
	if _, err := unix.Write(initSocket, said); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
