package executor

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"build/internal/veth"
)

// Interface is the one network interface, eth0, that a step with NetworkPrivate has besides lo.
type Interface = veth.Interface

// privateNetwork puts the calling thread into a network namespace with that interface, and hands over its other end.
func privateNetwork(i *Interface) error {
	packets, err := veth.Join(i)
	if err != nil {
		e := setupError("make the private network", err)
		var setup *SetupError
		if errors.As(e, &setup) && errors.Is(err, unix.EOPNOTSUPP) {
			setup.Blocker, setup.Fix = "the kernel has no veth devices", "modprobe veth, or --network=host"
		}
		return e
	}
	defer unix.Close(packets)
	report(message{Attach: true}, packets)
	return nil
}

// attachPackets hands the other end of the step's interface to whoever serves it.
func (s *step) attachPackets(fd int) error {
	f := os.NewFile(uintptr(fd), "packets")
	defer f.Close()
	if err := s.attach(f); err != nil {
		return &SetupError{Op: "start the private network", Msg: err.Error()}
	}
	return nil
}
