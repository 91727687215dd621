package sshagent

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyFile writes a key as ssh-keygen does, and returns the file and the public half.
func keyFile(t *testing.T, name, passphrase string, key crypto.Signer) (string, ssh.PublicKey) {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	must(t, err)
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	signer, err := ssh.NewSignerFromKey(key)
	must(t, err)
	return path, signer.PublicKey()
}

func edKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return key
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	return key
}

// userAgent is an agent as ssh-agent is one, and what is in it.
func userAgent(t *testing.T, keys ...crypto.Signer) (socket string, ring agent.Agent) {
	t.Helper()
	ring = agent.NewKeyring()
	for _, k := range keys {
		must(t, ring.Add(agent.AddedKey{PrivateKey: k, Comment: "of the user"}))
	}
	socket = listen(t, func(c net.Conn) { _ = agent.ServeAgent(ring, c) })
	return socket, ring
}

func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short: the path of a socket is at most 108 bytes
	must(t, err)
	l, err := net.Listen("unix", dir+"/s")
	must(t, err)
	t.Cleanup(func() {
		l.Close()
		os.RemoveAll(dir)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return dir + "/s"
}

// served is a listener that an agent answers at, as a step sees it.
type served struct {
	path   string
	close  func() // returns when nothing is served any more
	mu     sync.Mutex
	errors []error
}

func serve(t *testing.T, a *Agent) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	must(t, err)
	l, err := net.Listen("unix", dir+"/s")
	must(t, err)
	s := &served{path: dir + "/s"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Serve(l, func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.errors = append(s.errors, err)
		})
	}()
	s.close = sync.OnceFunc(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	t.Cleanup(s.close)
	return s
}

func (s *served) client(t *testing.T) agent.ExtendedAgent {
	t.Helper()
	c, err := net.Dial("unix", s.path)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return agent.NewClient(c)
}

// Whoever connects can list and sign, with every algorithm, and do nothing else: with key files and with the user's agent.
func TestListAndSignOnly(t *testing.T) {
	ed, rs := edKey(t), rsaKey(t)
	edFile, edPub := keyFile(t, "ed", "", ed)
	rsaFile, rsaPub := keyFile(t, "rsa", "", rs)
	socket, ring := userAgent(t, ed, rs)
	for name, paths := range map[string][]string{"key files": {edFile, rsaFile}, "socket": {socket}} {
		t.Run(name, func(t *testing.T) {
			a, err := Open(paths, false)
			must(t, err)
			c := serve(t, a).client(t)
			keys, err := c.List()
			must(t, err)
			if len(keys) != 2 || string(keys[0].Blob) != string(edPub.Marshal()) || string(keys[1].Blob) != string(rsaPub.Marshal()) {
				t.Errorf("listed %v", keys)
			}
			data := []byte("what is signed")
			for _, by := range []struct {
				key   ssh.PublicKey
				flags agent.SignatureFlags
			}{{edPub, 0}, {rsaPub, 0}, {rsaPub, agent.SignatureFlagRsaSha256}, {rsaPub, agent.SignatureFlagRsaSha512}} {
				sig, err := c.SignWithFlags(by.key, data, by.flags)
				if err == nil {
					err = by.key.Verify(data, sig)
				}
				if err != nil {
					t.Errorf("sign with %s, flags %d: %v", by.key.Type(), by.flags, err)
				}
			}
			for what, err := range map[string]error{
				"add": c.Add(agent.AddedKey{PrivateKey: edKey(t)}), "remove": c.Remove(edPub), "remove all": c.RemoveAll(),
				"lock": c.Lock([]byte("x")), "unlock": c.Unlock([]byte("x")),
			} {
				if err == nil {
					t.Errorf("it is possible to %s", what)
				}
			}
			if _, err := c.Extension("session-bind@openssh.com", nil); err == nil {
				t.Error("extensions are possible")
			}
			_, other := keyFile(t, "other", "", edKey(t))
			if _, err := c.Sign(other, data); err == nil {
				t.Error("signed with a key that is not there")
			}
			if keys, err := c.List(); err != nil || len(keys) != 2 {
				t.Errorf("afterwards: %v, %v", keys, err)
			}
		})
	}
	if keys, err := ring.List(); err != nil || len(keys) != 2 {
		t.Errorf("the user's agent has %v, %v", keys, err)
	}
}

