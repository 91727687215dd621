package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	oursName     = "ours"
	buildahName  = "buildah"
	buildkitName = "buildkit"
)

// build is one build that a builder is asked for.
type build struct {
	context string
	kind    outKind
	dest    string // where what kind says goes
}

// builder is one of the programs that are compared. A state directory holds everything it knows between builds.
type builder interface {
	name() string
	version(ctx context.Context) string
	programs() []string                                        // its own, as /proc/PID/exe shows them
	open(ctx context.Context, state string) (pid int, _ error) // makes the state ready; pid is its daemon, or 0
	command(ctx context.Context, state string, b build) invocation
	close(state string) error // ends what open began; the state stays
}

// findBuilders returns ours and those peers that are here; what is missing is told.
func findBuilders(c *config, registry string) ([]builder, []string) {
	list, notes := []builder{&ours{bin: c.ours, registry: registry, level: c.level}}, []string(nil)
	for _, peer := range c.peers {
		switch peer {
		case buildahName:
			if bin, err := exec.LookPath("buildah"); err == nil {
				list = append(list, &buildah{bin: bin})
				continue
			}
			notes = append(notes, "buildah is not on PATH and left out")
		case buildkitName:
			client, err := exec.LookPath("buildctl")
			daemon, err2 := exec.LookPath("buildkitd")
			_, err3 := exec.LookPath("runc")
			if err == nil && err2 == nil && err3 == nil {
				list = append(list, &buildKit{client: client, daemon: daemon, registry: registry, level: c.level, running: map[string]*exec.Cmd{}})
				continue
			}
			notes = append(notes, "buildctl, buildkitd or runc are not on PATH: BuildKit is left out")
		}
	}
	return list, notes
}

func firstOutput(ctx context.Context, bin string, args ...string) string {
	out, err := exec.CommandContext(ctx, bin, args...).Output()
	if err != nil {
		return "unknown: " + err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// resolved is a program's path as /proc/PID/exe shows it.
func resolved(bin string) string {
	if p, err := filepath.EvalSymlinks(bin); err == nil {
		return p
	}
	return bin
}

// withTemp makes a command keep temporary files beside its state.
func withTemp(cmd *exec.Cmd, state string) *exec.Cmd {
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(state, "tmp"))
	return cmd
}

func makeState(state string) error { return os.MkdirAll(filepath.Join(state, "tmp"), 0o755) }

type ours struct {
	bin, registry string
	level         int
}

func (o *ours) name() string       { return oursName }
func (o *ours) programs() []string { return []string{resolved(o.bin)} }
func (o *ours) close(string) error { return nil }

// version ends in what tells two builds of the same version apart.
func (o *ours) version(ctx context.Context) string {
	v := firstOutput(ctx, o.bin, "version")
	data, err := os.ReadFile(o.bin)
	if err != nil {
		return v + ", " + err.Error()
	}
	return fmt.Sprintf("%s, sha256 %.6x", v, sha256.Sum256(data))
}

func (o *ours) open(_ context.Context, state string) (int, error) { return 0, makeState(state) }

func (o *ours) command(ctx context.Context, state string, b build) invocation {
	args := []string{"--root", filepath.Join(state, "root"), "--progress", "plain", "--insecure", o.registry}
	switch b.kind {
	case noOutput:
		// Without -o the image goes into the store, compressed; BuildKit without --output keeps what it made in its cache.
		args = append(args, "-o", "type=cacheonly")
	case ociTar:
		args = append(args, "-o", fmt.Sprintf("type=oci,dest=%s,compression-level=%d", b.dest, o.level))
	case ociDir:
		args = append(args, "-o", fmt.Sprintf("type=oci,tar=false,dest=%s,compression-level=%d", b.dest, o.level))
	}
	return invocation{withTemp(exec.CommandContext(ctx, o.bin, append(args, b.context)...), state)}
}

// buildah has no build without a result: it always commits to its storage. Its gzip level cannot be chosen.
type buildah struct{ bin string }

func (b *buildah) name() string                       { return buildahName }
func (b *buildah) version(ctx context.Context) string { return firstOutput(ctx, b.bin, "--version") }
func (b *buildah) programs() []string                 { return []string{resolved(b.bin)} }

func (b *buildah) open(_ context.Context, state string) (int, error) { return 0, makeState(state) }

func (b *buildah) close(state string) error {
	// Its storage keeps a bind mount on itself.
	err := unix.Unmount(filepath.Join(state, "root", "overlay"), unix.MNT_DETACH)
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil // none
	}
	return err
}

