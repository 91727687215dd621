package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"build/internal/build"
	"build/internal/progress"
)

// This file holds the commands for images that exist: images, rmi, tag and push.

func (a *app) imagesCommand(g *globalFlags) *cobra.Command {
	var quiet bool
	var format string
	cmd := &cobra.Command{
		Use:     "images [NAME]",
		Aliases: []string{"ls"},
		Short:   "List the images in the store",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactArgs(1, "at most one name")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			rows, err := build.Images(cmd.Context(), so)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				rows = withName(rows, args[0])
			}
			return a.printImages(rows, quiet, format)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only digests")
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT`: table, or json for one object a line")
	return cmd
}

func checkFormat(format string) error {
	if format != "table" && format != "json" {
		return usagef("invalid --format=%s: the choices are table and json", format)
	}
	return nil
}

// imageJSON is a row of `images --format json`. The names are stable.
type imageJSON struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"`
	Platform string    `json:"platform"`
	Origin   string    `json:"origin"`
	Complete bool      `json:"complete"`
	Created  time.Time `json:"created"`
	Size     int64     `json:"size"`
}

// withName keeps the rows whose name is the given one, or its repository, in the short or the full form.
func withName(rows []build.ImageRow, name string) []build.ImageRow {
	want := familiar(name)
	var out []build.ImageRow
	for _, r := range rows {
		have := familiar(r.Name)
		repo := have
		if i := strings.LastIndex(have, ":"); i > strings.LastIndex(have, "/") {
			repo = have[:i]
		}
		if have == want || repo == want || have == want+":latest" {
			out = append(out, r)
		}
	}
	return out
}

// familiar is a name as people write it, without docker.io/library.
func familiar(name string) string {
	name = strings.TrimPrefix(name, "docker.io/")
	return strings.TrimPrefix(name, "library/")
}

func (a *app) printImages(rows []build.ImageRow, quiet bool, format string) error {
	if quiet {
		seen := map[string]bool{}
		for _, r := range rows {
			if seen[r.Digest] {
				continue
			}
			seen[r.Digest] = true
			if err := a.println(a.stdout, r.Digest); err != nil {
				return err
			}
		}
		return nil
	}
	if format == "json" {
		enc := json.NewEncoder(a.stdout)
		for _, r := range rows {
			if err := enc.Encode(imageJSON(r)); err != nil {
				return fmt.Errorf("write the list: %w", err)
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tDIGEST\tPLATFORM\tORIGIN\tCREATED\tSIZE")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", familiar(r.Name), shortDigest(r.Digest), r.Platform, r.Origin, ago(r.Created), units.HumanSize(float64(r.Size)))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return nil
}

// shortDigest is enough of a digest to tell images apart.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok || len(hex) < 12 {
		return d
	}
	return hex[:12]
}

func ago(t time.Time) string {
	if t.Unix() <= 0 {
		return "-"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

func (a *app) rmiCommand(g *globalFlags) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi NAME|DIGEST...",
		Short: "Remove names of images from the store",
		Args:  minArgs(1, "the name of an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			if force {
				if args, err = a.present(cmd, so, args); err != nil || len(args) == 0 {
					return err
				}
			}
			removed, err := build.Remove(cmd.Context(), so, args)
			for _, name := range removed {
				if perr := a.println(a.stdout, "removed "+familiar(name)); perr != nil && err == nil {
					err = perr
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "say nothing about names that do not exist")
	return cmd
}

// present keeps the arguments that name something.
func (a *app) present(cmd *cobra.Command, so build.StoreOptions, names []string) ([]string, error) {
	rows, err := build.Images(cmd.Context(), so)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		digest := strings.TrimPrefix(n, "sha256:")
		for _, r := range rows {
			have, want := familiar(r.Name), familiar(n)
			if have == want || have == want+":latest" || len(digest) >= 12 && strings.HasPrefix(strings.TrimPrefix(r.Digest, "sha256:"), digest) {
				out = append(out, n)
				break
			}
		}
	}
	return out, nil
}

func (a *app) tagCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "tag NAME|DIGEST NEWNAME",
		Short: "Give an image of the store another name",
		Args:  exactArgs(2, "an image and its new name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args[1]); err != nil {
				return usagef("invalid name %q: %v", args[1], err)
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			return build.Tag(cmd.Context(), so, args[0], args[1])
		},
	}
}

func (a *app) pushCommand(g *globalFlags) *cobra.Command {
	f := &buildFlags{}
	cmd := &cobra.Command{
		Use:   "push NAME",
		Short: "Push an image of the store to its registry",
		Args: func(cmd *cobra.Command, args []string) error {
			err := exactArgs(1, "the name of an image")(cmd, args)
			if usage, ok := err.(*build.UsageError); ok && len(args) == 0 {
				usage.Hint += "; to build a directory called push: build ./push"
			}
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.push(cmd, g, f, args[0]) },
	}
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	cmd.Flags().StringVar(&f.progress, "progress", "", "how progress is shown, as in build")
	cmd.Flags().Var(&otherValue{flag: &contentTrust, seen: &f.others}, contentTrust.name, "")
	cmd.Flags().Lookup(contentTrust.name).NoOptDefVal = contentTrust.bare
	cmd.Flags().Lookup(contentTrust.name).Hidden = true
	return cmd
}

func (a *app) push(cmd *cobra.Command, g *globalFlags, f *buildFlags, name string) error {
	if err := judgeOthers(f.others, a.note); err != nil {
		return err
	}
	so, err := a.storeOptions(g)
	if err != nil {
		return err
	}
	mode, _, err := f.progressMode(a)
	if err != nil {
		return err
	}
	display, err := progress.New(mode, a.stderr, a.displayOptions(nil))
	if err != nil {
		return &build.UsageError{Msg: err.Error()}
	}
	digest, err := build.Push(cmd.Context(), so, name, display)
	if cerr := display.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("show progress: %w", cerr)
	}
	if err != nil {
		return err
	}
	return a.println(a.stdout, digest)
}
