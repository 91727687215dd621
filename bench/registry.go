package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// registry is the local registry that all builders pull from. Bases are pushed to it when the first workload needs them.
type registry struct {
	addr, dir string
	bases     string // directory of the layouts that testdata/setup/bases.sh makes
	layers    []layerShape
	cmd       *exec.Cmd
	pushed    map[string]bool
}

// startRegistry starts Debian's docker-registry on an empty directory.
func startRegistry(ctx context.Context, dir, bases string, layers []layerShape) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{addr: l.Addr().String(), dir: dir, bases: bases, layers: layers, pushed: map[string]bool{}}
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
	staying.add(r.cmd.Process.Pid)
	err = waitFor(ctx, "docker-registry", func() bool {
		conn, err := net.Dial("tcp", r.addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

func (r *registry) stop() {
	staying.drop(r.cmd.Process.Pid)
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// ref is the name of a base image, which is pushed first if it is not there.
func (r *registry) ref(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "scratch", nil
	}
	ref := r.addr + "/bench/" + name + ":latest"
	if r.pushed[name] {
		return ref, nil
	}
	layout := filepath.Join(r.bases, name)
	if name == "big" {
		layout = filepath.Join(r.dir, "layout-big")
		defer os.RemoveAll(layout)
		if err := r.makeBig(ctx, layout); err != nil {
			return "", fmt.Errorf("make the large base: %w", err)
		}
	}
	if _, err := os.Stat(layout); err != nil {
		return "", fmt.Errorf("%w (testdata/setup/bases.sh makes it; -bases says where)", err)
	}
	if _, err := output(ctx, "skopeo", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+layout+":latest", "docker://"+ref); err != nil {
		return "", err
	}
	r.pushed[name] = true
	return ref, nil
}

// makeBig adds layers to busybox: the same bytes every time.
func (r *registry) makeBig(ctx context.Context, layout string) error {
	if _, err := output(ctx, "cp", "-r", filepath.Join(r.bases, "busybox"), layout); err != nil {
		return err
	}
	file := filepath.Join(r.dir, "layer.tar")
	defer os.Remove(file)
	for i, shape := range r.layers {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		err = writeBigLayer(f, i, shape)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			_, err = output(ctx, "umoci", "raw", "add-layer", "--image", layout+":latest", file)
		}
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// blobs are the files of an image's layers, as the registry keeps them.
func (r *registry) blobs(ctx context.Context, name string) ([]string, error) {
	ref, err := r.ref(ctx, name)
	if err != nil {
		return nil, err
	}
	raw, err := output(ctx, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+ref)
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", ref, err)
	}
	var files []string
	for _, l := range m.Layers {
		algorithm, hex, ok := strings.Cut(l.Digest, ":")
		if !ok || len(hex) < 2 {
			return nil, fmt.Errorf("manifest of %s: digest %q", ref, l.Digest)
		}
		files = append(files, filepath.Join(r.dir, "docker/registry/v2/blobs", algorithm, hex[:2], hex, "data"))
	}
	return files, nil
}

// manifest is what is read of an image's manifest.
type manifest struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
}

type descriptor struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}
