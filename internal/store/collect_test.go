package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"build/internal/testenv"
)

// step publishes a blob, the layer that has it, and the record that names the layer, and makes all look used so long ago.
func step(t testing.TB, s *Store, name string, ago time.Duration) digest.Digest {
	t.Helper()
	d := mustBlob(t, s, append([]byte(name), randomBytes(7, 20_000)...))
	must(t, s.Write(KindLayer, "l-"+name, []byte("blob "+d.String()+"\n")))
	must(t, s.Write(KindRecord, "r-"+name, []byte("layer l-"+name+"\n")))
	for _, path := range []string{s.BlobPath(d), s.filePath(KindLayer, "l-"+name), s.filePath(KindRecord, "r-"+name)} {
		age(t, path, ago)
	}
	return d
}

func has(s *Store, r Ref) bool { return s.exists(r) }

func collectTest(t testing.TB, s *Store, limit int64) *CollectStats {
	t.Helper()
	stats, err := s.Collect(context.Background(), CollectOptions{Limited: true, Limit: limit, References: testReferences})
	must(t, err)
	return stats
}

func TestCollectLeastRecentlyUsedFirst(t *testing.T) {
	s := openTest(t, Options{})
	for i, name := range []string{"c", "a", "d", "b"} {
		step(t, s, name, time.Duration(10+i)*24*time.Hour) // b is the oldest, then d, a, c
	}
	// The oldest blob is also that of a record that was used lately: it must stay as long as that.
	b := digest.FromBytes(append([]byte("b"), randomBytes(7, 20_000)...))
	must(t, s.Write(KindRecord, "fresh", []byte("layer l-b\nblob "+b.String()+"\n")))

	dry, err := s.Collect(context.Background(), CollectOptions{DryRun: true})
	must(t, err)
	total := dry.Before
	stats := collectTest(t, s, total-1)
	if stats.Before != total || has(s, Ref{Kind: KindRecord, Key: "r-b"}) || !has(s, Ref{Kind: KindBlob, Key: b.String()}) {
		t.Errorf("%+v", stats)
	}
	stats = collectTest(t, s, total-30_000)
	var gone []string
	for _, r := range stats.Removed {
		gone = append(gone, string(r.Ref.Kind))
	}
	for name, want := range map[string]bool{"a": true, "c": true, "d": false} {
		if has(s, Ref{Kind: KindRecord, Key: "r-" + name}) != want {
			t.Errorf("record %s is there: %v; removed %v", name, !want, stats.Removed)
		}
	}
	if !slices.IsSortedFunc(gone, func(a, b string) int { return Kind(a).rank() - Kind(b).rank() }) {
		t.Errorf("order of deletion: %v", gone)
	}
	if stats.After > total-30_000 {
		t.Errorf("%d left", stats.After)
	}
	collectTest(t, s, 0)
	if u := allOf(t, s); len(u) != 0 {
		t.Errorf("left with limit 0: %v", u)
	}
}

// Whatever the limit, every state that a collection leaves is one in which nothing dangles.
func TestCollectEveryLimit(t *testing.T) {
	for seed := range uint64(12) {
		s := openTest(t, Options{})
		for i := range 6 {
			b := randomBytes(seed*100+uint64(i), 4)
			step(t, s, fmt.Sprint(i), time.Duration(int(b[0])+3)*time.Hour)
			must(t, s.Write(KindRecord, fmt.Sprint("chain", i), fmt.Appendf(nil, "layer l-%d\nlayer l-%d\n", int(b[1])%(i+1), i)))
			age(t, s.filePath(KindRecord, fmt.Sprint("chain", i)), time.Duration(int(b[2])+3)*time.Hour)
		}
		stats := collectTest(t, s, 0x7fffffffffff)
		for limit := stats.Before; limit > stats.Fixed; limit -= 16 << 10 {
			if got := collectTest(t, s, limit); got.After > limit {
				t.Fatalf("limit %d: %d left", limit, got.After)
			}
			mustBeSound(t, s)
		}
	}
}

