package build

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/cache"
	"build/internal/store"
)

// DiskType is the kind of a line of `build du`. Where BuildKit has the same thing, it is BuildKit's word.
type DiskType string

const (
	DiskLayer    DiskType = "regular"         // what a step or an image gave: blobs, index, notes, directories, records
	DiskMount    DiskType = "exec.cachemount" // RUN --mount=type=cache
	DiskContext  DiskType = "source.local"    // what is known of a context directory
	DiskDownload DiskType = "source.http"     // ADD and contexts by URL
	DiskImage    DiskType = "image"           // a name, with the documents of its image
	DiskInternal DiskType = "internal"        // the store itself
)

// DiskEntry is one line of `build du --verbose`.
type DiskEntry struct {
	ID          string
	Type        DiskType
	Description string
	Size        int64 // on the disk
	Reclaimable int64 // of this, what `build prune --all` would remove now
	Used        time.Time
	InUse       bool // by a build that runs
	Shared      bool // an image with a name has it, too

	parts []diskPart // what it consists of
}

// diskPart is one thing in the store.
type diskPart struct {
	ref  store.Ref
	size int64 // on the disk
}

// DiskUsage is what is in a store. The sizes of the entries add up to what du(1) says of the directory.
type DiskUsage struct {
	Root     string
	Entries  []DiskEntry // the largest first
	Limit    int64       // 0: none
	Trimmed  store.TrimNote
	Warnings []string // what could not be looked at
}

// Total adds up sizes.
func Total(entries []DiskEntry) (size, reclaimable int64) {
	for i := range entries {
		size += entries[i].Size
		reclaimable += entries[i].Reclaimable
	}
	return size, reclaimable
}

// Disk walks the store and says what is in it, as far as the filters select it.
func Disk(ctx context.Context, o StoreOptions, filters Filters) (*DiskUsage, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	owners := &idOwners{}
	defer owners.close()
	entries, err := survey(ctx, st, owners)
	if err != nil {
		return nil, err
	}
	u := &DiskUsage{Root: st.Dir(), Trimmed: st.LastTrim(), Warnings: owners.unreachable(st)}
	if u.Limit, err = o.Limit.in(st.Dir()); err != nil {
		return nil, err
	}
	now := time.Now()
	for _, e := range entries {
		if filters.match(&e, now) {
			u.Entries = append(u.Entries, e)
		}
	}
	return u, nil
}

// surveyor makes lines for people of what is in a store.
type surveyor struct {
	steps map[string]stepOf    // by key of the record
	named map[store.Ref]bool   // what images with a name stand on
	kept  map[store.Ref]bool   // of these, what names that were given stand on
	from  map[store.Ref]string // the name of an image that has a blob
	said  map[int]time.Time    // when the record was used that gave a line its description
	at    map[store.Ref]int    // in the survey
	lines []int32              // which line has a thing, by where it is in the survey; 0 none, n+1 the line n
	in    *store.Survey
	out   []DiskEntry
}

// stepOf is what a record says of a step.
type stepOf struct {
	name  string
	layer digest.Digest // the topmost of its own, "" if it gave none
}

func survey(ctx context.Context, st *store.Store, owners *idOwners) ([]DiskEntry, error) {
	v := &surveyor{
		steps: map[string]stepOf{}, named: map[store.Ref]bool{}, kept: map[store.Ref]bool{},
		from: map[store.Ref]string{}, said: map[int]time.Time{},
	}
	var err error
	v.in, err = st.Survey(ctx, func(kind store.Kind, key string, data []byte) []store.Ref {
		if kind == store.KindRecord {
			name, own := cache.StepOf(data)
			step := stepOf{name: name}
			if n := len(own); n > 0 {
				step.layer = own[n-1]
			}
			v.steps[key] = step
		}
		return references(kind, key, data)
	}, owners.measure)
	if err != nil {
		return nil, err
	}
	v.at, v.lines = make(map[store.Ref]int, len(v.in.Entries)), make([]int32, len(v.in.Entries))
	for i := range v.in.Entries {
		v.at[v.in.Entries[i].Ref] = i
	}
	v.names()
	v.layers()
	v.records()
	v.rest()
	v.internal()
	slices.SortStableFunc(v.out, func(a, b DiskEntry) int { return cmp.Compare(b.Size, a.Size) })
	return v.out, nil
}

// line begins a line.
func (v *surveyor) line(id string, t DiskType, description string) int {
	v.out = append(v.out, DiskEntry{ID: id, Type: t, Description: description})
	return len(v.out) - 1
}

// put adds a thing to a line, unless another line has it.
func (v *surveyor) put(line int, r store.Ref) {
	r.Weak = false
	i, ok := v.at[r]
	if !ok || v.lines[i] != 0 {
		return
	}
	v.lines[i] = int32(line) + 1
	e, l := &v.in.Entries[i], &v.out[line]
	l.parts = append(l.parts, diskPart{r, e.Size})
	l.Size += e.Size
	if e.Used.After(l.Used) {
		l.Used = e.Used
	}
	l.InUse = l.InUse || e.InUse
	l.Shared = l.Shared || r.Kind != store.KindName && v.named[r]
	if !e.InUse && !v.kept[r] {
		l.Reclaimable += e.Size
	}
}

