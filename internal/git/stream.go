package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// streamTransport speaks to a git-upload-pack at the other end of a connection, one for each question.
type streamTransport struct {
	r    *Remote
	open func(ctx context.Context) (io.ReadWriteCloser, error)
}

const flushPacket = "0000"

func (t *streamTransport) advert(ctx context.Context) (*advert, error) {
	c, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	defer closeWith(ctx, c)()
	a, err := readAdvert(bufio.NewReader(c))
	if err != nil {
		return nil, explain(c, err)
	}
	_, _ = io.WriteString(c, flushPacket) // nothing more is wanted
	return a, nil
}

func (t *streamTransport) fetch(ctx context.Context, _ *advert, o *objects, ids []string, shallow bool) error {
	c, err := t.open(ctx)
	if err != nil {
		return err
	}
	defer closeWith(ctx, c)()
	br := bufio.NewReaderSize(c, 64<<10)
	a, err := readAdvert(br)
	if err != nil {
		return explain(c, err)
	}
	if _, err := io.WriteString(c, a.request(t.r.cfg.UserAgent, ids, shallow)); err != nil {
		return err
	}
	return receive(ctx, a, o, br, shallow)
}

// closeWith closes c when the context ends, or when the function it returns is called.
func closeWith(ctx context.Context, c io.Closer) func() {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return func() {
		stop()
		c.Close()
	}
}

// explain adds what the other side printed to an error.
func explain(c io.ReadWriteCloser, err error) error {
	s, ok := c.(*sshStream)
	if !ok {
		return err
	}
	_ = s.sess.Wait()
	if msg := plainText(s.stderr.String()); msg != "" {
		return fmt.Errorf("%w: %s", err, msg)
	}
	return err
}

func (r *Remote) dial(ctx context.Context, port string) (net.Conn, error) {
	dial := r.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	if p := r.url.Port(); p != "" {
		port = p
	}
	return dial(ctx, "tcp", net.JoinHostPort(r.url.Hostname(), port))
}

func (r *Remote) openGit(ctx context.Context) (io.ReadWriteCloser, error) {
	c, err := r.dial(ctx, "9418")
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(r.url.Path+r.url.Host, "\x00\n") {
		c.Close()
		return nil, errors.New("invalid path")
	}
	if _, err := io.WriteString(c, packet("git-upload-pack "+r.url.Path+"\x00host="+r.url.Host+"\x00")); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sshStream is a git-upload-pack that runs on a host.
type sshStream struct {
	io.Reader
	io.WriteCloser
	sess   *ssh.Session
	client *ssh.Client
	agent  io.Closer
	stderr *limitedBuffer
}

func (s *sshStream) Close() error {
	_ = s.sess.Close()
	_ = s.agent.Close()
	return s.client.Close()
}

// limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := 4096 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (r *Remote) openSSH(ctx context.Context) (io.ReadWriteCloser, error) {
	if r.cfg.DialAgent == nil {
		return nil, &AuthError{Repo: r.name, Err: errors.New("no ssh agent to log in with"), Hint: "pass one with --ssh default"}
	}
	ac, err := r.cfg.DialAgent(ctx)
	if err != nil {
		return nil, &AuthError{Repo: r.name, Err: fmt.Errorf("ssh agent: %w", err)}
	}
	stop := context.AfterFunc(ctx, func() { ac.Close() }) // an agent may ask its user, and wait
	s, err := r.startSSH(ctx, agent.NewClient(ac).Signers)
	stop()
	if err != nil {
		ac.Close()
		return nil, err
	}
	s.agent = ac
	return s, nil
}

func (r *Remote) startSSH(ctx context.Context, signers func() ([]ssh.Signer, error)) (*sshStream, error) {
	check, kinds, err := r.hostKeys()
	if err != nil {
		return nil, err
	}
	user := "git"
	if r.auth != nil && r.auth.Username() != "" {
		user = r.auth.Username()
	}
	c, err := r.dial(ctx, "22")
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	conn, chans, reqs, err := ssh.NewClientConn(c, c.RemoteAddr().String(), &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(signers)}, HostKeyCallback: check,
		HostKeyAlgorithms: kinds, Timeout: 30 * time.Second,
	})
	if err != nil {
		c.Close()
		return nil, r.sshError(err)
	}
	s := &sshStream{client: ssh.NewClient(conn, chans, reqs), stderr: &limitedBuffer{}}
	if err := s.start("git-upload-pack " + shellQuote(r.sshPath())); err != nil {
		s.client.Close()
		return nil, err
	}
	return s, nil
}

func (s *sshStream) start(command string) (err error) {
	if s.sess, err = s.client.NewSession(); err != nil {
		return err
	}
	s.sess.Stderr = s.stderr
	if s.Reader, err = s.sess.StdoutPipe(); err != nil {
		return err
	}
	if s.WriteCloser, err = s.sess.StdinPipe(); err != nil {
		return err
	}
	return s.sess.Start(command)
}

// sshPath is the path as the other side wants it: /~user means a home directory.
func (r *Remote) sshPath() string {
	if strings.HasPrefix(r.url.Path, "/~") {
		return r.url.Path[1:]
	}
	return r.url.Path
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// hostKeys checks the key of a host against the known ones, and says of which kinds these are, so that the host shows one
// that can be compared.
func (r *Remote) hostKeys() (ssh.HostKeyCallback, []string, error) {
	var files []string
	for _, f := range r.cfg.KnownHosts {
		if _, err := os.Stat(f); err == nil {
			files = append(files, f)
		}
	}
	known, err := knownhosts.New(files...)
	if err != nil {
		return nil, nil, fmt.Errorf("known hosts: %w", err)
	}
	// The names it is known by are those of the URL, whatever address it turned out to have.
	port := r.url.Port()
	if port == "" {
		port = "22"
	}
	name := net.JoinHostPort(r.url.Hostname(), port)
	check := func(_ string, remote net.Addr, key ssh.PublicKey) error { return known(name, remote, key) }
	var (
		kinds []string
		other *knownhosts.KeyError
	)
	if errors.As(check("", &net.TCPAddr{}, noKey{}), &other) {
		for _, k := range other.Want {
			kind := k.Key.Type()
			if kind == ssh.KeyAlgoRSA { // one kind of key, three ways to sign with it
				kinds = append(kinds, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
			} else {
				kinds = append(kinds, kind)
			}
		}
	}
	return check, kinds, nil
}

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// keyscan is the command that shows the key of the host.
func (r *Remote) keyscan() string {
	if port := r.url.Port(); port != "" {
		return "ssh-keyscan -p " + port + " " + r.url.Hostname()
	}
	return "ssh-keyscan " + r.url.Hostname()
}

func (r *Remote) sshError(err error) error {
	var key *knownhosts.KeyError
	switch {
	case errors.As(err, &key) && len(key.Want) == 0:
		return &AuthError{Repo: r.name, Err: fmt.Errorf("the key of host %s is not known", r.url.Hostname()), Hint: "check it and add it: " + r.keyscan() + " >> ~/.ssh/known_hosts"}
	case errors.As(err, &key):
		return &AuthError{Repo: r.name, Err: fmt.Errorf("host %s has another key than the known one: somebody may be listening", r.url.Hostname())}
	case strings.Contains(err.Error(), "unable to authenticate"):
		return &AuthError{Repo: r.name, Err: err, Hint: "no key of the agent is accepted; see ssh-add -l"}
	}
	return err
}
