package build

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"build/dag"
	"build/executor"
	"build/internal/sshagent"
)

// SSHAgent is one --ssh: what RUN --mount=type=ssh forwards, and what git logs in with. It enters no key, no record and no
// log, and what it is made of never leaves this process: a step gets signatures.
type SSHAgent struct {
	ID    string
	agent *sshagent.Agent
}

// DefaultSSH is the id of a mount that has none, and of the agent that git uses.
const DefaultSSH = "default"

// OpenSSH opens the agent behind paths: one socket, or key files. With raw, what is behind the socket need not be an agent.
func OpenSSH(id string, paths []string, raw bool) (SSHAgent, error) {
	a, err := sshagent.Open(paths, raw)
	var locked *sshagent.PassphraseError
	switch {
	case errors.As(err, &locked):
		return SSHAgent{}, &UsageError{
			Msg:  fmt.Sprintf("--ssh %s: %v", id, err),
			Hint: fmt.Sprintf("give the key to an agent and pass that: ssh-add %s, then build --ssh %s", locked.File, id),
		}
	case err != nil:
		return SSHAgent{}, &UsageError{Msg: fmt.Sprintf("--ssh %s: %v", id, err)}
	}
	return SSHAgent{ID: id, agent: a}, nil
}

// sshAgent returns the agent given under an id, nil if there is none.
func (s *session) sshAgent(id string) *sshagent.Agent {
	for i := range s.opts.SSH {
		if s.opts.SSH[i].ID == id {
			return s.opts.SSH[i].agent
		}
	}
	return nil
}

// gitAgent returns how git reaches an agent, nil if it may not.
func (s *session) gitAgent() func(context.Context) (net.Conn, error) {
	if a := s.sshAgent(DefaultSSH); a != nil {
		return a.Dial
	}
	return nil
}

// noAgent is the error of a mount that must have an agent.
func noAgent(id string) error {
	hint := fmt.Sprintf("give one with --ssh %s=SOCKET or --ssh %s=KEYFILE", id, id)
	if id == DefaultSSH {
		hint = "give one with --ssh default, which is the agent of $SSH_AUTH_SOCK, or with --ssh default=KEYFILE"
	}
	return &UsageError{Msg: fmt.Sprintf("no ssh agent %q was given to this build", id), Hint: hint}
}

// forwards are the agents that one step can reach. The sockets are made where the step is, in its own memory; what connects
// to them is answered here, so keys and the user's agent stay out of the step's namespaces and of the holder.
type forwards struct {
	ends    []*os.File // for the holder, in the order of executor.Socket.Hand
	ours    []*net.UnixConn
	serving sync.WaitGroup
}

// forwardAgents asks for a socket for each ssh mount of a RUN and answers what connects to it until close.
func (e *evaluator) forwardAgents(op dag.Run, req *runRequest) (*forwards, error) {
	f := &forwards{}
	for _, m := range op.Mounts {
		if m.Type != dag.MountSSH {
			continue
		}
		agent := e.sshAgent(m.ID)
		if agent == nil {
			if m.Required {
				f.close()
				return nil, noAgent(m.ID)
			}
			continue
		}
		if err := f.add(agent, func(err error) { e.warn("RUN --mount=type=ssh,id=%s: %v", m.ID, err) }); err != nil {
			f.close()
			return nil, fmt.Errorf("mount ssh agent %s: %w", m.ID, err)
		}
		k := executor.Socket{Hand: len(f.ends) - 1, Mode: 0o600}
		if m.Mode != nil {
			k.Mode = *m.Mode
		}
		if m.UID != nil {
			k.UID = *m.UID
		}
		if m.GID != nil {
			k.GID = *m.GID
		}
		req.Spec.Mounts = append(req.Spec.Mounts, executor.Mount{Target: m.Target, Source: k})
	}
	return f, nil
}

// add makes a way for one listener to arrive on, and waits for it.
func (f *forwards) add(agent *sshagent.Agent, failed func(error)) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	own := os.NewFile(uintptr(fds[0]), "ssh listener")
	defer own.Close()
	f.ends = append(f.ends, os.NewFile(uintptr(fds[1]), "ssh listener"))
	c, err := net.FileConn(own)
	if err != nil {
		return err
	}
	ours, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return fmt.Errorf("internal error: a socket pair is a %T", c)
	}
	f.ours = append(f.ours, ours)
	f.serving.Go(func() {
		l, err := receiveListener(ours)
		if err != nil {
			return // the step did not come about, and says why itself
		}
		go func() { // the other end is closed when the step is over, ours when we do not wait for that
			_, _ = ours.Read(make([]byte, 1))
			l.Close()
		}()
		agent.Serve(l, failed)
	})
	return nil
}

// receiveListener waits for the listening socket that the executor hands over.
func receiveListener(c *net.UnixConn) (net.Listener, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("no listener came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("no listener came"), err)
	}
	file := os.NewFile(uintptr(fds[0]), "ssh agent")
	defer file.Close()
	return net.FileListener(file)
}

// close ends all connections. The step is over.
func (f *forwards) close() {
	for _, end := range f.ends {
		end.Close()
	}
	for _, c := range f.ours {
		c.Close()
	}
	f.serving.Wait()
}

// takeSockets gives the sockets of a step the descriptors that came with it, in the holder.
func takeSockets(spec *executor.Spec, files []*os.File) error {
	for i, m := range spec.Mounts {
		k, ok := m.Source.(executor.Socket)
		if !ok {
			continue
		}
		if k.Hand < 0 || k.Hand >= len(files) {
			return fmt.Errorf("internal error: no file came for the socket on %s", m.Target)
		}
		k.Hand = int(files[k.Hand].Fd())
		spec.Mounts[i].Source = k
	}
	return nil
}
