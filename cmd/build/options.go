package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/build"
	"build/internal/reference"
)

// options gives the flags their meaning. Whatever is wrong with them is found here, before anything is done.
func (f *buildFlags) options(a *app, g *globalFlags, context string) (build.Options, error) {
	if err := judgeOthers(f.others, a.note); err != nil {
		return build.Options{}, err
	}
	o := build.Options{
		Context: context, Dockerfile: f.file, Stdin: a.stdin,
		Tags: f.tags, Target: f.target, NoCache: f.noCache, NoCacheStages: f.noCacheStages, Push: f.push,
		IIDFile: f.iidFile, MetadataFile: f.metadataFile, IgnoreEverywhere: f.ignoreAll,
	}
	for _, fill := range []func(*app, *build.Options) error{
		f.checkInput, f.fillTags, f.fillValues, f.fillPull, f.fillPlatform, f.fillAnnotations, f.fillPolicy, f.fillNetwork, f.fillEpoch, f.fillSecrets, f.fillSSH, f.fillLimits, f.fillResources, f.fillEmulators, f.fillInflate,
	} {
		if err := fill(a, &o); err != nil {
			return build.Options{}, err
		}
	}
	var err error
	if o.Store, err = a.storeOptions(g); err != nil {
		return build.Options{}, err
	}
	if o.ProxyArgs, err = a.proxyArgs(o.Store.DockerConfig, o.BuildArgs); err != nil {
		return build.Options{}, err
	}
	return o, f.fillOutputs(a, &o)
}

func usagef(format string, args ...any) error {
	return &build.UsageError{Msg: fmt.Sprintf(format, args...)}
}

func (f *buildFlags) checkInput(_ *app, _ *build.Options) error {
	if f.load {
		return &build.UsageError{
			Msg:  "flag --load: " + notYet,
			Hint: "write an archive and load that: -o type=docker,dest=image.tar, then docker load -i image.tar or podman load -i image.tar",
		}
	}
	return nil
}

// fillTags refuses names that could not be given.
func (f *buildFlags) fillTags(_ *app, o *build.Options) error {
	for _, t := range f.tags {
		if err := checkName(t); err != nil {
			return usagef("invalid tag %q: %v", t, err)
		}
	}
	if f.file == "-" && o.Context == "-" {
		return usagef("the context and the Dockerfile cannot both come from standard input")
	}
	return nil
}

// checkName reports whether a name can be given to an image.
func checkName(name string) error {
	ref, err := reference.Parse(name)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return fmt.Errorf("a name to be given cannot have a digest")
	}
	return nil
}

func (f *buildFlags) fillValues(a *app, o *build.Options) error {
	for _, s := range f.buildArgs {
		k, v, ok := strings.Cut(s, "=")
		if k == "" {
			return usagef("invalid --build-arg %q: it has no name", s)
		}
		if !ok {
			if v, ok = a.env(k); !ok {
				continue // as docker: a name that is not in the environment keeps the Dockerfile's default
			}
		}
		if on, err := strconv.ParseBool(v); k == "BUILDKIT_INLINE_CACHE" && err == nil && on {
			a.note("--build-arg %s=%s has no effect: caches inside images are %s", k, v, notYet)
		}
		o.BuildArgs = append(o.BuildArgs, build.KeyValue{Key: k, Value: v})
	}
	for _, s := range f.labels {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return usagef("invalid --label %q: it has no name", s)
		}
		o.Labels = append(o.Labels, build.KeyValue{Key: k, Value: v})
	}
	for _, s := range f.buildContexts {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" || v == "" {
			return usagef("invalid --build-context %q: the form is NAME=PLACE", s)
		}
		o.NamedContexts = append(o.NamedContexts, build.KeyValue{Key: k, Value: v})
	}
	return nil
}

func (f *buildFlags) fillPull(_ *app, o *build.Options) error {
	switch f.pull {
	case "", "missing":
		o.Pull = build.PullMissing
		return nil
	case "always":
		o.Pull = build.PullAlways
		return nil
	case "never":
		o.Pull = build.PullNever
		return nil
	}
	on, err := strconv.ParseBool(f.pull) // buildx has it as a switch
	if err != nil {
		return usagef("invalid --pull=%s: the choices are always, missing and never", f.pull)
	}
	o.Pull = build.PullMissing
	if on {
		o.Pull = build.PullAlways
	}
	return nil
}

func (f *buildFlags) fillPlatform(a *app, o *build.Options) error {
	given := f.platforms
	if def := a.getenv("DOCKER_DEFAULT_PLATFORM"); len(given) == 0 && def != "" {
		given = []string{def}
	}
	var list []string
	for _, p := range given {
		list = append(list, strings.Split(p, ",")...)
	}
	seen := map[string]bool{}
	for _, s := range list {
		p, err := parsePlatform(strings.TrimSpace(s))
		if err != nil {
			return usagef("invalid --platform %q: %v", s, err)
		}
		if name := platforms.FormatAll(p); !seen[name] {
			seen[name] = true
			o.Platforms = append(o.Platforms, p)
		}
	}
	return nil
}

func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "local" {
		return platforms.Normalize(platforms.DefaultSpec()), nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return ocispec.Platform{}, err
	}
	return platforms.Normalize(p), nil
}

