package build

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/dag"
	"build/executor"
	"build/internal/tree"
	"build/snapshot"
)

// Secret is one --secret: what RUN --mount=type=secret shows. It enters no key, no record and no log.
type Secret struct {
	ID   string
	Data []byte
	// CacheKey lets the value decide whether a step that mounts it runs again: an HMAC of it under the store's own key enters
	// the step's.
	CacheKey bool
	// LeakOK says that it may be in layers: it is meant to, or not worth a word.
	LeakOK bool
}

// treeMount is a path of a chain of layers that a step sees somewhere (type=bind).
type treeMount struct {
	Target   string
	Chain    []digest.Digest
	Sub      string
	ReadOnly bool
}

// cacheMount is a directory that outlives the step and belongs to no layer (type=cache).
type cacheMount struct {
	Target   string
	Key      string // names the directory
	ID       string // as in the Dockerfile, for people
	Sub      string
	Sharing  string
	ReadOnly bool
	Mode     uint32 // of the directory as it is first made; so are the owners. What Seed has at Sub keeps its own
	UID, GID uint32
	Seed     digest.Digest // layer with what it is first filled with; "" nothing
	Fresh    bool          // what it held before this build is not wanted
}

// mountFields adds what a RUN's mounts say to its key. The content of what is mounted comes with the inputs.
func (e *evaluator) mountFields(ctx context.Context, h *cache.Hash, step *dag.Step, op dag.Run) error {
	for i, m := range op.Mounts {
		name := "mount" + strconv.Itoa(i)
		h.Field(name, fmt.Sprintf("%s %s %s ro=%v env=%s size=%d", m.Type, m.Target, m.Source, m.ReadOnly, m.Env, m.Size))
		if m.Type == dag.MountSecret || m.Type == dag.MountSSH {
			if err := e.privateFields(h, name, m); err != nil {
				return err
			}
		}
		if ownsCache(m) {
			accessField(h, name, m)
		}
		if !e.mountsContext(step, m) {
			continue
		}
		sel, err := e.mountSelection(ctx, step, i, m, nil)
		if err != nil {
			return err
		}
		h.Field(name+":context", hex.EncodeToString(sel.sum[:]))
	}
	return nil
}

// privateFields adds what a Dockerfile says about a secret or an agent: which it is and who may use it, but not what it is
// (S92, S95), unless the caller asked for that.
func (e *evaluator) privateFields(h *cache.Hash, name string, m dag.Mount) error {
	h.Field(name+":id", m.ID)
	accessField(h, name, m)
	secret := e.secretOf(m)
	if secret == nil || !secret.CacheKey {
		return nil
	}
	key, err := e.secretKey()
	if err != nil {
		return &EnvironmentError{Err: err}
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("secret " + secret.ID + "\x00"))
	mac.Write(secret.Data)
	h.Field(name+":value", hex.EncodeToString(mac.Sum(nil)))
	return nil
}

// accessField adds who may use what is mounted.
func accessField(h *cache.Hash, name string, m dag.Mount) {
	number := func(v *uint32) string {
		if v == nil {
			return "-"
		}
		return strconv.FormatUint(uint64(*v), 8)
	}
	h.Field(name+":access", fmt.Sprintf("mode=%s uid=%s gid=%s required=%v", number(m.Mode), number(m.UID), number(m.GID), m.Required))
}

// ownsCache reports whether a cache mount begins as an empty directory with an owner or mode of its own. As in BuildKit these
// have no effect together with source=, and together with from= alone nothing of that is seen.
func ownsCache(m dag.Mount) bool {
	return m.Type == dag.MountCache && m.Source == "/" && (m.Mode != nil || m.UID != nil || m.GID != nil)
}

// secretOf returns what was given for a secret mount, nil if nothing was.
func (e *evaluator) secretOf(m dag.Mount) *Secret {
	if m.Type != dag.MountSecret {
		return nil
	}
	return e.givenSecret(m.ID)
}

// givenSecret returns the secret of an id, nil if there is none. Of several the last counts.
func (s *session) givenSecret(id string) *Secret {
	for i, x := range slices.Backward(s.opts.Secrets) {
		if x.ID == id {
			return &s.opts.Secrets[i]
		}
	}
	return nil
}

