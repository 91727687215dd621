package store

import (
	"context"
	"fmt"
	"testing"
)

func benchStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.TempDir()+"/s", Options{})
	must(b, err)
	b.Cleanup(func() { s.Close() })
	return s
}

func BenchmarkOpen(b *testing.B) {
	s := benchStore(b)
	for i := range 2000 { // what is in a store must not matter
		must(b, s.Write(KindRecord, fmt.Sprint(i), []byte("x")))
	}
	for b.Loop() {
		_, err := Open(s.dir, Options{})
		must(b, err)
	}
}

func BenchmarkWrite(b *testing.B) {
	s, data, i := benchStore(b), randomBytes(1, 2000), 0
	for b.Loop() {
		i++
		must(b, s.Write(KindRecord, fmt.Sprintf("%064x", i), data))
	}
}

func BenchmarkRead(b *testing.B) {
	s := benchStore(b)
	must(b, s.Write(KindRecord, "k", randomBytes(1, 2000)))
	for b.Loop() {
		_, err := s.Read(KindRecord, "k")
		must(b, err)
	}
}

func BenchmarkHasBlob(b *testing.B) {
	s := benchStore(b)
	d := mustBlob(b, s, randomBytes(1, 100_000))
	for b.Loop() {
		if !s.HasBlob(d, 100_000) {
			b.Fatal("gone")
		}
	}
}

func BenchmarkNewBlob(b *testing.B) {
	s, data, i := benchStore(b), randomBytes(1, 1000), 0
	for b.Loop() {
		i++
		_, err := putBlob(s, append(data, fmt.Sprint(i)...))
		must(b, err)
	}
}

func BenchmarkLock(b *testing.B) {
	s := benchStore(b)
	for b.Loop() {
		unlock, err := s.Lock(context.Background(), "x", nil)
		must(b, err)
		unlock()
	}
}

func BenchmarkCollectBelowLimit(b *testing.B) {
	s := benchStore(b)
	for i := range 5000 {
		must(b, s.Write(KindRecord, fmt.Sprintf("%064x", i), []byte("x")))
	}
	for b.Loop() {
		_, err := s.Collect(context.Background(), CollectOptions{Limited: true, Limit: 1 << 40})
		must(b, err)
	}
}
