package main

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"build/internal/build"
	"build/internal/lazyregexp"
)

// annotationLevel is LEVEL[PLATFORM], for which buildx has no other notation than BuildKit's exporters.
var annotationLevel = lazyregexp.New(`^([a-z-]+)(?:\[([A-Za-z0-9_/.+-]+)\])?$`)

// annotationKey is how an annotation is spelled as an attribute of -o: annotation[-LEVEL][[PLATFORM]].KEY.
var annotationKey = lazyregexp.New(`^annotation(?:-([a-z-]+))?(\[[A-Za-z0-9_/.+-]+\])?\.(\S+)$`)

// fillAnnotations reads every --annotation: [LEVEL[PLATFORM][,LEVEL…]:]KEY=VALUE.
func (f *buildFlags) fillAnnotations(_ *app, o *build.Options) error {
	for _, given := range f.annotations {
		name, value, ok := strings.Cut(given, "=")
		levels, key, typed := strings.Cut(name, ":")
		if !typed {
			levels, key = string(build.OnManifest), name
		}
		if !ok || key == "" {
			return usagef("invalid --annotation %q: the form is [LEVEL:]KEY=VALUE", given)
		}
		for _, level := range strings.Split(levels, ",") {
			a, err := parseAnnotation(level, key, value)
			if err != nil {
				return usagef("invalid --annotation %q: %v", given, err)
			}
			o.Annotations = append(o.Annotations, a)
		}
	}
	return nil
}

// parseAnnotation gives LEVEL[PLATFORM] its meaning.
func parseAnnotation(level, key, value string) (build.Annotation, error) {
	a := build.Annotation{Key: key, Value: value}
	m := annotationLevel().FindStringSubmatch(level)
	if m == nil {
		return a, usagef("%q is no level: %s", level, levelNames())
	}
	if a.Level = build.Level(m[1]); !slices.Contains(build.Levels, a.Level) {
		var known []string
		for _, l := range build.Levels {
			known = append(known, string(l))
		}
		if near, ok := nearest(m[1], known); ok {
			return a, usagef("unknown level %q, did you mean %s?", m[1], near)
		}
		return a, usagef("unknown level %q: %s", m[1], levelNames())
	}
	if m[2] == "" {
		return a, nil
	}
	if a.Level == build.OnIndex || a.Level == build.OnIndexDescriptor {
		return a, usagef("%s: an index is not for one platform", level)
	}
	p, err := platforms.Parse(m[2])
	if err != nil {
		return a, err
	}
	a.Platform = &p
	return a, nil
}

func levelNames() string {
	var b strings.Builder
	b.WriteString("the choices are ")
	for i, l := range build.Levels {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(l))
	}
	return b.String()
}

// setAnnotation reads an attribute of -o; false when it is no annotation at all.
func (o *output) setAnnotation(key, value string) (bool, error) {
	if !strings.HasPrefix(key, "annotation") {
		return false, nil
	}
	m := annotationKey().FindStringSubmatch(key)
	if m == nil {
		return false, nil
	}
	level := m[1]
	if level == "" {
		level = string(build.OnManifest)
	}
	a, err := parseAnnotation(level+m[2], m[3], value)
	if err != nil {
		return true, o.wrong("%s: %v", key, err)
	}
	o.Annotations = append(o.Annotations, a)
	return true, nil
}
