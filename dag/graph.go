// Package dag lowers a parsed Dockerfile to a graph of the steps that change files, the config of the resulting image and its
// history.
//
// It owns the meaning of the language: stages, variables and their scopes, ONBUILD, named contexts, the shell, the rules by
// which one instruction touches the config and the next. It is pure: the same file, options and base image configs give the
// same graph on every machine. It refuses to read files, environment or network; what it needs to know about images it
// asks for by returning needs.
package dag

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// ID is the index of a step in Graph.Steps.
type ID int

// None is the ID of no step.
const None ID = -1

// Graph is what has to be done for the target and what the image says about it.
type Graph struct {
	Steps   []Step // inputs before the steps that use them; only what the target needs
	Target  ID     // the step whose result is the image's root filesystem; None if that is empty
	Stage   string // name of the target stage, "" if it has none
	History []History
	// Config is the image config without history and root filesystem, which only the caller can complete.
	Config dockerspec.DockerOCIImage
	// BaseConfig is the config of the image the target stands on, as it was; nil without a base image.
	BaseConfig *dockerspec.DockerOCIImage
	BaseName   string        // its reference, normalised
	BaseDigest digest.Digest // and digest
	Epoch      *time.Time    // SOURCE_DATE_EPOCH of the build; nil if unset
	Warnings   []parser.Warning
	Outline    *Outline // if Options.Outline asks for it
}

// History is one entry of the image's history. Entries without a time get one when the layers are known.
type History struct {
	ocispec.History
	Step ID // the step that made the entry's layer; None if it made none. All layers of a base image have the same step
}

// Step is one change of files, or a source of files.
type Step struct {
	ID         ID
	Op         Op
	Inputs     []ID         // by position: see the operations
	Stage      string       // name of the stage, "stage-N" if it has none; "" for sources that belong to none
	StageIndex int          // in the file; -1 for sources that belong to none
	Name       string       // as shown to people: "[build 2/5] RUN make"
	Pos        parser.Range // the instruction
	NoCache    bool
	Platform   ocispec.Platform
}

// Op is what a step does; the types are Scratch, Image, Context, Run, Copy and Mkdir.
type Op interface{ op() }

// Scratch is the empty directory tree.
type Scratch struct{}

// Image is the root filesystem of an image.
type Image struct {
	Ref      string // as it is fetched: ImageInfo.Ref
	Digest   digest.Digest
	DiffIDs  []digest.Digest
	Platform ocispec.Platform
}

// Context is a tree of files of the caller: the build context, if Name is empty, or a named one.
type Context struct {
	Name string // key in Options.Contexts
}

// Run is a command. Inputs[0] is the root filesystem; mounts name the other inputs.
type Run struct {
	Args     []string
	Env      []string // of image config and ARG, in the order they were set
	ProxyEnv []string // proxy variables: given to the command, but in no key and no history
	Dir      string
	User     string
	Shell    bool    // Args begin with the stage's shell
	Mounts   []Mount // in the order of the instruction; a target can be below another one's
	Network  string  // default, none, host or private
	Security string  // sandbox or insecure
	Hostname string  // "" is the caller's default
	// Machine is what the programs of the base image are for, by its own account; zero if there is no base image to say.
	Machine ocispec.Platform
	Files   []File // here-documents the command executes; to be mounted read-only at PipesDir
}

// PipesDir is where Run.Files are found by the command.
const PipesDir = "/dev/pipes"

// File is a small file that comes from the Dockerfile itself.
type File struct {
	Name string // without slashes
	Data []byte
	Mode uint32
}

// MountType is the type of a RUN --mount.
type MountType string

// The mount types.
const (
	MountBind   MountType = "bind"
	MountCache  MountType = "cache"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountSSH    MountType = "ssh"
)

// Mount is one RUN --mount, with its defaults filled in.
type Mount struct {
	Type      MountType
	Target    string // absolute; "" for a secret that is only an environment variable
	Input     int    // index into Step.Inputs of the tree it shows (bind) or is first filled from (cache); -1 none
	Source    string // absolute path in that tree
	ReadOnly  bool
	Size      int64   // tmpfs: limit in bytes, 0 none
	ID        string  // cache, secret, ssh
	Namespace string  // cache: BUILDKIT_CACHE_MOUNT_NS
	Sharing   string  // cache: shared, private or locked
	Required  bool    // secret, ssh
	Env       string  // secret: name of the environment variable, "" none
	Mode      *uint32 // nil: the type's default
	UID, GID  *uint32
}

// Copy is COPY or ADD. Inputs[0] is the tree it changes, Inputs[1] (absent if no source is in it) the one it copies from.
type Copy struct {
	Add     bool
	Sources []CopySource
	Dest    string // absolute and clean, but ends in / or /. if a directory was asked for
	Chown   string
	Chmod   string // octal or symbolic, checked
	Link    bool   // independent of the tree below; false also when --chmod makes BuildKit ignore --link
	Parents bool
	Exclude []string
	Unpack  *bool // nil: ADD unpacks local archives, COPY never

	// Of ADD from elsewhere; options in a repository's URL come first.
	KeepGitDir *bool
	Checksum   string
}

// Place says where a source of a Copy is, if not in the tree it copies from.
type Place string

// The places from which ADD fetches.
const (
	HTTP Place = "http" // Path is the URL of a file
	Git  Place = "git"  // Path is the URL of a repository, with options
)

// CopySource is one source of a Copy.
type CopySource struct {
	Path   string // as written and expanded; an inline file's name
	Place  Place  // "": in the tree
	Inline bool   // a here-document: Data is the content
	Data   []byte
}

// Mkdir is WORKDIR: the directory and its missing parents. Inputs[0] is the tree it changes.
type Mkdir struct {
	Path string // absolute and clean
	User string // owner, as in USER; "" is root
}

func (Scratch) op() {}
func (Image) op()   {}
func (Context) op() {}
func (Run) op()     {}
func (Copy) op()    {}
func (Mkdir) op()   {}
