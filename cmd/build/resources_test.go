package main

import (
	"errors"
	"strings"
	"testing"

	"build/internal/build"
)

// limitsOf parses a command line.
func limitsOf(t *testing.T, args string) (build.Limits, error) {
	t.Helper()
	o, _, err := parse(t, map[string]string{"HOME": "/h", "BUILD_ROOT": "/store"}, append(strings.Fields(args), ".")...)
	return o.Limits, err
}

func TestResources(t *testing.T) {
	for args, want := range map[string]build.Limits{
		"":                                  {},
		"-m 0 --memory-swap 0 --cpus 0":     {},
		"--pids-limit -1 --cpu-quota -1":    {},
		"-m 64m":                            {Memory: 64 << 20},
		"--memory 1g --memory-swap -1":      {Memory: 1 << 30, MemorySwap: -1},
		"--memory=8388608 --memory-swap 1g": {Memory: 8 << 20, MemorySwap: 1 << 30},
		"--cpus 1.5":                        {CPUQuota: 150_000, CPUPeriod: 100_000},
		"-c 512 --cpu-period 50000":         {CPUShares: 512, CPUPeriod: 50_000},
		"--cpu-quota 20000":                 {CPUQuota: 20_000},
		"--cpuset-cpus 0-1,3 --cpuset-mems 0 --pids-limit 7":                            {CPUs: "0-1,3", Mems: "0", Pids: 7},
		"--cgroup-parent ci.slice":                                                      {Parent: "ci.slice"},
		"--resource memory=64m,cpu-shares=9 --resource cpu-quota=5000,cpu-period=10000": {Memory: 64 << 20, CPUShares: 9, CPUQuota: 5000, CPUPeriod: 10_000},
		`--resource memory=64m,memory-swap=64m,"cpuset-cpus=0,1",cpuset-mems=0`:         {Memory: 64 << 20, MemorySwap: 64 << 20, CPUs: "0,1", Mems: "0"},
	} {
		if got, err := limitsOf(t, args); err != nil || got != want {
			t.Errorf("%s: %+v, %v", args, got, err)
		}
	}
}

// An error names the flag and says what would be right.
func TestWrongResources(t *testing.T) {
	for args, want := range map[string]string{
		"-m lots":                            `invalid --memory "lots"`,
		"-m 5m":                              "the least is 6m",
		"-m -5":                              "invalid --memory",
		"--memory-swap 1g":                   "--memory-swap needs --memory",
		"-m 1g --memory-swap 1m":             "not less than --memory 1g",
		"-m 1g --memory-swap -2":             "invalid --memory-swap",
		"--cpus none":                        "invalid --cpus",
		"--cpus NaN":                         "invalid --cpus",
		"--cpus -1":                          "invalid --cpus",
		"--cpus 1 --cpu-quota 5000":          "--cpus and --cpu-period or --cpu-quota",
		"--cpu-period 999":                   "invalid --cpu-period 999",
		"--cpu-quota 999":                    "invalid --cpu-quota 999",
		"--cpu-shares 1":                     "invalid --cpu-shares 1",
		"--cpuset-cpus 3-1":                  "invalid --cpuset-cpus",
		"--cpuset-mems x":                    "invalid --cpuset-mems",
		"--pids-limit -2":                    "invalid --pids-limit -2",
		"--cgroup-parent a/../..":            "invalid --cgroup-parent a/../..",
		"--resource memory":                  "is not NAME=VALUE",
		"--resource cores=1":                 "the names are memory,",
		"--resource cpu-quota=x":             "cpu-quota=x is no number",
		"--resource memory=1g,memory-swap=1": "invalid --memory-swap",
	} {
		_, err := limitsOf(t, args)
		var usage *build.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