func (b *buildah) command(ctx context.Context, state string, j build) invocation {
	run := func(args ...string) *exec.Cmd {
		global := []string{"--root", filepath.Join(state, "root"), "--runroot", filepath.Join(state, "run"), "--storage-driver", "overlay"}
		return withTemp(exec.CommandContext(ctx, b.bin, append(global, args...)...), state)
	}
	args := []string{"build", "--layers", "--jobs", "8", "--network", "host", "--tls-verify=false", "-t", "bench"}
	if runc, err := exec.LookPath("runc"); err == nil {
		args = append(args, "--runtime", runc) // crun refuses machines with a hybrid cgroup layout
	}
	all := invocation{run(append(args, j.context)...)}
	switch j.kind {
	case ociTar:
		all = append(all, run("push", "--quiet", "bench", "oci-archive:"+j.dest))
	case ociDir:
		all = append(all, run("push", "--quiet", "bench", "oci:"+j.dest))
	}
	return all
}

// buildKit is measured warm: its daemon was started, on the state, before the clock.
type buildKit struct {
	client, daemon, registry string
	level                    int
	running                  map[string]*exec.Cmd // by state
}

func (b *buildKit) name() string { return buildkitName }
func (b *buildKit) version(ctx context.Context) string {
	return firstOutput(ctx, b.daemon, "--version")
}
func (b *buildKit) programs() []string { return []string{resolved(b.client), resolved(b.daemon)} }

func socket(state string) string { return "unix://" + filepath.Join(state, "socket") }

func (b *buildKit) open(ctx context.Context, state string) (int, error) {
	if d := b.running[state]; d != nil {
		return d.Process.Pid, nil
	}
	if err := makeState(state); err != nil {
		return 0, err
	}
	config := filepath.Join(state, "buildkitd.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[registry.%q]\n  http = true\n", b.registry), 0o644); err != nil {
		return 0, err
	}
	log, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	d := withTemp(exec.Command(b.daemon, "--root", filepath.Join(state, "root"), "--addr", socket(state), "--config", config,
		"--containerd-worker=false", "--oci-worker=true", "--oci-worker-net=host"), state)
	d.Stdout, d.Stderr = log, log
	if err := d.Start(); err != nil {
		return 0, err
	}
	b.running[state] = d
	staying.add(d.Process.Pid)
	return d.Process.Pid, waitFor(ctx, "buildkitd, whose log is "+log.Name()+",", func() bool {
		return exec.CommandContext(ctx, b.client, "--addr", socket(state), "debug", "workers").Run() == nil
	})
}

func (b *buildKit) close(state string) error {
	d := b.running[state]
	if d == nil {
		return nil
	}
	delete(b.running, state)
	defer staying.drop(d.Process.Pid)
	if err := d.Process.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("end buildkitd: %w", err)
	}
	_ = d.Wait() // it says so when a signal ended it
	return nil
}

func (b *buildKit) command(ctx context.Context, state string, j build) invocation {
	args := []string{"--addr", socket(state), "build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + j.context, "--local", "dockerfile=" + j.context}
	switch j.kind {
	case ociTar:
		args = append(args, "--output", fmt.Sprintf("type=oci,dest=%s,compression=gzip,compression-level=%d", j.dest, b.level))
	case ociDir:
		args = append(args, "--output", fmt.Sprintf("type=oci,tar=false,dest=%s,compression=gzip,compression-level=%d", j.dest, b.level))
	}
	return invocation{withTemp(exec.CommandContext(ctx, b.client, args...), state)}
}