func TestCollectSparesLeases(t *testing.T) {
	s := openTest(t, Options{})
	kept := step(t, s, "kept", 24*time.Hour)
	gone := step(t, s, "gone", 24*time.Hour)
	recent := step(t, s, "recent", 30*time.Minute)
	l, err := s.Lease()
	must(t, err)
	must(t, l.Add(KindRecord, "r-kept"))
	must(t, l.Add(KindRecord, "r-kept"))
	must(t, l.Add(KindRecord, "odd\nname \"x\""))
	if !s.HasBlob(recent, -1) { // a use under the lease, which names nothing
		t.Fatal("no blob")
	}
	collectTest(t, s, 0)
	for d, want := range map[digest.Digest]bool{kept: true, recent: true, gone: false} {
		if s.HasBlob(d, -1) != want {
			t.Errorf("%s: %v", d, !want)
		}
	}
	if !has(s, Ref{Kind: KindLayer, Key: "l-kept"}) {
		t.Error("a layer of a leased record went")
	}
	must(t, l.Close())
	must(t, l.Close())
	if err := l.Add(KindRecord, "x"); err == nil {
		t.Error("added to a closed lease")
	}
	collectTest(t, s, 0)
	if s.HasBlob(kept, -1) || s.HasBlob(recent, -1) {
		t.Error("kept after the lease was given back")
	}
	if left, _ := os.ReadDir(s.path(leaseDir)); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
}

func TestLeaseOfTheDead(t *testing.T) {
	s := openTest(t, Options{})
	d := step(t, s, "x", 24*time.Hour)
	must(t, os.WriteFile(s.path(leaseDir, "dead"), []byte("since 1\nrecord \"r-x\"\n"), 0o600))
	collectTest(t, s, 0)
	if s.HasBlob(d, -1) {
		t.Error("the lease of a dead process kept something")
	}
	if _, err := os.Stat(s.path(leaseDir, "dead")); err == nil {
		t.Error("the lease of a dead process is left")
	}
}

// What somebody begins to use while it is being taken is put back, with everything it stands on.
func TestCollectPutsBack(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, s *Store){
		"a lease": func(t *testing.T, s *Store) {
			l, err := s.Lease()
			must(t, err)
			must(t, l.Add(KindRecord, "r-x"))
			t.Cleanup(func() { l.Close() })
		},
		"a lease of the layer": func(t *testing.T, s *Store) {
			l, err := s.Lease()
			must(t, err)
			must(t, l.Add(KindLayer, "l-x"))
			t.Cleanup(func() { l.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s *Store
			done := false
			s = openTest(t, Options{Point: func(p string) {
				if p == "collect.trashed" && !done {
					done = true
					use(t, s)
				}
			}})
			d := step(t, s, "x", 24*time.Hour)
			step(t, s, "y", 24*time.Hour)
			stats := collectTest(t, s, 0)
			if !done || stats.PutBack < 2 {
				t.Errorf("put back %d", stats.PutBack)
			}
			if b, err := readBlob(s, d); err != nil || digest.FromBytes(b) != d {
				t.Errorf("the blob: %v", err)
			}
			if !has(s, Ref{Kind: KindLayer, Key: "l-x"}) || has(s, Ref{Kind: KindRecord, Key: "r-y"}) {
				t.Error("the wrong things were put back")
			}
		})
	}
	t.Run("a new record in the meantime", func(t *testing.T) {
		var s *Store
		done := false
		s = openTest(t, Options{Point: func(p string) {
			if p == "collect.trashed" && !done {
				done = true
				l, err := s.Lease()
				must(t, err)
				t.Cleanup(func() { l.Close() })
				must(t, l.Add(KindRecord, "r-x"))
				must(t, s.Write(KindRecord, "r-x", []byte("new\n")))
			}
		}})
		step(t, s, "x", 24*time.Hour)
		collectTest(t, s, 0)
		if b, err := s.Read(KindRecord, "r-x"); err != nil || string(b) != "new\n" {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

// Who finds nothing because a collection has the thing undecided in its hands waits for the decision, and decides
// itself when that collection is dead.
func TestLookingDuringACollection(t *testing.T) {
	for name, alive := range map[string]bool{"of the living": true, "of the dead": false} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, Options{})
			d := step(t, s, "x", time.Minute)
			_, err := s.MakeLocal("root")
			must(t, err)
			dir := s.DirPath("root", "k")
			must(t, os.MkdirAll(dir+"/"+ContentDir, 0o700))
			must(t, s.MarkDir("root", "k", 1))
			g, err := s.list()
			must(t, err)
			for _, e := range g.order {
				must(t, os.Rename(e.path, s.trashPath(e)))
			}
			if alive {
				unlock, err := s.Lock(context.Background(), collectLock, nil)
				must(t, err)
				time.AfterFunc(20*time.Millisecond, func() {
					for _, e := range g.order {
						if err := restore(s.trashPath(e), e.path); err != nil {
							t.Error(err)
						}
					}
					unlock()
				})
			}
			if !s.HasBlob(d, -1) || !s.DirReady("root", "k") {
				t.Error("not found")
			}
			if _, err := s.Read(KindRecord, "r-x"); err != nil {
				t.Error(err)
			}
			if f, err := s.OpenBlob(d, -1); err != nil {
				t.Error(err)
			} else {
				f.Close()
			}
		})
	}
}

