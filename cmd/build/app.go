package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"build/internal/build"
)

// app is one run of the command: its arguments and everything it reads from and writes to.
type app struct {
	args   []string // argv
	env    func(string) (string, bool)
	stdin  *os.File
	stdout *os.File
	stderr *os.File
	heap   *heap
}

func newApp(args []string) *app {
	return &app{args: args, env: os.LookupEnv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
}

// getenv returns the value of an environment variable, "" when it is not set.
func (a *app) getenv(name string) string {
	v, _ := a.env(name)
	return v
}

// note tells the user one thing beside the progress of a build.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "build: "+format+"\n", args...)
}

// run carries out the command line and returns the exit code.
func (a *app) run() int {
	ctx, stop := withSignals(context.Background(), a.stderr)
	defer stop()

	args, global, err := a.route()
	if err == nil {
		err = a.execute(ctx, args, global)
	}
	if err == nil {
		return build.ExitOK
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	build.Explain(a.stderr, err)
	return build.ExitCode(err)
}

// exitError ends the program with a code when everything there is to say has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// route turns the arguments of whatever name the program was started under into arguments of `build`.
func (a *app) route() (args []string, g *globalFlags, err error) {
	g = &globalFlags{}
	args = a.args[1:]
	if filepath.Base(a.args[0]) == "docker" {
		args, err = a.routeDocker(args, g)
	}
	return args, g, err
}

func (a *app) execute(ctx context.Context, args []string, g *globalFlags) error {
	root := a.rootCommand(g)
	root.SetArgs(withBuildWord(args))
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	return root.ExecuteContext(ctx)
}

// withBuildWord adds the word "build" when the first argument that is not a flag of every command is a flag of build.
// What follows is then a context even when it is called like a command: build -t app images
func withBuildWord(args []string) []string {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--root" || arg == "--insecure" || arg == "--registry-mirror" || arg == "--store-limit":
			i++
		case strings.HasPrefix(arg, "--root="), strings.HasPrefix(arg, "--store-limit="), strings.HasPrefix(arg, "--insecure="), strings.HasPrefix(arg, "--registry-mirror="), arg == "--offline", strings.HasPrefix(arg, "--offline="):
		case arg == "--help", arg == "-h", arg == "--version", arg == "-v":
			return args
		case len(arg) > 1 && arg[0] == '-':
			return slices.Insert(slices.Clone(args), i, "build")
		default:
			return args
		}
	}
	return args
}

// rootCommand builds the tree of commands. The root is `build` itself, so that `build .` needs no further word.
func (a *app) rootCommand(g *globalFlags) *cobra.Command {
	root := a.buildCommand(g)
	root.Use = "build [flags] PATH | URL | -"
	root.Long = rootHelp
	root.Version = versionString()
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.HiddenDefaultCmd = false
	g.define(root.PersistentFlags())

	same := a.buildCommand(g)
	same.Use = "build [flags] PATH | URL | -"
	same.Short = "Build an image (the same as without the word)"
	root.AddCommand(same, a.pushCommand(g), a.imagesCommand(g), a.rmiCommand(g), a.tagCommand(g), a.loginCommand(g), a.doctorCommand(g), a.versionCommand(),
		a.duCommand(g), a.pruneCommand(g), a.storeCommand(g), a.planCommand(g), a.explainCommand(g))
	root.InitDefaultHelpCmd()
	return root
}

// globalFlags are the flags every command has.
type globalFlags struct {
	root         string
	storeLimit   string
	insecure     []string
	mirrors      []string
	offline      bool
	dockerConfig string // from docker's own --config; not a flag of ours
}

func (g *globalFlags) define(fs *pflag.FlagSet) {
	fs.StringVar(&g.root, "root", g.root, "the store's `DIR` (default $BUILD_ROOT, else $XDG_DATA_HOME/build, for root /var/lib/build)")
	fs.StringVar(&g.storeLimit, "store-limit", g.storeLimit, "`SIZE` below which builds keep the store, a share of the disk such as 15%, or off (default $BUILD_STORE_LIMIT, else 10%, but at least 10GB)")
	textsVar(fs, &g.insecure, "insecure", "", "registry `HOST` that may be reached by plain HTTP or with a certificate nobody vouches for")
	textsVar(fs, &g.mirrors, "registry-mirror", "", "`HOST=PREFIX`: look for images of HOST below PREFIX first, e.g. docker.io=mirror.example/hub (repeatable; default $BUILD_REGISTRY_MIRRORS, comma-separated)")
	fs.BoolVar(&g.offline, "offline", g.offline, "open no network connection; what is not in the store is an error")
}

// exactArgs is cobra's check of the number of arguments, with an error that counts as wrong usage. So is minArgs.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return &build.UsageError{Msg: fmt.Sprintf("%q needs %s, got %d arguments", cmd.CommandPath(), what, len(args)), Hint: "usage: " + cmd.UseLine()}
	}
}

func minArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return &build.UsageError{Msg: fmt.Sprintf("%q needs %s", cmd.CommandPath(), what), Hint: "usage: " + cmd.UseLine()}
	}
}

// println writes one line of a command's result, and reports what a full disk or a closed pipe does to it.
func (a *app) println(w io.Writer, line string) error {
	if _, err := fmt.Fprintln(w, line); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

const rootHelp = `Build an OCI image from a Dockerfile, without a daemon and without root.

The context is a directory, a URL, or - for a Dockerfile or a tar archive on standard input. The flags are those of
"docker buildx build". A directory that is called like a command is written with a slash: build ./push

Exit codes:
  0    done
  1    internal error
  2    mistake in the Dockerfile or on the command line; with --check also a violated rule
  3    a step failed; its own exit code is in the message and in the metadata file
  4    the registry wants other credentials
  5    registry or network
  6    the machine: no room, no permission, no namespaces
  7    build store check found damage and did not repair it
  10   build plan: something would run
  129, 130, 143   ended by SIGHUP, SIGINT, SIGTERM

Environment:
  BUILD_ROOT              the store's directory, as --root
  BUILD_STORE_LIMIT       how large the store may become, as --store-limit
  BUILD_EMULATOR          emulators for images of other machines, as --emulator, comma-separated
  BUILD_INFLATE           who inflates large gzip layers, as --inflate
  BUILDKIT_PROGRESS       how progress is shown, as --progress
  DOCKER_CONFIG           directory of config.json with credentials and proxies (default ~/.docker)
  DOCKER_DEFAULT_PLATFORM the platform when --platform is not given
  SOURCE_DATE_EPOCH       time of everything in the image: the same input then gives the same digest
  HTTP_PROXY, HTTPS_PROXY, FTP_PROXY, NO_PROXY, ALL_PROXY   for registries and, unseen by cache and history, for RUN
  SSL_CERT_FILE, SSL_CERT_DIR   certificates to trust; /etc/docker/certs.d is read too
  CI, NO_COLOR, TERM      plain progress, no colours`
