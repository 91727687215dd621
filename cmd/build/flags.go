package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/suggest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"build/internal/build"
)

// buildFlags are the flags of `build` as typed. options.go gives them their meaning.
type buildFlags struct {
	tags          []string
	file          string
	buildArgs     []string
	target        string
	noCache       bool
	pull          string
	labels        []string
	buildContexts []string
	ignoreAll     bool
	annotations   []string
	sourcePolicy  string
	platforms     []string
	outputs       []string
	push          bool
	load          bool
	network       string
	addHosts      []string
	progress      string
	quiet         bool
	iidFile       string
	metadataFile  string
	secrets       []string
	secretLeak    string
	ssh           []string
	noCacheStages []string
	allow         []string
	shmSize       string
	jobs          int
	isolation     string
	ulimits       []string
	resources     resourceFlags
	emulators     []string
	inflate       string

	call  string
	check bool

	others []seenFlag // flags without a variable of their own, in the order of the command line
}

// define adds the flags to a flag set.
func (f *buildFlags) define(fs *pflag.FlagSet) {
	textsVar(fs, &f.tags, "tag", "t", "`NAME` of the image (repeatable)")
	fs.StringVarP(&f.file, "file", "f", "", "the Dockerfile's `PATH`; - is standard input (default PATH/Dockerfile)")
	textsVar(fs, &f.buildArgs, "build-arg", "", "value of an ARG, `NAME=VALUE`, or NAME to take it from the environment (repeatable)")
	fs.StringVar(&f.target, "target", "", "the `STAGE` to build (default the last)")
	fs.BoolVar(&f.noCache, "no-cache", false, "run every step again")
	fs.StringVar(&f.pull, "pull", "", "`WHEN` to ask registries for the images of FROM: always, missing or never; alone it means always (default missing)")
	fs.Lookup("pull").NoOptDefVal = "always"
	textsVar(fs, &f.labels, "label", "", "label of the image, `NAME=VALUE`")
	textsVar(fs, &f.annotations, "annotation", "", "annotation of the image, `[LEVEL:]NAME=VALUE`; LEVEL is manifest, index, manifest-descriptor or index-descriptor, with [PLATFORM] (repeatable)")
	textsVar(fs, &f.buildContexts, "build-context", "", "further context, `NAME=PLACE`: a directory, docker-image://REF, oci-layout://DIR[:TAG], an image archive, a URL, or target:STAGE of the Dockerfile (repeatable)")
	fs.BoolVar(&f.ignoreAll, "ignore-everywhere", false, "apply .dockerignore to contexts from git, http and standard input, too")
	fs.StringVar(&f.sourcePolicy, "source-policy-file", "", "`FILE` with rules that allow, deny or replace sources (default $EXPERIMENTAL_BUILDKIT_SOURCE_POLICY)")
	textsVar(fs, &f.platforms, "platform", "", "the `PLATFORM` to build for (default this machine's)")
	textsVar(fs, &f.outputs, "output", "o", "`DEST` of the result: DIR, - or type=image|registry|oci|docker|local|tar|cacheonly,dest=… (repeatable)")
	fs.BoolVar(&f.push, "push", false, "push every tag")
	fs.BoolVar(&f.load, "load", false, "give the image to a container engine (not supported yet)")
	fs.StringVar(&f.network, "network", "default", "`NETWORK` of RUN steps: default and host (this machine's), none, or private (the outside, but nothing of this machine)")
	textsVar(fs, &f.addHosts, "add-host", "", "line for /etc/hosts of RUN steps, `NAME:ADDRESS`")
	fs.StringVar(&f.progress, "progress", "", "`MODE` of showing progress: auto, plain, tty, quiet, rawjson, none (default $BUILDKIT_PROGRESS, else auto)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress and print only the image's ID")
	fs.StringVar(&f.iidFile, "iidfile", "", "write the image's ID to `FILE`")
	fs.StringVar(&f.metadataFile, "metadata-file", "", "write what was made, as JSON, to `FILE`")
	textsVar(fs, &f.secrets, "secret", "", "secret for RUN --mount=type=secret, `SPEC`: id=ID[,src=FILE|,env=NAME][,cachekey=true][,leak=ok] (repeatable)")
	fs.StringVar(&f.secretLeak, "secret-leak", "warn", "`WHAT` happens when a layer or the image's configuration holds a secret that a step mounts: warn, error or off")
	textsVar(fs, &f.ssh, "ssh", "", "ssh agent for RUN --mount=type=ssh and git, `SPEC`: default or ID[=SOCKET|KEYFILE,…] (repeatable)")
	fs.StringSliceVar(&f.noCacheStages, "no-cache-filter", nil, "run every step of these `STAGES` again")
	fs.StringSliceVar(&f.allow, "allow", nil, "`PERMISSION` that a Dockerfile may use: security.insecure, network.host (needed only with --network=none and private)")
	fs.StringVar(&f.isolation, "isolation", "", "`MEANS` of isolating RUN steps: auto, overlay, tree, chroot or none; with ,ids=host|range|single and ,proc=fresh|bound (default $BUILD_ISOLATION)")
	fs.StringVar(&f.shmSize, "shm-size", "", "`SIZE` of /dev/shm in RUN steps (default 64m)")
	fs.IntVar(&f.jobs, "jobs", 0, "how many steps run at a time at most, `N` (default 8 for each processor, at least 16)")
	textsVar(fs, &f.ulimits, "ulimit", "", "limit of RUN steps, `NAME=SOFT[:HARD]` (repeatable)")
	f.resources.define(fs)
	textsVar(fs, &f.emulators, "emulator", "", "`[ARCH=]PATH` of a statically linked emulator for RUN in images of other machines, or of a directory to look in before $PATH (repeatable; default $BUILD_EMULATOR, comma-separated)")
	fs.StringVar(&f.inflate, "inflate", "", "`WHO` inflates large gzip layers: auto, which is igzip or unpigz if one is on $PATH, or builtin (default $BUILD_INFLATE, else auto)")
	fs.StringVar(&f.call, "call", "", "ask instead of building, `METHOD`: check, outline, targets or subrequests.describe; with ,format=json, ,format=sarif (check) and ,ignorestatus")
	fs.BoolVar(&f.check, "check", false, "look for mistakes instead of building; the same as --call=check")
	defineOthers(fs, &f.others)
	fs.SortFlags = true
}

// flagError makes an error of the flag parser one of usage, with the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	out := &build.UsageError{Msg: err.Error(), Hint: fmt.Sprintf("see %q", cmd.CommandPath()+" --help")}
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return out
	}
	out.Msg = "unknown flag: " + dashed(unknown.GetSpecifiedName())
	var names []string
	collect := func(f *pflag.Flag) { names = append(names, f.Name) }
	cmd.Flags().VisitAll(collect)
	cmd.InheritedFlags().VisitAll(collect)
	if near, ok := nearest(unknown.GetSpecifiedName(), names); ok {
		out.Hint = fmt.Sprintf("did you mean %s?", dashed(near))
	}
	return out
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// nearest finds the word that was probably meant: a slip of the fingers away, or the only one that begins so.
func nearest(word string, words []string) (string, bool) {
	if len(word) < 2 || slices.Contains(words, word) {
		return "", false
	}
	if near, ok := suggest.Search(word, words, true); ok {
		return near, true
	}
	var found []string
	for _, w := range words {
		if strings.HasPrefix(w, word) || strings.HasPrefix(word, w) && len(w) > 3 {
			found = append(found, w)
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) == 1 {
		return found[0], true
	}
	return "", false
}

// changedFlags names the flags that were given.
func changedFlags(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().Visit(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}
