package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"build/internal/build"
)

// storeCommand holds what is seldom asked of the store itself.
func (a *app) storeCommand(g *globalFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Look after the store itself",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("say what about the store: build store check (to build a directory called store: build ./store)")
			}
			return usagef("there is no command %q for the store; there is: build store check", args[0])
		},
	}
	cmd.AddCommand(a.storeCheckCommand(g))
	return cmd
}

func (a *app) storeCheckCommand(g *globalFlags) *cobra.Command {
	var o build.CheckStoreOptions
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find what is damaged in the store, and with --repair remove it",
		Long: "Reads everything in the store: blobs against their digests, indexes, records, what names stand for, owners. With --repair\n" +
			"what is damaged is removed, so that it is made or fetched again when it is needed. Builds may go on meanwhile.\n\n" +
			"Exit codes: 0 the store is sound, or was repaired; 7 damage was found and is still there; others as for every command.",
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			found, warnings, err := build.CheckStore(cmd.Context(), so, o, a.waiting)
			if perr := a.printProblems(found, format, so.Root, err == nil); err == nil {
				err = perr
			}
			a.noteAll(warnings)
			if err == nil && !allMended(found) {
				return &exitError{build.ExitDamaged}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&o.Repair, "repair", false, "remove what is damaged")
	cmd.Flags().BoolVar(&o.Quick, "quick", false, "do not read blobs, only look at them")
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT`: table, or json for one object a line")
	return cmd
}

func allMended(found []build.StoreProblem) bool {
	for _, p := range found {
		if !p.Repaired && !p.Harmless {
			return false
		}
	}
	return true
}

// problemJSON is a line of `store check --format json`. The names are stable.
type problemJSON struct {
	Kind     string `json:"kind"`
	Path     string `json:"path"`
	Detail   string `json:"detail"`
	Repaired bool   `json:"repaired"`
	Harmless bool   `json:"harmless"`
}

// printProblems lists what was found; whole says that all of the store was looked at.
func (a *app) printProblems(found []build.StoreProblem, format, root string, whole bool) error {
	if format == "json" {
		enc := json.NewEncoder(a.stdout)
		for _, p := range found {
			if err := enc.Encode(problemJSON(p)); err != nil {
				return fmt.Errorf("write the list: %w", err)
			}
		}
		return nil
	}
	bad, mended := 0, 0
	for _, p := range found {
		line := fmt.Sprintf("%s: %s: %s", p.Kind, p.Path, p.Detail)
		switch {
		case p.Repaired:
			line += " (repaired)"
			mended++
		case p.Harmless:
			line += " (harmless)"
		default:
			bad++
		}
		if err := a.println(a.stdout, line); err != nil {
			return err
		}
	}
	if !whole {
		return nil
	}
	switch {
	case bad > 0:
		return a.println(a.stdout, fmt.Sprintf("%s: %d things are damaged; build store check --repair removes what can be made again", root, bad))
	case mended > 0:
		return a.println(a.stdout, fmt.Sprintf("%s: %d things repaired, the store is sound", root, mended))
	}
	return a.println(a.stdout, root+": the store is sound")
}
