package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/executor"
)

// canRun refuses a RUN that is not allowed, before anything is fetched for it.
func (s *session) canRun(step *dag.Step, op dag.Run) error {
	if op.Security == "insecure" && !s.opts.AllowInsecure {
		return &UsageError{Msg: "RUN --security=insecure is not allowed", Hint: "allow it with --allow security.insecure"}
	}
	return s.allowNetwork(op.Network)
}

// run executes a RUN in the holder and returns the layer of what it changed.
func (e *evaluator) run(ctx context.Context, step *dag.Step, op dag.Run, in []*outcome) (digest.Digest, error) {
	if e.opts.BeforeRun != nil {
		e.opts.BeforeRun()
	}
	chain := in[0].chain
	h, ground, err := e.holder.get(ctx, e.session)
	if err != nil {
		return "", err
	}
	if err := e.makeUnpackable(ctx, chain); err != nil {
		return "", err
	}
	logs, err := newStepLog(e.session, step, e.vertex(step))
	if err != nil {
		return "", err
	}
	req := runRequest{Chain: chain, Spec: e.runSpec(op, ground), Leaks: e.leaks.request(), Further: int(e.runsLeft.Load())}
	if err := e.mounts(ctx, step, op, in, &req); err != nil {
		logs.close()
		return "", err
	}
	emulated := e.emulate(ctx, step, op, &req.Spec)
	agents, err := e.forwardAgents(op, &req)
	if err != nil {
		logs.close()
		return "", err
	}
	group, groupFiles, err := e.limits.stepGroup(&req)
	if err != nil {
		agents.close()
		logs.close()
		return "", err
	}
	var resp runResponse
	files := append([]*os.File{logs.stdin, logs.stdout, logs.stderr}, agents.ends...)
	err = fromHolder(h.Call(ctx, "run", req, &resp, append(files, groupFiles...)...))
	agents.close()
	logs.close()
	var exit *executor.ExitError
	errors.As(err, &exit)
	oom := e.endGroup(step, group, exit)
	defer logs.drop()
	if err != nil {
		return "", e.stepFailed(step, op, err, logs, oom, emulated)
	}
	e.tellNotes(resp.Notes)
	if err := e.leaseLayer(resp.DiffID); err != nil {
		return "", err
	}
	return resp.DiffID, e.leaked(ctx, step, resp.DiffID, resp.Leaks)
}

// cannotExecute is the exit code of a program that is there and that the kernel does not execute.
const cannotExecute = 126

// stepFailed tells a command that failed from a sandbox that could not be made.
func (e *evaluator) stepFailed(step *dag.Step, op dag.Run, err error, logs *stepLog, oom *OutOfMemory, emulated bool) error {
	var x *executor.ExitError
	if !errors.As(err, &x) {
		return err
	}
	if x.Code == cannotExecute && !emulated && !runsHere(step.Platform) {
		// An image may claim another platform and still hold programs of this one, so the kernel has the last word.
		return &EnvironmentError{
			Err:  fmt.Errorf("RUN for %s cannot be executed on %s: %s", platformString(step.Platform), platformString(hostPlatform()), x.Msg),
			Hint: "use FROM --platform=$BUILDPLATFORM for the stages that run commands, name an emulator with --emulator, or build on that platform",
		}
	}
	hint := e.fullHint(err)
	if oom != nil && hint == "" {
		hint = oom.hint()
	}
	return &StepError{
		Step: step.Name, Pos: step.Pos, Args: op.Args, Code: x.Code, Signal: x.Signal, OOM: oom, Msg: x.Msg,
		Hint: hint, Tail: logs.tail.lines(), Log: logs.keep(), source: e.dockerfile,
	}
}

// makeUnpackable makes sure every layer a RUN stands on is here as a directory or as something to unpack. A blob that was seen
// once in this build is not looked for again: every RUN of a Dockerfile stands on the layers of those before it.
func (e *evaluator) makeUnpackable(ctx context.Context, chain []digest.Digest) error {
	h, g, err := e.holder.get(ctx, e.session)
	if err != nil {
		return err
	}
	var missing []int
	for i, d := range chain {
		if _, seen := e.blobsHere.Load(d); seen {
			continue
		}
		if e.layers.Here(d) {
			e.blobsHere.Store(d, true)
		} else if g.Root == RootTree || !e.layers.HasDir(g.Plan.Kind, chain, i) {
			missing = append(missing, i)
		}
	}
	return e.fetchForRun(ctx, h, g, chain, missing)
}

func (e *evaluator) runSpec(op dag.Run, g *ground) executor.Spec {
	spec := executor.Spec{
		Means: g.means(),
		Root:  executor.Tree{}, Args: op.Args, Env: e.runEnv(op), Dir: op.Dir, User: op.User, Hostname: hostname(op),
		Resolv: resolvConf(), Hosts: e.hostsFile(hostname(op)),
		ShmSize: e.opts.ShmSize, Rlimits: e.opts.Rlimits,
	}
	if op.Security == "insecure" {
		spec.Security = executor.Insecure
	}
	setNetwork(&spec, op.Network)
	for _, f := range op.Files {
		spec.Mounts = append(spec.Mounts, executor.Mount{Target: dag.PipesDir + "/" + f.Name, Source: executor.File{Data: f.Data, Mode: f.Mode}})
	}
	return spec
}

// runEnv adds the proxy variables: the command sees them, keys and history do not. One that was given as a build argument counts
// more than an ENV of its name, as in BuildKit; one that merely is in the environment of the build does not.
func (e *evaluator) runEnv(op dag.Run) []string {
	env := append([]string(nil), op.Env...)
	for _, kv := range op.ProxyEnv {
		name, _, _ := strings.Cut(kv, "=")
		at := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		switch {
		case at < 0:
			env = append(env, kv)
		case slices.ContainsFunc(e.opts.BuildArgs, func(a KeyValue) bool { return strings.EqualFold(a.Key, name) }):
			env[at] = kv
		}
	}
	return env
}

// hostname is what a step sees as its own name: the same everywhere, so that a result does not depend on the machine.
func hostname(op dag.Run) string {
	if op.Hostname != "" {
		return op.Hostname
	}
	return executor.DefaultHostname
}

// resolvConf is the caller's own resolver configuration: steps share the caller's network. A step without a network has the file,
// too: what it writes there is no part of the result, as with any other step.
func resolvConf() []byte {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	return b
}

func (e *evaluator) hostsFile(hostname string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, h := range e.opts.AddHosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Name)
	}
	return b.Bytes()
}
