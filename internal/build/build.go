package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"build/dag"
	"build/internal/buildctx"
	"build/internal/progress"
	"build/parser"
	"build/snapshot"
)

// Run carries out one build: Dockerfile and context in, image out. Whatever happens, nothing is left behind but what the
// store may keep: complete layers, their records, and names that point at complete images.
func Run(ctx context.Context, o Options) (*Result, error) {
	o.fill()
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := o.removeOldID(); err != nil {
		return nil, err
	}
	var typed bytes.Buffer // a Dockerfile on standard input, in case it is needed twice
	if o.Stdin != nil && o.Context != "-" {
		o.Stdin = io.TeeReader(o.Stdin, &typed)
	}
	res, err := runOnce(ctx, &o)
	for again := startOver(err); again != "" && o.Context != "-" && ctx.Err() == nil; {
		o.Progress.Emit(progress.Warning{Text: again + ": starting over"})
		o.Stdin = bytes.NewReader(typed.Bytes())
		before := again
		res, err = runOnce(ctx, &o)
		if again = startOver(err); again == before { // it does not get better
			break
		}
	}
	return res, err
}

// streamedError is a failure of a build that had begun to write to standard output or a pipe. What was written there cannot
// be taken back, and a second try would only append to it.
type streamedError struct{ error }

func (e *streamedError) Unwrap() error { return e.error }

// startOver says why a build that failed is worth another try; "" when it is not.
func startOver(err error) string {
	var damaged *damagedError
	var streamed *streamedError
	if errors.As(err, &streamed) {
		return ""
	}
	if errors.As(err, &damaged) {
		return damaged.found()
	}
	// Keys were made of what the file held before. All of them are suspect.
	if path := changedWhileRead(err); path != "" {
		return path + " changed while it was read"
	}
	return ""
}

func runOnce(ctx context.Context, o *Options) (*Result, error) {
	outer := ctx
	s, ctx, err := openSession(ctx, o, false)
	if err != nil {
		return nil, err
	}
	defer s.close()
	res, err := s.build(ctx)
	if err != nil {
		err = s.blameStore(outer, s.firstCause(ctx, err))
		if s.streamed {
			err = &streamedError{err}
		}
		return nil, err
	}
	return res, nil
}

// changedWhileRead names the file of the context that changed under a build; "" when that is not what went wrong.
func changedWhileRead(err error) string {
	var a *snapshot.ChangedError
	var b *buildctx.ChangedError
	switch {
	case errors.As(err, &a):
		return a.Path
	case errors.As(err, &b):
		return b.Path
	}
	return ""
}

// fill gives every option its default, in this one place.
func (o *Options) fill() {
	if o.Pull == "" {
		o.Pull = PullMissing
	}
}

// check refuses what cannot work before anything is done.
func (o *Options) check() error {
	for _, out := range o.Outputs {
		if o.MultiPlatform() && out.Type == OutputDocker {
			return &UsageError{Msg: "a docker archive holds the image of one platform, and no index", Hint: "use -o type=oci for several platforms"}
		}
	}
	if o.Push && len(o.Tags) == 0 {
		return &UsageError{Msg: "--push needs a name to push to", Hint: "add -t REGISTRY/NAME:TAG"}
	}
	if err := o.checkNamedContexts(); err != nil {
		return err
	}
	if err := o.checkAnnotations(); err != nil {
		return err
	}
	if err := o.checkDests(); err != nil {
		return err
	}
	var tags []string
	for _, t := range o.Tags {
		ref, err := normalizeName(t)
		if err != nil {
			return err
		}
		if !slices.Contains(tags, ref) {
			tags = append(tags, ref)
		}
	}
	o.Tags = tags
	return nil
}

// firstCause returns what ended the build rather than what it made others return.
func (s *session) firstCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, errCanceled) {
		return cause
	}
	return err
}

