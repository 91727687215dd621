package build

import (
	"context"

	"build/cache"
	"build/internal/store"
	"build/snapshot"
)

// CheckStoreOptions say how `build store check` goes about it.
type CheckStoreOptions struct {
	Repair bool // remove what is damaged, so that it is made or fetched again
	Quick  bool // do not read blobs
}

// StoreProblem is one thing that is not as it should be.
type StoreProblem struct {
	Kind     string
	Path     string // relative to the store
	Detail   string
	Repaired bool
	Harmless bool // it misleads nobody, and the next collection takes it
}

// CheckStore reads a whole store and says what is wrong with it. Builds may go on meanwhile. Waiting is told who collects or checks
// just now.
func CheckStore(ctx context.Context, o StoreOptions, c CheckStoreOptions, waiting func(holder string)) ([]StoreProblem, []string, error) {
	st, err := openStore(o)
	if err != nil {
		return nil, nil, err
	}
	defer st.Close()
	found, err := st.Check(ctx, checkOptions(c, waiting))
	var out []StoreProblem
	for _, p := range found {
		out = append(out, StoreProblem{Kind: string(p.Kind), Path: p.Path, Detail: p.Detail, Repaired: p.Repaired, Harmless: p.Harmless()})
	}
	if err != nil || !c.Repair {
		return out, nil, err
	}
	owners := &idOwners{}
	defer owners.close()
	err = st.Sweep(ctx, owners.remove) // directories that were moved out of the way
	return out, owners.unreachable(st), err
}

// checkOptions give a check the meaning that cache and snapshot know.
func checkOptions(c CheckStoreOptions, waiting func(string)) store.CheckOptions {
	return store.CheckOptions{
		Repair: c.Repair, Quick: c.Quick, Wait: waiting, References: references, VerifyIndex: snapshot.CheckIndex,
		Verify: func(kind store.Kind, key string, data []byte) error {
			switch kind {
			case store.KindRecord:
				return cache.CheckRecord(key, data)
			case store.KindLayer:
				return snapshot.CheckNotes(key, data)
			}
			return nil
		},
	}
}
