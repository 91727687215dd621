package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases; otherwise what the Go toolchain recorded is told.
var version = ""

// versionInfo is what `build version` prints. The JSON names are stable.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Dialect  string `json:"dialect"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// dialect names where the Dockerfile syntax comes from.
const dialect = "github.com/moby/buildkit"

func readVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	for _, d := range info.Deps {
		if d.Path == dialect {
			v.Dialect = "Dockerfile as of BuildKit " + d.Version
		}
	}
	return v
}

func versionString() string {
	v := readVersion()
	if v.Version == "" {
		v.Version = "(devel)"
	}
	return fmt.Sprintf("build %s (%s, %s, %s)", v.Version, v.Dialect, v.Go, v.Platform)
}

func (a *app) versionCommand() *cobra.Command {
	format := "text"
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactArgs(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			switch format {
			case "text":
				return a.println(a.stdout, versionString())
			case "json":
				data, err := json.Marshal(readVersion())
				if err != nil {
					return err
				}
				return a.println(a.stdout, string(data))
			}
			return usagef("invalid --format=%s: the choices are text and json", format)
		},
	}
	cmd.Flags().StringVar(&format, "format", format, "`FORMAT`: text or json")
	return cmd
}
