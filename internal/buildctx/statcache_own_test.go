package buildctx

import (
	"path/filepath"
	"testing"
)

// What was just learned is known at once, the later of two states of a file counts, and both hold after Save.
func TestFileCacheKnowsWhatItLearned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := OpenStatCache(path)
	key := func(i, state int) StatKey { return StatKey{Dev: uint64(i % 3), Ino: uint64(i), Size: int64(state)} }
	const n = 2*ownBlock + 5
	for i := range n {
		c.Put(key(i, 1), Stat{Digest: [32]byte{byte(i), 1}})
		if i == ownBlock {
			if _, ok := c.Get(key(7, 1)); !ok { // places are made here, and go on growing
				t.Fatal("not known before Save")
			}
		}
	}
	c.Put(key(7, 2), Stat{Digest: [32]byte{7, 2}})
	for _, saved := range []bool{false, true} {
		if saved {
			if err := c.Save(); err != nil {
				t.Fatal(err)
			}
			c = OpenStatCache(path)
		}
		for i := range n {
			state := 1
			if i == 7 {
				state = 2
				if _, ok := c.Get(key(7, 1)); ok {
					t.Errorf("saved %v: the earlier state is still known", saved)
				}
			}
			if got, ok := c.Get(key(i, state)); !ok || got.Digest != [32]byte{byte(i), byte(state)} {
				t.Fatalf("saved %v: file %d: %v %x", saved, i, ok, got.Digest[:2])
			}
		}
	}
}
