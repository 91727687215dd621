package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// FuzzBlock puts arbitrary bytes under valid checksums: reading them ends in entries or ErrCorrupt, never in a panic.
func FuzzBlock(f *testing.F) {
	for seed := range uint64(4) {
		data := image(f, randomLayer(rand.New(rand.NewPCG(seed, 1)), 20))
		x, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			f.Fatal(err)
		}
		if len(x.blocks) > 0 {
			f.Add(data[len(magic):len(magic)+x.blocks[0].length], x.blocks[0].count, x.blocks[0].first)
		}
	}
	f.Fuzz(func(t *testing.T, block []byte, count int, first string) {
		data := seal(block, count, first)
		x, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			mustBeCorrupt(t, err)
			return
		}
		c := NewChain([]*Index{x, x})
		for l, err := range c.Walk("") {
			if err != nil {
				mustBeCorrupt(t, err)
				break
			}
			if _, _, err := c.Lstat(l.Path); err != nil {
				mustBeCorrupt(t, err)
			}
			if _, err := c.Resolve(l.Path, true); err != nil && !errors.Is(err, ErrLoop) && !errors.Is(err, ErrPath) {
				mustBeCorrupt(t, err)
			}
		}
		if _, err := c.ReadDir(first); err != nil {
			mustBeCorrupt(t, err)
		}
	})
}

// FuzzTable does the same with the table.
func FuzzTable(f *testing.F) {
	data := image(f, randomLayer(rand.New(rand.NewPCG(1, 1)), 800))
	foot := data[len(data)-footerSize:]
	at := binary.LittleEndian.Uint64(foot)
	body := data[:at]
	f.Add(data[at : len(data)-footerSize])
	f.Fuzz(func(t *testing.T, table []byte) {
		data := finish(bytes.Clone(body), table)
		x, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			mustBeCorrupt(t, err)
			return
		}
		for _, err := range x.Subtree("a") {
			if err != nil {
				mustBeCorrupt(t, err)
			}
		}
		x.Kept("etc/passwd")
	})
}

func mustBeCorrupt(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrCorrupt) {
		t.Fatalf("%v is not ErrCorrupt", err)
	}
}

func seal(block []byte, count int, first string) []byte {
	w := NewWriter(&bytes.Buffer{})
	w.sum.Entries = count
	w.table = []blockInfo{{first: first, offset: int64(len(magic)), length: len(block), count: count, crc: crc32.Checksum(block, castagnoli)}}
	data := append([]byte(magic), block...)
	keptAt := int64(len(data))
	kept := w.appendKept(nil)
	return finish(append(data, kept...), w.appendTable(nil, keptAt, kept))
}

func finish(body, table []byte) []byte {
	foot := binary.LittleEndian.AppendUint64(nil, uint64(len(body)))
	foot = binary.LittleEndian.AppendUint64(foot, uint64(len(table)))
	foot = binary.LittleEndian.AppendUint32(foot, crc32.Checksum(table, castagnoli))
	foot = binary.LittleEndian.AppendUint32(foot, crc32.Checksum(foot, castagnoli))
	return append(append(append(body, table...), foot...), magic...)
}
