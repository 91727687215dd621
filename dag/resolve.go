package dag

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/util/suggest"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
	"build/parser"
)

// defaultPath is the PATH of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// resolve makes the bases of all stages the target needs known and puts ONBUILD triggers in front of their instructions. A
// trigger can need further stages and images, so it goes round until nothing is new. It returns what has to be asked for.
func (l *lowering) resolve(target *stage) ([]Need, error) {
	for {
		var needs []Need
		asked := map[NeedKey]bool{}
		again := false
		for _, d := range ordered(l.wanted(target), l.stages) {
			need, err := l.resolveBase(d)
			if err != nil {
				return nil, l.at(d.pos, err)
			}
			if need != nil {
				if k := need.Key(); !asked[k] {
					asked[k] = true
					if !need.Context { // looks at every stage, so only for what is asked for
						need.Like = l.stageLike(need.Name)
					}
					needs = append(needs, *need)
				}
				continue
			}
			more, err := l.trigger(d)
			if err != nil {
				return nil, err
			}
			again = again || more
		}
		if !again {
			return needs, nil
		}
	}
}

// ordered lists a set of stages, what they are built from first, then what is no stage in the order the instructions name it.
func ordered(set map[*stage]bool, stages []*stage) []*stage {
	var external []*stage
	seen := map[*stage]bool{}
	out := inOrder(set, stages)
	for _, d := range out {
		for _, dep := range d.deps {
			if dep.stage.external && !seen[dep.stage] {
				seen[dep.stage] = true
				external = append(external, dep.stage)
			}
		}
	}
	return append(out, external...)
}

// resolveBase fills the state below a stage that stands on no other stage, or tells what is needed for it.
func (l *lowering) resolveBase(d *stage) (*Need, error) {
	if d.base != nil || d.resolved {
		return nil, nil
	}
	p := l.platformOf(d)
	key := d.contextKey
	if key == "" && d.BaseName == scratchName {
		l.onScratch(d, l.settings.target)
		return nil, nil
	}
	ref, err := l.parseName(d.BaseName)
	if key == "" {
		if err != nil {
			return nil, fmt.Errorf("failed to parse stage name %q: %w", d.BaseName, err)
		}
		if k, found, err := l.context(ref.Tagged().String(), p); err != nil {
			return nil, err
		} else if found {
			key = k
		}
	}
	if key != "" && strings.TrimPrefix(l.Contexts[key], "docker-image://") == scratchName {
		l.onScratch(d, p)
		return nil, nil
	}
	need := &Need{
		Name: d.BaseName, Platform: platforms.FormatAll(platforms.Normalize(p)), Context: key != "",
		Stage: d.label, Pos: d.pos,
	}
	if key != "" {
		need.Name, need.Value = key, l.Contexts[key]
	}
	got, ok := l.have[need.Key()]
	switch {
	case !ok:
		return need, nil
	case got.Image != nil:
		return nil, l.onImage(d, got.Image, key, ref, p)
	default:
		l.onDirectory(d, key, p)
		return nil, nil
	}
}

// stageLike is the stage whose name somebody may have misspelt, "" if none is near. Names of two letters are near to all others.
func (l *lowering) stageLike(name string) string {
	if len(name) < 3 {
		return ""
	}
	var names []string
	for _, d := range l.stages {
		if d.Name != "" {
			names = append(names, d.Name)
		}
	}
	near, _ := suggest.Search(name, names, true)
	return near
}

// setResolved notes that the state holds what is below the stage. External sources and stages replaced by a context are
// final with that. ONBUILD triggers are taken out: they fire once.
func (d *stage) setResolved() {
	d.resolved = true
	d.onbuild, d.state.img.Config.OnBuild = d.state.img.Config.OnBuild, nil
	d.done = d.external || d.contextKey != ""
}

func (l *lowering) onScratch(d *stage, p ocispec.Platform) {
	d.state = state{out: l.scratch(), img: emptyImage(p), platform: p, env: newEnv(), workdir: "/"}
	d.setResolved()
}

func (l *lowering) onDirectory(d *stage, key string, p ocispec.Platform) {
	d.state = state{out: l.contextStep(key, d.pos, p), dir: true, context: key, img: emptyImage(p), platform: p, env: newEnv(), workdir: "/"}
	d.setResolved()
}

// onImage puts a stage on an image.
func (l *lowering) onImage(d *stage, info *ImageInfo, key string, ref reference.Reference, p ocispec.Platform) error {
	var img dockerspec.DockerOCIImage
	if err := json.Unmarshal(info.Config, &img); err != nil {
		return fmt.Errorf("failed to parse image config of %s: %w", d.BaseName, err)
	}
	if img.OS == "windows" {
		return errNoWindows
	}
	diffIDs := info.DiffIDs
	if diffIDs == nil {
		diffIDs = img.RootFS.DiffIDs
	}
	original := cloneImage(img)
	img.Created = nil
	st := state{img: img, platform: p, env: newEnv(), workdir: "/", baseConfig: &original, baseDigest: info.Digest}
	if d.contextKey != "" && img.OS != "" && img.Architecture != "" {
		st.platform = img.Platform
	}
	name := "[context " + key + "] " + info.Ref
	if key == "" {
		pinned := pinnedName(ref, info.Digest)
		st.baseName = ref.Tagged().String()
		if len(diffIDs) > 0 {
			l.lintBasePlatform(d, p, original.Platform)
		}
		name = "FROM " + pinned
	}
	if len(diffIDs) == 0 {
		st.out = l.scratch()
	} else {
		if key == "" {
			name = l.stepName(d, name, p, newEnv(), false)
		}
		op := Image{Ref: info.Ref, Digest: info.Digest, DiffIDs: diffIDs, Platform: p}
		share := fmt.Sprintf("image %s %s %s", info.Ref, info.Digest, platforms.FormatAll(p))
		st.out = l.source(share, d, Step{Op: op, Name: name, Pos: d.pos, Platform: p})
	}
	st.history = baseHistory(img.History, len(diffIDs), st.out)
	d.state = st
	d.setResolved()
	return nil
}

// pinnedName is how FROM shows an image: normalised, with tag and digest.
func pinnedName(ref reference.Reference, d digest.Digest) string {
	ref = ref.Tagged()
	if d != "" {
		ref.Digest = d
	}
	return ref.String()
}

// trigger puts the ONBUILD instructions of a stage's base in front of its own and reports whether they take files from other
// stages, which then have to be resolved too.
func (l *lowering) trigger(d *stage) (more bool, err error) {
	if d.triggered || d.done {
		return false, nil
	}
	d.triggered = true
	triggers := d.onbuild
	if d.base != nil {
		triggers = d.base.triggersFor()
	}
	cmds := make([]command, 0, len(triggers)+len(d.cmds))
	for _, text := range triggers {
		cmd, err := l.parseTrigger(d, text)
		if err != nil {
			return false, l.at(d.pos, onbuildError(text, err))
		}
		more = more || len(cmd.from) > 0
		cmds = append(cmds, cmd)
	}
	d.cmds = append(cmds, d.cmds...)
	d.total += len(triggers)
	return more, nil
}

// triggersFor lists what a stage leaves to the stages that stand on it: its own ONBUILD instructions or, if a named context
// replaces it, those of that image.
func (d *stage) triggersFor() []string {
	if d.contextKey != "" {
		return d.onbuild
	}
	var out []string
	for _, c := range d.Commands {
		if ob, ok := c.(*instructions.OnbuildCommand); ok {
			out = append(out, ob.Expression)
		}
	}
	return out
}

func onbuildError(text string, err error) error {
	return fmt.Errorf("ONBUILD %s: %w", text, err)
}

func (l *lowering) parseTrigger(d *stage, text string) (command, error) {
	ic, err := parser.ParseTrigger(text, d.pos) // its place in this file is the FROM
	if err != nil {
		return command{}, err
	}
	cmd, err := l.linked(d, ic)
	cmd.onbuild = true
	return cmd, err
}

// emptyImage is the config of scratch.
func emptyImage(p ocispec.Platform) dockerspec.DockerOCIImage {
	var img dockerspec.DockerOCIImage
	img.Platform = p
	img.Config.WorkingDir = "/"
	if p.OS != "windows" {
		img.Config.Env = []string{"PATH=" + defaultPath}
	}
	return img
}

// cloneImage copies everything of a config that instructions change.
func cloneImage(img dockerspec.DockerOCIImage) dockerspec.DockerOCIImage {
	c := &img.Config
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.OnBuild = slices.Clone(c.OnBuild)
	c.Shell = slices.Clone(c.Shell)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	if c.Healthcheck != nil {
		h := *c.Healthcheck
		h.Test = slices.Clone(h.Test)
		c.Healthcheck = &h
	}
	img.History = slices.Clone(img.History)
	return img
}

// setPlatform makes an image be for the platform that was asked for, keeping details of the base where they cannot be wrong.
func setPlatform(img *ocispec.Platform, want ocispec.Platform) {
	same := img.OS == want.OS && img.Architecture == want.Architecture
	img.OS, img.Architecture = want.OS, want.Architecture
	if want.Variant != "" || !same {
		img.Variant = want.Variant
	}
	if want.OSVersion != "" || !same {
		img.OSVersion = want.OSVersion
	}
	if want.OSFeatures != nil {
		img.OSFeatures = slices.Clone(want.OSFeatures)
	}
}

func normalized(p ocispec.Platform) ocispec.Platform { return platforms.Normalize(p) }