// lineOf is the line that has a thing, if one does.
func (v *surveyor) lineOf(r store.Ref) (line int, ok bool) {
	i, ok := v.at[r]
	if !ok || v.lines[i] == 0 {
		return 0, false
	}
	return int(v.lines[i]) - 1, true
}

// each calls f for everything of a kind.
func (v *surveyor) each(kind store.Kind, f func(e *store.Entry)) {
	for i := range v.in.Entries {
		if e := &v.in.Entries[i]; e.Ref.Kind == kind {
			f(e)
		}
	}
}

// names notes what images with a name stand on, before anything is counted.
func (v *surveyor) names() {
	v.each(store.KindName, func(e *store.Entry) {
		ref, _, _ := strings.Cut(e.Ref.Key, " ")
		keep := e.Name.Origin != store.Pulled
		v.kept[e.Ref] = keep
		for _, r := range e.Refs {
			r.Weak = false
			v.named[r], v.kept[r] = true, v.kept[r] || keep
			if v.from[r] == "" || keep {
				v.from[r] = familiar(ref)
			}
		}
	})
}

// layers makes a line of each layer: its notes, index and blobs, and its directories.
func (v *surveyor) layers() {
	v.each(store.KindLayer, func(e *store.Entry) {
		line := v.line(e.Ref.Key, DiskLayer, "")
		v.put(line, e.Ref)
		for _, r := range e.Refs {
			v.put(line, r)
			if from := v.from[store.Ref{Kind: r.Kind, Key: r.Key}]; from != "" {
				v.out[line].Description = "layer of " + from
			}
		}
	})
	v.each(store.KindDir, func(e *store.Entry) {
		_, key, _ := strings.Cut(e.Ref.Key, "/")
		hex, _, _ := strings.Cut(key, "-")
		id := "sha256:" + hex
		line, ok := v.lineOf(store.Ref{Kind: store.KindLayer, Key: id})
		if !ok {
			line = v.line(id, DiskLayer, "unpacked layer")
		}
		v.put(line, e.Ref)
	})
}

// records adds what is remembered of steps to the layers they gave, which get their names from the one that was used last.
func (v *surveyor) records() {
	other := -1
	v.each(store.KindRecord, func(e *store.Entry) {
		step := v.steps[e.Ref.Key]
		line, ok := -1, false
		if step.layer != "" {
			line, ok = v.lineOf(store.Ref{Kind: store.KindLayer, Key: step.layer.String()})
		}
		if !ok {
			if other < 0 {
				other = v.line("records", DiskInternal, "what is remembered of steps that gave no layer")
			}
			line = other
		} else if v.said[line].Before(e.Used) {
			v.said[line], v.out[line].Description = e.Used, step.name
		}
		v.put(line, e.Ref)
		for _, r := range e.Refs {
			if r.Kind == store.KindIndex { // of a copy that wrote no layer
				v.put(line, r)
			}
		}
	})
}

// rest makes lines of what belongs to no layer.
func (v *surveyor) rest() {
	v.each(store.KindName, func(e *store.Entry) {
		ref, _, _ := strings.Cut(e.Ref.Key, " ")
		line := v.line(familiar(ref), DiskImage, "image "+familiar(ref))
		v.put(line, e.Ref)
		for _, r := range e.Refs {
			v.put(line, r)
		}
		v.out[line].Shared = false
	})
	v.each(store.KindMount, func(e *store.Entry) {
		_, name, _ := strings.Cut(e.Ref.Key, "/")
		what := "cache mount"
		if e.Mount.ID != "" {
			what += " " + e.Mount.ID
		}
		if e.Mount.Target != "" && e.Mount.Target != e.Mount.ID {
			what += " on " + e.Mount.Target
		}
		v.put(v.line(name, DiskMount, what), e.Ref)
	})
	for _, k := range []struct {
		kind store.Kind
		t    DiskType
		what string
	}{
		{store.KindContext, DiskContext, "digests of the files of a context"}, {store.KindDownload, DiskDownload, "downloaded file"},
		{store.KindPartial, DiskDownload, "blob downloaded in part"}, {store.KindLog, DiskInternal, "log of a failed step"},
		{store.KindBlob, DiskLayer, "blob that nothing refers to"}, {store.KindIndex, DiskLayer, "index that nothing refers to"},
	} {
		v.each(k.kind, func(e *store.Entry) {
			if _, taken := v.lineOf(e.Ref); !taken {
				v.put(v.line(e.Ref.Key, k.t, k.what), e.Ref)
			}
		})
	}
	for _, k := range []struct {
		kind     store.Kind
		id, what string
	}{{store.KindLink, "links", "what steps were last"}, {store.KindText, "texts", "what keys were made of"}} {
		line := -1
		v.each(k.kind, func(e *store.Entry) {
			if line < 0 {
				line = v.line(k.id, DiskInternal, k.what)
			}
			v.put(line, e.Ref)
		})
	}
}

// internal adds what is in no list.
func (v *surveyor) internal() {
	for _, x := range []struct {
		id, what string
		size     int64
	}{
		{"store", "directories, locks and marks of the store itself", v.in.Fixed}, {"temporary", "being written, or left by a build that was killed", v.in.Temp},
		{"trash", "removed, still to be deleted", v.in.Trash},
	} {
		if x.size > 0 {
			v.out[v.line(x.id, DiskInternal, x.what)].Size = x.size
		}
	}
}
