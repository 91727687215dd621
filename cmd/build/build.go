package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"build/internal/build"
	"build/internal/progress"
)

// buildCommand is `build` itself, with and without the word.
func (a *app) buildCommand(g *globalFlags) *cobra.Command {
	f := &buildFlags{}
	cmd := &cobra.Command{
		Short: "Build an OCI image from a Dockerfile",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := contextArg(cmd, args)
			if err != nil {
				return err
			}
			return a.build(cmd.Context(), g, f, dir)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f.define(cmd.Flags())
	for name, choices := range map[string][]string{
		"pull":     {"always", "missing", "never"},
		"network":  {"default", "host", "none", "private"},
		"progress": progressModes,

		"secret-leak": {"warn", "error", "off"},
	} {
		// The only error is a flag that does not exist, and these do.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// contextArg returns the one argument of a build.
func contextArg(cmd *cobra.Command, args []string) (string, error) {
	switch len(args) {
	case 0:
		return "", &build.UsageError{
			Msg:  "the context is missing: a directory, a URL, or - for standard input",
			Hint: fmt.Sprintf("to build the current directory: build . (all flags: %s --help)", cmd.CommandPath()),
		}
	case 1:
	default:
		return "", usagef("one context is expected, got %d arguments: %q", len(args), args)
	}
	arg := args[0]
	if arg == "" {
		return "", usagef("the context is the empty string")
	}
	if _, err := os.Lstat(arg); errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(arg, "/:.") {
		var names []string
		for _, c := range cmd.Root().Commands() {
			names = append(names, c.Name())
		}
		if near, ok := nearest(arg, names); ok {
			return "", &build.UsageError{Msg: fmt.Sprintf("there is no directory and no command %q", arg), Hint: fmt.Sprintf("did you mean \"build %s\"?", near)}
		}
	}
	return arg, nil
}

// build runs one build from flags to printed digest.
func (a *app) build(ctx context.Context, g *globalFlags, f *buildFlags, dir string) error {
	o, err := f.options(a, g, dir)
	if err != nil {
		return err
	}
	mode, printID, err := f.progressMode(a)
	if err != nil {
		return err
	}
	call, err := f.inspection()
	if err != nil {
		return err
	}
	if call == nil && asksForNothing(&o, printID) && mode != progress.Quiet {
		a.note("no output (-o) and no name (-t) was asked for: there is no image, only what is cached of it")
	}
	if what := inVain(&o); call == nil && what != "" {
		a.note("no output (-o) makes an image, so %s has no effect; -o type=image beside it makes one", what)
	}
	display, err := progress.New(mode, a.stderr, a.displayOptions(o.Mask))
	if err != nil {
		return &build.UsageError{Msg: err.Error()}
	}
	o.Progress, o.BeforeRun = display, a.heap.stepRuns
	// A terminal that was stopped must not hold up the end of a build that was told to stop.
	defer context.AfterFunc(ctx, display.Unblock)()
	if call != nil {
		return a.inspect(ctx, o, call, display.Close)
	}
	res, err := build.Run(ctx, o)
	if cerr := display.Close(); err == nil && cerr != nil && !errors.Is(cerr, os.ErrClosed) {
		err = fmt.Errorf("show progress: %w", cerr)
	}
	if err != nil {
		return f.recordFailure(err)
	}
	if mode != progress.Quiet && mode != progress.RawJSON {
		if err := build.PrintWarnings(a.stderr, res.Warnings); err != nil {
			return fmt.Errorf("list the warnings: %w", err)
		}
	}
	return a.printResult(&o, res, mode == progress.Quiet, printID)
}

// asksForNothing reports whether no image, name or digest was asked for, and settles that there is to be none. The steps are carried
// out then, and that is all: to write and compress layers that nobody will see is most of the work of many a build.
func asksForNothing(o *build.Options, printID bool) bool {
	if printID || len(o.Outputs) > 0 || len(o.Tags) > 0 || o.Push || o.IIDFile != "" || o.MetadataFile != "" {
		return false
	}
	o.Outputs = []build.Output{{Type: build.OutputNone}}
	return true
}

// inVain names the first flag that gives an image a name, or asks for its ID, where no output is one; "" if there is none.
func inVain(o *build.Options) string {
	switch {
	case o.MakesImage():
		return ""
	case len(o.Tags) > 0:
		return "--tag " + o.Tags[0]
	case o.IIDFile != "":
		return "--iidfile"
	}
	return ""
}

// recordFailure leaves the exit code of a step that failed in the metadata file, for scripts, and returns err.
func (f *buildFlags) recordFailure(err error) error {
	var step *build.StepError
	if f.metadataFile == "" || !errors.As(err, &step) {
		return err
	}
	if werr := build.WriteMetadata(f.metadataFile, nil, step); werr != nil {
		return fmt.Errorf("%w\n%w", err, werr)
	}
	return err
}

// printResult prints what was made, last of all: with -q the image's ID as docker does, otherwise its digest.
func (a *app) printResult(o *build.Options, res *build.Result, quiet, printID bool) error {
	to := a.stdout
	for _, out := range o.Outputs {
		if out.Stdout != nil { // an archive went there
			to = a.stderr
		}
	}
	line := res.Digest
	if quiet {
		line = ""
		if printID {
			line = imageID(res)
		}
	}
	if line == "" {
		return nil
	}
	return a.println(to, line)
}

// imageID is what docker calls an image's ID: the digest of its configuration, or of the manifest when there is none.
func imageID(res *build.Result) string {
	if res.ConfigDigest != "" {
		return res.ConfigDigest
	}
	return res.Digest
}

var progressModes = []string{progress.Auto, progress.Plain, progress.TTY, progress.Quiet, progress.RawJSON, "none"}

// progressMode chooses the display, and whether quiet means that the ID is printed (-q) or nothing is (none).
func (f *buildFlags) progressMode(a *app) (mode string, printID bool, err error) {
	mode, from := f.progress, "--progress"
	if mode == "" {
		if env := a.getenv("BUILDKIT_PROGRESS"); env != "" {
			mode, from = env, "BUILDKIT_PROGRESS"
		}
	}
	if f.quiet {
		return progress.Quiet, true, nil
	}
	switch mode {
	case "":
		return progress.Auto, false, nil
	case "none":
		return progress.Quiet, false, nil
	case progress.Quiet:
		return progress.Quiet, true, nil
	case progress.Auto, progress.Plain, progress.TTY, progress.RawJSON:
		return mode, false, nil
	}
	hint := "the choices are " + strings.Join(progressModes, ", ")
	return "", false, &build.UsageError{Msg: fmt.Sprintf("invalid %s=%s", from, mode), Hint: hint}
}

// displayOptions says how a display may look here.
func (a *app) displayOptions(mask func([]byte) []byte) progress.Options {
	dumb := a.getenv("TERM") == "dumb"
	return progress.Options{
		Mask:  mask,
		Color: a.getenv("NO_COLOR") == "" && !dumb,
		CI:    a.inCI() || dumb,
	}
}
