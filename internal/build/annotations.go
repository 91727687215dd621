package build

import (
	"fmt"
	"slices"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Level says which of the documents of an image an annotation is written into.
type Level string

// The levels. A descriptor is the line that another document has about this one: of a manifest in the index of several
// platforms or, like that of the index itself, in the index.json of a layout.
const (
	OnManifest           Level = "manifest"
	OnManifestDescriptor Level = "manifest-descriptor"
	OnIndex              Level = "index"
	OnIndexDescriptor    Level = "index-descriptor"
)

// Levels lists them all.
var Levels = []Level{OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor}

func (l Level) ofIndex() bool { return l == OnIndex || l == OnIndexDescriptor }

// Annotation is one --annotation, or annotation… in an -o.
type Annotation struct {
	Level      Level
	Platform   *ocispec.Platform // of manifest levels: nil is every platform
	Key, Value string
}

func (a Annotation) String() string {
	name := string(a.Level)
	if a.Platform != nil {
		name += "[" + platformString(*a.Platform) + "]"
	}
	return name + ":" + a.Key
}

// annotationsOn chooses what is written on one level of the image for p; what names the platform wins over what does not, then
// the last one given.
func annotationsOn(list []Annotation, level Level, p *ocispec.Platform) map[string]string {
	var out map[string]string
	for _, specific := range []bool{false, true} {
		for _, a := range list {
			if a.Level != level || (a.Platform != nil) != specific {
				continue
			}
			if specific && (p == nil || platformString(*a.Platform) != platformString(*p)) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[a.Key] = a.Value
		}
	}
	return out
}

// MultiPlatform reports whether the result is an index: of several platforms, or because BUILDKIT_MULTI_PLATFORM wants one around
// a single image. A value of that which is no boolean is refused where the Dockerfile is lowered.
func (o *Options) MultiPlatform() bool {
	multi := len(o.Platforms) > 1
	for _, kv := range o.BuildArgs {
		if kv.Key != "BUILDKIT_MULTI_PLATFORM" || kv.Value == "" {
			continue
		}
		if b, err := strconv.ParseBool(kv.Value); err == nil {
			multi = b || len(o.Platforms) > 1
		}
	}
	return multi
}

// checkAnnotations refuses annotations that have no place in the result.
func (o *Options) checkAnnotations() error {
	if err := o.placeable(o.Annotations); err != nil {
		return err
	}
	for i := range o.Outputs {
		out := &o.Outputs[i]
		if !isImageOutput(out.Type) {
			if len(out.Annotations) > 0 {
				return &UsageError{Msg: fmt.Sprintf("-o type=%s has no place for annotation %s", out.Type, out.Annotations[0])}
			}
			continue
		}
		if err := o.placeable(out.Annotations); err != nil {
			return err
		}
		if all := slices.Concat(o.Annotations, out.Annotations); !out.OCIMediaTypes && len(all) > 0 {
			return &UsageError{
				Msg:  fmt.Sprintf("annotation %s: an image with oci-mediatypes=false has no place for it", all[0]),
				Hint: "leave out oci-mediatypes=false, or use --label, which goes into the configuration",
			}
		}
	}
	return nil
}

func (o *Options) placeable(list []Annotation) error {
	for _, a := range list {
		if a.Level.ofIndex() && !o.MultiPlatform() {
			return &UsageError{
				Msg:  fmt.Sprintf("annotation %s: the image of a single platform has no index", a),
				Hint: "use manifest: or manifest-descriptor:, or give several --platform",
			}
		}
		if a.Platform != nil && !slices.ContainsFunc(o.platforms(), func(p ocispec.Platform) bool {
			return platformString(p) == platformString(*a.Platform)
		}) {
			return &UsageError{Msg: fmt.Sprintf("annotation %s: the platform is not being built", a), Hint: "add it to --platform"}
		}
	}
	return nil
}

// platforms are those that are built.
func (o *Options) platforms() []ocispec.Platform {
	if len(o.Platforms) == 0 {
		return []ocispec.Platform{hostPlatform()}
	}
	return o.Platforms
}
