// Package build is the driver: it turns one set of options into an image by sending a Dockerfile through every other
// package (parse, lower, evaluate, run, copy, export). It is the only package that sees all the others. It reads no
// environment variables and no flags and prints nothing: what it needs comes in Options, what it has to say leaves as
// progress events, results and errors.
package build

import (
	"io"
	"net/netip"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/executor"
	"build/internal/progress"
	"build/parser"
)

// PullMode says when a registry is asked for an image named by FROM or COPY --from.
type PullMode string

const (
	PullMissing PullMode = "missing" // only when no local image exists for the wanted platform
	PullAlways  PullMode = "always"
	PullNever   PullMode = "never"
)

// Options is everything one build needs to know. It is filled once, by cmd/build.
type Options struct {
	Store StoreOptions

	Context    string    // PATH, URL or "-" as typed
	Dockerfile string    // -f as typed; "" means the default names in the context, "-" standard input
	Stdin      io.Reader // for "-" and -f -

	Tags          []string
	BuildArgs     []KeyValue
	Target        string
	NoCache       bool
	Pull          PullMode // "" is PullMissing
	Labels        []KeyValue
	Annotations   []Annotation // of every output that is an image
	NamedContexts []KeyValue
	SourcePolicy  *SourcePolicy // nil: everything is allowed
	// IgnoreEverywhere applies ignore files to contexts that are no local directories, too.
	IgnoreEverywhere bool
	Platforms        []ocispec.Platform // empty: the host's
	Outputs          []Output           // empty: the local store only
	Push             bool               // also push every tag
	Network          string             // of RUN without --network: "", "default", "host", "none" or "private"
	AddHosts         []Host
	IIDFile          string
	MetadataFile     string
	Epoch            *time.Time // SOURCE_DATE_EPOCH from the environment or as build argument
	ProxyArgs        []KeyValue // HTTP_PROXY and friends: forwarded to RUN, in no key and no history
	Jobs             int        // steps at a time; 0: by what the cgroup allows

	NoCacheStages []string // stages whose steps all run again
	Secrets       []Secret
	SSH           []SSHAgent
	KnownHosts    []string            // files with the keys of ssh hosts
	SecretLeak    LeakMode            // what happens when a secret ends up in a layer; "" is LeakWarn
	Mask          func([]byte) []byte // hides secrets in a line of output; may be nil
	AllowInsecure bool                // RUN --security=insecure
	Isolation     Isolation           // of RUN
	AllowHostNet  bool                // RUN --network=host where Network keeps steps from it
	ShmSize       int64               // of /dev/shm in RUN, bytes; 0: 64 MiB
	Rlimits       []Rlimit            // of RUN
	Limits        Limits              // of each RUN
	Inflate       string              // path of a program that inflates gzip; "": this one does
	Emulators     Emulators           // for RUN of other machines' images; the zero value: what is registered on this machine
	BeforeRun     func()              // called before each RUN that is carried out, by several at once; may be nil

	Progress progress.Sink
}

// StoreOptions is what every command that touches the store or a registry needs.
type StoreOptions struct {
	Root         string // the store's directory
	Limit        StoreLimit
	Insecure     []string // registry hosts that may be reached by plain HTTP or with an unverifiable certificate
	Mirrors      []Mirror // asked before the registry itself, in this order
	Offline      bool     // open no socket
	DockerConfig string   // directory of config.json
	CertsDirs    []string // /etc/docker/certs.d and the like
}

// Rlimit is one --ulimit; Resource is a RLIMIT_ number.
type Rlimit = executor.Rlimit

// Mirror is a place that has what a registry has: images of Host are looked for below Prefix first, so that with
// docker.io=mirror.example/hub the image docker.io/library/debian is mirror.example/hub/library/debian.
type Mirror struct{ Host, Prefix string }

// KeyValue is one name=value argument.
type KeyValue struct{ Key, Value string }

// Host is one --add-host line.
type Host struct {
	Name string
	IP   netip.Addr
}

// OutputType is the type= of one -o flag.
type OutputType string

const (
	OutputImage    OutputType = "image"    // name in the local store
	OutputRegistry OutputType = "registry" // push
	OutputOCI      OutputType = "oci"
	OutputDocker   OutputType = "docker"
	OutputLocal    OutputType = "local"
	OutputTar      OutputType = "tar"
	OutputNone     OutputType = "cacheonly"
)

// Output is one -o flag. Attributes are parsed and checked before the build starts.
type Output struct {
	Type             OutputType
	Dest             string    // file or directory; "-" is standard output
	Stdout           io.Writer // for "-"
	Tar              bool      // oci: an archive (true, the default) or a directory
	Names            []string  // name=a,b: in addition to the tags
	Push             bool      // image: push too
	OCIMediaTypes    bool      // default true
	Compression      string    // "", "gzip", "zstd", "uncompressed"
	CompressionLevel *int
	ForceCompression bool
	Epoch            *time.Time
	RewriteTimestamp bool
	Annotations      []Annotation
}

// Result is what a build made.
type Result struct {
	Digest       string // manifest digest, sha256:…
	ConfigDigest string
	Names        []string
	Descriptor   ocispec.Descriptor
	Cached       int // steps answered from the cache
	Ran          int // steps that ran
	Warnings     []parser.Warning
	Source       []byte // the Dockerfile, to which they refer
	Written      []string
}
