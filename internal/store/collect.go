package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// CollectOptions say what a collection may take. The zero value removes nothing but what the dead left; with Limit,
// what was unused longest goes until the rest fits.
type CollectOptions struct {
	// Limit is how many bytes may stay; it counts if Limited is set.
	Limited bool
	Limit   int64
	// Before, unless zero, spares what was used since.
	Before time.Time
	// Select says what may go beside names; nil is everything. What is spared keeps what it stands on.
	Select func(r Ref) bool
	// MayRemoveName says which names may go; nil lets go those of pulled images.
	MayRemoveName func(ref string, n Name) bool
	// References says what stands on what. Without it everything but names stands alone.
	References References
	// RemoveLocal removes directories in local/<idKind>/trash, in the process that owns the ids of what is in them. When it
	// is nil, they stay there until a collection that has it.
	RemoveLocal func(ctx context.Context, idKind string, paths []string) error
	// Measure returns what directories in local/<idKind> take on the disk, like RemoveLocal in the process that can look. It is asked
	// about cache mounts that were used since they were last measured. When it is nil, they count as they were then.
	Measure Measure
	// Sizes, as far as it has them, are what things take on the disk, where that was measured.
	Sizes map[Ref]int64
	// DryRun changes nothing and says what would go.
	DryRun bool
	// Wait, unless nil, is told who collects or checks already, and the collection follows. When it is nil, that is a *BusyError.
	Wait func(holder string)
	// Begun is called when it is this collection's turn.
	Begun func()
	// Decided is called when everything is in the trash that goes, and nobody waits for what follows.
	Decided func()
}

// Removed is one thing that a collection took, or would take.
type Removed struct {
	Ref  Ref
	Size int64
	Used time.Time
}

// CollectStats is what a collection did.
type CollectStats struct {
	Before, After int64 // bytes in the store
	Fixed         int64 // of these, what no collection can take: directories, locks
	Removed       []Removed
	PutBack       int // what somebody began to use while it was being taken
	Leftovers     int // traces of dead processes that were taken away
	Refused       int // directories that only another owner could have moved
}

// BusyError is a collection that somebody else is already carrying out.
type BusyError struct{ Holder string }

func (e *BusyError) Error() string { return "the store is being collected by " + e.Holder }

// Collect takes away what the dead left and, to keep the store below a limit, what was unused longest; never what a
// lease covers, and a name only if the options let it go. It may run beside any number of builds. A second one at the
// same time gets a *BusyError.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (*CollectStats, error) {
	unlock, err := s.collectAlone(ctx, o.Wait)
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	defer unlock()
	if o.Begun != nil {
		o.Begun()
	}
	c := &collection{s: s, o: o, stats: &CollectStats{}, mark: s.accountMark()}
	if err := c.run(ctx); err != nil {
		return c.stats, fmt.Errorf("collect: %w", err)
	}
	return c.stats, nil
}

func (s *Store) collectAlone(ctx context.Context, wait func(string)) (unlock func(), err error) {
	if wait != nil {
		return s.Lock(ctx, collectLock, wait)
	}
	unlock, ok, err := s.TryLock(collectLock)
	if err == nil && !ok {
		err = &BusyError{s.holder(collectLock)}
	}
	return unlock, err
}

// Sweep is the part of Collect that takes away what dead processes left, cheap enough to be done beside any build.
// removeLocal is CollectOptions.RemoveLocal. When somebody collects already, it does nothing.
func (s *Store) Sweep(ctx context.Context, removeLocal func(ctx context.Context, idKind string, paths []string) error) error {
	unlock, ok, err := s.TryLock(collectLock)
	if err != nil || !ok {
		return err
	}
	defer unlock()
	if err := s.recoverTrash(); err != nil {
		return err
	}
	if _, err := s.sweep(); err != nil {
		return err
	}
	return s.emptyLocalTrash(ctx, removeLocal)
}

// collection is one run of Collect. It holds the collect lock throughout.
type collection struct {
	s     *Store
	o     CollectOptions
	g     *graph
	stats *CollectStats
	mark  int64 // of the account, before anything was counted
}

func (c *collection) run(ctx context.Context) error {
	if !c.o.DryRun {
		if err := c.s.recoverTrash(); err != nil {
			return err
		}
		n, err := c.s.sweep()
		c.stats.Leftovers = n
		if err != nil {
			return err
		}
	}
	if err := c.evict(ctx); err != nil {
		return err
	}
	if c.o.DryRun {
		return nil
	}
	err := c.s.emptyLocalTrash(ctx, c.o.RemoveLocal)
	if aerr := c.account(); !diskFull(aerr) { // what is written down is an estimate in any case
		err = errors.Join(err, aerr)
	}
	return err
}

// account writes down what was counted, so that the next builds know without counting.
func (c *collection) account() error {
	var stuck int64
	if c.o.Limited && c.o.Before.IsZero() && c.o.Select == nil && c.stats.After > c.o.Limit {
		stuck = c.stats.After
	}
	return c.s.counted(c.mark, c.stats.After, stuck)
}

