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

	var total int64
	u, err := s.Usage()
	must(t, err)
	for _, k := range u {
		total += k.Size
	}
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
	if u, _ := s.Usage(); len(u) != 0 {
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
		for limit := stats.Before; limit > 0; limit -= 16 << 10 {
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
	if u, _ := s.Usage(); len(u) != 0 {
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