func (f *buildFlags) fillNetwork(a *app, o *build.Options) error {
	switch f.network {
	case "", "default", "host", "none", "private":
		o.Network = f.network
	default:
		return usagef("invalid --network=%s: the choices are default, host, none and private", f.network)
	}
	for _, s := range f.addHosts {
		h, err := parseHost(s)
		if err != nil {
			return err
		}
		if f.network == "private" && strings.HasSuffix(s, hostGateway) {
			return usagef("--add-host %s: the host cannot be reached with --network=private", s)
		}
		o.AddHosts = append(o.AddHosts, h)
	}
	return nil
}

// hostGateway stands for the address at which steps reach the host.
const hostGateway = "host-gateway"

// parseHost reads NAME:ADDRESS and NAME=ADDRESS; an IPv6 address may stand in brackets.
func parseHost(s string) (build.Host, error) {
	name, addr, ok := strings.Cut(s, "=")
	if !ok {
		name, addr, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" || addr == "" || strings.ContainsAny(name, " \t\n#") {
		return build.Host{}, usagef("invalid --add-host %q: the form is NAME:ADDRESS", s)
	}
	if addr == hostGateway {
		// Steps share the network of the caller, so the host is where they are themselves.
		return build.Host{Name: name, IP: netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	if inner, ok := strings.CutPrefix(addr, "["); ok {
		addr = strings.TrimSuffix(inner, "]")
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return build.Host{}, usagef("invalid --add-host %q: %q is not an IP address", s, addr)
	}
	return build.Host{Name: name, IP: ip}, nil
}

// epochName is both an environment variable and a build argument; the build argument wins, and the environment's value
// becomes one, as with buildx, so that ARG SOURCE_DATE_EPOCH sees it.
const epochName = "SOURCE_DATE_EPOCH"

func (f *buildFlags) fillEpoch(a *app, o *build.Options) error {
	value, given := epochGiven(o)
	if !given {
		if value = a.getenv(epochName); value != "" {
			o.BuildArgs = append(o.BuildArgs, build.KeyValue{Key: epochName, Value: value})
		}
	}
	if t, err := parseEpoch(value); err == nil { // else the name of what has the time: the Dockerfile decides whether there is one
		o.Epoch = &t
	}
	return nil
}

// epochGiven is the build argument.
func epochGiven(o *build.Options) (value string, given bool) {
	for _, kv := range o.BuildArgs {
		if kv.Key == epochName {
			value, given = kv.Value, true
		}
	}
	return value, given
}

func parseEpoch(s string) (time.Time, error) {
	sec, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("not a number of seconds")
	}
	t := time.Unix(sec, 0).UTC()
	if t.Year() < 0 || t.Year() > 9999 { // the configuration of an image writes years with four digits
		return time.Time{}, fmt.Errorf("not in the years 0 to 9999")
	}
	return t, nil
}

// fillPolicy reads the source policy, from where BuildKit's tools take it.
func (f *buildFlags) fillPolicy(a *app, o *build.Options) error {
	file, where := f.sourcePolicy, "--source-policy-file"
	if file == "" {
		file, where = a.getenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"), "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY"
	}
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return usagef("%s: %v", where, err)
	}
	if o.SourcePolicy, err = build.ParseSourcePolicy(data); err != nil {
		return usagef("%s: %s: %v", where, file, err)
	}
	return nil
}

func (f *buildFlags) fillOutputs(a *app, o *build.Options) error {
	for _, s := range f.outputs {
		out, err := a.parseOutput(s)
		if err != nil {
			return err
		}
		if err := out.checkSplit(o.MultiPlatform()); err != nil {
			return err
		}
		if out.insecure {
			o.Store.Insecure = append(o.Store.Insecure, hostsOf(append(out.Names, o.Tags...))...)
		}
		if value, _ := epochGiven(o); out.RewriteTimestamp && out.Epoch == nil && value == "" {
			a.note("rewrite-timestamp=true has no effect without SOURCE_DATE_EPOCH")
		}
		o.Outputs = append(o.Outputs, out.Output)
	}
	spreadPush(o)
	return checkOutputs(o)
}

// spreadPush gives --push the meaning it has beside -o in buildx: push=true for every output that is an image. It stays a
// push of its own where there is no such output.
func spreadPush(o *build.Options) {
	if !o.Push {
		return
	}
	for i := range o.Outputs {
		if out := &o.Outputs[i]; out.Type == build.OutputImage || out.Type == build.OutputRegistry {
			out.Push, o.Push = true, false
		}
	}
}

// checkOutputs finds what no single -o can be blamed for.
func checkOutputs(o *build.Options) error {
	if o.Push && len(o.Tags) == 0 {
		return usagef("--push needs a name to push to: add -t REGISTRY/NAME:TAG")
	}
	stdout := 0
	for _, out := range o.Outputs {
		if out.Stdout != nil {
			stdout++
		}
		pushes := out.Type == build.OutputRegistry || out.Push
		if pushes && len(o.Tags) == 0 && len(out.Names) == 0 {
			return usagef("-o type=%s needs a name to push to: add -t REGISTRY/NAME:TAG", out.Type)
		}
	}
	if stdout > 1 {
		return usagef("only one output can go to standard output")
	}
	return nil
}

func hostsOf(names []string) []string {
	var hosts []string
	for _, n := range names {
		if ref, err := reference.Parse(n); err == nil {
			hosts = append(hosts, ref.Domain)
		}
	}
	return hosts
}
