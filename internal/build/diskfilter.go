package build

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"build/internal/lazyregexp"
)

// Filters select lines of `build du` and what `build prune` may remove. All of them have to fit.
type Filters []Filter

// Filter is one --filter, in the form that docker buildx du takes: KEY=VALUE, KEY!=VALUE, KEY~=REGEXP or KEY alone.
type Filter struct {
	Key, Op, Value string
	re             *regexp.Regexp
	age            time.Duration
	at             time.Time
	on             bool
}

// filterKeys are the keys and whether their value is yes or no.
var filterKeys = map[string]bool{
	"id": false, "type": false, "description": false, "until": false, "inuse": true, "shared": true, "private": true,
}

// otherTypes are words of ours, and of docker, for types that have another name in BuildKit.
var otherTypes = map[string]DiskType{
	"layer": DiskLayer, "cachemount": DiskMount, "mount": DiskMount, "context": DiskContext, "download": DiskDownload, "name": DiskImage,
}

// diskTypes are the values of type=.
var diskTypes = []string{string(DiskLayer), string(DiskMount), string(DiskContext), string(DiskDownload), string(DiskImage), string(DiskInternal)}

// ParseFilters reads what was given with --filter; one value may hold several, with commas between.
func ParseFilters(given []string) (Filters, error) {
	var out Filters
	for _, g := range given {
		for s := range strings.SplitSeq(g, ",") {
			f, err := parseFilter(strings.TrimSpace(s))
			if err != nil {
				return nil, err
			}
			out = append(out, f)
		}
	}
	return out, nil
}

var filterForm = lazyregexp.New(`^([a-z]+)(?:(!=|~=|==|=)(.*))?$`)

func parseFilter(s string) (Filter, error) {
	m := filterForm().FindStringSubmatch(s)
	if m == nil {
		return Filter{}, filterError(s, "the form is KEY=VALUE, KEY!=VALUE, KEY~=REGEXP or KEY")
	}
	f := Filter{Key: m[1], Op: strings.Replace(m[2], "==", "=", 1), Value: m[3]}
	yesNo, known := filterKeys[f.Key]
	switch {
	case !known:
		return f, filterError(s, "the keys are id, type, description, until, inuse, shared and private")
	case f.Op == "" && !yesNo:
		return f, filterError(s, "it needs a value: "+f.Key+"=VALUE")
	case f.Op == "~=" && (yesNo || f.Key == "until" || f.Key == "type"):
		return f, filterError(s, "a pattern fits id and description only")
	case f.Key == "until" && f.Op != "=":
		return f, filterError(s, "the form is until=24h or until=2006-01-02T15:04:05")
	}
	return f, f.parseValue(s, yesNo)
}

func (f *Filter) parseValue(s string, yesNo bool) (err error) {
	switch {
	case f.Op == "~=":
		if f.re, err = regexp.Compile(f.Value); err != nil {
			return filterError(s, err.Error())
		}
	case yesNo:
		f.on = true
		if f.Op != "" {
			if f.on, err = strconv.ParseBool(f.Value); err != nil {
				return filterError(s, "the values are true and false")
			}
		}
		if f.Op == "!=" {
			f.on = !f.on
		}
	case f.Key == "type":
		if t, ok := otherTypes[f.Value]; ok {
			f.Value = string(t)
		}
		if !slices.Contains(diskTypes, f.Value) {
			return filterError(s, "the types are "+strings.Join(diskTypes, ", "))
		}
	case f.Key == "until":
		return f.parseUntil(s)
	}
	return nil
}

func (f *Filter) parseUntil(s string) error {
	if d, err := time.ParseDuration(f.Value); err == nil && d >= 0 {
		f.age = d
		return nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, f.Value, time.Local); err == nil {
			f.at = t
			return nil
		}
	}
	if n, err := strconv.ParseInt(f.Value, 10, 64); err == nil {
		f.at = time.Unix(n, 0)
		return nil
	}
	return filterError(s, "the form is until=24h, until=2006-01-02T15:04:05 or seconds since 1970")
}

func filterError(s, hint string) error {
	return &UsageError{Msg: fmt.Sprintf("invalid --filter %q", s), Hint: hint}
}

// until is the time since which nothing may have been used; zero when that does not matter.
func (fs Filters) until(now time.Time) time.Time {
	var at time.Time
	for _, f := range fs {
		if f.Key != "until" {
			continue
		}
		t := f.at
		if t.IsZero() {
			t = now.Add(-f.age)
		}
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at
}

// types reports whether a type is asked for by name.
func (fs Filters) asks(t DiskType) bool {
	return slices.ContainsFunc(fs, func(f Filter) bool { return f.Key == "type" && f.Op == "=" && f.Value == string(t) })
}

func (fs Filters) match(e *DiskEntry, now time.Time) bool {
	if at := fs.until(now); !at.IsZero() && !e.Used.Before(at) {
		return false
	}
	for i := range fs {
		if !fs[i].match(e) {
			return false
		}
	}
	return true
}

func (f *Filter) match(e *DiskEntry) bool {
	switch f.Key {
	case "inuse":
		return e.InUse == f.on
	case "shared":
		return e.Shared == f.on
	case "private":
		return e.Shared != f.on
	case "until":
		return true // see Filters.until
	}
	have := map[string]string{"id": e.ID, "type": string(e.Type), "description": e.Description}[f.Key]
	fits := have == f.Value
	if f.Key == "id" && !fits && len(f.Value) >= shortestDigest { // as it is shown
		fits = strings.HasPrefix(strings.TrimPrefix(have, "sha256:"), strings.TrimPrefix(f.Value, "sha256:"))
	}
	if f.Key == "description" {
		fits = strings.Contains(have, f.Value)
	}
	if f.re != nil {
		fits = f.re.MatchString(have)
	}
	return fits == (f.Op != "!=")
}
