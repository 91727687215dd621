package build

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/dag"
	"build/internal/leak"
	"build/internal/progress"
	"build/internal/tree"
	"build/parser"
)

// The leak gate: what a step adds to the image is searched for every secret that some step of the build mounts, while the layer is
// written. So are the layers that COPY, ADD and WORKDIR make, because the file a secret is given from often lies in the context, and
// the image's configuration. Not searched are base images and what is mounted into a step.
//
// What was found is noted beside the layer, and with it what was searched for, as an HMAC under the store's own key. A cached
// layer is therefore no way around the gate: what it was known to hold is told again, and a secret that it was never searched for
// (another value, or a layer made with the gate off) is searched for then, once.

// LeakMode says what happens when a secret is found.
type LeakMode string

// The modes of --secret-leak.
const (
	LeakWarn  LeakMode = "warn"
	LeakError LeakMode = "error" // the step fails, and its layer is neither published nor recorded
	LeakOff   LeakMode = "off"   // nothing is searched
)

// SecretLeakError says that a step, or the configuration, leaks secrets and that this is not to be.
type SecretLeakError struct {
	Where    string         `json:"where"`
	Findings []leak.Finding `json:"findings"`
}

func (e *SecretLeakError) Error() string {
	var b strings.Builder
	for i, f := range e.Findings {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(leakText(e.Where, f))
	}
	return b.String() + "\n  use a secret without writing it down, or allow it: --secret id=ID,…,leak=ok"
}

const kindLeak = "build.leak"

// Remote lets the error cross a process boundary.
func (e *SecretLeakError) Remote() (string, any) { return kindLeak, e }

// Where a secret was found, as it is told.
const (
	inLayer   = "the layer of this step"
	inConfig  = "the configuration of the image"
	inHistory = "the history of the image"
)

func leakText(where string, f leak.Finding) string {
	places := make([]string, len(f.Places))
	for i, p := range f.Places {
		places[i] = p.String()
	}
	text := fmt.Sprintf("secret %s is in %s: %s", f.Secret, where, strings.Join(places, ", "))
	if f.Others > 0 {
		text += " and " + plural(f.Others, "more place")
	}
	return text
}

// leakGate is what a build knows of the secrets that must not leak. A nil one lets everything pass.
type leakGate struct {
	refuse  bool
	mounted map[string]bool // ids of the secrets that some step mounts, given or not
	exempt  map[string]bool // ids with leak=ok
	secrets []leak.Secret   // those that were given and are long enough
	macs    []string        // of each
	finder  *leak.Finder
}

// openLeakGate finds out which secrets the steps mount, and searches the configuration for them.
func (s *session) openLeakGate(file *parser.File, products []*product) error {
	if s.opts.SecretLeak == LeakOff {
		return nil
	}
	g := &leakGate{refuse: s.opts.SecretLeak == LeakError, mounted: map[string]bool{}, exempt: map[string]bool{}}
	for _, p := range products {
		for i := range p.graph.Steps {
			run, ok := p.graph.Steps[i].Op.(dag.Run)
			if !ok {
				continue
			}
			for _, m := range run.Mounts {
				if m.Type == dag.MountSecret && !g.mounted[m.ID] {
					g.mounted[m.ID] = true
					if err := s.guard(g, s.givenSecret(m.ID)); err != nil {
						return err
					}
				}
			}
		}
	}
	if len(g.mounted) == 0 {
		return nil
	}
	g.finder = leak.New(g.secrets)
	s.leaks = g
	for _, p := range products {
		if err := s.leakedIntoConfig(file, p.graph); err != nil {
			return err
		}
	}
	return nil
}

// leakVersion changes when more is searched for: cached layers are searched again then.
const leakVersion = "leak 1"