// A record that is published while its layer is being taken, by somebody who is gone again, keeps the layer.
func TestCollectSeesNewReferences(t *testing.T) {
	var s *Store
	done := false
	s = openTest(t, Options{Point: func(p string) {
		if p == "collect.unlisted" && !done {
			done = true
			must(t, s.Write(KindRecord, "new", []byte("layer l-x\n")))
		}
	}})
	d := step(t, s, "x", 24*time.Hour)
	must(t, s.Remove(KindRecord, "r-x"))
	collectTest(t, s, 0)
	if !done || !s.HasBlob(d, -1) || !has(s, Ref{Kind: KindLayer, Key: "l-x"}) {
		t.Error("the layer of a new record went")
	}
}

func TestCollectNames(t *testing.T) {
	s := openTest(t, Options{})
	pulled, err := putImage(s, []byte("layer of pulled"))
	must(t, err)
	built, err := putImage(s, []byte("layer of built"))
	must(t, err)
	must(t, s.SetName("pulled:1", Name{Descriptor: pulled, Origin: Pulled, Time: time.Now(), Complete: true}))
	must(t, s.SetName("built:1", Name{Descriptor: built, Origin: Built, Time: time.Now(), Complete: true}))
	collectTest(t, s, 0)
	names, err := s.Names()
	must(t, err)
	if _, ok := names["built:1"]; !ok || len(names) != 1 {
		t.Errorf("left %v", names)
	}
	if !s.HasBlob(built.Digest, built.Size) || !s.HasBlob(digest.FromString("layer of built"), -1) || s.HasBlob(pulled.Digest, -1) {
		t.Error("the wrong blobs stayed")
	}
	mustBeSound(t, s)
	if b, _ := os.ReadFile(s.path(indexFile)); strings.Contains(string(b), "pulled") || !strings.Contains(string(b), "built:1") {
		t.Errorf("index.json: %s", b)
	}
	_, err = s.Collect(context.Background(), CollectOptions{Limited: true, MayRemoveName: func(string, Name) bool { return true }})
	must(t, err)
	if u := allOf(t, s); len(u) != 0 {
		t.Errorf("left: %v", u)
	}
	if b, _ := os.ReadFile(s.path(indexFile)); string(b) != emptyIndex {
		t.Errorf("index.json: %s", b)
	}
}

func TestCollectLocal(t *testing.T) {
	s := openTest(t, Options{})
	dir := func(key string, ago time.Duration) string {
		_, err := s.MakeLocal("root")
		must(t, err)
		d := s.DirPath("root", key)
		must(t, os.MkdirAll(d+"/"+ContentDir, 0o700))
		must(t, s.MarkDir("root", key, 1<<20))
		age(t, d+"/"+markerFile, ago)
		return d
	}
	old, leased := dir("old", 50*time.Hour), dir("leased", 50*time.Hour)
	l, err := s.Lease()
	must(t, err)
	must(t, l.Add(KindDir, DirKey("root", "leased")))
	half := s.DirPath("root", "half")
	must(t, os.MkdirAll(half, 0o700))
	age(t, half, 50*time.Hour)
	collectTest(t, s, 0)
	for path, want := range map[string]bool{old: false, leased: true, half: false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", s.rel(path), err)
		}
	}
	trash := s.path(localDir, "root", localTrash)
	if in, _ := os.ReadDir(trash); len(in) != 2 {
		t.Errorf("in the trash: %v", in)
	}
	failing := errors.New("cannot")
	_, err = s.Collect(context.Background(), CollectOptions{RemoveLocal: func(context.Context, string, []string) error { return failing }})
	if !errors.Is(err, failing) {
		t.Errorf("got %v", err)
	}
	must(t, l.Close())
}

func TestCollectLeavesWhatItMayNotMove(t *testing.T) {
	testenv.NotRoot(t)
	s := openTest(t, Options{})
	_, err := s.MakeLocal("single")
	must(t, err)
	dir := s.DirPath("single", "k")
	must(t, os.MkdirAll(dir+"/"+ContentDir, 0o700))
	must(t, s.MarkDir("single", "k", 1<<20))
	must(t, os.Chmod(dir, 0o500)) // moving a directory elsewhere writes to it
	gone := step(t, s, "x", time.Hour)
	stats := collectTest(t, s, 0)
	if stats.Refused != 1 || s.HasBlob(gone, -1) || !s.DirReady("single", "k") {
		t.Errorf("%+v", stats)
	}
	must(t, os.Chmod(dir, 0o700))
}

func TestCollectDryRunBeforeAndBusy(t *testing.T) {
	s := openTest(t, Options{})
	d := step(t, s, "x", 24*time.Hour)
	stats, err := s.Collect(context.Background(), CollectOptions{Limited: true, DryRun: true, References: testReferences})
	must(t, err)
	if len(stats.Removed) != 3 || !s.HasBlob(d, -1) {
		t.Errorf("%+v", stats)
	}
	stats, err = s.Collect(context.Background(), CollectOptions{Limited: true, Before: time.Now().Add(-48 * time.Hour), References: testReferences})
	must(t, err)
	if len(stats.Removed) != 0 {
		t.Errorf("removed what was used since: %+v", stats)
	}
	unlock, err := s.Lock(context.Background(), collectLock, nil)
	must(t, err)
	_, err = s.Collect(context.Background(), CollectOptions{})
	var busy *BusyError
	if !errors.As(err, &busy) || !strings.Contains(busy.Holder, "pid ") {
		t.Errorf("got %v", err)
	}
	unlock()
}

// A collection that was killed between taking and deciding is undone by the next one.
func TestCollectRecovers(t *testing.T) {
	s := openTest(t, Options{})
	d := step(t, s, "x", time.Minute)
	img, err := putImage(s, []byte("layer"))
	must(t, err)
	must(t, s.SetName("n", Name{Descriptor: img, Origin: Pulled, Complete: true}))
	_, err = s.MakeLocal("root")
	must(t, err)
	dir := s.DirPath("root", "k")
	must(t, os.MkdirAll(dir+"/"+ContentDir, 0o700))
	must(t, s.MarkDir("root", "k", 1))
	g, err := s.list()
	must(t, err)
	for _, e := range g.order {
		must(t, os.Rename(e.path, s.trashPath(e)))
	}
	must(t, s.Write(KindRecord, "r-x", []byte("newer\n")))
	_, err = s.Collect(context.Background(), CollectOptions{})
	must(t, err)
	if !s.HasBlob(d, -1) || !s.DirReady("root", "k") {
		t.Error("not everything is back")
	}
	if _, ok, err := s.Name("n"); !ok || err != nil {
		t.Errorf("the name is not back: %v", err)
	}
	if b, err := s.Read(KindRecord, "r-x"); err != nil || string(b) != "newer\n" {
		t.Errorf("the newer record: %q, %v", b, err)
	}
	must(t, s.Remove(KindRecord, "r-x"))
}

// A use is noted once under each lease, so that a collection knows it from one before.
func TestUseUnderALease(t *testing.T) {
	s := openTest(t, Options{})
	d := step(t, s, "x", time.Minute)
	used := func() time.Time {
		fi, err := os.Lstat(s.BlobPath(d))
		must(t, err)
		return fi.ModTime()
	}
	before := used()
	s.HasBlob(d, -1)
	if !used().Equal(before) {
		t.Error("noted within the hour without a lease")
	}
	l, err := s.Lease()
	must(t, err)
	s.HasBlob(d, -1)
	first := used()
	if !first.After(before) {
		t.Error("not noted under a lease")
	}
	s.HasBlob(d, -1)
	if !used().Equal(first) {
		t.Error("noted twice under one lease")
	}
	must(t, l.Close())
}

