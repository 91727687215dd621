package build

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/store"
)

// PruneOptions say what `build prune` removes. The zero value removes everything that no image in the store needs.
type PruneOptions struct {
	// All removes pulled images, too. Names the user gave go only if Filters ask for images by their type as well.
	All     bool
	Filters Filters
	DryRun  bool
	// The least recently used goes until at most Max bytes are left and MinFree bytes of the disk are free, but never so much that
	// less than Reserved is left. Without any of them everything goes that may.
	Max, Reserved, MinFree int64
}

// Pruned is what a prune removed, or would remove.
type Pruned struct {
	Entries   []DiskEntry // what went of them is their Size
	Reclaimed int64
	Left      int64
	Warnings  []string // what could not be removed
	Leftovers int      // traces of builds that were killed
}

// Prune removes what is not needed from a store. Waiting is told who else collects or checks just now.
func Prune(ctx context.Context, o StoreOptions, p PruneOptions, waiting func(holder string)) (*Pruned, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	owners := &idOwners{}
	defer owners.close()
	// The descriptions are made before what they are made of is gone.
	entries, err := survey(ctx, st, owners)
	if err != nil {
		return nil, err
	}
	c := p.collectOptions(entries, owners)
	c.Wait = waiting
	total, _ := Total(entries)
	if c.Limit, err = p.keep(total, st.Dir()); err != nil {
		return nil, err
	}
	stats, err := st.Collect(ctx, c)
	if stats == nil {
		return nil, err
	}
	out := &Pruned{Left: stats.After, Leftovers: stats.Leftovers, Warnings: owners.unreachable(st)}
	if stats.Refused > 0 {
		out.Warnings = append(out.Warnings, "some directories of steps could not be moved: something is mounted in them, or they belong to another user")
	}
	out.Entries, out.Reclaimed = removedFrom(entries, stats.Removed)
	if trash := trashOf(entries); trash != nil {
		out.Entries, out.Reclaimed = append(out.Entries, *trash), out.Reclaimed+trash.Size
	}
	return out, err
}

// collectOptions says what may go.
func (p *PruneOptions) collectOptions(entries []DiskEntry, owners *idOwners) store.CollectOptions {
	now := time.Now()
	c := collectOptions(owners)
	c.Limited, c.DryRun, c.Before = true, p.DryRun, p.Filters.until(now)
	c.Sizes = map[store.Ref]int64{}
	selected := map[store.Ref]bool{}
	all := true
	for i := range entries {
		match := p.Filters.match(&entries[i], now)
		all = all && match
		for _, p := range entries[i].parts {
			c.Sizes[p.ref] = p.size
			if match {
				selected[p.ref] = true
			}
		}
	}
	if !all && (len(p.Filters) > 1 || c.Before.IsZero()) { // until alone is the collection's own business
		c.Select = func(r store.Ref) bool { return selected[r] }
	}
	names := p.Filters.asks(DiskImage)
	c.MayRemoveName = func(ref string, n store.Name) bool {
		switch {
		case c.Select != nil && !selected[store.Ref{Kind: store.KindName, Key: ref}]:
			return false
		case n.Origin == store.Pulled:
			return p.All || names
		}
		return p.All && names
	}
	return c
}

// keep is how many bytes may stay.
func (p *PruneOptions) keep(total int64, root string) (int64, error) {
	limits := p.Max > 0
	keep := p.Max
	if p.MinFree > 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(root, &st); err != nil {
			return 0, err
		}
		short := p.MinFree - int64(st.Bavail)*st.Bsize
		if !limits {
			keep = total
		}
		keep = min(keep, total-max(short, 0))
	}
	return max(keep, p.Reserved, 0), nil
}

// removedFrom says what went of which entries, in the order of the entries.
func removedFrom(entries []DiskEntry, removed []store.Removed) (gone []DiskEntry, sum int64) {
	sizes := map[store.Ref]int64{}
	for _, r := range removed {
		sizes[r.Ref] = r.Size
		sum += r.Size
	}
	for _, e := range entries {
		e.Size = 0
		took := false
		for _, p := range e.parts {
			if n, ok := sizes[p.ref]; ok {
				e.Size += n
				took = true
			}
		}
		if took {
			gone = append(gone, e)
		}
	}
	return gone, sum
}

// trashOf is what earlier collections left to be deleted.
func trashOf(entries []DiskEntry) *DiskEntry {
	for i := range entries {
		if entries[i].Type == DiskInternal && entries[i].ID == "trash" {
			return &entries[i]
		}
	}
	return nil
}
