package dag

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
	"build/parser"
)

// Options is everything besides the file and the images that decides what is built.
type Options struct {
	BuildArgs map[string]string
	Target    string // name of a stage; "" is the last
	Labels    []Label
	// Platform is what is built for. The zero value is BuildPlatform, and then the image has the platform its base has.
	Platform      ocispec.Platform
	BuildPlatform ocispec.Platform  // what the build runs on
	Contexts      map[string]string // named contexts: name, or name::os/arch, to the value as given by the user
	NoCache       bool
	NoCacheStages []string // names of stages built without cache
	Network       string   // for RUN without --network: "", default, none, host or private
	Hostname      string   // for RUN; BUILDKIT_SANDBOX_HOSTNAME overrides it
	Epoch         *time.Time
	ContextEpoch  *time.Time // what SOURCE_DATE_EPOCH=context stands for; nil: the context has no time
	MultiPlatform bool       // several platforms are built: names of steps tell which
	// Ignored, if set, tells whether the ignore file of the build context leaves out a source of COPY, for lint.
	Ignored   func(path string) bool
	AllStages bool // lower also what the target does not need, to find what is wrong with it
	Outline   bool // make Graph.Outline
}

// Label is one --label.
type Label struct{ Key, Value string }

// Need is an image or named context that must be known before lowering can go on.
type Need struct {
	Name     string       // an image as written and expanded, or a named context's key in Options.Contexts
	Platform string       // wanted, normalised, such as linux/arm64/v8
	Context  bool         // Name is a named context
	Value    string       // of the named context, as given by the user
	Time     bool         // only the time of the source is wanted: for SOURCE_DATE_EPOCH
	Add      *Copy        // with Time and without Context: the ADD whose one source Name is
	Stage    string       // that needs it, for messages
	Like     string       // stage that is called nearly like the image, which may have been meant, for messages
	Pos      parser.Range // of the instruction that names it, for messages
}

// NeedKey identifies what is needed.
type NeedKey struct {
	Name, Platform string
	Context, Time  bool
}

// Key gives the key under which the answer is expected.
func (n Need) Key() NeedKey {
	return NeedKey{Name: n.Name, Platform: n.Platform, Context: n.Context, Time: n.Time}
}

// Resolved answers a need: one field is set, or none if what was asked for is a time and there is none.
type Resolved struct {
	Image *ImageInfo
	Dir   bool       // the named context is a directory tree
	Time  *time.Time // of the commit, of the file, or of the newest file in an archive
}

// ImageInfo is what lowering has to know about an image.
type ImageInfo struct {
	Ref      string // as it is fetched
	Digest   digest.Digest
	Platform ocispec.Platform // of the image, from its config; zero: take it from Config
	Config   []byte           // the config, verbatim
	DiffIDs  []digest.Digest  // nil: take them from Config
}

// settings is Options completed and checked.
type settings struct {
	Options
	implicit bool              // no platform was asked for
	target   ocispec.Platform  // what is built for
	args     map[string]string // BuildArgs and what else acts as one
	contexts map[string]string // normalised name to key in Options.Contexts
	cacheNS  string
	proxy    []string
}

// Build arguments with a meaning of their own.
const (
	argEpoch         = "SOURCE_DATE_EPOCH"
	argHostname      = "BUILDKIT_SANDBOX_HOSTNAME"
	argCacheNS       = "BUILDKIT_CACHE_MOUNT_NS"
	argMultiPlatform = "BUILDKIT_MULTI_PLATFORM"
	argScanContext   = "BUILDKIT_SBOM_SCAN_CONTEXT"
	argScanStage     = "BUILDKIT_SBOM_SCAN_STAGE"
)

func (o Options) settle() (*settings, error) {
	s := &settings{Options: o, target: o.Platform, args: map[string]string{}, contexts: map[string]string{}}
	if o.BuildPlatform.OS == "" {
		return nil, errors.New("lower: Options.BuildPlatform is not set")
	}
	if s.target.OS == "" {
		s.target, s.implicit = o.BuildPlatform, true
	}
	s.target = platforms.Normalize(s.target)
	s.BuildPlatform = platforms.Normalize(o.BuildPlatform)
	for k, v := range o.BuildArgs {
		s.args[k] = v
	}
	if _, ok := s.args[argEpoch]; !ok && o.Epoch != nil {
		s.args[argEpoch] = strconv.FormatInt(o.Epoch.Unix(), 10)
	}
	if v := s.args[argHostname]; v != "" {
		s.Hostname = v
	}
	if v := s.args[argMultiPlatform]; v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, errors.New("invalid boolean value for multi-platform: " + v)
		}
		s.MultiPlatform = b
	}
	if s.Network == "" {
		s.Network = "default"
	}
	s.cacheNS = s.args[argCacheNS]
	s.proxy = proxyEnv(s.args)
	for key := range o.Contexts {
		name, platform, found := strings.Cut(key, "::")
		if n, err := contextName(name); err == nil {
			name = n
		}
		if found {
			name += "::" + platform
		}
		s.contexts[name] = key
	}
	return s, nil
}

// contextName is the spelling under which a named context is looked up: "docker.io/library/alpine:latest" is "alpine".
func contextName(name string) (string, error) {
	named, err := reference.Parse(name)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(named.Familiar(), ":latest"), nil
}

// context finds the named context that stands for name, if there is one; one for the platform comes first.
func (s *settings) context(name string, p ocispec.Platform) (key string, ok bool, err error) {
	if strings.EqualFold(name, scratchName) || strings.EqualFold(name, "context") || len(s.contexts) == 0 {
		return "", false, nil
	}
	n, err := contextName(name)
	if err != nil {
		return "", false, errors.New("invalid context name " + name + ": " + err.Error())
	}
	if key, ok = s.contexts[n+"::"+platforms.FormatAll(platforms.Normalize(p))]; ok {
		return key, true, nil
	}
	key, ok = s.contexts[n]
	return key, ok, nil
}

// noCache says whether the steps of a stage must not be answered from the cache.
func (s *settings) noCache(stage string) bool {
	if s.NoCache {
		return true
	}
	for _, n := range s.NoCacheStages {
		if strings.EqualFold(n, stage) {
			return true
		}
	}
	return false
}
