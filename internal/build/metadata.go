package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"build/parser"
)

// writeFiles writes what scripts read: the id and the metadata.
func (s *session) writeFiles(res *Result) error {
	if f := s.opts.IIDFile; f != "" {
		id := res.ConfigDigest
		if id == "" { // an index
			id = res.Digest
		}
		if err := os.WriteFile(f, []byte(id), 0o644); err != nil {
			return &EnvironmentError{Err: fmt.Errorf("--iidfile: %w", err)}
		}
	}
	if s.opts.MetadataFile == "" {
		return nil
	}
	return WriteMetadata(s.opts.MetadataFile, res, nil)
}

// removeOldID removes the ID of an earlier build, as docker does: a script that looks for the file after a failure must
// not find that one.
func (o *Options) removeOldID() error {
	if fi, err := os.Lstat(o.IIDFile); err != nil || !fi.Mode().IsRegular() { // nothing there, or a device or pipe
		return nil
	}
	if err := os.Remove(o.IIDFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &EnvironmentError{Err: fmt.Errorf("--iidfile: %w", err)}
	}
	return nil
}

// jsonWarning has the shape of a warning in buildx.build.warnings; texts are base64, as bytes are in JSON.
type jsonWarning struct {
	Level      int         `json:"level"`
	Short      []byte      `json:"short"`
	Detail     [][]byte    `json:"detail,omitempty"`
	URL        string      `json:"url,omitempty"`
	SourceInfo *jsonSource `json:"sourceInfo,omitempty"`
	Range      []jsonRange `json:"range,omitempty"`
}

func metadataWarnings(list []parser.Warning, source []byte) []jsonWarning {
	var out []jsonWarning
	for _, w := range list {
		short := ruled(w)
		if n := w.Range.Start.Line; n > 0 {
			short += fmt.Sprintf(" (line %d)", n)
		}
		j := jsonWarning{Level: 1, Short: []byte(short), URL: w.URL, Range: lines(w.Range).Ranges}
		if w.Description != "" {
			j.Detail = [][]byte{[]byte(w.Description)}
		}
		if source != nil {
			j.SourceInfo = &jsonSource{Filename: w.Range.File, Data: source, Language: "Dockerfile"}
		}
		out = append(out, j)
	}
	return out
}

// WriteMetadata writes the file of --metadata-file: the keys of docker buildx and, for a step that failed, its exit code. There is
// no buildx.build.ref, because there is no history of builds in which it could be looked up.
func WriteMetadata(file string, res *Result, failed *StepError) error {
	m := map[string]any{}
	if res != nil {
		if res.Digest != "" {
			m["containerimage.digest"] = res.Digest
			m["containerimage.descriptor"] = res.Descriptor
		}
		if res.ConfigDigest != "" { // an index has none
			m["containerimage.config.digest"] = res.ConfigDigest
		}
		if len(res.Names) > 0 {
			m["image.name"] = strings.Join(res.Names, ",")
		}
		if len(res.Warnings) > 0 {
			m["buildx.build.warnings"] = metadataWarnings(res.Warnings, res.Source)
		}
	}
	if failed != nil {
		m["build.step.exitcode"] = failed.Code
		if failed.OOM != nil {
			m["build.step.oom"] = map[string]int64{"killed": failed.OOM.Killed, "limit": failed.OOM.Limit, "peak": failed.OOM.Peak}
		}
		m["build.step.name"] = failed.Step
		m["build.step.position"] = failed.Pos.String()
	}
	return writeJSON(file, m)
}

// WriteMetadata writes the answer into the file of --metadata-file, under the keys it has there with docker buildx.
func (r *Report) WriteMetadata(file string) error {
	m := map[string]any{}
	for key, format := range map[string]string{"result.json": FormatJSON, "result.txt": FormatText} {
		as := *r
		as.in.Format = format
		var b bytes.Buffer
		if err := as.Print(&b); err != nil {
			return err
		}
		m[key] = b.String()
	}
	if r.in.Call == CallCheck {
		status := 0
		if r.Violations() > 0 || r.failure != nil {
			status = 1
		}
		m["result.statuscode"] = strconv.Itoa(status)
	}
	return writeJSON(file, m)
}

func writeJSON(file string, m map[string]any) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return &EnvironmentError{Err: fmt.Errorf("--metadata-file: %w", err)}
	}
	return nil
}

// allNames are the tags and the names in outputs, each once.
func (o *Options) allNames() []string {
	return o.namesOf(func(OutputType) bool { return true })
}

// storedNames are the names that the image gets in the local store.
func (o *Options) storedNames() []string {
	return o.namesOf(func(t OutputType) bool { return t == OutputImage })
}

func (o *Options) namesOf(which func(OutputType) bool) []string {
	names := slices.Clone(o.Tags)
	for _, out := range o.Outputs {
		if !which(out.Type) {
			continue
		}
		for _, n := range out.Names {
			if ref, err := normalizeName(n); err == nil && !slices.Contains(names, ref) {
				names = append(names, ref)
			}
		}
	}
	return names
}
