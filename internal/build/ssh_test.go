package build

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"build/internal/testenv"
)

// sshKey makes a key with ssh-keygen and returns its file.
func sshKey(t *testing.T, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	args = append([]string{"-q", "-N", "", "-C", "test key", "-f", file}, args...)
	if out, err := exec.Command(testenv.Tool(t, "ssh-keygen"), args...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return file
}

// sshAuth is --ssh.
func sshAuth(t *testing.T, id string, paths ...string) mod {
	t.Helper()
	a, err := OpenSSH(id, paths, false)
	must(t, err)
	return func(o *Options) { o.SSH = append(o.SSH, a) }
}

// sshAgent starts an ssh-agent that has a key, and returns its socket.
func sshAgent(t *testing.T, key string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short: the path of a socket is at most 108 bytes
	must(t, err)
	sock := dir + "/s"
	cmd := exec.Command(testenv.Tool(t, "ssh-agent"), "-D", "-a", sock)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		os.RemoveAll(dir)
	})
	await(t, "the agent's socket", func() bool { _, err := os.Stat(sock); return err == nil })
	add := exec.Command(testenv.Tool(t, "ssh-add"), "-q", key)
	add.Env = []string{"SSH_AUTH_SOCK=" + sock, "HOME=/nonexistent"}
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v\n%s", err, out)
	}
	return sock
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// install puts programs of this machine and the libraries they need below a directory, for steps to use.
func install(t *testing.T, dir string, programs ...string) {
	t.Helper()
	library := regexp.MustCompile(`(?m)(/\S+) \(0x`)
	for _, name := range programs {
		path := testenv.Tool(t, name)
		files := []string{path}
		out, err := exec.Command("ldd", path).Output()
		must(t, err)
		for _, m := range library.FindAllSubmatch(out, -1) {
			files = append(files, string(m[1]))
		}
		for _, f := range files {
			to := filepath.Join(dir, f)
			if f == path {
				to = filepath.Join(dir, "usr/bin", name)
			}
			data, err := os.ReadFile(f)
			must(t, err)
			must(t, os.MkdirAll(filepath.Dir(to), 0o755))
			must(t, os.WriteFile(to, data, 0o755))
		}
	}
}

// The programs of OpenSSH use the agent in a step: they list its key and sign with it, as root and as a user to whom the
// mount gives the socket, and cannot change it. The key itself is nowhere.
func TestSSHMount(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	key := sshKey(t, "-t", "ed25519")
	install(t, w.dir, "ssh-add", "ssh-keygen")
	w.write("data", "what is signed")
	public, err := os.ReadFile(key + ".pub")
	must(t, err)
	w.write("id.pub", string(public))
	agentSocket := sshAgent(t, key)
	df := from(`
		FROM base
		COPY . /
		RUN --mount=type=ssh ssh-add -L > /listed && ! ssh-add -D && ! ssh-add -x </dev/null && ssh-add -l
		RUN --mount=type=ssh --network=none ssh-keygen -q -Y sign -f /id.pub -n test /data
		RUN --mount=type=ssh,id=other,target=/two --mount=type=ssh SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1 ssh-add -L > /second && \
			test "$SSH_AUTH_SOCK" = /two && ssh-add -L > /first
		RUN --mount=type=ssh test -z "$(ls -A /two 2>/dev/null)" && rm -f /listed2
		USER nobody
		RUN --mount=type=ssh ! ssh-add -l 2>/dev/null
		RUN --mount=type=ssh,uid=65534,mode=0700 ssh-add -l
	`)
	other := sshKey(t, "-t", "rsa", "-b", "2048")
	for name, path := range map[string]string{"key file": key, "agent": agentSocket} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir() + "/out"
			w.ok(df, noCache, sshAuth(t, "default", path), sshAuth(t, "other", other), output(Output{Type: OutputLocal, Dest: out}))
			signers := filepath.Join(t.TempDir(), "signers")
			must(t, os.WriteFile(signers, []byte("me "+string(public)), 0o600))
			data, err := os.Open(out + "/data")
			must(t, err)
			defer data.Close()
			verify := exec.Command("ssh-keygen", "-q", "-Y", "verify", "-f", signers, "-I", "me", "-n", "test", "-s", out+"/data.sig")
			verify.Stdin = data
			if out, err := verify.CombinedOutput(); err != nil {
				t.Errorf("the signature is not of this key: %v\n%s", err, out)
			}
			wantKey := func(file, pub string) {
				t.Helper()
				got, err := os.ReadFile(out + file)
				must(t, err)
				want, err := os.ReadFile(pub)
				must(t, err)
				if strings.Join(strings.Fields(string(got))[:2], " ") != strings.Join(strings.Fields(string(want))[:2], " ") {
					t.Errorf("%s: %s, want %s", file, got, want)
				}
			}
			wantKey("/listed", key+".pub")
			wantKey("/second", key+".pub")
			wantKey("/first", other+".pub")
			for _, gone := range []string{"/run/buildkit", "/two"} {
				if _, err := os.Lstat(out + gone); err == nil {
					t.Errorf("%s is in the result", gone)
				}
			}
		})
	}
	secret, err := os.ReadFile(key)
	must(t, err)
	w.noTrace(strings.Split(string(secret), "\n")[2])
	still := exec.Command("ssh-add", "-l")
	still.Env = []string{"SSH_AUTH_SOCK=" + agentSocket}
	if out, err := still.CombinedOutput(); err != nil {
		t.Errorf("the user's agent has lost its key: %v\n%s", err, out)
	}
}