// Dial gives git the same.
func TestDial(t *testing.T) {
	ed := edKey(t)
	file, pub := keyFile(t, "ed", "", ed)
	socket, _ := userAgent(t, ed)
	for name, path := range map[string]string{"key file": file, "socket": socket} {
		a, err := Open([]string{path}, false)
		must(t, err)
		c, err := a.Dial(context.Background())
		must(t, err)
		defer c.Close()
		signers, err := agent.NewClient(c).Signers()
		if err != nil || len(signers) != 1 {
			t.Fatalf("%s: %v, %v", name, signers, err)
		}
		sig, err := signers[0].Sign(rand.Reader, []byte("x"))
		must(t, err)
		must(t, pub.Verify([]byte("x"), sig))
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
		return filepath.Join(dir, name)
	}
	locked, _ := keyFile(t, "locked", "pass", edKey(t))
	good, pub := keyFile(t, "good", "", edKey(t))
	socket, _ := userAgent(t)
	pkcs8 := file("pkcs8", string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})))
	for name, tc := range map[string]struct {
		paths  []string
		raw    bool
		want   string
		locked bool
	}{
		"passphrase":        {paths: []string{locked}, want: "protected by a passphrase", locked: true},
		"passphrase pkcs8":  {paths: []string{good, pkcs8}, want: "protected by a passphrase", locked: true},
		"public key":        {paths: []string{file("k.pub", string(ssh.MarshalAuthorizedKey(pub)))}, want: "name the private one"},
		"something else":    {paths: []string{file("text", "hello")}, want: "holds no private key"},
		"a directory":       {paths: []string{dir}, want: "neither a socket nor a file"},
		"not there":         {paths: []string{dir + "/none"}, want: "no such file"},
		"socket and key":    {paths: []string{socket, good}, want: "either one socket or key files"},
		"key and socket":    {paths: []string{good, socket}, want: "either one socket or key files"},
		"raw key":           {paths: []string{good}, raw: true, want: "raw needs a socket"},
		"raw of two":        {paths: []string{socket, socket}, raw: true, want: "one socket, got 2"},
		"longer than a key": {paths: []string{file("long", strings.Repeat("x", maxKey+1))}, want: "holds no private key"},
	} {
		_, err := Open(tc.paths, tc.raw)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		var pass *PassphraseError
		if errors.As(err, &pass) != tc.locked {
			t.Errorf("%s: %T", name, err)
		}
	}
}

// raw passes bytes on, whatever they are.
func TestRaw(t *testing.T) {
	socket := listen(t, func(c net.Conn) {
		all, _ := io.ReadAll(c)
		_, _ = c.Write([]byte("got " + string(all)))
	})
	a, err := Open([]string{socket}, true)
	must(t, err)
	c, err := net.Dial("unix", serve(t, a).path)
	must(t, err)
	_, err = c.Write([]byte("not the agent protocol"))
	must(t, err)
	must(t, c.(*net.UnixConn).CloseWrite())
	if got, err := io.ReadAll(c); err != nil || string(got) != "got not the agent protocol" {
		t.Errorf("%q, %v", got, err)
	}
}

// Connections that are open when a step ends are closed, and Serve returns.
func TestServeEnds(t *testing.T) {
	file, _ := keyFile(t, "ed", "", edKey(t))
	socket, _ := userAgent(t, edKey(t))
	for _, path := range []string{file, socket} {
		a, err := Open([]string{path}, false)
		must(t, err)
		s := serve(t, a)
		c, err := net.Dial("unix", s.path)
		must(t, err)
		defer c.Close()
		if _, err := agent.NewClient(c).List(); err != nil {
			t.Fatal(err)
		}
		s.close()
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes after the end", n)
		}
		if len(s.errors) > 0 {
			t.Errorf("errors: %v", s.errors)
		}
	}
}

// An agent that went away is told, and a client that breaks the rules is not: it can only harm itself.
func TestErrors(t *testing.T) {
	socket, _ := userAgent(t)
	a, err := Open([]string{socket}, false)
	must(t, err)
	s := serve(t, a)
	for _, bad := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x00", "\x00\x00\x00\x05\x0d\x00", "\x00\x00\x00\x01\x0d", ""} {
		c, err := net.Dial("unix", s.path)
		must(t, err)
		_, err = c.Write([]byte(bad))
		must(t, err)
		must(t, c.(*net.UnixConn).CloseWrite())
		_, _ = io.ReadAll(c) // until it is closed
		c.Close()
	}
	must(t, os.Remove(socket))
	if _, err := s.client(t).List(); err == nil {
		t.Error("listed the keys of nobody")
	}
	s.close()
	if len(s.errors) != 1 || !strings.Contains(s.errors[0].Error(), "reach the ssh agent") {
		t.Errorf("told %v", s.errors)
	}
}

// Whatever a client sends to the keys, the answer is one message.
func FuzzSign(f *testing.F) {
	a := &Agent{keys: agent.NewKeyring().(agent.ExtendedAgent)}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	if err := a.keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{msgRequest})
	f.Add([]byte{msgSign, 0, 0, 0, 1, 'x', 0, 0, 0, 0, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, request []byte) {
		if len(request) == 0 || request[0] != msgRequest && request[0] != msgSign {
			return
		}
		reply, err := a.sign(request)
		if err != nil || len(reply) == 0 {
			t.Errorf("%x: %x, %v", request, reply, err)
		}
	})
}