func (c *collection) evict(ctx context.Context) error {
	enough, err := c.survey(ctx)
	if err != nil {
		return err
	}
	if c.o.DryRun {
		var victims []*entity
		if !enough {
			victims, err = c.pick(func(*entity) bool { return false })
		}
		c.count(victims)
		return err
	}
	// No name may come or go between the moment the names are read and the moment what they do not need is gone. Builds that end
	// wait for this lock, so what takes long was done before.
	unlock, err := c.s.Lock(ctx, namesLock, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.s.writeIndex(nil); err != nil && !diskFull(err) { // a process may have died between a name and this
		return err
	}
	if enough {
		return nil
	}
	if err := c.s.relist(c.g); err != nil {
		return err
	}
	victims, err := c.chooseAndUnlist()
	if err != nil {
		return err
	}
	taken, err := c.take(ctx, victims)
	if err != nil {
		return err
	}
	unlock()
	if c.o.Decided != nil {
		c.o.Decided()
	}
	return c.remove(taken)
}

// survey finds out what is in the store; enough reports that nothing needs to go.
func (c *collection) survey(ctx context.Context) (enough bool, err error) {
	if c.g, err = c.s.list(); err != nil {
		return false, err
	}
	if err := c.s.measureMounts(ctx, c.g, c.o.Measure, !c.o.DryRun); err != nil {
		return false, err
	}
	for r, n := range c.o.Sizes {
		if e := c.g.all[r]; e != nil {
			c.g.total += n - e.size
			e.size = n
		}
	}
	c.stats.Before, c.stats.After, c.stats.Fixed = c.g.total, c.g.total, c.g.fixed
	if !c.o.Limited || c.g.total <= c.o.Limit {
		return true, nil
	}
	return false, c.s.resolve(c.g, c.o.References)
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// pick finds what is to go, apart from what keep wants to stay.
func (c *collection) pick(keep func(*entity) bool) ([]*entity, error) {
	ls, err := c.s.readLeases(!c.o.DryRun)
	if err != nil {
		return nil, err
	}
	for r := range ls.refs {
		c.g.pin(r)
	}
	for _, e := range c.g.order {
		if ls.covers(e.seen) || !c.mayRemove(e) || keep(e) {
			e.pinned = true
		}
	}
	c.g.settle()
	var victims []*entity
	left := c.g.total
	for _, e := range c.g.oldest() {
		if left <= c.o.Limit || !c.o.Before.IsZero() && !e.used.Before(c.o.Before) {
			break
		}
		left -= e.size
		victims = append(victims, e)
	}
	inDeletionOrder(victims)
	return victims, nil
}

func (c *collection) mayRemove(e *entity) bool {
	if e.ref.Kind != KindName {
		return c.o.Select == nil || c.o.Select(e.ref)
	}
	if c.o.MayRemoveName != nil {
		return c.o.MayRemoveName(e.ref.Key, *e.name)
	}
	return e.name.Origin == Pulled
}

// chooseAndUnlist finds what is to go and takes the names among it out of index.json. When the disk is too full to
// write that, every image in it stays, so that the rest can go and make room.
func (c *collection) chooseAndUnlist() ([]*entity, error) {
	victims, err := c.pick(func(*entity) bool { return false })
	if err != nil {
		return nil, err
	}
	going := make(map[string]bool)
	for _, e := range victims {
		if e.ref.Kind == KindName {
			going[e.ref.Key] = true
		}
	}
	err = c.s.writeIndex(func(ref string) bool { return !going[ref] })
	if err == nil {
		c.s.point("collect.unlisted")
		return victims, nil
	}
	if !diskFull(err) {
		return nil, err
	}
	listed, err := c.s.listedImages()
	if err != nil {
		return nil, err
	}
	for _, r := range listed {
		c.g.pin(r)
	}
	return c.pick(func(e *entity) bool { return e.ref.Kind == KindName && e.name.Complete })
}

// take moves the chosen into the trash, looks once more who uses what, and puts back what is used. Who takes a lease
// and looks after that no longer finds what is in the trash; who did before is seen here.
func (c *collection) take(ctx context.Context, victims []*entity) ([]*entity, error) {
	victims, err := c.decide(victims)
	if err != nil {
		return nil, err
	}
	defer os.Remove(c.s.path(trashDir, decidingFile)) // if all was put back
	taken, err := c.trash(ctx, victims)
	if err == nil {
		err = c.reconsider(taken)
	}
	if err != nil {
		for _, e := range taken {
			e.pinned = true
		}
		_, undoErr := c.putBack(taken)
		return nil, errors.Join(err, undoErr)
	}
	rest, err := c.putBack(taken)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(c.s.path(trashDir, decidingFile), c.s.path(trashDir, decidedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return rest, nil
}

// decide announces that things will be missing for a moment. Who leased and found something before it could see that is among
// the leases that are read now, so nothing of that is touched: see Store.decided.
func (c *collection) decide(victims []*entity) (rest []*entity, err error) {
	// A link takes no block. Where there is no room even for that, room is made without the announcement.
	if err := os.Symlink(cmp.Or(c.s.boot.id, "-"), c.s.path(trashDir, decidingFile)); err != nil && !diskFull(err) {
		return nil, err
	}
	c.s.point("collect.deciding")
	ls, err := c.s.readLeases(false)
	if err != nil {
		return nil, err
	}
	for r := range ls.refs {
		c.g.pin(r)
	}
	c.g.settle()
	for _, e := range victims {
		if !e.pinned {
			rest = append(rest, e)
		}
	}
	return rest, nil
}

// One of these is in the trash while something pending is: the first as long as it may be put back, the second when it is rubbish.
// Both have the identity of the run of the system, because a loss of power may leave any of them beside anything.
const (
	decidingFile = "deciding"
	decidedFile  = "decided"
)

// trash moves the chosen into the trash, in order, and returns those that were there.
func (c *collection) trash(ctx context.Context, victims []*entity) ([]*entity, error) {
	var taken []*entity
	for _, e := range victims {
		if ctx.Err() != nil {
			return taken, context.Cause(ctx)
		}
		err := c.s.toTrash(e)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone already
		}
		if e.idKind != "" && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EBUSY)) {
			c.stats.Refused++ // nothing is referred to by a directory, so the rest can go
			continue
		}
		if err != nil {
			return taken, err
		}
		taken = append(taken, e)
		c.s.point("collect.trashed")
	}
	return taken, nil
}

// reconsider pins what is used of what was taken. Who published something that refers to it has either still its lease,
// or had published before the leases were read: so new references are looked for after that.
func (c *collection) reconsider(taken []*entity) error {
	ls, err := c.s.readLeases(false)
	if err != nil {
		return err
	}
	for _, e := range taken {
		now := c.s.trashedUse(e)
		e.pinned = ls.covers(now) || !now.Equal(e.seen)
	}
	for r := range ls.refs {
		c.g.pin(r)
	}
	if err := c.newReferences(taken); err != nil {
		return err
	}
	c.g.settle()
	return nil
}

// newReferences pins what was published since the store was listed, so that what it refers to stays.
func (c *collection) newReferences(taken []*entity) error {
	if c.o.References == nil {
		return nil
	}
	inTrash := make(map[*entity]bool, len(taken))
	for _, e := range taken {
		inTrash[e] = true
	}
	for _, kind := range []Kind{KindRecord, KindLink, KindLayer} {
		for it, err := range c.s.List(kind) {
			if err != nil {
				return err
			}
			ref := Ref{Kind: kind, Key: it.Key}
			e := c.g.all[ref]
			if e != nil && !inTrash[e] && it.Used.Equal(e.seen) {
				continue
			}
			if e == nil {
				e = &entity{ref: ref, path: it.path}
				c.g.add(e)
			}
			e.pinned = true
			if data, err := c.s.peek(kind, it.Key); err == nil {
				e.refs = append(e.refs, c.o.References(kind, it.Key, data)...)
			}
		}
	}
	inDeletionOrder(c.g.order)
	return nil
}

// putBack returns to its place what is used after all, in the opposite order of taking, and returns the rest.
func (c *collection) putBack(taken []*entity) ([]*entity, error) {
	names := false
	for i := len(taken) - 1; i >= 0; i-- {
		e := taken[i]
		if !e.pinned {
			continue
		}
		if err := restore(c.s.trashPath(e), e.path); err != nil {
			return nil, err
		}
		c.stats.PutBack++
		names = names || e.ref.Kind == KindName
	}
	if names {
		if err := c.s.writeIndex(nil); err != nil {
			return nil, err
		}
	}
	var rest []*entity
	for _, e := range taken {
		if !e.pinned {
			rest = append(rest, e)
		}
	}
	return rest, nil
}

// remove deletes what was taken. Directories in local/ are only handed over.
func (c *collection) remove(taken []*entity) error {
	for _, e := range taken {
		trash := c.s.trashPath(e)
		var err error
		if e.idKind != "" {
			err = os.Rename(trash, c.s.path(localDir, e.idKind, localTrash, randomName()))
			if e.ref.Kind == KindMount {
				c.s.forgetMount(e.idKind, baseName(e.path))
			}
		} else {
			err = os.Remove(trash)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		c.s.point("collect.removed")
	}
	c.count(taken)
	if err := os.Remove(c.s.path(trashDir, decidedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (c *collection) count(gone []*entity) {
	for _, e := range gone {
		c.stats.Removed = append(c.stats.Removed, Removed{e.ref, e.size, e.used})
		c.stats.After -= e.size
	}
}

// pendingMark begins the name of what is in the trash and may still be put back.
const pendingMark = "~"

// How long a look waits for a collection to decide about what it looks for.
const decisionTime = 10 * time.Second