// A directory that is found while a collection decides is not one that is missing a moment later.
func TestFoundWhileACollectionDecides(t *testing.T) {
	var s *Store
	found := make(chan bool, 1)
	s = openTest(t, Options{Point: func(p string) {
		if p != "collect.deciding" {
			return
		}
		go func() { found <- s.MountReady("root", "m") }()
		select {
		case <-found:
			t.Error("it did not wait for the decision")
		case <-time.After(20 * time.Millisecond):
		}
	}})
	_, err := s.MakeLocal("root")
	must(t, err)
	must(t, os.MkdirAll(s.MountPath("root", "m"), 0o700))
	must(t, s.NoteMount("root", "m", MountNote{ID: "id"}))
	age(t, s.path(localDir, "root", mountNotes, "m"), time.Hour)
	collectTest(t, s, 0)
	if <-found {
		t.Error("found although it went")
	}
	if _, err := os.Lstat(s.path(trashDir, decidedFile)); err == nil {
		t.Error("a decision is left")
	}
}

// What a collection had decided to remove before it was killed is removed by the next; after a loss of power it is put back.
func TestDecidedAndKilled(t *testing.T) {
	for name, boot := range map[string]string{"same run of the system": "", "another": "other"} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t, Options{})
			d := step(t, s, "x", 24*time.Hour)
			g, err := s.list()
			must(t, err)
			for _, e := range g.order {
				must(t, os.Rename(e.path, s.trashPath(e)))
			}
			must(t, os.Symlink(s.boot.id+boot, s.path(trashDir, decidedFile)))
			if boot == "" && s.HasBlob(d, -1) { // nobody waits for it
				t.Error("found what was decided to go")
			}
			must(t, s.Sweep(context.Background(), nil))
			if s.HasBlob(d, -1) != (boot != "") {
				t.Errorf("the blob is there: %v", boot == "")
			}
			if left, _ := os.ReadDir(s.path(trashDir)); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// The running sum follows what is published and removed, and a collection corrects it.
func TestAccount(t *testing.T) {
	s := openTest(t, Options{})
	if a := s.Account(); a.Counted.IsZero() || a.Bytes != 0 {
		t.Errorf("a new store: %+v", a)
	}
	d := step(t, s, "x", time.Hour)
	must(t, s.RemoveBlob(d))
	step(t, s, "y", time.Hour)
	must(t, s.Close())
	a := s.Account() // a blob, four small files, and on tmpfs as elsewhere a block for each of their four directories
	if want := int64(20480 + 4*4096 + 4*4096); a.Bytes != want || a.Lines != 1 {
		t.Errorf("%+v, want %d", a, want)
	}
	stats := collectTest(t, s, 1<<40)
	if a = s.Account(); a.Bytes != stats.After || a.Stuck != 0 || a.Stale(time.Now()) {
		t.Errorf("counted: %+v, %+v", a, stats)
	}
	l, err := s.Lease()
	must(t, err)
	must(t, l.Add(KindRecord, "r-y"))
	collectTest(t, s, 1)
	must(t, l.Close())
	if a = s.Account(); a.Stuck == 0 || a.Stuck != a.Bytes {
		t.Errorf("stuck: %+v", a)
	}
	must(t, os.WriteFile(s.path(usageFile), []byte("x"), 0o600))
	if a = s.Account(); !a.Stale(time.Now()) {
		t.Errorf("damaged: %+v", a)
	}
	mark := s.accountMark()
	s.grow(5)
	s.tell()
	must(t, s.counted(mark, 7, 0))
	if a = s.Account(); a.Bytes != 12 {
		t.Errorf("a line that came while it was counted: %+v", a)
	}
}

// Trees of every kind go: deep ones, some that may not be read or written, and none through a link.
func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	outside := dir + "/outside"
	must(t, os.WriteFile(outside, nil, 0o600))
	tree := dir + "/tree"
	must(t, os.MkdirAll(tree+"/closed/sub", 0o700))
	must(t, os.WriteFile(tree+"/closed/sub/f", nil, 0))
	must(t, os.Symlink(dir, tree+"/closed/link"))
	must(t, os.Chmod(tree+"/closed/sub", 0))
	must(t, os.Chmod(tree+"/closed", 0o500))
	wd, err := os.Open(tree)
	must(t, err)
	fd := int(wd.Fd())
	const deep = 3000 // longer than any path
	for range deep {
		must(t, unix.Mkdirat(fd, "directory", 0o700))
		next, err := unix.Openat(fd, "directory", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Fchmod(fd, 0o500))
		if fd != int(wd.Fd()) {
			unix.Close(fd)
		}
		fd = next
	}
	unix.Close(fd)
	wd.Close()
	var limit, few unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	few = limit
	few.Cur = 256
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	must(t, RemoveTree(tree))
	must(t, RemoveTree(tree))
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
