package registry

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"build/internal/testenv"
)

// dockerRegistry starts the distribution project's registry on a free port. Without htpasswd it is open to all.
func dockerRegistry(t *testing.T, htpasswd string) (host string) {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		testenv.Skip(t, "docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(dir, "data"), host)
	if htpasswd != "" {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(htpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		conf += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file)
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("registry:\n%s", log.String())
		}
	})
	for range 200 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return host
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("the registry did not come up")
	return ""
}

func TestDockerRegistry(t *testing.T) {
	host := dockerRegistry(t, "")
	img := newSample(t, "linux/amd64", 4, 300_000)
	c := testClient(t, Options{})
	if err := c.Push(t.Context(), host+"/team/base:1", img.push()); err != nil {
		t.Fatal(err)
	}
	// Into another repository: every layer comes by mount, none is opened.
	p := img.push(host + "/team/base")
	for i := range p.Layers {
		p.Layers[i].Open = nil
	}
	if err := testClient(t, Options{}).Push(t.Context(), host+"/team/app:1", p); err != nil {
		t.Fatal(err)
	}
	im, err := testClient(t, Options{}).Resolve(t.Context(), host+"/team/app:1", linuxAMD64)
	if err != nil || im.Digest != img.digest() {
		t.Fatalf("%v", err)
	}
	for i, d := range im.Manifest.Layers {
		if got, err := readBlob(t, c, im.Repo, d); err != nil || !bytes.Equal(got, img.layers[i]) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	_, err = c.Resolve(t.Context(), host+"/team/none:1", linuxAMD64)
	wantClass(t, err, NotFound)

	if skopeo, err := exec.LookPath("skopeo"); err != nil {
		testenv.Skip(t, "skopeo")
	} else if out, err := exec.Command(skopeo, "inspect", "--tls-verify=false", "docker://"+host+"/team/app:1").CombinedOutput(); err != nil || !strings.Contains(string(out), img.digest().String()) {
		t.Errorf("skopeo: %v\n%s", err, out)
	}
}

// aliceSecret is the password "secret" for alice, as htpasswd -nbB writes it.
const aliceSecret = "alice:$2a$05$NhuUYByM7qEtA/egNF9cMegPexApcqqJFIVf7sW.btJPXisCbgLsy\n"

func TestDockerRegistryWithPassword(t *testing.T) {
	host := dockerRegistry(t, aliceSecret)
	dir := t.TempDir()
	c := testClient(t, Options{DockerConfig: dir})
	img := newSample(t, "linux/amd64", 1, 1000)
	wantClass(t, c.Push(t.Context(), host+"/a:1", img.push()), Auth)
	_, err := c.Login(t.Context(), host, "alice", "nonsense")
	wantClass(t, err, Auth)
	c = testClient(t, Options{DockerConfig: dir})
	if _, err := c.Login(t.Context(), host, "alice", "secret"); err != nil {
		t.Fatal(err)
	}
	if err := testClient(t, Options{DockerConfig: dir}).Push(t.Context(), host+"/a:1", img.push()); err != nil {
		t.Fatal(err)
	}
}
