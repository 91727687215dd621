package store

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestSecretKey(t *testing.T) {
	s := openTest(t, Options{})
	path := filepath.Join(s.Dir(), "secret-key")
	if _, err := os.Lstat(path); err == nil {
		t.Error("a store that needs no key has one")
	}
	keys := make([][]byte, 16)
	var wg sync.WaitGroup
	for i := range keys { // of several that need it first, one makes it
		wg.Go(func() {
			other, err := Open(s.Dir(), Options{})
			if err == nil {
				keys[i], err = other.SecretKey()
				other.Close()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if len(k) != 32 || !bytes.Equal(k, keys[0]) {
			t.Fatalf("key %x, and %x", k, keys[0])
		}
	}
	fi, err := os.Lstat(path)
	must(t, err)
	if fi.Mode() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	if other, err := openTest(t, Options{}).SecretKey(); err != nil || bytes.Equal(other, keys[0]) {
		t.Errorf("another store has key %x, %v", other, err)
	}

	// Taking everything away that can be made again leaves it, and a check has nothing to say about it.
	mustBlob(t, s, []byte("x"))
	_, err = s.Collect(context.Background(), CollectOptions{Limited: true, References: testReferences})
	must(t, err)
	must(t, s.Sweep(context.Background(), nil))
	mustBeSound(t, s)
	if k, err := s.SecretKey(); err != nil || !bytes.Equal(k, keys[0]) {
		t.Errorf("afterwards %x, %v", k, err)
	}

	// What a loss of power left is no key.
	for _, damage := range []string{"", "short", string(keys[0]) + "x"} {
		must(t, os.WriteFile(path, []byte(damage), 0o600))
		k, err := s.SecretKey()
		if err != nil || len(k) != 32 || bytes.Equal(k, keys[0]) {
			t.Errorf("after %q: %x, %v", damage, k, err)
		}
		if again, err := s.SecretKey(); err != nil || !bytes.Equal(again, k) {
			t.Errorf("it does not stay: %x, then %x, %v", k, again, err)
		}
	}
}