// guard adds a secret that a step mounts.
func (s *session) guard(g *leakGate, secret *Secret) error {
	if secret == nil || len(secret.Data) == 0 {
		return nil
	}
	if secret.LeakOK {
		g.exempt[secret.ID] = true
	}
	value := leak.Trimmed(secret.Data)
	if value == nil {
		if !secret.LeakOK {
			s.emit(progress.Message{Text: fmt.Sprintf("secret %s has fewer than %d bytes: layers are not searched for it", secret.ID, leak.Shortest)})
		}
		return nil
	}
	key, err := s.store.SecretKey()
	if err != nil {
		return &EnvironmentError{Err: err}
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\x00%s\x00", leakVersion, secret.ID)
	mac.Write(value)
	g.secrets = append(g.secrets, leak.Secret{ID: secret.ID, Value: value})
	g.macs = append(g.macs, hex.EncodeToString(mac.Sum(nil)))
	return nil
}

// leakRequest is what the holder needs to search the layer of a step: of each secret what is searched for. It stays in memory.
type leakRequest struct {
	Secrets []leak.Secret
	Refuse  []string // ids of those that make the step fail
}

func (g *leakGate) request() *leakRequest {
	if g == nil || len(g.secrets) == 0 {
		return nil
	}
	req := &leakRequest{Secrets: g.secrets}
	if g.refuse {
		for _, s := range g.secrets {
			if !g.exempt[s.ID] {
				req.Refuse = append(req.Refuse, s.ID)
			}
		}
	}
	return req
}

// layerSearch looks at one layer while it is written or read. A nil one looks at nothing.
type layerSearch struct {
	search *leak.Search
	refuse []string
	found  []leak.Finding
}

func (r *leakRequest) search() *layerSearch {
	if r == nil {
		return nil
	}
	return &layerSearch{search: leak.New(r.Secrets).Search(), refuse: r.Refuse}
}

func (l *layerSearch) Entry(e *tree.Entry) { l.search.Entry(e) }
func (l *layerSearch) Content(b []byte)    { l.search.Content(b) }

// Done keeps a layer from being published that has what it must not have.
func (l *layerSearch) Done() error {
	l.found = l.search.End()
	var bad []leak.Finding
	for _, f := range l.found {
		if slices.Contains(l.refuse, f.Secret) {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		return &SecretLeakError{Where: inLayer, Findings: bad}
	}
	return nil
}

func (l *layerSearch) findings() []leak.Finding {
	if l == nil {
		return nil
	}
	return l.found
}

// report tells what leaked, or makes it an error.
func (s *session) report(pos parser.Range, where string, found []leak.Finding) error {
	var bad []leak.Finding
	for _, f := range found {
		if s.leaks.mounted[f.Secret] && !s.leaks.exempt[f.Secret] {
			bad = append(bad, f)
		}
	}
	if s.leaks.refuse && len(bad) > 0 {
		return &SecretLeakError{Where: where, Findings: bad}
	}
	for _, f := range bad {
		s.warnOf(parser.Warning{Range: pos, Msg: leakText(where, f)})
	}
	return nil
}

// leaked notes what was found in a layer that a step has just made, and tells it.
func (e *evaluator) leaked(ctx context.Context, step *dag.Step, layer digest.Digest, found []leak.Finding) error {
	if e.leaks == nil {
		return nil
	}
	if err := e.remember(ctx, layer, e.leaks.macs, found); err != nil {
		return err
	}
	return e.report(step.Pos, inLayer, found)
}

// leakNote is what is kept beside a layer. It has no byte of a secret, and no hash of one that could be tried without the key.
type leakNote struct {
	Searched []string       `json:"searched"` // for the HMACs of these
	Found    []leak.Finding `json:"found,omitempty"`
}

const (
	leakRemark = "leaks"
	// maxSearched bounds how many values are remembered; what is forgotten is searched for again.
	maxSearched = 256
)

func (s *session) leakNote(layer digest.Digest) (n leakNote) {
	if json.Unmarshal(s.layers.Remark(layer, leakRemark), &n) != nil {
		return leakNote{} // nothing is known
	}
	return n
}

func (s *session) remember(ctx context.Context, layer digest.Digest, macs []string, found []leak.Finding) error {
	if len(macs) == 0 {
		return nil
	}
	return s.layers.SetRemark(ctx, layer, leakRemark, func(data json.RawMessage) (json.RawMessage, error) {
		var n leakNote
		if json.Unmarshal(data, &n) != nil {
			n = leakNote{}
		}
		for _, m := range macs {
			if !slices.Contains(n.Searched, m) {
				n.Searched = append(n.Searched, m)
			}
		}
		n.Searched = n.Searched[max(0, len(n.Searched)-maxSearched):]
		for _, f := range found {
			i := slices.IndexFunc(n.Found, func(have leak.Finding) bool { return have.Secret == f.Secret })
			if i < 0 {
				n.Found = append(n.Found, f)
			} else {
				n.Found[i].Merge(f)
			}
		}
		return json.Marshal(&n)
	})
}

// leakedBefore tells what leaked into a cached layer, and searches it for what it was not searched for when it was made. A layer
// that is not in the store is fetched for that when the image will have it; otherwise nothing of it is used.
func (e *evaluator) leakedBefore(ctx context.Context, step *dag.Step, layer digest.Digest, inImage bool) error {
	g := e.leaks
	if g == nil || !e.firstSearch(step.ID) {
		return nil
	}
	note := e.leakNote(layer)
	var macs []string
	unknown := map[string]bool{} // ids
	for i, m := range g.macs {
		if !slices.Contains(note.Searched, m) {
			macs, unknown[g.secrets[i].ID] = append(macs, m), true
		}
	}
	if len(macs) > 0 {
		found, err := e.searchCached(ctx, layer, inImage)
		if isNotHere(err) && !inImage {
			return nil
		} else if err != nil {
			return e.located(step, fmt.Errorf("search the cached layer for secrets: %w", err))
		}
		found = slices.DeleteFunc(found, func(f leak.Finding) bool { return !unknown[f.Secret] })
		if err := e.remember(ctx, layer, macs, found); err != nil {
			return err
		}
		note = e.leakNote(layer)
	}
	if err := e.report(step.Pos, inLayer, note.Found); err != nil {
		return e.located(step, err)
	}
	return nil
}

// searchCached searches a layer that is there for all secrets: whatever is told of one must not have another one in it.
func (e *evaluator) searchCached(ctx context.Context, layer digest.Digest, fetch bool) ([]leak.Finding, error) {
	search := &layerSearch{search: e.leaks.finder.Search()}
	err := e.layers.Inspect(ctx, layer, search)
	if isNotHere(err) && fetch {
		if err = e.fetches.layer(ctx, layer); err == nil {
			search = &layerSearch{search: e.leaks.finder.Search()}
			err = e.layers.Inspect(ctx, layer, search)
		}
	}
	return search.found, err
}

// firstSearch reports whether a step's cached layer is looked at for the first time in this build.
func (e *evaluator) firstSearch(id dag.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.searched[id]
	e.searched[id] = true
	return !before
}

// leakedAbove is leakedBefore for a step whose record answered, and for all that this made unnecessary: chain is the step's. Of
// stages that the image only copies from, the steps are asked about whose records are still there.
func (e *evaluator) leakedAbove(ctx context.Context, id dag.ID, chain []digest.Digest) error {
	if e.leaks == nil {
		return nil
	}
	for last := len(chain) - 1; last >= 0; last-- {
		step := &e.graph.Steps[id]
		if !isWork(step) {
			return nil
		}
		if err := e.leakedBefore(ctx, step, chain[last], e.final[id]); err != nil {
			return err
		}
		for _, in := range step.Inputs[min(1, len(step.Inputs)):] {
			if err := e.leakedBeside(ctx, in); err != nil {
				return err
			}
		}
		if len(step.Inputs) == 0 {
			return nil
		}
		id = step.Inputs[0]
	}
	return nil
}

// leakedBeside is leakedAbove for an input that a cached step was made from without standing on it.
func (e *evaluator) leakedBeside(ctx context.Context, id dag.ID) error {
	if !isWork(&e.graph.Steps[id]) {
		return nil
	}
	e.mu.Lock()
	seen := e.searched[id]
	e.mu.Unlock()
	if seen {
		return nil
	}
	def, err := e.definition(ctx, id)
	if err != nil {
		return err
	}
	rec, err := e.cache.Get(def.key)
	if err != nil {
		return nil // a record that is gone says nothing, and nothing of its layer is used
	}
	return e.leakedAbove(ctx, id, rec.Layers)
}
