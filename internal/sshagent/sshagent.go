// Package sshagent lets others sign with the user's ssh keys without having them: steps of a build and git. An Agent stands
// for the user's own agent behind its socket, or for key files read into memory. What is behind it can be listed and used
// for signatures and nothing else, as in BuildKit: a step that could add, remove or lock keys would change the user's agent.
//
// It does not know where sockets are or who asks: Serve takes a listener, Dial gives a connection.
package sshagent

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Agent is where signatures come from. It is safe for concurrent use.
type Agent struct {
	socket string              // of the user's agent; "" for keys
	raw    bool                // pass everything through to the socket, whatever listens there
	keys   agent.ExtendedAgent // of the key files
}

// PassphraseError says that a key file cannot be read without a passphrase, which nobody is asked for.
type PassphraseError struct{ File string }

func (e *PassphraseError) Error() string { return e.File + " is protected by a passphrase" }

// maxKey is how much of a key file BuildKit reads.
const maxKey = 100 << 10

// Open returns the agent that paths stand for: one socket, or any number of key files, which are read now. With raw, what
// listens on the one socket need not be an agent, and is not protected from what is sent.
func Open(paths []string, raw bool) (*Agent, error) {
	if raw && len(paths) != 1 {
		return nil, fmt.Errorf("raw needs one socket, got %d paths", len(paths))
	}
	keys := agent.NewKeyring()
	for _, p := range paths {
		fi, err := os.Stat(p)
		switch {
		case err != nil:
			return nil, err
		case fi.Mode()&os.ModeSocket != 0 && len(paths) == 1:
			return &Agent{socket: p, raw: raw}, nil
		case fi.Mode()&os.ModeSocket != 0:
			return nil, fmt.Errorf("%s is a socket: it is either one socket or key files", p)
		case raw:
			return nil, fmt.Errorf("raw needs a socket, and %s is none", p)
		case !fi.Mode().IsRegular():
			return nil, fmt.Errorf("%s is neither a socket nor a file", p)
		}
		key, err := readKey(p)
		if err != nil {
			return nil, err
		}
		if err := keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	own, ok := keys.(agent.ExtendedAgent)
	if !ok {
		return nil, fmt.Errorf("internal error: %T cannot choose how to sign", keys)
	}
	return &Agent{keys: own}, nil
}

// readKey reads a private key in any of the forms that OpenSSH writes.
func readKey(file string) (any, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer clear(data)
	key, err := ssh.ParseRawPrivateKey(data)
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) || isEncryptedPKCS8(data) {
		return nil, &PassphraseError{File: file}
	}
	if err != nil {
		if bytes.HasPrefix(data, []byte("ssh-")) || bytes.HasPrefix(data, []byte("ecdsa-")) {
			return nil, fmt.Errorf("%s is a public key: name the private one", file)
		}
		return nil, fmt.Errorf("%s holds no private key: %w", file, err)
	}
	return key, nil
}

// isEncryptedPKCS8 knows a form that package ssh does not tell from something that is no key.
func isEncryptedPKCS8(data []byte) bool {
	block, _ := pem.Decode(data)
	return block != nil && block.Type == "ENCRYPTED PRIVATE KEY"
}

// Socket returns the path of the user's agent, "" when the agent is made of key files.
func (a *Agent) Socket() string { return a.socket }

// dialTime is how long an agent may take to accept. The one who waits is a command that could ask a person instead.
const dialTime = 2 * time.Second

// Dial returns a connection on which an agent answers.
func (a *Agent) Dial(ctx context.Context) (net.Conn, error) {
	if a.socket != "" {
		return (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", a.socket)
	}
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		_ = answerAll(ours, a.sign) // ends with the connection
	}()
	return theirs, nil
}

// Serve answers what connects to l, until l is closed, and then waits until no connection is left: those that are open are
// closed. What keeps a connection from being answered is told to failed, and closes that connection alone.
func (a *Agent) Serve(l net.Listener, failed func(error)) {
	ctx, cancel := context.WithCancel(context.Background())
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				failed(err)
			}
			return
		}
		conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := a.serve(ctx, c); err != nil && ctx.Err() == nil {
				failed(err)
			}
		})
	}
}

// serve answers one connection.
func (a *Agent) serve(ctx context.Context, c net.Conn) error {
	if a.socket == "" {
		return answerAll(c, a.sign)
	}
	up, err := a.Dial(ctx)
	if err != nil {
		return fmt.Errorf("reach the ssh agent: %w", err)
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { up.Close() })()
	if a.raw {
		join(c, up)
		return nil
	}
	return answerAll(c, func(request []byte) ([]byte, error) {
		reply, err := exchange(up, request)
		if err != nil {
			return nil, fmt.Errorf("ask the ssh agent: %w", err)
		}
		return reply, nil
	})
}

// join copies both ways until both are done.
func join(a, b net.Conn) {
	done := make(chan struct{})
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}
	go func() {
		defer close(done)
		pass(a, b)
	}()
	pass(b, a)
	<-done
}
