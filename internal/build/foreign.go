package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/emulator"
	"build/internal/tree"
	"build/snapshot"
)

// canExecute refuses a RUN whose base image is for another system.
func canExecute(op dag.Run) error {
	m := op.Machine
	if m.Architecture == "" || m.OS == "linux" {
		return nil
	}
	return &EnvironmentError{
		Err:  fmt.Errorf("RUN needs to execute programs for %s: this machine is %s", platformString(m), platformString(hostPlatform())),
		Hint: "use FROM --platform=$BUILDPLATFORM for the stages that run commands, or build on such a machine",
	}
}

// judge refuses a RUN whose base image is for a machine that nobody stands in for. Images that call themselves something else than
// they are exist, and BuildKit runs them; so where the configuration says no, the program that is to be run has the last word. For
// that, and only then, the layers of that image are fetched.
func (s *session) judge(ctx context.Context, g *dag.Graph, step *dag.Step, op dag.Run, in standIn) error {
	arch, sure := s.foreign(step, op)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case in.broken:
		return in.err
	case in.err == nil || !sure:
		return nil
	}
	if s.opts.Emulators.Given(arch) { // and is of no use: to go on without it would be something else than was asked for
		return s.cannotEmulate(g, step, op, in)
	}
	layers := baseLayers(g, step)
	if native, err := s.isNative(ctx, layers, op, arch); native || err != nil {
		return err
	}
	if brings, err := s.bringsEmulator(ctx, layers, arch); brings || err != nil {
		return err
	}
	return s.cannotEmulate(g, step, op, in)
}

// bringsEmulator reports whether an image has the emulator that this machine registered by its path only, as images do that were
// made for such machines.
func (s *session) bringsEmulator(ctx context.Context, layers []digest.Digest, arch string) (bool, error) {
	r, ok := emulator.Registered(arch)
	if !ok || r.Fixed || !emulator.Executes(arch) {
		return false, nil
	}
	chain, err := s.chain(ctx, layers)
	if err != nil {
		return false, err
	}
	at, err := chain.Resolve(strings.TrimPrefix(r.Interpreter, "/"), true)
	if err != nil {
		return false, err
	}
	e, ok, err := chain.Lstat(at)
	return ok && e.Type == tree.File, err
}

// baseLayers are those of the image a step stands on in the end; nil when it stands on none.
func baseLayers(g *dag.Graph, step *dag.Step) []digest.Digest {
	for len(step.Inputs) > 0 {
		step = &g.Steps[step.Inputs[0]]
	}
	img, _ := step.Op.(dag.Image)
	return img.DiffIDs
}

// isNative reports whether the program of a RUN, as the base has it, is for this machine, which does not execute those of one
// architecture. One that is not in the base is made by
// the Dockerfile, and nothing can be said of it.
func (s *session) isNative(ctx context.Context, layers []digest.Digest, op dag.Run, without string) (bool, error) {
	if err := each(ctx, layers, s.fetches.layer); err != nil {
		return false, err
	}
	chain, err := s.chain(ctx, layers)
	if err != nil {
		return false, err
	}
	src := s.layers.Source(chain, layers)
	defer src.Close()
	const maxInterpreters = 4
	name := op.Args[0]
	for range maxInterpreters {
		head, err := headOf(ctx, chain, src, name, op.Env)
		if head == nil || err != nil {
			return err == nil, err
		}
		if script, ok := bytes.CutPrefix(head, []byte("#!")); ok {
			line, _, _ := strings.Cut(string(script), "\n")
			if fields := strings.Fields(line); len(fields) > 0 {
				name = fields[0]
				continue
			}
		}
		return !isForeign(head, without), nil
	}
	return true, nil
}

// headOf reads the beginning of a program; nil when there is none.
func headOf(ctx context.Context, chain *tree.Chain, src *snapshot.LayerSource, name string, env []string) ([]byte, error) {
	for _, place := range placesOf(name, env) {
		at, err := chain.Resolve(strings.TrimPrefix(place, "/"), true)
		if err != nil {
			return nil, err
		}
		e, ok, err := chain.Lstat(at)
		if err != nil {
			return nil, err
		}
		if !ok || e.Type != tree.File {
			continue
		}
		r, err := src.Open(ctx, &e.Entry)
		if err != nil {
			return nil, err
		}
		head := make([]byte, 256)
		n, err := io.ReadFull(r, head)
		r.Close()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		return head[:n], nil
	}
	return nil, nil
}

// placesOf lists where a program is looked for.
func placesOf(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var out []string
	for _, kv := range env {
		if list, ok := strings.CutPrefix(kv, "PATH="); ok {
			out = nil
			for dir := range strings.SplitSeq(list, ":") {
				out = append(out, path.Join("/", dir, name))
			}
		}
	}
	return out
}

// isForeign reports whether a program is one for another machine, of which nobody executes those of one architecture. What is no
// ELF file the kernel will judge.
func isForeign(head []byte, without string) bool {
	arch := emulator.ArchOfProgram(head)
	return emulator.IsELF(head) && (arch == "" || arch == without || arch != runtime.GOARCH && !emulator.Executes(arch))
}
