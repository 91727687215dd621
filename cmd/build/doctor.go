package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"build/internal/build"
)

// doctorCommand tells what this machine lets RUN steps be isolated with.
func (a *app) doctorCommand(g *globalFlags) *cobra.Command {
	var format, isolation string
	var emulators []string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show how RUN steps can be isolated here, what is in the way, and what would help",
		Long: "Tries every primitive of the kernel that RUN steps use, where they would use it, and shows which rung of the\n" +
			"isolation ladder a build takes: 0 namespaces with real owners, 1 namespaces with recorded owners, 2 chroot, 3 no RUN.\n" +
			"Exits with 6 when no RUN can run.",
		Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			want, err := build.ParseIsolation(a.isolation(isolation))
			if err != nil {
				return err
			}
			so, err := a.storeOptions(g)
			if err != nil {
				return err
			}
			found, err := a.emulators(emulators)
			if err != nil {
				return err
			}
			d, err := build.Doctor(cmd.Context(), so, want, found)
			if err != nil {
				return err
			}
			if format == "json" {
				err = json.NewEncoder(a.stdout).Encode(d)
			} else {
				err = d.Print(a.stdout)
			}
			if err == nil && d.Rung == 3 {
				return &exitError{build.ExitEnvironment}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT`: table or json")
	cmd.Flags().StringVar(&isolation, "isolation", "", "`MEANS` to try, as with build --isolation (default $BUILD_ISOLATION)")
	textsVar(cmd.Flags(), &emulators, "emulator", "", "`[ARCH=]PATH` to look at, as with build --emulator (repeatable; default $BUILD_EMULATOR)")
	return cmd
}