func (s *session) build(ctx context.Context) (*Result, error) {
	file, products, err := s.products(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.openLeakGate(file, products); err != nil {
		return nil, err
	}
	defer func() { s.writeJournal(products) }()
	for _, p := range products {
		p.ev = newEvaluator(ctx, s, p.graph, p.platform)
		defer p.ev.drain()
		s.fetches.show(p.ev)
	}
	if err := s.executable(ctx, products); err != nil { // first: it fetches nothing to find out
		return nil, err
	}
	if err := s.runnable(ctx, products); err != nil {
		return nil, err
	}
	err = each(ctx, products, func(ctx context.Context, p *product) error { return p.make(ctx) })
	if err != nil {
		return nil, err
	}
	res, err := s.export(ctx, products)
	if err != nil {
		return nil, err
	}
	res.Cached, res.Ran = s.tallies.cached, s.tallies.ran
	return res, nil
}

// products reads the Dockerfile and settles what is to be made of it.
func (s *session) products(ctx context.Context) (*parser.File, []*product, error) {
	file, err := s.loadDockerfile(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.warnOfNoStages(file)
	products, err := s.lowerAll(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	if err := s.lintFailure(file); err != nil {
		return nil, nil, err
	}
	s.epoch = products[0].graph.Epoch
	s.planOutputs()
	s.wantNothing = s.wantsNothing(products)
	return file, products, nil
}

// product is what a build makes for one platform.
type product struct {
	platform string // "" when the build is for one
	graph    *dag.Graph
	ev       *evaluator
	out      *outcome
}

func (p *product) make(ctx context.Context) (err error) {
	p.out = &outcome{}
	p.ev.evaluates = true
	if p.graph.Target >= 0 {
		if p.out, err = p.ev.eval(ctx, p.graph.Target); err != nil {
			return err
		}
	}
	return p.ev.bg.Wait()
}

// lowerAll makes a graph for every platform, in parallel. What does not depend on the platform has the same keys in all
// of them and is done once.
func (s *session) lowerAll(ctx context.Context, f *parser.File) ([]*product, error) {
	products := []*product{{}}
	if s.opts.MultiPlatform() {
		products = nil
		for _, p := range s.opts.platforms() {
			products = append(products, &product{platform: platformString(p)})
		}
	}
	err := each(ctx, indices(len(products)), func(ctx context.Context, i int) (err error) {
		p := products[i]
		if p.graph, err = s.lower(ctx, f, i); err != nil {
			return err
		}
		return s.preflight(p.graph)
	})
	return products, err
}

// lower turns the file into a graph. What it needs to know of images is looked up in parallel until it asks no more:
// a trigger in one image may name another.
func (s *session) lower(ctx context.Context, f *parser.File, platform int) (*dag.Graph, error) {
	have := map[dag.NeedKey]dag.Resolved{}
	for {
		g, needs, err := dag.Lower(f, s.dagOptions(platform), have)
		if g != nil {
			s.warnOfAll(g.Warnings)
		}
		if err != nil {
			return nil, err
		}
		if len(needs) == 0 {
			return g, nil
		}
		before := len(have)
		if err := s.resolveAll(ctx, needs, have); err != nil {
			return nil, err
		}
		if len(have) == before {
			return nil, fmt.Errorf("internal error: %d images resolved, and the same are wanted again", len(needs))
		}
	}
}

// warnOfNoStages tells which names of --no-cache-filter are no stage's: its steps are answered from the cache then. As in
// BuildKit it is no error, because one command line is often used for several Dockerfiles.
func (s *session) warnOfNoStages(f *parser.File) {
	for _, name := range s.opts.NoCacheStages {
		if !slices.ContainsFunc(f.Stages, func(st instructions.Stage) bool { return strings.EqualFold(st.Name, name) }) {
			s.warn("--no-cache-filter=%s has no effect: %s has no stage of that name", name, f.Name)
		}
	}
}

func (s *session) dagOptions(platform int) dag.Options {
	o := s.opts
	ctxs := map[string]string{}
	for _, kv := range o.NamedContexts {
		ctxs[kv.Key] = kv.Value
	}
	var labels []dag.Label
	for _, kv := range o.Labels {
		labels = append(labels, dag.Label{Key: kv.Key, Value: kv.Value})
	}
	d := dag.Options{
		BuildArgs: s.buildArgs(), Target: o.Target, Labels: labels, BuildPlatform: hostPlatform(),
		Contexts: ctxs, NoCache: o.NoCache, NoCacheStages: o.NoCacheStages, Epoch: o.Epoch, Network: o.Network,
		Ignored: s.leavesOut, AllStages: s.asked == CallCheck && o.Target == "", Outline: s.asked == CallOutline,
	}
	if len(o.Platforms) > 0 {
		d.Platform = o.Platforms[platform]
	}
	d.ContextEpoch = s.contextEpoch
	d.MultiPlatform = o.MultiPlatform()
	return d
}

// buildArgs is what --build-arg gave, over the proxy variables of the environment.
func (s *session) buildArgs() map[string]string {
	args := map[string]string{}
	for _, kv := range append(s.opts.ProxyArgs[:len(s.opts.ProxyArgs):len(s.opts.ProxyArgs)], s.opts.BuildArgs...) {
		args[kv.Key] = kv.Value
	}
	return args
}

// preflight refuses, before anything is pulled or run, what this machine or this version cannot do.
func (s *session) preflight(g *dag.Graph) error {
	for i := range g.Steps {
		step := &g.Steps[i]
		run, ok := step.Op.(dag.Run)
		if !ok {
			continue
		}
		err := s.canRun(step, run)
		if err == nil {
			err = canExecute(run)
		}
		if err != nil {
			return s.located(step, err)
		}
	}
	return nil
}
