package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what the JSON file of the table holds.
type report struct {
	Started  time.Time         `json:"started"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Load     float64           `json:"load"` // of the last minute, at the start
	Runs     int               `json:"runs"`
	Level    int               `json:"gzipLevel"`
	Small    bool              `json:"small,omitempty"`
	Versions map[string]string `json:"versions"`
	Notes    []string          `json:"notes,omitempty"`
	Targets  []target          `json:"targets"`
	Rows     []string          `json:"rows"` // in the table's order
	Cells    []*cell           `json:"cells"`
}

// cell is one row by one builder.
type cell struct {
	Row        string    `json:"row"`
	Builder    string    `json:"builder"`
	Version    string    `json:"version"`
	When       time.Time `json:"when"`
	LoadBefore float64   `json:"loadBefore"`
	Samples    []sample  `json:"samples"`
	PeakMiB    float64   `json:"peakMiB"`
	Layers     []string  `json:"diffIDs,omitempty"`
	Bytes      int64     `json:"bytes,omitempty"` // of what was exported
	Notes      []string  `json:"notes,omitempty"`
	Error      string    `json:"error,omitempty"`
}

func newReport(c *config) *report {
	r := &report{Started: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), Load: load(), Runs: c.n, Level: c.level,
		Small: c.small, Versions: map[string]string{}, CPU: cpuModel()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		r.Kernel = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	}
	return r
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// adopt takes over the cells of an earlier report, which this run does not measure again or has not yet.
func (r *report) adopt(file string) error {
	var old report
	err := readJSON(file, &old)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if old.Level != r.Level || old.Small != r.Small || old.Cores != r.Cores {
		return fmt.Errorf("%s was measured at gzip level %d, small=%v, on %d cores: it cannot be continued; name another file with -json, or remove it",
			file, old.Level, old.Small, old.Cores)
	}
	r.Cells = old.Cells
	for _, n := range old.Notes {
		r.note(n)
	}
	return nil
}

func (r *report) note(n string) {
	if !slices.Contains(r.Notes, n) {
		r.Notes = append(r.Notes, n)
	}
}

func (r *report) cell(row, builder string) *cell {
	for _, c := range r.Cells {
		if c.Row == row && c.Builder == builder {
			return c
		}
	}
	return nil
}

// set replaces a cell.
func (r *report) set(c *cell) {
	r.Cells = slices.DeleteFunc(r.Cells, func(old *cell) bool { return old.Row == c.Row && old.Builder == c.Builder })
	r.Cells = append(r.Cells, c)
}

// write replaces the file as a whole: a run that is interrupted leaves the rows that it has measured.
func (r *report) write(file string) error {
	slices.SortStableFunc(r.Cells, func(a, b *cell) int { return slices.Index(r.Rows, a.Row) - slices.Index(r.Rows, b.Row) })
	return writeJSON(file, r)
}

// publish writes the results and the tables.
func (r *report) publish(file, md string) error {
	if err := r.write(file); err != nil {
		return err
	}
	var page bytes.Buffer
	if err := r.markdown(&page); err != nil {
		return err
	}
	if err := replaceFile(md, page.Bytes()); err != nil {
		return err
	}
	return r.text(os.Stdout)
}

// failures is an error when a row of ours, or a check of a peer's, has failed.
func (r *report) failures() error {
	var errs []error
	for _, c := range r.Cells {
		if c.Error != "" {
			errs = append(errs, fmt.Errorf("%s, %s: %s", c.Row, c.Builder, c.Error))
		}
	}
	return errors.Join(errs...)
}

func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(file, append(data, '\n'))
}

func replaceFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (c *cell) ok() bool { return c != nil && c.Error == "" && len(c.Samples) > 0 }

func (c *cell) wall() float64 {
	return median(c.Samples, func(s sample) float64 { return s.Wall })
}

func (c *cell) cpu() float64 {
	return median(c.Samples, func(s sample) float64 { return s.CPU })
}

func (c *cell) fastest() float64 {
	best := c.Samples[0].Wall
	for _, s := range c.Samples {
		best = min(best, s.Wall)
	}
	return best
}

func (c *cell) maxLoad() float64 {
	most := c.LoadBefore
	for _, s := range c.Samples {
		most = max(most, s.Load)
	}
	return most
}

func (c *cell) String() string {
	if c.Error != "" {
		return c.Builder + ": FAILED: " + c.Error
	}
	if len(c.Samples) == 0 {
		return c.Builder + ": not measured"
	}
	return fmt.Sprintf("%s: %s wall, %s CPU, %.0f MiB, %d runs, load %.1f %s", c.Builder, seconds(c.wall()), seconds(c.cpu()), c.PeakMiB,
		len(c.Samples), c.maxLoad(), strings.Join(c.Notes, "; "))
}

func seconds(s float64) string {
	if s < 0.9995 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}

func median[T any](all []T, f func(T) float64) float64 {
	var v []float64
	for _, s := range all {
		v = append(v, f(s))
	}
	slices.Sort(v)
	n := len(v)
	if n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[n/2]
}
