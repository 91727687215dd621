package leak_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"testing"

	"build/internal/leak"
	"build/internal/store"
	"build/internal/tree"
	"build/snapshot"
)

type inspector struct{ *leak.Search }

func (i inspector) Done() error { i.End(); return nil }

// What a search adds to writing a layer of one file of 200 MB, whose bytes are in memory.
func BenchmarkLayer(b *testing.B) {
	data := make([]byte, 200_000_000)
	_, _ = rand.Read(data)
	finder := leak.New([]leak.Secret{{ID: "a", Value: []byte("ghp_16C7e42F292c6912E7710c838347Ae178B4a")}, {ID: "b", Value: []byte("another-secret-value")}})
	for _, on := range []bool{false, true} {
		b.Run(map[bool]string{false: "off", true: "on"}[on], func(b *testing.B) {
			st, err := store.Open(b.TempDir(), store.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer st.Close()
			layers := snapshot.New(st, snapshot.Options{IDKind: "root"})
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				w, err := layers.NewWriter(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				if on {
					w.Inspect(inspector{finder.Search()})
				}
				if err := w.Add(&tree.Entry{Path: "f", Type: tree.File, Mode: 0o644, Size: int64(len(data))}, bytes.NewReader(data)); err != nil {
					b.Fatal(err)
				}
				w.Abort()
			}
		})
	}
}
