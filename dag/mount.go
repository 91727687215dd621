package dag

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// mounts lowers the mounts of a RUN and appends the trees they show to inputs.
func (l *lowering) mounts(d *stage, cmd command, c *instructions.RunCommand, inputs *[]ID) ([]Mount, error) {
	var out []Mount
	sockets := 0
	for i, m := range instructions.GetMounts(c) {
		var from *stage
		if i < len(cmd.from) {
			from = cmd.from[i]
		}
		if from != nil && !from.done {
			return nil, fmt.Errorf("cannot mount from stage %q to %q, stage needs to be defined before current command", m.From, m.Target)
		}
		var (
			lowered Mount
			err     error
		)
		switch m.Type {
		case instructions.MountTypeSecret:
			lowered, err = secretMount(d, m)
		case instructions.MountTypeSSH:
			lowered, err = sshMount(d, m, sockets)
			sockets++
		default:
			lowered, err = l.treeMount(d, cmd, m, from, inputs)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, lowered)
		if l.Options.Outline {
			d.mounted = append(d.mounted, mounted{lowered, cmd.Command})
		}
	}
	return out, nil
}

// treeMount lowers bind, cache and tmpfs.
func (l *lowering) treeMount(d *stage, cmd command, m *instructions.Mount, from *stage, inputs *[]ID) (Mount, error) {
	target := mountTarget(d, m.Target)
	if target == "/" {
		return Mount{}, fmt.Errorf("invalid mount target %q", target)
	}
	out := mountOf(m)
	out.Target, out.Source = target, path.Join("/", m.Source)
	switch m.Type {
	case instructions.MountTypeTmpfs:
		out.Size = m.SizeLimit
		return out, nil
	case instructions.MountTypeCache:
		out.ID, out.Namespace, out.Sharing = m.CacheID, l.cacheNS, string(m.CacheSharing)
		if out.ID == "" {
			out.ID = path.Clean(m.Target) // as written: relative targets are not joined
		}
		if out.Sharing == "" {
			out.Sharing = string(instructions.MountSharingShared)
		}
	}
	var tree ID
	switch {
	case from != nil:
		tree = from.state.out
	case m.Type == instructions.MountTypeBind:
		tree = l.contextStep("", l.file.Position(cmd.Location()), l.settings.target)
	default:
		return out, nil
	}
	out.Input = slices.Index(*inputs, tree)
	if out.Input < 0 {
		out.Input = len(*inputs)
		*inputs = append(*inputs, tree)
	}
	return out, nil
}

func secretMount(d *stage, m *instructions.Mount) (Mount, error) {
	out := mountOf(m)
	out.ID, out.Required, out.ReadOnly = m.CacheID, m.Required, true
	if m.Source != "" {
		out.ID = m.Source
	}
	if out.ID == "" {
		if m.Target == "" {
			return Mount{}, errors.New("one of source, target required")
		}
		out.ID = path.Base(m.Target)
	}
	target := m.Target
	if m.Env != nil {
		out.Env = *m.Env
		if out.Env == "" {
			return Mount{}, errors.New("secret mount: env needs the name of a variable")
		}
	} else if target == "" {
		target = "/run/secrets/" + path.Base(out.ID)
	}
	if target != "" {
		out.Target = mountTarget(d, target)
	}
	return out, nil
}

func sshMount(d *stage, m *instructions.Mount, n int) (Mount, error) {
	if m.Source != "" {
		return Mount{}, errors.New("ssh does not support source")
	}
	out := mountOf(m)
	out.ID, out.Required = m.CacheID, m.Required
	if out.ID == "" {
		out.ID = "default"
	}
	target := m.Target
	if target == "" {
		target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", n)
	}
	out.Target = mountTarget(d, target)
	return out, nil
}

// mountOf takes over what means the same for all types.
func mountOf(m *instructions.Mount) Mount {
	return Mount{
		Type: MountType(m.Type), Input: -1, ReadOnly: m.ReadOnly,
		Mode: narrow(m.Mode), UID: narrow(m.UID), GID: narrow(m.GID),
	}
}

func narrow(v *uint64) *uint32 {
	if v == nil {
		return nil
	}
	n := uint32(*v) // the parser allows 32 bits
	return &n
}

// mountTarget makes a target absolute; relative ones are below the working directory.
func mountTarget(d *stage, target string) string {
	if path.IsAbs(target) {
		return path.Clean(target)
	}
	return path.Join("/", d.state.workdir, target)
}