// mountContent adds, for every tree a RUN mounts, the content of the path it mounts: what changed elsewhere in that tree
// changes nothing for the step.
func (e *evaluator) mountContent(ctx context.Context, h *cache.Hash, step *dag.Step, op dag.Run, in []*outcome) error {
	for i, m := range op.Mounts {
		if m.Input < 0 || in[m.Input] == nil {
			continue
		}
		sel, err := e.mountSelection(ctx, step, i, m, in[m.Input])
		if err != nil {
			return err
		}
		h.Field("mount"+strconv.Itoa(i)+":content", hex.EncodeToString(sel.sum[:]))
	}
	return nil
}

// mountsContext reports whether a mount shows a context rather than a chain of layers.
func (e *evaluator) mountsContext(step *dag.Step, m dag.Mount) bool {
	if m.Input < 0 {
		return false
	}
	_, ok := e.graph.Steps[step.Inputs[m.Input]].Op.(dag.Context)
	return ok
}

// mountSelection is what mount i shows: the path it names, as a COPY of it would take it, and a directory with its own owner and
// mode, which a step sees.
func (e *evaluator) mountSelection(ctx context.Context, step *dag.Step, i int, m dag.Mount, from *outcome) (*selection, error) {
	return once(e, e.mountSels, mountID{step.ID, i}, func() (*selection, error) {
		var src snapshot.Source
		var err error
		if from == nil {
			src, err = e.contexts.get(e.graph.Steps[step.Inputs[m.Input]].Op.(dag.Context).Name)
		} else {
			src, err = e.chainSource(ctx, from)
		}
		if err != nil {
			return nil, err
		}
		s := &selection{at: tree.Clean(m.Source)}
		s.spec = &snapshot.CopySpec{Sources: []snapshot.CopySource{{Path: m.Source}}, Dest: "/" + s.at, Now: e.began}
		// What cannot be resolved is not there, which Select says better.
		if real, err := tree.Resolve(s.at, true, src.Lstat); err == nil && real != "" {
			if entry, ok, err := src.Lstat(real); err != nil {
				return nil, err
			} else if ok && entry.Type == tree.Dir {
				s.at, s.spec.Sources[0].Path, s.spec.Dest, s.spec.Parents = real, "/"+real, "/", true
			}
		}
		if s.files, err = snapshot.Select(ctx, src, s.spec); err != nil {
			return nil, err
		}
		s.sum, err = s.files.Digest(ctx)
		return s, err
	}).wait(ctx)
}

type mountID struct {
	step  dag.ID
	mount int
}

// layerOf writes what a mount shows as a layer: a context is never mounted itself, because a step must see the files
// that the ignore rules leave, as they were hashed, and must not be able to change the caller's.
func (e *evaluator) layerOf(ctx context.Context, sel *selection) (digest.Digest, error) {
	h := mountedKey(sel.sum, sel.spec.Dest)
	key := h.Sum()
	if rec, err := e.cache.Get(key); err == nil && len(rec.Layers) == 1 && e.obtainable(rec.Layers[0]) {
		return rec.Layers[0], nil
	}
	d, err := e.writeLayer(ctx, func(w *snapshot.Writer) error { return sel.files.Write(ctx, tree.NewChain(nil), w) })
	if err != nil {
		return "", err
	}
	return d, e.cache.Put(key, &cache.Record{Layers: []digest.Digest{d}, Own: 1, Created: e.began, Step: "mounted files", Text: h.Text()})
}

// mountedKey is the key of the layer of a selection that is mounted.
func mountedKey(sum [32]byte, at string) *cache.Hash {
	h := cache.NewHash("mounted files")
	h.Field("selection", hex.EncodeToString(sum[:]))
	h.Field("at", at)
	return h
}

