package build

import (
	"context"
	"os"
	"strings"
	"testing"

	"build/internal/store"
)

// cancelling ends a context when something is written.
type cancelling struct {
	strings.Builder
	cancel context.CancelFunc
}

func (c *cancelling) Write(p []byte) (int, error) {
	c.cancel()
	return c.Builder.Write(p)
}

// A step that cannot have its second mount gives up the first, and the error is that of the mount.
func TestMountsAreGivenUpWhenOneFails(t *testing.T) {
	root := t.TempDir() + "/s"
	var stores [2]*store.Store
	for i := range stores {
		st, err := store.Open(root, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		stores[i] = st
	}
	lease, err := stores[0].Lease()
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	n := &inside{store: stores[0], lease: lease, kind: "root"}
	defer n.sweeping.Wait()
	unlock, err := stores[1].Lock(t.Context(), "cache-b", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &cancelling{cancel: cancel}
	req := &runRequest{}
	for _, key := range []string{"a", "b"} {
		req.Caches = append(req.Caches, cacheMount{Key: key, Target: "/" + key, Sharing: "locked", Mode: 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
	}
	release, err := n.attach(ctx, req, log)
	if err == nil || release != nil || !strings.Contains(err.Error(), "/b") || !strings.Contains(log.String(), "waiting") {
		t.Fatalf("release %t, error %v; log %q", release != nil, err, log.String())
	}
	free, ok, err := stores[1].TryLock("cache-a")
	if err != nil || !ok {
		t.Fatalf("the first cache is still locked: %v, %v", ok, err)
	}
	free()
}
