package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"

	"build/internal/build"
)

// output is one parsed -o.
type output struct {
	build.Output
	insecure bool // registry.insecure=true
	destSet  bool
	typed    string

	platformSplit *bool
	forImages     []string // keys given that mean something only for images
}

// parseOutput reads the value of one -o, in the forms buildx knows: DIR, - and comma-separated KEY=VALUE with a type.
func (a *app) parseOutput(s string) (*output, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, usagef("invalid --output %q: %v", s, err)
	}
	out := &output{typed: s, Output: build.Output{OCIMediaTypes: true, Tar: true}}
	switch {
	case s == "-":
		out.Type, out.Dest, out.destSet = build.OutputTar, "-", true
	case len(fields) == 1 && fields[0] == s && !strings.HasPrefix(s, "type="):
		out.Type, out.Dest, out.destSet = build.OutputLocal, s, true
	default:
		for _, f := range fields {
			key, value, ok := strings.Cut(f, "=")
			if !ok {
				return nil, usagef("invalid --output %q: %q is not of the form KEY=VALUE", s, f)
			}
			key = strings.TrimSpace(key)
			if err := out.set(key, value); err != nil {
				return nil, err
			}
			if imageKeys[strings.ToLower(key)] {
				out.forImages = append(out.forImages, key)
			}
		}
	}
	if out.Type == "" {
		return nil, usagef("invalid --output %q: type= is missing", s)
	}
	return out, out.complete(a)
}

var outputTypes = map[string]build.OutputType{
	"image": build.OutputImage, "registry": build.OutputRegistry, "oci": build.OutputOCI, "docker": build.OutputDocker,
	"local": build.OutputLocal, "tar": build.OutputTar, "cacheonly": build.OutputNone,
}

// outputKeys are the attributes of -o that are known. Those without a function have no effect here, and why.
var outputKeys = map[string]func(o *output, value string) error{
	"type": func(o *output, v string) error {
		t, ok := outputTypes[v]
		if !ok {
			return o.wrong("unknown type %q", v)
		}
		o.Type = t
		return nil
	},
	"dest":                  func(o *output, v string) error { o.Dest, o.destSet = v, true; return nil },
	"name":                  (*output).setNames,
	"tar":                   func(o *output, v string) error { return o.bool("tar", v, &o.Tar) },
	"push":                  func(o *output, v string) error { return o.bool("push", v, &o.Push) },
	"oci-mediatypes":        func(o *output, v string) error { return o.bool("oci-mediatypes", v, &o.OCIMediaTypes) },
	"force-compression":     func(o *output, v string) error { return o.bool("force-compression", v, &o.ForceCompression) },
	"rewrite-timestamp":     func(o *output, v string) error { return o.bool("rewrite-timestamp", v, &o.RewriteTimestamp) },
	"registry.insecure":     func(o *output, v string) error { return o.bool("registry.insecure", v, &o.insecure) },
	"compression":           (*output).setCompression,
	"compression-level":     (*output).setLevel,
	"source-date-epoch":     (*output).setEpoch,
	"platform-split":        (*output).setSplit,
	"push-by-digest":        func(o *output, v string) error { return o.must("push-by-digest", v, false) },
	"oci-artifact":          func(o *output, v string) error { return o.must("oci-artifact", v, false) },
	"attestation-inline":    func(o *output, v string) error { return o.must("attestation-inline", v, false) },
	"prefer-nondist-layers": func(o *output, v string) error { return o.must("prefer-nondist-layers", v, false) },
	"unpack":                func(o *output, v string) error { return o.must("unpack", v, false) },
	"store":                 func(o *output, v string) error { return o.must("store", v, true) },
	"name-canonical":        func(o *output, v string) error { return o.must("name-canonical", v, false) },
}

// imageKeys are the keys without a meaning for outputs that are files.
var imageKeys = map[string]bool{
	"name": true, "push": true, "oci-mediatypes": true, "compression": true, "compression-level": true, "force-compression": true,
}

func (o *output) wrong(format string, args ...any) error {
	return usagef("invalid --output %q: "+format, append([]any{o.typed}, args...)...)
}

func (o *output) set(key, value string) error {
	if set, ok := outputKeys[strings.ToLower(key)]; ok {
		return set(o, value)
	}
	if ok, err := o.setAnnotation(key, value); ok {
		return err
	}
	var known []string
	for k := range outputKeys {
		known = append(known, k)
	}
	if near, ok := nearest(key, known); ok {
		return o.wrong("unknown key %q, did you mean %s?", key, near)
	}
	return o.wrong("unknown key %q", key)
}

func (o *output) bool(key, value string, to *bool) error {
	on, err := strconv.ParseBool(value)
	if err != nil {
		return o.wrong("%s=%s is neither true nor false", key, value)
	}
	*to = on
	return nil
}

