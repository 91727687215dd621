package build

import (
	"github.com/opencontainers/go-digest"

	"build/dag"
)

// needs gathers which layers of images a build would fetch. What a push to another registry would have to copy is not in it:
// that is found out from that registry when it is pushed.
type needs struct {
	s      *session
	images []*dag.Image
	want   map[digest.Digest]bool
}

func newNeeds(s *session) *needs { return &needs{s: s, want: map[digest.Digest]bool{}} }

// ofProduct adds what the steps of one platform need, and its outputs.
func (n *needs) ofProduct(p *planner) {
	for i := range p.graph.Steps {
		step := &p.graph.Steps[i]
		if op, ok := step.Op.(dag.Image); ok {
			n.images = append(n.images, &op)
		}
		if d := p.done[step.ID]; d != nil && d.status != WouldCached {
			n.ofStep(p.evaluator, step)
		}
	}
	if p.graph.Target >= 0 && n.exported() {
		n.image(p.rootImage(&p.graph.Steps[p.graph.Target]), n.blob)
	}
}

// exported reports whether the result goes anywhere but to a registry, which needs every layer here.
func (n *needs) exported() bool {
	for _, o := range n.s.opts.Outputs {
		if o.Type == OutputLocal || o.Type == OutputTar {
			return true
		}
	}
	return n.s.wantBlobs && !n.s.onlyPushed()
}

// ofStep adds what a step needs that would run: a RUN unpacks what it stands on and mounts; a COPY looks at the indexes of what it
// stands on and reads from what it copies.
func (n *needs) ofStep(e *evaluator, step *dag.Step) {
	_, run := step.Op.(dag.Run)
	for i, in := range step.Inputs {
		from := &e.graph.Steps[in]
		image := e.rootImage(from)
		switch {
		case image == nil:
		case run || i > 0 && !isWork(from):
			n.image(image, n.blob)
		case i == 0 && linked(step) && step.Op.(dag.Copy).Chown == "":
		default:
			n.image(image, n.index)
		}
	}
}

func (n *needs) image(image *dag.Image, need func(digest.Digest)) {
	if image == nil {
		return
	}
	for _, d := range image.DiffIDs {
		need(d)
	}
}

func (n *needs) blob(d digest.Digest) {
	if !n.s.layers.Here(d) {
		n.want[d] = true
	}
}

func (n *needs) index(d digest.Digest) {
	if _, ok := n.s.layers.KnownIndex(d); !ok {
		n.blob(d)
	}
}

// list gives what is to be fetched by image. A layer that several have is counted once.
func (n *needs) list() []PlanFetch {
	var out []PlanFetch
	for _, image := range n.images {
		f := PlanFetch{Image: familiar(image.Ref), Digest: image.Digest.String(), Of: len(image.DiffIDs)}
		for _, d := range image.DiffIDs {
			if n.want[d] {
				delete(n.want, d)
				f.Layers++
				f.Bytes += n.s.fetches.size(d)
			}
		}
		if f.Layers > 0 {
			out = append(out, f)
		}
	}
	return out
}

// size is how many bytes fetching a layer transfers, 0 if nobody said.
func (f *fetches) size(d digest.Digest) int64 {
	sources, err := f.sources(d)
	if err != nil || len(sources) == 0 {
		return 0
	}
	return sources[0].desc.Size
}
