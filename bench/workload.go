package main

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// workload is a Dockerfile and its context, which several rows may build in turn from one state.
type workload struct {
	name   string
	base   string                        // name of its base in the registry; "" is scratch
	make   func(dir, base string) error  // writes Dockerfile and context; base is what follows FROM
	change func(dir, nonce string) error // rewrites one file, or what the workload says; nil: nothing changes
	alone  func(dir string) []string     // a command that does its longest chain of steps without any builder; nil: not known
	other  func(dir string, i int) error // makes of the context one of the same shape that shares no file with it; nil: there is no such
	random bool                          // what steps make differs from build to build: only names and sizes can be compared
}

// oldTime is the time of every file: long before any build, so that no program must doubt what it knows about it.
var oldTime = time.Unix(1700000000, 0)

// text returns n bytes of words, which gzip makes about as small as source code.
func text(r *rand.Rand, words []string, n int) []byte {
	var b bytes.Buffer
	b.Grow(n + 128)
	for b.Len() < n {
		for range 10 {
			b.WriteString(words[r.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.Bytes()[:n]
}

func vocabulary(r *rand.Rand) []string {
	words := make([]string, 2000)
	for i := range words {
		w := make([]byte, 2+r.IntN(8))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		words[i] = string(w)
	}
	return words
}

func put(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chtimes(path, oldTime, oldTime)
}

func dockerfile(dir, text string) error {
	return put(filepath.Join(dir, "Dockerfile"), []byte(text))
}

// rewrite returns a change that gives one file of the context another content.
func rewrite(name string) func(dir, nonce string) error {
	return func(dir, nonce string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(nonce+"\n"), 0o644)
	}
}

// tinyContext is one small file on a small base.
func tinyContext() workload {
	return workload{name: "tiny", base: "busybox", change: rewrite("hello"), make: func(dir, base string) error {
		if err := put(filepath.Join(dir, "hello"), []byte("hello\n")); err != nil {
			return err
		}
		return dockerfile(dir, "FROM "+base+"\nCOPY hello /hello\nCMD [\"cat\", \"/hello\"]\n")
	}}
}

// smallFiles is n files of text, 50 to a directory, and a RUN that reads their names.
func smallFiles(n int, base string) workload {
	return workload{name: fmt.Sprintf("files-%d", n), base: base, change: rewrite("src/pkg00/lib/file01.txt"),
		other: func(dir string, i int) error { return writeSmallFiles(dir, n, uint64(1+i)) },
		make: func(dir, base string) error {
			if err := writeSmallFiles(dir, n, 1); err != nil {
				return err
			}
			return dockerfile(dir, "FROM "+base+"\nCOPY src /app/src\nRUN find /app -type f | wc -l > /count\nCMD [\"cat\", \"/count\"]\n")
		}}
}

func writeSmallFiles(dir string, n int, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	words := vocabulary(r)
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("src/pkg%02d/lib/file%02d.txt", i/50, i%50))
		if err := put(path, text(r, words, 512+r.IntN(3584))); err != nil {
			return err
		}
	}
	return nil
}

// The tree is like a directory of installed packages: of 100,000 files, 115,003 entries, 422 MB, half of the files below
// 3.8 KB. A package has a directory with four directories, and a hundred files in three packages.
const (
	treeMedian = 3800  // bytes
	treeSigma  = 0.457 // of the logarithm of sizes, which makes the mean 4.2 KB
)

var treeParts = []string{"lib", "dist", "src", "test"}

// packageTree is a tree of n files, copied onto nothing.
func packageTree(n int) workload {
	return workload{name: fmt.Sprintf("tree-%d", n), change: rewrite("tree/node_modules/pkg0000/lib/file000000.js"), make: func(dir, _ string) error {
		if err := writeTree(filepath.Join(dir, "tree"), n); err != nil {
			return err
		}
		return dockerfile(dir, "FROM scratch\nCOPY tree /app\n")
	}}
}

func writeTree(dir string, n int) error {
	r := rand.New(rand.NewPCG(3, 1))
	words := vocabulary(r)
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	for p := range (n*3 + 99) / 100 {
		for _, part := range treeParts {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("node_modules/pkg%04d/%s", p, part)), 0o755); err != nil {
				return err
			}
		}
	}
	for i := range n {
		size := int(treeMedian * math.Exp(treeSigma*r.NormFloat64()))
		name := filepath.Join(dir, fmt.Sprintf("node_modules/pkg%04d/%s/file%06d.js", i*3/100, treeParts[i%len(treeParts)], i))
		if err := os.WriteFile(name, text(r, words, size), 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(name, oldTime, oldTime); err != nil {
			return err
		}
	}
	return nil
}

// onBigBase is a RUN and a file on a large base.
func onBigBase() workload {
	return workload{name: "big", base: "big", change: rewrite("marker"), make: func(dir, base string) error {
		if err := put(filepath.Join(dir, "marker"), []byte("0\n")); err != nil {
			return err
		}
		return dockerfile(dir, "FROM "+base+"\nRUN true\nCOPY marker /marker\n")
	}}
}

// independentStages are n stages, each of which waits and makes some MB that nothing can compress; the last joins them.
func independentStages(n, mb int, wait string) workload {
	step := fmt.Sprintf("sleep %s && dd if=/dev/urandom of=%%s bs=1M count=%d 2>/dev/null", wait, mb)
	return workload{name: "stages", base: "busybox", random: true,
		make: func(dir, base string) error {
			var b strings.Builder
			for i := range n {
				fmt.Fprintf(&b, "FROM %s AS s%d\nCOPY in%d /in\nRUN "+step+"\n", base, i, i, "/out")
				if err := put(filepath.Join(dir, fmt.Sprintf("in%d", i)), fmt.Appendf(nil, "%d\n", i)); err != nil {
					return err
				}
			}
			b.WriteString("FROM scratch\n")
			for i := range n {
				fmt.Fprintf(&b, "COPY --from=s%d /out /out%d\n", i, i)
			}
			return dockerfile(dir, b.String())
		},
		alone: func(dir string) []string {
			return []string{"sh", "-c", fmt.Sprintf(step, filepath.Join(dir, "out"))}
		}}
}

// runSteps is how many RUN steps the workload for their cost has.
const runSteps = 20

// trueSteps is n steps that execute a program that does nothing, after a file that can change.
func trueSteps(n int) workload {
	return workload{name: fmt.Sprintf("runs-%d", n), base: "busybox", change: rewrite("marker"), make: func(dir, base string) error {
		var b strings.Builder
		fmt.Fprintf(&b, "FROM %s\nCOPY marker /\n", base)
		for i := range n {
			fmt.Fprintf(&b, "RUN [\"/bin/true\", \"%d\"]\n", i)
		}
		if err := put(filepath.Join(dir, "marker"), []byte("0\n")); err != nil {
			return err
		}
		return dockerfile(dir, b.String())
	}}
}
