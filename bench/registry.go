package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

// registry is the local registry that all builders pull from.
type registry struct {
	addr string
	cmd  *exec.Cmd
}

// ref is the name of a base image.
func (r *registry) ref(name string) string { return r.addr + "/bench/" + name + ":latest" }

// startRegistry starts Debian's docker-registry and fills it with the base images.
func startRegistry(ctx context.Context, c *config, dir string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{addr: l.Addr().String()}
	if err := l.Close(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, r.addr)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	r.cmd = exec.Command("docker-registry", "serve", file)
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("docker-registry: %w", err)
	}
	err = waitFor(ctx, "docker-registry", func() bool {
		conn, err := net.Dial("tcp", r.addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err == nil {
		err = r.fill(ctx, c, dir)
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *registry) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// fill pushes busybox as it is, and the large base made from it.
func (r *registry) fill(ctx context.Context, c *config, dir string) error {
	busybox := filepath.Join(c.bases, "busybox")
	if _, err := os.Stat(busybox); err != nil {
		return fmt.Errorf("%w (testdata/setup/bases.sh makes it)", err)
	}
	if err := r.push(ctx, "oci:"+busybox+":latest", "busybox"); err != nil {
		return err
	}
	layout := filepath.Join(dir, "big")
	defer os.RemoveAll(layout)
	if err := output(ctx, "cp", "-r", busybox, layout); err != nil {
		return err
	}
	for i := range c.scale.baseLayers {
		layer := filepath.Join(dir, "layer.tar")
		f, err := os.Create(layer)
		if err != nil {
			return err
		}
		err = writeBigLayer(f, i, c.scale)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = output(ctx, "umoci", "raw", "add-layer", "--image", layout+":latest", layer)
		}
		if rerr := os.Remove(layer); err == nil {
			err = rerr
		}
		if err != nil {
			return fmt.Errorf("layer %d of the large base: %w", i, err)
		}
	}
	return r.push(ctx, "oci:"+layout+":latest", "big")
}

func (r *registry) push(ctx context.Context, src, name string) error {
	return output(ctx, "skopeo", "copy", "--quiet", "--dest-tls-verify=false", src, "docker://"+r.ref(name))
}

// output runs a command and returns what it printed when it fails.
func output(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, tail(out))
	}
	return nil
}
