package sshagent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// The agent protocol, draft-ietf-sshm-ssh-agent: messages of a length, a type and data, each answered by one. Package
// ssh/agent has a server for it, which logs to standard error whatever a client does wrong and answers more than is wanted here.
const (
	msgFailure = 5
	msgRequest = 11 // list the keys
	msgSign    = 13

	maxMessage = 256 << 10 // that of OpenSSH
)

var failure = []byte{msgFailure}

// answerAll answers the messages of a client until it leaves. Those that do more than list and sign fail, the rest is
// reply's business, whose errors end the conversation. A client that breaks the rules or goes away is not an error.
func answerAll(c io.ReadWriter, reply func(request []byte) ([]byte, error)) error {
	for {
		request, err := readMessage(c)
		if err != nil {
			return nil
		}
		answer := failure
		if request[0] == msgRequest || request[0] == msgSign {
			if answer, err = reply(request); err != nil {
				return err
			}
		}
		if err := writeMessage(c, answer); err != nil {
			return nil
		}
	}
}

// exchange sends a request to an agent and returns its answer.
func exchange(c io.ReadWriter, request []byte) ([]byte, error) {
	if err := writeMessage(c, request); err != nil {
		return nil, err
	}
	return readMessage(c)
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	m := make([]byte, n)
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return m, nil
}

func writeMessage(w io.Writer, m []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(m)), uint32(len(m))), m...))
	return err
}

type (
	identities struct {
		Count uint32 `sshtype:"12"`
		Keys  []byte `ssh:"rest"`
	}
	identity struct {
		Key     []byte
		Comment string
	}
	signRequest struct {
		Key   []byte `sshtype:"13"`
		Data  []byte
		Flags uint32
	}
	signed struct {
		Signature []byte `sshtype:"14"`
	}
)

// sign answers for the key files.
func (a *Agent) sign(request []byte) ([]byte, error) {
	if request[0] == msgRequest {
		keys, err := a.keys.List()
		if err != nil {
			return failure, nil
		}
		var list []byte
		for _, k := range keys {
			list = append(list, ssh.Marshal(identity{Key: k.Blob, Comment: k.Comment})...)
		}
		return ssh.Marshal(identities{Count: uint32(len(keys)), Keys: list}), nil
	}
	var q signRequest
	if err := ssh.Unmarshal(request, &q); err != nil {
		return failure, nil
	}
	sig, err := a.keys.SignWithFlags(&agent.Key{Blob: q.Key}, q.Data, agent.SignatureFlags(q.Flags))
	if err != nil {
		return failure, nil
	}
	return ssh.Marshal(signed{Signature: ssh.Marshal(sig)}), nil
}
