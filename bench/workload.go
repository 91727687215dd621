package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// scale says how large the workloads are.
type scale struct {
	files, manyFiles int
	stages           int
	stageMB          int
	sleep            string // what each stage does beside computing
	baseLayers       int
	baseFiles        int // per layer
	baseMB           int // per layer
}

var (
	full = scale{files: 2000, manyFiles: 50000, stages: 8, stageMB: 20, sleep: "1", baseLayers: 6, baseFiles: 5500, baseMB: 100}
	tiny = scale{files: 100, manyFiles: 300, stages: 3, stageMB: 1, sleep: "0.1", baseLayers: 2, baseFiles: 50, baseMB: 2}
)

// row is one line of the table.
type row struct {
	name   string
	make   func(dir string, base func(string) string) error // writes the context
	change func(dir, nonce string) error                    // before each run; nil for none
	warm   bool                                             // built once before the first measured run
	cold   bool                                             // from empty state each time
	export bool                                             // to an OCI archive
}

const (
	rowRuns   = "20 RUN true"
	rowNoRuns = "the same without RUN"
	runSteps  = 20
)

// rows lists what is measured.
func rows(s scale) []row {
	files := func(n int) func(string, func(string) string) error {
		return func(dir string, base func(string) string) error { return writeFiles(dir, base("busybox"), n) }
	}
	stages := func(dir string, base func(string) string) error { return writeStages(dir, base("busybox"), s) }
	big := func(dir string, base func(string) string) error { return writeBig(dir, base("big")) }
	marker := func(name string) func(dir, nonce string) error {
		return func(dir, nonce string) error {
			return os.WriteFile(filepath.Join(dir, name), []byte(nonce+"\n"), 0o644)
		}
	}
	allInputs := func(dir, nonce string) error {
		for i := range s.stages {
			if err := marker(fmt.Sprintf("in%d", i))(dir, nonce); err != nil {
				return err
			}
		}
		return nil
	}
	return []row{
		{name: fmt.Sprintf("no-op rebuild, %d files", s.files), make: files(s.files), warm: true},
		{name: fmt.Sprintf("no-op rebuild, %d files, exported", s.files), make: files(s.files), warm: true, export: true},
		{name: fmt.Sprintf("no-op rebuild, %d files", s.manyFiles), make: files(s.manyFiles), warm: true},
		{name: fmt.Sprintf("one of %d files changed", s.files), make: files(s.files), warm: true, change: marker(oneFile)},
		{name: fmt.Sprintf("one of %d files changed, exported", s.files), make: files(s.files), warm: true, change: marker(oneFile), export: true},
		{name: fmt.Sprintf("cold, %d files, exported", s.files), make: files(s.files), cold: true, export: true},
		{name: fmt.Sprintf("%d stages, all changed", s.stages), make: stages, warm: true, change: allInputs},
		{name: fmt.Sprintf("%d stages, all changed, exported", s.stages), make: stages, warm: true, change: allInputs, export: true},
		{name: rowRuns, make: runs(runSteps), warm: true, change: marker("marker")},
		{name: rowNoRuns, make: runs(0), warm: true, change: marker("marker")},
		{name: fmt.Sprintf("cold: pull and unpack a base of %d MB, RUN true", s.baseMB*s.baseLayers), make: big, cold: true},
		{name: fmt.Sprintf("export an image of %d MB, nothing changed", s.baseMB*s.baseLayers), make: big, warm: true, export: true},
	}
}

// oneFile is the file of writeFiles that changes.
const oneFile = "src/pkg01/lib/file01.txt"

// text returns n bytes that compress about as source code does.
func text(r *rand.Rand, words []string, n int) []byte {
	var b bytes.Buffer
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

// writeFiles makes a context of n small files, 50 to a directory, and a RUN that reads their names.
func writeFiles(dir, base string, n int) error {
	r := rand.New(rand.NewPCG(1, 1))
	words := vocabulary(r)
	old := time.Unix(1700000000, 0)
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("src/pkg%02d/lib/file%02d.txt", i/50, i%50))
		if i%50 == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, text(r, words, 512+r.IntN(3584)), 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(path, old, old); err != nil {
			return err
		}
	}
	return dockerfile(dir, "FROM %s\nCOPY src /app/src\nRUN find /app -type f | wc -l > /count\nCMD [\"cat\", \"/count\"]\n", base)
}

// writeStages makes stages that do not depend on each other, each waiting and computing, joined at the end.
func writeStages(dir, base string, s scale) error {
	var b strings.Builder
	for i := range s.stages {
		fmt.Fprintf(&b, "FROM %s AS s%d\nCOPY in%d /in\nRUN sleep %s && dd if=/dev/urandom of=/out bs=1M count=%d 2>/dev/null\n", base, i, i, s.sleep, s.stageMB)
	}
	b.WriteString("FROM scratch\n")
	for i := range s.stages {
		fmt.Fprintf(&b, "COPY --from=s%d /out /out%d\n", i, i)
	}
	return dockerfile(dir, "%s", b.String())
}

// runs makes n steps that do nothing.
func runs(n int) func(string, func(string) string) error {
	return func(dir string, base func(string) string) error {
		var b strings.Builder
		fmt.Fprintf(&b, "FROM %s\nCOPY marker /\n", base("busybox"))
		for i := range n {
			fmt.Fprintf(&b, "RUN [\"/bin/true\", \"%d\"]\n", i)
		}
		return dockerfile(dir, "%s", b.String())
	}
}

func writeBig(dir, base string) error {
	return dockerfile(dir, "FROM %s\nRUN true\n", base)
}

func dockerfile(dir, format string, args ...any) error {
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, format, args...), 0o644)
}

// writeBigLayer writes one layer of the large base: many small files and a few large ones, of which half compresses.
func writeBigLayer(w io.Writer, layer int, s scale) error {
	r := rand.New(rand.NewPCG(2, uint64(layer)))
	words := vocabulary(r)
	bw := bufio.NewWriterSize(w, 1<<20)
	tw := tar.NewWriter(bw)
	when := time.Unix(1700000000, 0)
	top := fmt.Sprintf("usr/lib/layer%d", layer)
	for _, d := range []string{"usr", "usr/lib", top} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: when}); err != nil {
			return err
		}
	}
	add := func(name string, data []byte) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: when}); err != nil {
			return err
		}
		_, err := tw.Write(data)
		return err
	}
	left := s.baseMB << 20
	for i := range s.baseFiles {
		if i%100 == 0 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%s/dir%03d/", top, i/100), Mode: 0o755, ModTime: when}); err != nil {
				return err
			}
		}
		data := text(r, words, 256+r.IntN(12<<10))
		left -= len(data)
		if err := add(fmt.Sprintf("%s/dir%03d/file%02d.txt", top, i/100, i%100), data); err != nil {
			return err
		}
	}
	noise := make([]byte, 1<<20)
	for i := 0; left > 0; i++ {
		half := len(noise) / 2
		for j := 0; j < half; j += 8 {
			v := r.Uint64()
			for k := range 8 {
				noise[j+k] = byte(v >> (8 * k))
			}
		}
		copy(noise[half:], text(r, words, half))
		if err := add(fmt.Sprintf("%s/large%03d.bin", top, i), noise); err != nil {
			return err
		}
		left -= len(noise)
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}