// An agent that is gone when a step asks for it is spoken of; the step decides what it means.
func TestSSHAgentGone(t *testing.T) {
	needIDs(t)
	w := newWorld(t)
	install(t, w.dir, "ssh-add")
	dir, err := os.MkdirTemp("", "agent")
	must(t, err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", dir+"/s")
	must(t, err)
	a := sshAuth(t, "default", dir+"/s")
	must(t, l.Close())
	_, rec := w.ok(from("FROM base\nCOPY . /\nRUN --mount=type=ssh ! ssh-add -l\n"), a)
	if list := rec.warned("reach the ssh agent"); len(list) == 0 {
		t.Errorf("nothing was said: %q", rec.warnings)
	}
}

// sshServer is a real sshd that lets the calling user in with one key.
type sshServer struct {
	addr, user string
	known      string // a file with its key
}

func newSSHServer(t *testing.T, login string) *sshServer {
	t.Helper()
	sshd := testenv.Tool(t, "sshd")
	if os.Geteuid() == 0 { // where it puts its unprivileged part; a service would have made it
		if err := os.Mkdir("/run/sshd", 0o755); err == nil {
			t.Cleanup(func() { os.Remove("/run/sshd") })
		}
	}
	dir := t.TempDir()
	hostKey := sshKey(t, "-t", "ecdsa")
	authorized, err := os.ReadFile(login + ".pub")
	must(t, err)
	must(t, os.WriteFile(dir+"/authorized", authorized, 0o600))
	me, err := user.Current()
	must(t, err)
	s := &sshServer{addr: freePort(t), user: me.Username, known: dir + "/known"}
	host, port, err := net.SplitHostPort(s.addr)
	must(t, err)
	must(t, os.WriteFile(dir+"/config", fmt.Appendf(nil, `
		ListenAddress %s
		Port %s
		HostKey %s
		AuthorizedKeysFile %s/authorized
		PidFile none
		StrictModes no
		UsePAM no
		PasswordAuthentication no
		KbdInteractiveAuthentication no
		PermitRootLogin prohibit-password
		IgnoreUserKnownHosts yes
	`, host, port, hostKey, dir), 0o600))
	public, err := os.ReadFile(hostKey + ".pub")
	must(t, err)
	must(t, os.WriteFile(s.known, fmt.Appendf(nil, "[%s]:%s %s", host, port, public), 0o600))
	var log bytes.Buffer
	cmd := exec.Command(sshd, "-D", "-e", "-f", dir+"/config")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", &log)
		}
	})
	await(t, "sshd", func() bool {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return s
}

func (s *sshServer) url(path string) string { return "ssh://" + s.user + "@" + s.addr + path }

func knowing(files ...string) mod { return func(o *Options) { o.KnownHosts = files } }

// Repositories behind ssh, from an sshd with git-upload-pack behind it: as context, as named context and in ADD, with a
// key file and with the user's agent.
func TestGitOverSSH(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	key := sshKey(t, "-t", "ed25519")
	s := newSSHServer(t, key)
	_, commit := p.repo(t, "r", "f", "from the repository", "Dockerfile", "FROM scratch\nCOPY f /by-context\n")
	url := s.url(p.dir + "/r.git")
	df := from("FROM scratch\nADD " + url + "#" + commit + " /added\nCOPY --from=named f /by-name\n")
	named := func(o *Options) { o.NamedContexts = append(o.NamedContexts, KeyValue{"named", url}) }
	for name, path := range map[string]string{"key file": key, "agent": sshAgent(t, key)} {
		t.Run(name, func(t *testing.T) {
			dir, _ := w.out(df, named, noCache, sshAuth(t, "default", path), knowing(s.known))
			has(t, dir+"/added/f", "from the repository")
			has(t, dir+"/by-name", "from the repository")
			dir, _ = w.out(contextAt(url), noCache, sshAuth(t, "default", path), knowing(s.known))
			has(t, dir+"/by-context", "from the repository")
		})
	}
}

// What keeps a repository behind ssh away is said: no agent, an unknown host, one that shows another key, a key that it
// does not know.
func TestGitOverSSHRefused(t *testing.T) {
	w, p := newWorld(t), newPlace(t)
	key := sshKey(t, "-t", "ed25519")
	s := newSSHServer(t, key)
	p.repo(t, "r", "f", "x")
	df := from("FROM scratch\nADD " + s.url(p.dir+"/r.git") + " /\n")
	w.fails(ExitAuth, []string{"no ssh agent to log in with", "--ssh default"}, df, online, knowing(s.known))
	agent := sshAuth(t, "default", key)
	w.fails(ExitAuth, []string{"the key of host 127.0.0.1 is not known", "ssh-keyscan -p "}, df, online, agent, knowing())
	stranger, err := os.ReadFile(sshKey(t, "-t", "ecdsa") + ".pub")
	must(t, err)
	host, port, err := net.SplitHostPort(s.addr)
	must(t, err)
	must(t, os.WriteFile(s.known+".other", fmt.Appendf(nil, "[%s]:%s %s", host, port, stranger), 0o600))
	w.fails(ExitAuth, []string{"another key than the known one"}, df, online, agent, knowing(s.known+".other"))
	w.fails(ExitAuth, []string{"unable to authenticate", "no key of the agent is accepted"}, df, online, sshAuth(t, "default", sshKey(t, "-t", "ed25519")), knowing(s.known))
	w.fails(ExitAuth, []string{"no ssh agent"}, df, online, sshAuth(t, "other", key), knowing(s.known))
}
