package main

import (
	"fmt"
	"slices"
)

// scale says how large the workloads of the table are.
type scale struct {
	files, manyFiles int
	stages, stageMB  int
	wait             string // what each stage does beside computing, seconds
	layers           []layerShape
}

// layerShape is one layer of the large base.
type layerShape struct{ files, mb int }

var (
	full = scale{files: 2000, manyFiles: 100_000, stages: 8, stageMB: 20, wait: "1",
		layers: []layerShape{{3000, 110}, {2600, 120}, {19000, 190}, {1500, 170}, {4000, 120}, {2900, 120}}}
	tiny = scale{files: 60, manyFiles: 300, stages: 2, stageMB: 1, wait: "0.1", layers: []layerShape{{50, 2}, {80, 3}}}
)

// outKind is what a row writes.
type outKind string

const (
	noOutput outKind = ""
	ociTar   outKind = "tar" // -o type=oci,dest=FILE
	ociDir   outKind = "dir" // -o type=oci,tar=false,dest=DIR
)

// begin is what a row's builds find.
type begin string

const (
	cold    begin = "cold"    // an empty state, new each time
	same    begin = "same"    // the state and the context of the build before
	changed begin = "changed" // the state of the build before, and the workload's change
)

// row is one line of measurements.
type row struct {
	name  string
	work  string // workload.name
	begin begin
	out   outKind
	peers []string // those that the row is for
}

func (r row) measures(builder string) bool {
	return builder == oursName || slices.Contains(r.peers, builder)
}

var (
	both    = []string{buildkitName, buildahName}
	kitOnly = []string{buildkitName}
)

// plan is everything that the table needs.
type plan struct {
	workloads []workload
	rows      []row
	targets   []target
}

// target is what ours shall reach in a row.
type target struct {
	Row     string  `json:"row"`
	Against string  `json:"against"` // a builder, or one of the limits below
	Metric  string  `json:"metric"`  // wall or cpu: ours against the builder's; for limits: wall, or mib
	Reach   float64 `json:"reach"`   // for a builder: at least so many times less; for a limit: at most
	Minus   string  `json:"minus,omitempty"`
	Steps   int     `json:"steps,omitempty"` // with minus: the difference of two rows, divided by that
}

const (
	againstTime  = "time"   // seconds
	againstFloor = "floor"  // times the floor's wall time
	againstPath  = "path"   // times the larger of critical path and CPU seconds / cores, after 0.2 s
	againstWaits = "waits"  // times waits and CPU seconds / cores one after the other, after 0.2 s: where all wait first, nothing can be computed meanwhile
	againstSize  = "memory" // MiB
)

// pathSlack is what a build of stages may take on top of the factor, seconds.
const pathSlack = 0.2

func wallTargets(row string, bk, ba float64) []target {
	return []target{{Row: row, Against: buildkitName, Metric: "wall", Reach: bk}, {Row: row, Against: buildahName, Metric: "wall", Reach: ba}}
}

// table returns the rows and what they shall reach.
func table(s scale) plan {
	tree := packageTree(s.manyFiles)
	small := smallFiles(s.files, "debian")
	steps, none := trueSteps(runSteps), trueSteps(0)
	p := plan{workloads: []workload{tinyContext(), small, tree, onBigBase(), independentStages(s.stages, s.stageMB, s.wait), steps, none}}
	add := func(r row, targets ...target) {
		p.rows = append(p.rows, r)
		for _, t := range targets {
			t.Row = r.name
			p.targets = append(p.targets, t)
		}
	}
	for _, noop := range []struct {
		what, work string
		bk, ba     float64
		more       []target
	}{
		{"no-op, tiny context", "tiny", 8, 15, []target{{Against: againstTime, Metric: "wall", Reach: 0.020}}},
		{fmt.Sprintf("no-op, %d files on Debian, with RUN", s.files), small.name, 15, 60, nil},
	} {
		add(row{name: noop.what, work: noop.work, begin: same, peers: both}, append(wallTargets("", noop.bk, noop.ba), noop.more...)...)
		add(row{name: noop.what + ", OCI tar", work: noop.work, begin: same, out: ociTar, peers: both}, wallTargets("", noop.bk, noop.ba)...)
	}
	// In this order, so that the last cold build is the state of what follows.
	many := fmt.Sprintf("%d files", s.manyFiles)
	add(row{name: "cold COPY of " + many + ", OCI tar", work: tree.name, begin: cold, out: ociTar, peers: kitOnly},
		target{Against: buildkitName, Metric: "cpu", Reach: 4})
	add(row{name: "no-op, " + many, work: tree.name, begin: same, peers: both}, wallTargets("", 10, 100)...)
	add(row{name: "no-op, " + many + ", OCI tar", work: tree.name, begin: same, out: ociTar, peers: both}, wallTargets("", 10, 100)...)
	add(row{name: "one of " + many + " changed", work: tree.name, begin: changed, peers: both}, wallTargets("", 8, 50)...)
	add(row{name: "one of " + many + " changed, OCI tar", work: tree.name, begin: changed, out: ociTar, peers: kitOnly},
		target{Against: buildkitName, Metric: "wall", Reach: 4})
	add(row{name: rowBigCold, work: "big", begin: cold, out: ociTar, peers: both},
		append(wallTargets("", 1.5, 4), target{Against: againstFloor, Metric: "wall", Reach: 1.3})...)
	add(row{name: "FROM 6 layers, one COPYed file changed, OCI tar", work: "big", begin: changed, out: ociTar, peers: both}, wallTargets("", 6, 15)...)
	add(row{name: "export again, OCI directory", work: "big", begin: same, out: ociDir, peers: kitOnly}, target{Against: buildkitName, Metric: "wall", Reach: 10})
	add(row{name: fmt.Sprintf("%d stages, cold, OCI tar", s.stages), work: "stages", begin: cold, out: ociTar, peers: kitOnly},
		target{Against: againstPath, Metric: "wall", Reach: 1.2}, target{Against: againstWaits, Metric: "wall", Reach: 1.2}, target{Against: buildkitName, Metric: "cpu", Reach: 2})
	add(row{name: rowRuns, work: steps.name, begin: changed, peers: both})
	add(row{name: rowNoRuns, work: none.name, begin: changed, peers: both})
	for _, t := range wallTargets(rowRuns, 5, 10) {
		t.Minus, t.Steps = rowNoRuns, runSteps
		p.targets = append(p.targets, t)
	}
	p.targets = append(p.targets, target{Row: rowAny, Against: againstSize, Metric: "mib", Reach: 256})
	return p
}

const (
	rowBigCold = "FROM 6 layers + RUN true, cold, OCI tar"
	rowRuns    = "20 RUN of true"
	rowNoRuns  = "the same without RUN"
	rowAny     = "any of these"
)

func (p plan) workload(name string) workload {
	i := slices.IndexFunc(p.workloads, func(w workload) bool { return w.name == name })
	return p.workloads[i] // a row names one of its plan: TestTable
}
