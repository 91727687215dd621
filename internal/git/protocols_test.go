package git

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"build/internal/testenv"
)

// serve accepts connections until the test ends.
func serve(t *testing.T, network, addr string, handle func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr()
}

// uploadPack is the other side of a fetch.
func uploadPack(git, dir string, in io.Reader, out io.Writer) error {
	cmd := exec.Command(git, "upload-pack", dir)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(stdin, in) // ends when the other side goes away
		stdin.Close()
	}()
	return cmd.Wait()
}

func TestGitProtocol(t *testing.T) {
	s := newSite(t)
	git := testenv.Tool(t, "git")
	for _, format := range []string{"sha1", "sha256"} {
		h := s.repo(t, format, format)
		addr := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
			br := bufio.NewReader(c)
			line, err := readPacket(br, make([]byte, maxPacket))
			if err != nil || !strings.HasPrefix(string(line), "git-upload-pack /"+format+"/.git\x00host=") {
				t.Errorf("%q %v", line, err)
				return
			}
			_ = uploadPack(git, filepath.Join(s.dir, format), br, c) // a client that only wants the refs hangs up
		})
		for _, ref := range []string{"", "v1", h.first} {
			dir, res, err := get(t, "git://"+addr.String()+"/"+format+"/.git", Query{Ref: ref}, CheckoutOptions{}, Config{})
			if err != nil || !strings.Contains(listing(t, dir), "sub/run.sh") || ref == h.first && res.Commit != h.first {
				t.Errorf("%s %q: %v", format, ref, err)
			}
		}
	}
}

// sshHost is a host that lets one key in and runs git there.
type sshHost struct {
	addr, agent, known string
	key                ssh.PublicKey
}

func newKey(t *testing.T) (ed25519.PrivateKey, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

// newAgent serves an agent with one key.
func newAgent(t *testing.T, key ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent")
	serve(t, "unix", path, func(c net.Conn) { _ = agent.ServeAgent(ring, c) }) // until the client is done with it
	return path
}

func dialAgent(socket string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }
}

func newSSHHost(t *testing.T, root string) *sshHost {
	t.Helper()
	git := testenv.Tool(t, "git")
	userKey, user := newKey(t)
	_, host := newKey(t)
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || string(k.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("no")
		}
		return nil, nil
	}}
	cfg.AddHostKey(host)
	addr := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for nc := range chans {
			ch, reqs, err := nc.Accept()
			if err != nil {
				return
			}
			for req := range reqs {
				_ = req.Reply(req.Type == "exec", nil)
				if req.Type != "exec" {
					continue
				}
				path, ok := strings.CutPrefix(string(req.Payload[4:]), "git-upload-pack '")
				if !ok {
					t.Errorf("command %q", req.Payload)
				}
				if err := uploadPack(git, filepath.Join(root, strings.TrimSuffix(path, "'")), ch, ch); err != nil {
					_, _ = io.WriteString(ch.Stderr(), "no such repository here\n")
				}
				ch.Close()
			}
		}
	})
	h := &sshHost{addr: addr.String(), agent: newAgent(t, userKey), known: filepath.Join(t.TempDir(), "known"), key: host.PublicKey()}
	write(t, h.known, knownhosts.Line([]string{h.addr}, h.key)+"\n", 0o600)
	return h
}

func TestSSH(t *testing.T) {
	s := newSite(t)
	h := s.repo(t, "r", "sha1")
	host := newSSHHost(t, s.dir)
	url := "ssh://git@" + host.addr + "/r/.git"
	good := Config{DialAgent: dialAgent(host.agent), KnownHosts: []string{filepath.Join(s.dir, "missing"), host.known}}
	for _, ref := range []string{"", "v1", h.first} {
		if dir, _, err := get(t, url, Query{Ref: ref}, CheckoutOptions{}, good); err != nil || !strings.Contains(listing(t, dir), "sub/run.sh") {
			t.Errorf("%q: %v", ref, err)
		}
	}
	_, other := newKey(t)
	changed := filepath.Join(s.dir, "changed")
	write(t, changed, knownhosts.Line([]string{host.addr}, other.PublicKey())+"\n", 0o600)
	stranger, _ := newKey(t)
	for want, cfg := range map[string]Config{
		"no ssh agent":        {KnownHosts: good.KnownHosts},
		"is not known":        {DialAgent: dialAgent(host.agent)},
		"has another key":     {DialAgent: dialAgent(host.agent), KnownHosts: []string{changed}},
		"no key of the agent": {DialAgent: dialAgent(newAgent(t, stranger)), KnownHosts: good.KnownHosts},
	} {
		var auth *AuthError
		if _, _, err := get(t, url, Query{}, CheckoutOptions{}, cfg); !errors.As(err, &auth) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	var remote *RemoteError
	if _, _, err := get(t, "ssh://git@"+host.addr+"/none.git", Query{}, CheckoutOptions{}, good); !errors.As(err, &remote) || !strings.Contains(err.Error(), "no such repository here") {
		t.Errorf("%v", err)
	}
}

// A host, or an agent, that says nothing does not keep a build from ending.
func TestSilentSSHEndsWithContext(t *testing.T) {
	begun := make(chan struct{}, 1)
	silent := func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1)) // it waits for us now
		begun <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	}
	s := newSite(t)
	host := newSSHHost(t, s.dir)
	mute := filepath.Join(t.TempDir(), "agent")
	serve(t, "unix", mute, silent)
	for name, c := range map[string]struct{ addr, agent string }{
		"host":  {serve(t, "tcp", "127.0.0.1:0", silent).String(), host.agent},
		"agent": {host.addr, mute},
	} {
		ctx, cancel := context.WithCancelCause(context.Background())
		cause := errors.New("enough")
		go func() {
			<-begun
			cancel(cause)
		}()
		r, err := Open("ssh://git@"+c.addr+"/r", Config{DialAgent: dialAgent(c.agent), KnownHosts: []string{host.known}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Resolve(ctx, Query{}); !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
