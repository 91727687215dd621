package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// job is one workload for one builder.
type job struct {
	dir     string
	context string
	out     string // "" when nothing is exported
}

func newJob(dir string, reg *registry, row row) (*job, error) {
	j := &job{dir: dir, context: filepath.Join(dir, "context")}
	if err := os.MkdirAll(j.context, 0o755); err != nil {
		return nil, err
	}
	if row.export {
		j.out = filepath.Join(dir, "image.tar")
	}
	return j, row.make(j.context, reg.ref)
}

// prepare brings the context into the state of the next run.
func (j *job) prepare(row row) error {
	if j.out != "" {
		if err := os.RemoveAll(j.out); err != nil {
			return err
		}
	}
	if row.change == nil {
		return nil
	}
	return row.change(j.context, strconv.FormatInt(time.Now().UnixNano(), 10))
}

// builder is one of the programs that are compared.
type builder interface {
	name() string
	version(ctx context.Context) string
	build(ctx context.Context, j *job, memory bool) (*sample, error)
	reset(ctx context.Context) error // forget everything
	stop()
}

const oursName = "ours"

// findBuilders returns ours and the peers that are here.
func findBuilders(c *config, dir, registry string) []builder {
	list := []builder{&ours{bin: c.ours, state: filepath.Join(dir, "ours"), registry: registry, level: c.level}}
	for _, peer := range strings.Split(c.peers, ",") {
		switch peer {
		case "":
		case "buildah":
			if bin, err := exec.LookPath("buildah"); err == nil {
				list = append(list, &buildah{bin: bin, state: filepath.Join(dir, "buildah")})
				continue
			}
			fmt.Fprintln(os.Stderr, "bench: buildah is not on PATH and left out")
		case "buildkit":
			client, err := exec.LookPath("buildctl")
			daemon, err2 := exec.LookPath("buildkitd")
			if err == nil && err2 == nil {
				list = append(list, &buildkit{client: client, daemon: daemon, state: filepath.Join(dir, "buildkit"), registry: registry, level: c.level})
				continue
			}
			fmt.Fprintln(os.Stderr, "bench: buildctl and buildkitd are not on PATH and left out")
		default:
			fmt.Fprintf(os.Stderr, "bench: no such builder: %s\n", peer)
		}
	}
	return list
}

func firstOutput(ctx context.Context, bin string, args ...string) string {
	out, err := exec.CommandContext(ctx, bin, args...).Output()
	if err != nil {
		return "unknown: " + err.Error()
	}
	return strings.TrimSpace(firstLine(string(out)))
}

// resolved is a program's path as /proc/PID/exe shows it.
func resolved(bin string) string {
	if p, err := filepath.EvalSymlinks(bin); err == nil {
		return p
	}
	return bin
}

type ours struct {
	bin, state, registry string
	level                int
}

func (o *ours) name() string                       { return oursName }
func (o *ours) version(ctx context.Context) string { return firstOutput(ctx, o.bin, "version") }
func (o *ours) reset(context.Context) error        { return os.RemoveAll(o.state) }
func (o *ours) stop()                              {}

func (o *ours) build(ctx context.Context, j *job, memory bool) (*sample, error) {
	args := []string{"--root", o.state, "--progress", "plain", "--insecure", o.registry}
	if j.out != "" {
		args = append(args, "-o", fmt.Sprintf("type=oci,dest=%s,compression-level=%d", j.out, o.level))
	}
	cmd := exec.CommandContext(ctx, o.bin, append(args, j.context)...)
	return measure(ctx, []*exec.Cmd{cmd}, 0, memory, []string{resolved(o.bin)})
}

type buildah struct{ bin, state string }

func (b *buildah) name() string                       { return "buildah" }
func (b *buildah) version(ctx context.Context) string { return firstOutput(ctx, b.bin, "--version") }
func (b *buildah) stop()                              { _ = b.reset(context.Background()) }

func (b *buildah) reset(context.Context) error {
	// Its storage keeps a bind mount on itself.
	_ = unix.Unmount(filepath.Join(b.state, "root", "overlay"), unix.MNT_DETACH)
	return os.RemoveAll(b.state)
}

func (b *buildah) command(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", filepath.Join(b.state, "root"), "--runroot", filepath.Join(b.state, "run"), "--storage-driver", "overlay"}
	return exec.CommandContext(ctx, b.bin, append(global, args...)...)
}

func (b *buildah) build(ctx context.Context, j *job, memory bool) (*sample, error) {
	args := []string{"build", "--layers", "--jobs", "8", "--network", "host", "--tls-verify=false", "-t", "bench"}
	if runc, err := exec.LookPath("runc"); err == nil {
		args = append(args, "--runtime", runc) // crun refuses machines with a hybrid cgroup layout
	}
	cmds := []*exec.Cmd{b.command(ctx, append(args, j.context)...)}
	if j.out != "" {
		cmds = append(cmds, b.command(ctx, "push", "--quiet", "bench", "oci-archive:"+j.out))
	}
	return measure(ctx, cmds, 0, memory, []string{resolved(b.bin)})
}

type buildkit struct {
	client, daemon, state, registry string
	level                           int
	process                         *exec.Cmd
}

func (b *buildkit) name() string { return "buildkit" }
func (b *buildkit) version(ctx context.Context) string {
	return firstOutput(ctx, b.daemon, "--version")
}
func (b *buildkit) socket() string { return "unix://" + filepath.Join(b.state, "socket") }

func (b *buildkit) start(ctx context.Context) error {
	if b.process != nil {
		return nil
	}
	if err := os.MkdirAll(b.state, 0o755); err != nil {
		return err
	}
	config := filepath.Join(b.state, "buildkitd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", b.registry), 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(b.state, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	b.process = exec.Command(b.daemon, "--root", filepath.Join(b.state, "root"), "--addr", b.socket(), "--config", config,
		"--containerd-worker=false", "--oci-worker=true", "--oci-worker-net=host")
	b.process.Stdout, b.process.Stderr = log, log
	if err := b.process.Start(); err != nil {
		return err
	}
	return waitFor(ctx, "buildkitd", func() bool {
		return exec.CommandContext(ctx, b.client, "--addr", b.socket(), "debug", "workers").Run() == nil
	})
}

func (b *buildkit) stop() {
	if b.process == nil {
		return
	}
	_ = b.process.Process.Signal(unix.SIGTERM)
	_ = b.process.Wait()
	b.process = nil
}

func (b *buildkit) reset(context.Context) error {
	b.stop()
	return os.RemoveAll(b.state)
}

func (b *buildkit) build(ctx context.Context, j *job, memory bool) (*sample, error) {
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	args := []string{"--addr", b.socket(), "build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + j.context, "--local", "dockerfile=" + j.context}
	if j.out != "" {
		args = append(args, "--output", fmt.Sprintf("type=oci,dest=%s,compression=gzip,compression-level=%d", j.out, b.level))
	}
	cmd := exec.CommandContext(ctx, b.client, args...)
	return measure(ctx, []*exec.Cmd{cmd}, b.process.Process.Pid, memory, []string{resolved(b.client), resolved(b.daemon)})
}