// must accepts only the value that says what happens anyway.
func (o *output) must(key, value string, want bool) error {
	var on bool
	if err := o.bool(key, value, &on); err != nil {
		return err
	}
	if on != want {
		return o.wrong("%s=%s is %s", key, value, notYet)
	}
	return nil
}

func (o *output) setNames(value string) error {
	for _, n := range strings.Split(value, ",") {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		if err := checkName(n); err != nil {
			return o.wrong("name %q: %v", n, err)
		}
		o.Names = append(o.Names, n)
	}
	return nil
}

func (o *output) setSplit(value string) error {
	o.platformSplit = new(bool)
	return o.bool("platform-split", value, o.platformSplit)
}

// checkSplit accepts what happens anyway: several platforms are split, one is not.
func (o *output) checkSplit(several bool) error {
	if split := o.platformSplit; split != nil && *split != several {
		return o.wrong("platform-split=%t when the build is for %s is %s", *split, map[bool]string{true: "several platforms", false: "one platform"}[several], notYet)
	}
	return nil
}

func (o *output) setCompression(value string) error {
	switch value {
	case "gzip", "zstd", "uncompressed":
		o.Compression = value
		return nil
	case "estargz", "nydus":
		return o.wrong("compression=%s is %s", value, notYet)
	}
	return o.wrong("unknown compression %q: the choices are gzip, zstd and uncompressed", value)
}

func (o *output) setLevel(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > 22 {
		return o.wrong("compression-level=%s is not a number from 0 to 22", value)
	}
	o.CompressionLevel = &n
	return nil
}

func (o *output) setEpoch(value string) error {
	t, err := parseEpoch(value)
	if err != nil {
		return o.wrong("source-date-epoch=%s: %v", value, err)
	}
	o.Epoch = &t
	return nil
}

// complete checks the attributes against each other and finds the destination.
func (o *output) complete(a *app) error {
	if o.CompressionLevel != nil && *o.CompressionLevel > 9 && o.Compression != "zstd" {
		return o.wrong("compression-level=%d: gzip has levels 0 to 9", *o.CompressionLevel)
	}
	if o.CompressionLevel != nil && o.Compression == "uncompressed" {
		a.note("compression-level=%d has no effect with compression=uncompressed", *o.CompressionLevel)
		o.CompressionLevel = nil
	}
	if o.Push && (o.Type == build.OutputOCI || o.Type == build.OutputDocker) {
		return o.wrong("push=true is for type=image")
	}
	if o.Type == build.OutputLocal || o.Type == build.OutputTar {
		for _, key := range o.forImages {
			a.note("-o type=%s: %s has no effect on files", o.Type, key)
		}
		o.Push, o.Names = false, nil
	}
	switch o.Type {
	case build.OutputLocal:
		return o.completeLocal()
	case build.OutputOCI, build.OutputDocker, build.OutputTar:
		return o.completeArchive(a)
	case build.OutputRegistry:
		o.Push = true
	}
	if o.destSet {
		return o.wrong("type=%s has no dest", o.Type)
	}
	return nil
}

func (o *output) completeLocal() error {
	switch o.Dest {
	case "":
		return o.wrong("dest= is missing: the directory to write to")
	case "-":
		return o.wrong("a directory cannot go to standard output; type=tar can")
	}
	return o.wantDir()
}

// wantDir accepts a destination that is a directory or can become one.
func (o *output) wantDir() error {
	if st, err := os.Stat(o.Dest); err == nil && !st.IsDir() {
		return o.wrong("%s exists and is not a directory", o.Dest)
	}
	return nil
}

func (o *output) completeArchive(a *app) error {
	if !o.Tar {
		if o.Type != build.OutputOCI {
			return o.wrong("tar=false is for type=oci")
		}
		if o.Dest == "" || o.Dest == "-" {
			return o.wrong("dest= is missing: the directory to write to")
		}
		return o.wantDir()
	}
	if o.Dest == "" && o.Type == build.OutputDocker {
		return &build.UsageError{
			Msg:  fmt.Sprintf("invalid --output %q: loading into a container engine is %s", o.typed, notYet),
			Hint: "write an archive and load that: -o type=docker,dest=image.tar, then docker load -i image.tar",
		}
	}
	if o.Dest == "" || o.Dest == "-" || o.Dest == "/dev/stdout" {
		if isTerminal(a.stdout) {
			return o.wrong("refusing to write an archive to a terminal: add dest=FILE")
		}
		o.Dest, o.Stdout = "-", a.stdout
		return nil
	}
	if st, err := os.Stat(o.Dest); err == nil && st.IsDir() {
		return o.wrong("%s is a directory; the destination is a file", o.Dest)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return &build.EnvironmentError{Err: fmt.Errorf("output: %w", err)}
	}
	return nil
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }
