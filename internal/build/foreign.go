package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/tree"
	"build/snapshot"
)

// canExecute refuses a RUN whose base image is for a machine that this one cannot stand in for, neither by itself nor by an
// emulator. Images that call themselves something else than they are exist, and BuildKit runs them; so where the configuration
// says no, the program that is to be run has the last word. For that, and only then, the layers of that image are fetched.
func (s *session) canExecute(ctx context.Context, g *dag.Graph, step *dag.Step, op dag.Run) error {
	m := op.Machine
	if m.Architecture == "" || m.OS == "linux" && (runsHere(m) || executesArch(m.Architecture)) {
		return nil
	}
	if m.OS == "linux" {
		native, err := s.isNative(ctx, baseLayers(g, step), op)
		if native || err != nil {
			return err
		}
	}
	return &EnvironmentError{
		Err: fmt.Errorf("RUN needs to execute programs for %s: this machine is %s, and no emulator for them is registered",
			platformString(m), platformString(hostPlatform())),
		Hint: "use FROM --platform=$BUILDPLATFORM for the stages that run commands, register an emulator with binfmt_misc (Debian: qemu-user-static), or build on such a machine",
	}
}

// baseLayers are those of the image a step stands on in the end; nil when it stands on none.
func baseLayers(g *dag.Graph, step *dag.Step) []digest.Digest {
	for len(step.Inputs) > 0 {
		step = &g.Steps[step.Inputs[0]]
	}
	img, _ := step.Op.(dag.Image)
	return img.DiffIDs
}

// isNative reports whether the program of a RUN, as the base has it, is for this machine. One that is not in the base is made by
// the Dockerfile, and nothing can be said of it.
func (s *session) isNative(ctx context.Context, layers []digest.Digest, op dag.Run) (bool, error) {
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
		return !isForeign(head), nil
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

// isForeign reports whether a program is one for another machine.
func isForeign(head []byte) bool {
	const machineAt = 18
	if len(head) < machineAt+2 || string(head[:4]) != elf.ELFMAG {
		return false // what it is, the kernel will say
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
		order = binary.BigEndian
	}
	for arch, m := range machines {
		if m.elf == order.Uint16(head[machineAt:]) && executesArch(arch) {
			return false
		}
	}
	return true
}