// mounts turns the mounts of a RUN into what the holder is asked for, and adds to the command's environment.
func (e *evaluator) mounts(ctx context.Context, step *dag.Step, op dag.Run, in []*outcome, req *runRequest) error {
	for i, m := range op.Mounts {
		var err error
		switch m.Type {
		case dag.MountTmpfs:
			req.Spec.Mounts = append(req.Spec.Mounts, executor.Mount{Target: m.Target, Source: executor.Tmpfs{Size: m.Size, ReadOnly: m.ReadOnly}})
		case dag.MountSecret:
			err = e.secretMount(m, req)
		case dag.MountBind:
			err = e.bindMount(ctx, step, i, m, in, req)
		case dag.MountCache:
			err = e.cacheMount(ctx, step, i, m, in, req)
		case dag.MountSSH: // forwardAgents, last of all
		default:
			err = fmt.Errorf("internal error: a mount of type %q", m.Type) // the parser knows no other
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *evaluator) bindMount(ctx context.Context, step *dag.Step, i int, m dag.Mount, in []*outcome, req *runRequest) error {
	t := treeMount{Target: m.Target, Sub: m.Source, ReadOnly: m.ReadOnly}
	if m.Input < 0 {
		return fmt.Errorf("internal error: a bind mount without a source")
	}
	if o := in[m.Input]; o != nil {
		t.Chain = o.chain
		if err := e.makeUnpackable(ctx, t.Chain); err != nil {
			return err
		}
	} else {
		sel, err := e.mountSelection(ctx, step, i, m, nil)
		if err != nil {
			return err
		}
		d, err := e.layerOf(ctx, sel)
		if err != nil {
			return err
		}
		t.Chain, t.Sub = []digest.Digest{d}, "/"+sel.at
	}
	req.Trees = append(req.Trees, t)
	return nil
}

func (e *evaluator) cacheMount(ctx context.Context, step *dag.Step, i int, m dag.Mount, in []*outcome, req *runRequest) error {
	c := cacheMount{Target: m.Target, ID: m.ID, Sub: m.Source, Sharing: m.Sharing, ReadOnly: m.ReadOnly, Mode: 0o755}
	h := cache.NewHash("cache mount")
	h.Field("namespace", m.Namespace)
	h.Field("id", m.ID)
	owns := ownsCache(m)
	if owns {
		if m.Mode != nil {
			c.Mode = *m.Mode
		}
		if m.UID != nil {
			c.UID = *m.UID
		}
		if m.GID != nil {
			c.GID = *m.GID
		}
		// As in BuildKit, a cache that names its owner or mode is not the one of the same id that does not.
		h.Field("owner", fmt.Sprintf("%d:%d %o", c.UID, c.GID, c.Mode))
		// And --no-cache makes it again, although it clears no other cache (S98).
		c.Fresh = step.NoCache
	}
	if m.Input >= 0 {
		sel, err := e.mountSelection(ctx, step, i, m, in[m.Input])
		if err != nil {
			return err
		}
		h.Field("seed", hex.EncodeToString(sel.sum[:]))
		h.Field("seed:at", sel.at) // the same files at another path are looked for there
		if !owns {
			if c.Seed, err = e.layerOf(ctx, sel); err != nil {
				return err
			}
			c.Sub = sel.at
		}
	}
	c.Key = h.Sum().String()
	req.Caches = append(req.Caches, c)
	return nil
}

// secretMount shows a secret as a file in memory, as an environment variable, or both.
func (e *evaluator) secretMount(m dag.Mount, req *runRequest) error {
	secret := e.secretOf(m)
	if secret == nil {
		if m.Required {
			return &UsageError{Msg: fmt.Sprintf("secret %s: not found", m.ID), Hint: fmt.Sprintf("give it with --secret id=%s,src=FILE or --secret id=%s,env=NAME", m.ID, m.ID)}
		}
		return nil
	}
	if m.Env != "" {
		if bytes.IndexByte(secret.Data, 0) >= 0 {
			return &UsageError{Msg: fmt.Sprintf("secret %s holds a zero byte, which an environment variable cannot", m.ID), Hint: "mount it as a file: leave out env="}
		}
		req.Spec.Env = append(req.Spec.Env, m.Env+"="+string(secret.Data))
	}
	if m.Target == "" {
		return nil
	}
	f := executor.File{Data: secret.Data, Mode: 0o400}
	if m.Mode != nil {
		f.Mode = *m.Mode
	}
	if m.UID != nil {
		f.UID = *m.UID
	}
	if m.GID != nil {
		f.GID = *m.GID
	}
	req.Spec.Mounts = append(req.Spec.Mounts, executor.Mount{Target: m.Target, Source: f})
	return nil
}

// maxSecret is what BuildKit takes.
const maxSecret = 500 << 10

// ReadSecret makes a secret of a file's content.
func ReadSecret(id, file string) (Secret, error) {
	f, err := os.Open(file)
	if err != nil {
		return Secret{}, &UsageError{Msg: fmt.Sprintf("--secret id=%s: %v", id, err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return Secret{}, &UsageError{Msg: fmt.Sprintf("--secret id=%s: %v", id, err)}
	}
	if len(data) > maxSecret {
		return Secret{}, &UsageError{Msg: fmt.Sprintf("--secret id=%s: %s has more than %d bytes", id, file, maxSecret)}
	}
	return Secret{ID: id, Data: data}, nil
}
