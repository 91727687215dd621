package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"build/cache"
	"build/internal/store"
	"build/snapshot"
)

// The store is kept below its limit by a process of its own, the trimmer: this program once more, started by a build that finds
// the running sum above the limit when it begins or ends. It has no terminal, no pipe and no directory of anybody, a low priority,
// and nothing is lost when it is killed with the container it runs in: the next one goes on. No build waits for it, and at most one
// works at a time.

// argTrimmer is argument zero of the trimmer, by which it is recognised; the store's directory and the limit in bytes follow.
const argTrimmer = "build-trim"

// StoreLimit says how large a store may become. The zero value is no limit.
type StoreLimit struct {
	Bytes   int64   // at least so many
	Percent float64 // and at least so much of the disk it is on
}

// DefaultStoreLimit is a tenth of the disk, but at least 10 GB.
var DefaultStoreLimit = StoreLimit{Bytes: 10 * units.GB, Percent: 10}

// in returns the limit of a store, in bytes; 0 is none.
func (l StoreLimit) in(root string) (int64, error) {
	if l.Percent == 0 {
		return l.Bytes, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: root, Err: err}
	}
	return max(l.Bytes, int64(float64(st.Blocks)*float64(st.Bsize)*l.Percent/100)), nil
}

// A collection is due from the first share of the limit on, because the running sum is an estimate, and leaves the second, so that
// not every build that follows causes another. One that could not get so far is tried again when so much has come on top, or so
// much time went by.
const trimFrom, trimTo, trimSlack, trimAgain = 0.95, 0.9, 0.1, 10 * time.Minute

// wantsTrim reports whether a collection is due.
func wantsTrim(a store.Account, limit int64, now time.Time) bool {
	if limit <= 0 {
		return false
	}
	if a.Stale(now) {
		return true
	}
	stuck := a.Stuck > 0 && a.Bytes <= a.Stuck+int64(float64(limit)*trimSlack) && now.Sub(a.Counted) < trimAgain
	return a.Bytes > int64(float64(limit)*trimFrom) && !stuck
}

// trim has the store brought below its limit if the running sum says that it is above.
func (s *session) trim() {
	limit, err := s.opts.Store.Limit.in(s.store.Dir())
	if err != nil {
		s.warn("the limit of the store is not kept: %v", err)
		return
	}
	if s.trimming || !wantsTrim(s.store.Account(), limit, time.Now()) {
		return
	}
	s.trimming = true
	if err := startTrimmer(s.store.Dir(), limit); err != nil {
		s.warn("the store is above its limit of %s, and what is old in it cannot be removed: %v", units.HumanSize(float64(limit)), err)
	}
}

// trimEarly is trim at the beginning of a build, for those whose container ends with them: the trimmer has as long as they have.
// It tells as well what the last one could not tell anybody.
func (s *session) trimEarly() {
	if s.dry || s.opts.Store.Limit == (StoreLimit{}) {
		return
	}
	s.trim()
	if !s.trimming {
		return
	}
	if last := s.store.LastTrim(); last.Error != "" {
		s.warn("the store could not be kept below its limit at %s: %s", last.Time.Local().Format(time.DateTime), last.Error)
	}
	limit, err := s.opts.Store.Limit.in(s.store.Dir())
	if a := s.store.Account(); err == nil && a.Stuck > 0 && a.Bytes > limit {
		s.warn("the store has %s, more than its limit: what is left is in use or has a name; build du shows it, build rmi removes names", units.HumanSize(float64(a.Bytes)))
	}
}

// trimLate is trim at the end of a build, when all that it added is counted.
func (s *session) trimLate() {
	if s.dry {
		return
	}
	s.trimming = false // the one of the beginning did not see what came since; if it still works, the next one waits for it
	s.trim()
}

// startTrimmer starts a trimmer that outlives this process. Nothing of this process's is handed to it but two arguments.
func startTrimmer(root string, limit int64) error {
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{argTrimmer, root, strconv.FormatInt(limit, 10)},
		Env:         []string{"GOMAXPROCS=1"},
		Dir:         "/",
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // standard input and output are /dev/null
	}
	// A shell, or a runner of jobs, may have left descriptors of its own in this process.
	if err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files from the process that does it: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the process that does it: %w", err)
	}
	go func() { _ = cmd.Wait() }() // while this process lives; what it found is in the store
	return nil
}

// trimReentry runs this process as a trimmer when it was started as one.
func trimReentry() bool {
	if len(os.Args) != 3 || os.Args[0] != argTrimmer {
		return false
	}
	limit, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err == nil && limit > 0 {
		trimMain(os.Args[1], limit)
	}
	return true
}

// trimTime bounds a trimmer. What is not done by then, the next one does.
const trimTime = 15 * time.Minute

func trimMain(root string, limit int64) {
	beNice(5) // not more: builds may wait for a lock that it has for a moment
	ctx, cancel := context.WithTimeout(context.Background(), trimTime)
	defer cancel()
	st, err := store.Open(root, storeOptions(root))
	if err != nil {
		return // every build that follows says why
	}
	defer st.Close()
	// One works, one waits to see what came meanwhile, the others are not needed.
	unlock, ok, err := st.TryLock("trim")
	if err != nil || !ok {
		return
	}
	defer unlock()
	note := store.TrimNote{Time: time.Now()}
	stats, err := trimStore(ctx, st, limit, unlock)
	if stats != nil {
		note.Freed = stats.Before - stats.After
	}
	if err != nil {
		note.Error = err.Error()
	}
	_ = st.NoteTrim(note) // on a disk too full for it there is nobody to tell
}

func trimStore(ctx context.Context, st *store.Store, limit int64, begun func()) (*store.CollectStats, error) {
	owners := &idOwners{}
	defer owners.close()
	o := collectOptions(owners)
	o.Limited, o.Limit = true, int64(float64(limit)*trimTo)
	o.Wait = func(string) {}
	o.Begun = begun
	o.Decided = func() { beNice(19) }
	return st.Collect(ctx, o)
}

// collectOptions are what all collections have in common.
func collectOptions(owners *idOwners) store.CollectOptions {
	return store.CollectOptions{References: references, RemoveLocal: owners.remove, Measure: owners.measure}
}

// references says what stands on what, for everything in a store.
func references(kind store.Kind, key string, data []byte) []store.Ref {
	if kind == store.KindLayer {
		return snapshot.References(kind, key, data)
	}
	return append(cache.References(kind, key, data), listReference(kind, key, data)...)
}

// beNice gives everybody else the processor, and the disk, first.
func beNice(level int) {
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, level) // as it is then
	const bestEffort, lowest, thisProcess = 2 << 13, 7, 1
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, thisProcess, 0, bestEffort|lowest)
}
