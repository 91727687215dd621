package store

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestLockExcludes(t *testing.T) {
	s := openTest(t, Options{Who: "build -t x ."})
	unlock, err := s.Lock(context.Background(), "a step", nil)
	must(t, err)
	if _, ok, err := s.TryLock("a step"); ok || err != nil {
		t.Fatalf("locked twice: %v", err)
	}
	other, ok, err := s.TryLock("another step")
	if err != nil || !ok {
		t.Fatalf("another lock: %v", err)
	}
	other()

	var told []string
	ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Millisecond, errors.New("enough"))
	defer cancel()
	began := time.Now()
	_, err = s.Lock(ctx, "a step", func(holder string) { told = append(told, holder) })
	if err == nil || !strings.Contains(err.Error(), "enough") || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
	if len(told) != 1 || !strings.Contains(told[0], "build -t x .") || !strings.Contains(told[0], "pid ") {
		t.Errorf("told %q", told)
	}
	unlock()
	unlock()
	again, err := s.Lock(context.Background(), "a step", func(h string) { t.Errorf("waited for %s", h) })
	must(t, err)
	again()
}

// Goroutines lock, while another keeps removing the lock files as collection does: no two may ever hold one lock.
func TestLockSurvivesRemovalOfItsFile(t *testing.T) {
	s := openTest(t, Options{})
	future := &Store{dir: s.dir, boot: s.boot, opts: Options{Now: func() time.Time { return time.Now().Add(48 * time.Hour) }}}
	stop := make(chan struct{})
	var sweeper, lockers sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := future.sweepLocks(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var holders atomic.Int32
	plain := 0 // guarded by the lock under test; the race detector watches it
	for range 8 {
		lockers.Go(func() {
			for range 40 {
				unlock, err := s.Lock(context.Background(), "x", nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				plain++
				holders.Add(-1)
				unlock()
			}
		})
	}
	lockers.Wait()
	close(stop)
	sweeper.Wait()
	if plain != 8*40 {
		t.Errorf("%d of %d turns counted", plain, 8*40)
	}
}

func TestSweepLocksSparesHeldAndRecent(t *testing.T) {
	s := openTest(t, Options{})
	held, err := s.Lock(context.Background(), "held", nil)
	must(t, err)
	for _, name := range []string{"idle", "recent"} {
		unlock, err := s.Lock(context.Background(), name, nil)
		must(t, err)
		unlock()
	}
	age(t, s.lockPath("held"), 48*time.Hour)
	age(t, s.lockPath("idle"), 48*time.Hour)
	_, err = s.Collect(context.Background(), CollectOptions{})
	must(t, err)
	for name, want := range map[string]bool{"held": true, "recent": true, "idle": false} {
		if _, err := os.Stat(s.lockPath(name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	held()
}

func TestTempDirs(t *testing.T) {
	s := openTest(t, Options{})
	live, release, err := s.TempDir()
	must(t, err)
	dead, _, err := s.TempDir()
	must(t, err)
	must(t, os.WriteFile(live+"/f", nil, 0o600))
	must(t, os.MkdirAll(dead+"/sub/sub", 0o700))
	must(t, os.Chmod(dead+"/sub", 0))
	kill(t, s, dead)
	must(t, os.Mkdir(s.path(tmpDir, "orphan"), 0o700))
	local, releaseLocal, err := s.LocalTemp("root")
	must(t, err)
	deadLocal, _, err := s.LocalTemp("root")
	must(t, err)
	kill(t, s, deadLocal)

	var emptied []string
	stats, err := s.Collect(context.Background(), CollectOptions{RemoveLocal: func(_ context.Context, kind string, paths []string) error {
		for _, p := range paths {
			emptied = append(emptied, kind)
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
		return nil
	}})
	must(t, err)
	for path, want := range map[string]bool{live + "/f": true, dead: false, dead + lockSuffix: false, s.path(tmpDir, "orphan"): false, local: true, deadLocal: false} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v", s.rel(path), err)
		}
	}
	if stats.Leftovers != 3 || len(emptied) != 1 || emptied[0] != "root" {
		t.Errorf("%d leftovers, emptied %v", stats.Leftovers, emptied)
	}
	release()
	releaseLocal()
	for _, path := range []string{live, live + lockSuffix, local, local + lockSuffix} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", s.rel(path))
		}
	}
}

// kill makes a temporary directory look like that of a dead process: its lock is in place and free.
func kill(t *testing.T, s *Store, dir string) {
	t.Helper()
	must(t, os.Remove(dir+lockSuffix))
	must(t, os.WriteFile(dir+lockSuffix, nil, 0o600))
}
