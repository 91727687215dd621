package fakeroot_test

import (
	"testing"

	"build/internal/userns"
)

// BenchmarkCalls prints what calls cost, in a namespace with one id, where most of them are answered here, and where fewer are. Run it with -benchtime 1x -v.
func BenchmarkCalls(b *testing.B) {
	for _, ids := range []userns.IDs{userns.IDsSingle, userns.IDsRange, userns.IDsHost} {
		b.Run(string(ids), func(b *testing.B) {
			r := newRoot(b, ids)
			for b.Loop() {
				b.Log("\n" + r.sh(b, "calls bench /tmp 3000"))
			}
		})
	}
}

// BenchmarkStep is a step that does nothing.
func BenchmarkStep(b *testing.B) {
	for _, ids := range []userns.IDs{userns.IDsSingle, userns.IDsRange, userns.IDsHost} {
		b.Run(string(ids), func(b *testing.B) {
			r := newRoot(b, ids)
			for b.Loop() {
				r.sh(b, "true")
			}
		})
	}
}
