package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"build/internal/build"
	"build/internal/progress"
)

// exitWouldRun is the exit code of `build plan` when something would run.
const exitWouldRun = 10

// planCommand says what a build would do.
func (a *app) planCommand(g *globalFlags) *cobra.Command {
	f := &buildFlags{}
	var format string
	cmd := &cobra.Command{
		Use:   "plan [flags of build] PATH | URL | -",
		Short: "Say what a build would run, without running anything",
		Long: "Takes the flags and the context of a build and lists its steps: those that would run and why, those that are cached,\n" +
			"and those of which that depends on what an earlier step gives; then what would be fetched of base images.\n" +
			"Nothing is run and no layer is fetched or written. Registries are asked for manifests as by a build (not with --offline).\n\n" +
			"Exits with 0 when nothing would run, with 10 when something would, otherwise as build does.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := contextArg(cmd, args)
			if err != nil {
				return err
			}
			p, err := a.ask(cmd.Context(), g, f, dir, format)
			if err != nil {
				return err
			}
			if err := p.Print(a.stdout, format); err != nil {
				return err
			}
			if p.WouldRun {
				return &exitError{exitWouldRun}
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f.define(cmd.Flags())
	defineFormat(cmd, &format)
	return cmd
}

// explainCommand says why steps run.
func (a *app) explainCommand(g *globalFlags) *cobra.Command {
	f := &buildFlags{}
	var format string
	var last bool
	cmd := &cobra.Command{
		Use:   "explain [STEP] [flags of build] [PATH | URL | -]",
		Short: "Say why steps would run, or why they ran",
		Long: "With a context, and the flags of a build: for each step, whether the cache would answer it and, if not, everything that\n" +
			"differs from the run before it that is most like it. Nothing is run.\n\n" +
			"Without a context, or with --last: the same about the last build of this directory, or of the one that is given.\n\n" +
			"STEP chooses steps: 3 is the third, build/2 the one shown as [build 2/5], :12 the instruction on line 12 of the\n" +
			"Dockerfile; anything else is a part of their text.\n\n" +
			"  build explain .                 what would the next build do, and why?\n" +
			"  build explain 'npm ci' .        and this step?\n" +
			"  build explain                   what did the last build here do, and why?\n" +
			"  build explain :12               and the instruction on line 12?",
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			step, dir, err := explainArgs(args)
			if err != nil {
				return err
			}
			if err := checkPlanFormat(format); err != nil {
				return err
			}
			if last || dir == "" {
				return a.explainLast(cmd, g, step, dir, format)
			}
			p, err := a.ask(cmd.Context(), g, f, dir, format)
			if err != nil {
				return err
			}
			return p.Explain(a.stdout, format, step)
		},
	}
	f.define(cmd.Flags())
	defineFormat(cmd, &format)
	cmd.Flags().BoolVar(&last, "last", false, "look back at the last build of the context instead of asking what one would do")
	return cmd
}

func defineFormat(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVar(format, "format", build.FormatText, "`FORMAT`: text or json (described in docs/cache.md)")
	// The only error is a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{build.FormatText, build.FormatJSON}, cobra.ShellCompDirectiveNoFileComp))
}

func checkPlanFormat(format string) error {
	if format != build.FormatText && format != build.FormatJSON {
		return &build.UsageError{Msg: "there is no format " + format, Hint: "the choices are text and json"}
	}
	return nil
}

// explainArgs tells step and context apart. A single argument is a context if it can be one.
func explainArgs(args []string) (step, dir string, err error) {
	switch len(args) {
	case 0:
		return "", "", nil
	case 1:
		if isContext(args[0]) {
			return "", args[0], nil
		}
		return args[0], "", nil
	}
	if !isContext(args[1]) && isContext(args[0]) {
		return "", "", usagef("%q is no context; the step comes first: build explain STEP %s", args[1], args[0])
	}
	return args[0], args[1], nil
}

func isContext(arg string) bool {
	if arg == "-" || strings.Contains(arg, "://") || strings.HasPrefix(arg, "git@") {
		return true
	}
	fi, err := os.Stat(arg)
	return err == nil && fi.IsDir()
}

// ask finds out what a build would do. Only warnings are shown meanwhile, unless a way of showing progress was asked for.
func (a *app) ask(ctx context.Context, g *globalFlags, f *buildFlags, dir, format string) (*build.Plan, error) {
	if err := checkPlanFormat(format); err != nil {
		return nil, err
	}
	if call, err := f.inspection(); err != nil || call != nil {
		if err == nil {
			err = usagef("--check and --call are questions of their own")
		}
		return nil, err
	}
	o, err := f.options(a, g, dir)
	if err != nil {
		return nil, err
	}
	mode, printID, err := f.progressMode(a)
	if err != nil {
		return nil, err
	}
	asksForNothing(&o, printID)
	asked := f.progress != ""
	if !asked && mode != progress.Quiet {
		mode = progress.Plain
	}
	display, err := progress.New(mode, a.stderr, a.displayOptions(o.Mask))
	if err != nil {
		return nil, &build.UsageError{Msg: err.Error()}
	}
	defer context.AfterFunc(ctx, display.Unblock)()
	o.Progress = progress.Sink(display)
	if !asked {
		o.Progress = build.WarningsOnly(display)
	}
	p, err := build.Explained(ctx, o)
	if cerr := display.Close(); err == nil && cerr != nil && !errors.Is(cerr, os.ErrClosed) {
		err = cerr
	}
	return p, err
}

// explainLast looks back. Flags of a build mean nothing there, and are refused rather than ignored.
func (a *app) explainLast(cmd *cobra.Command, g *globalFlags, step, dir, format string) error {
	own := map[string]bool{"format": true, "last": true, "root": true, "offline": true, "insecure": true, "registry-mirror": true, "progress": true}
	for _, name := range changedFlags(cmd) {
		if !own[name] {
			return usagef("%s says how to build, and this looks back at a build; to ask about one that has not been made, add its context: build explain … %s", dashed(name), ".")
		}
	}
	if dir == "" {
		dir = "."
	}
	so, err := a.storeOptions(g)
	if err != nil {
		return err
	}
	l, err := build.ExplainLast(so, dir)
	if err != nil {
		return err
	}
	return l.Print(a.stdout, format, step)
}
