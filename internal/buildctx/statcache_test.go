package buildctx

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"build/internal/tree"
)

func numbered(i int) (StatKey, Stat) {
	k := StatKey{Dev: 1, Ino: uint64(i), Size: int64(i), MtimeNs: int64(-i), CtimeNs: int64(i) * 3}
	return k, Stat{Digest: sha256.Sum256(fmt.Append(nil, i)), Xattrs: i%3 == 0}
}

func TestFileCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "cache")
	c := OpenStatCache(path)
	const n = 1000
	for i := range n {
		k, s := numbered(i)
		c.Put(k, s)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	c = OpenStatCache(path)
	for i := range n {
		k, want := numbered(i)
		if got, ok := c.Get(k); !ok || got != want {
			t.Fatalf("record %d: %v, %v", i, got, ok)
		}
		for _, other := range []StatKey{
			{k.Dev + 1, k.Ino, k.Size, k.MtimeNs, k.CtimeNs}, {k.Dev, k.Ino + n, k.Size, k.MtimeNs, k.CtimeNs},
			{k.Dev, k.Ino, k.Size + 1, k.MtimeNs, k.CtimeNs}, {k.Dev, k.Ino, k.Size, k.MtimeNs + 1, k.CtimeNs},
			{k.Dev, k.Ino, k.Size, k.MtimeNs, k.CtimeNs + 1},
		} {
			if _, ok := c.Get(other); ok {
				t.Fatalf("%+v is taken for %+v", other, k)
			}
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("the file was written though nothing was learned")
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFileCacheMerges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	a, b := OpenStatCache(path), OpenStatCache(path)
	k1, s1 := numbered(1)
	k2, s2 := numbered(2)
	b.Get(k1) // both have read the empty file
	a.Put(k1, s1)
	b.Put(k2, s2)
	newer := k1
	newer.Size++
	b.Put(newer, s2)
	for _, c := range []*FileCache{a, b} {
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
	}
	c := OpenStatCache(path)
	if got, ok := c.Get(k2); !ok || got != s2 {
		t.Error("the second writer's record is not there")
	}
	if _, ok := c.Get(k1); ok {
		t.Error("the older state of the file is still there")
	}
	if got, ok := c.Get(newer); !ok || got != s2 {
		t.Error("the newer state of the file is not there")
	}
}

func TestFileCacheForgetsTheUnused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	used, us := numbered(1)
	unused, _ := numbered(2)
	for i := range maxAge + 3 {
		c := OpenStatCache(path)
		if i == 0 {
			c.Put(used, us)
			c.Put(unused, us)
		}
		if i > 0 {
			if _, ok := c.Get(used); !ok {
				t.Fatalf("the used record is gone after %d builds", i)
			}
		}
		k, s := numbered(100)
		k.Size += int64(i)
		c.Put(k, s)
		if err := c.Save(); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := OpenStatCache(path).Get(unused); ok {
		t.Error("the unused record is still there")
	}
}

func TestDamagedFileCacheIsEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := OpenStatCache(path)
	for i := range 10 {
		c.Put(numbered(i))
	}
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := OpenStatCache(path)
		for i := range 10 {
			k, _ := numbered(i)
			if _, ok := c.Get(k); ok {
				t.Fatalf("%s: record %d is trusted", what, i)
			}
		}
		c.Put(numbered(50))
		if err := c.Save(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		k, _ := numbered(50)
		if _, ok := OpenStatCache(path).Get(k); !ok {
			t.Fatalf("%s: cannot be made anew", what)
		}
	}
	for i := 0; i < len(good); i += 7 {
		bad := append([]byte{}, good...)
		bad[i] ^= 0x40
		check(fmt.Sprintf("bit flipped at %d", i), bad)
		check(fmt.Sprintf("cut at %d", i), good[:i])
	}
	check("longer", append(append([]byte{}, good...), 0))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	c = OpenStatCache(path)
	c.Put(numbered(1))
	if err := c.Save(); err == nil {
		t.Error("no error though the file cannot be written")
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFileCacheConcurrency(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := OpenStatCache(path)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				k, s := numbered(i)
				c.Put(k, s)
				c.Get(k)
				if i%50 == w {
					if err := c.Save(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// countingCache counts what the directory does with a cache.
type countingCache struct {
	*FileCache
	mu         sync.Mutex
	hits, puts int
}

func (c *countingCache) Get(k StatKey) (Stat, bool) {
	s, ok := c.FileCache.Get(k)
	if ok {
		c.mu.Lock()
		c.hits++
		c.mu.Unlock()
	}
	return s, ok
}

func (c *countingCache) Put(k StatKey, s Stat) {
	c.mu.Lock()
	c.puts++
	c.mu.Unlock()
	c.FileCache.Put(k, s)
}

// digests hashes every file of a context through a cache file.
func digests(t *testing.T, dir, cache string) (map[string][32]byte, *countingCache) {
	t.Helper()
	c := &countingCache{FileCache: OpenStatCache(cache)}
	d, err := OpenDir(dir, DirOptions{StatCache: c})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][32]byte{}
	for e, err := range d.Walk("") {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != tree.File {
			continue
		}
		if out[e.Path], err = d.Digest(context.Background(), &e); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return out, c
}

func TestStatCacheIsUsedAndNotFooled(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	began := time.Now()
	dir := files(t, map[string]string{"a": "one", "b": "two", "d/c": "three"})
	first, c := digests(t, dir, cache)
	// On a machine that is busy they may have grown old in between.
	if young := time.Since(began) < fineGrain; c.hits != 0 || c.puts != 0 && young {
		t.Errorf("%d hits, %d puts for files that were just written", c.hits, c.puts)
	}
	old := time.Now().Add(-time.Hour)
	for p := range first {
		if err := os.Chtimes(filepath.Join(dir, p), old, old); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * fineGrain)
	if _, c = digests(t, dir, cache); c.puts != 3 {
		t.Errorf("%d puts, want 3", c.puts)
	}
	again, c := digests(t, dir, cache)
	if c.hits != 3 || c.puts != 0 || fmt.Sprint(again) != fmt.Sprint(first) {
		t.Errorf("%d hits, %d puts", c.hits, c.puts)
	}
	// The same size and the same mtime: only the ctime tells.
	path := filepath.Join(dir, "a")
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("ONE"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	again, _ = digests(t, dir, cache)
	if again["a"] != sha256.Sum256([]byte("ONE")) {
		t.Error("a changed file is taken for the old one")
	}
}

// TestRacyWrites changes a file over and over, with the same size, hashing in between: whatever the clock's grain, the
// cache must never give the digest of an older content.
func TestRacyWrites(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	dir := files(t, map[string]string{"f": "0000"})
	for i := range 150 {
		content := fmt.Sprintf("%04d", i)
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			time.Sleep(time.Duration(i) * 200 * time.Microsecond)
		}
		got, _ := digests(t, dir, cache)
		if got["f"] != sha256.Sum256([]byte(content)) {
			t.Fatalf("round %d: stale digest", i)
		}
	}
}

func TestSettled(t *testing.T) {
	now := time.Unix(1_000_000, 500)
	ts := func(d time.Duration, whole bool) unix.Timespec {
		at := now.Add(d)
		if whole {
			at = at.Truncate(time.Second)
		}
		return unix.NsecToTimespec(at.UnixNano())
	}
	for _, c := range []struct {
		m, c  time.Duration
		whole bool
		want  bool
	}{
		{-time.Hour, -time.Hour, false, true},
		{-time.Hour, -time.Millisecond, false, false}, // its content may have been replaced just now
		{0, -time.Hour, false, false},
		{time.Hour, -time.Hour, false, false},
		{-time.Second, -time.Second, false, true},
		{-time.Second, -time.Second, true, false}, // a clock of seconds
		{-4 * time.Second, -4 * time.Second, true, true},
	} {
		s := &stat{mtime: ts(c.m, c.whole), ctime: ts(c.c, c.whole)}
		if got := settled(s, now); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestXattrsOfCachedFiles(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	dir := files(t, map[string]string{"a": "one"})
	path := filepath.Join(dir, "a")
	if err := unix.Setxattr(path, "user.k", []byte("v"), 0); err != nil {
		t.Skipf("no user xattrs on %s: %v", dir, err)
	}
	xattrs := func() string {
		d := open(t, dir, DirOptions{StatCache: OpenStatCache(cache)})
		e, _, err := d.Lstat("a")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(e.Xattrs)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * fineGrain)
	for range 2 {
		digests(t, dir, cache)
		if got := xattrs(); got != "[{user.k v}]" {
			t.Errorf("xattrs %s", got)
		}
	}
	if err := unix.Removexattr(path, "user.k"); err != nil {
		t.Fatal(err)
	}
	if got := xattrs(); got != "[]" {
		t.Errorf("removed, and still there: %s", got)
	}
	time.Sleep(2 * fineGrain)
	digests(t, dir, cache)
	if err := unix.Setxattr(path, "user.k", []byte("w"), 0); err != nil {
		t.Fatal(err)
	}
	if got := xattrs(); got != "[{user.k w}]" {
		t.Errorf("set again, and not seen: %s", got)
	}
}
