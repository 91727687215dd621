package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
)

// curve is one way in which a build can be large.
type curve struct {
	name, what string // what x counts
	xs         []int
	peers      int // peers are measured up to this x
	work       func(x int) workload
	builds     func(x int) int // builds at the same time, of contexts that have nothing in common; nil: one
}

// curves lists what is plotted. Small ones only show that it works.
func curves(small bool) []curve {
	all := []curve{
		{name: "files", what: "files in the context, 4.2 KB each", xs: []int{1000, 3000, 10_000, 30_000, 100_000, 200_000}, peers: 10_000, work: packageTree},
		{name: "layers", what: "RUN steps, one after another, each making a layer", xs: []int{1, 3, 10, 30, 100, 200}, peers: 30, work: layerChain},
		{name: "stages", what: "stages, each with a COPY and a RUN, joined like a tree", xs: []int{1, 3, 10, 30, 100, 300, 500}, peers: 30, work: stageTree},
		{name: "size", what: "MB in the context, in files of 10 MB", xs: []int{10, 30, 100, 300, 1000, 2000, 5000}, peers: 300, work: largeFiles},
		{name: "parallel", what: "builds at the same time on one store, 500 files and a RUN each", xs: []int{1, 2, 4, 8, 16}, peers: 4,
			work: func(int) workload { return smallFiles(500, "busybox") }, builds: func(x int) int { return x }},
	}
	if small {
		for i := range all {
			all[i].xs, all[i].peers = []int{1, 2, 3}, 3
		}
		all[0].xs = []int{30, 60, 90}
		all[3].xs = []int{10, 20, 30}
		all[4].work = func(int) workload { return smallFiles(50, "busybox") }
	}
	return all
}

// layerChain is n RUN steps that each write a file.
func layerChain(n int) workload {
	return workload{name: fmt.Sprintf("layers-%d", n), base: "busybox", make: func(dir, base string) error {
		var b strings.Builder
		fmt.Fprintf(&b, "FROM %s\n", base)
		for i := range n {
			fmt.Fprintf(&b, "RUN echo %d > /file%d\n", i, i)
		}
		return dockerfile(dir, b.String())
	}}
}

// stageTree is n stages of which each needs what two others made, so that none is idle and no chain is long.
func stageTree(n int) workload {
	return workload{name: fmt.Sprintf("stages-%d", n), base: "busybox", make: func(dir, base string) error {
		var b strings.Builder
		for i := n - 1; i >= 0; i-- {
			if err := put(filepath.Join(dir, fmt.Sprintf("in%d", i)), fmt.Appendf(nil, "%d\n", i)); err != nil {
				return err
			}
			fmt.Fprintf(&b, "FROM %s AS s%d\nCOPY in%d /in\n", base, i, i)
			for _, child := range []int{2*i + 1, 2*i + 2} {
				if child < n {
					fmt.Fprintf(&b, "COPY --from=s%d /out /from%d\n", child, child)
				}
			}
			b.WriteString("RUN cat /in > /out\n")
		}
		return dockerfile(dir, b.String())
	}}
}

// largeFiles is mb megabytes of files that compress to about an eighth, so that results fit beside them in memory.
func largeFiles(mb int) workload {
	const each, block, repeat = 10, 8 << 10, 8
	return workload{name: fmt.Sprintf("size-%d", mb), make: func(dir, _ string) error {
		r := rand.New(rand.NewPCG(4, 1))
		words := vocabulary(r)
		for i := range (mb + each - 1) / each {
			data := make([]byte, 0, each<<20)
			for len(data) < each<<20 {
				part := text(r, words, block)
				for range repeat {
					data = append(data, part...)
				}
			}
			if err := put(filepath.Join(dir, fmt.Sprintf("large/file%03d", i)), data); err != nil {
				return err
			}
		}
		return dockerfile(dir, "FROM scratch\nCOPY large /large\n")
	}}
}
