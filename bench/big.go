package main

import (
	"archive/tar"
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// writeBigLayer writes one layer of the large base: many small files of text, and files of a megabyte of which three quarters
// compress, until the size is reached.
func writeBigLayer(w io.Writer, layer int, shape layerShape) error {
	r := rand.New(rand.NewPCG(2, uint64(layer)))
	l := &layerWriter{words: vocabulary(r), r: r, top: fmt.Sprintf("usr/lib/layer%d", layer)}
	bw := bufio.NewWriterSize(w, 1<<20)
	l.tar = tar.NewWriter(bw)
	for _, d := range []string{"usr", "usr/lib", l.top} {
		if err := l.dir(d); err != nil {
			return err
		}
	}
	left := shape.mb << 20
	for i := range shape.files {
		if i%100 == 0 {
			if err := l.dir(fmt.Sprintf("%s/dir%03d", l.top, i/100)); err != nil {
				return err
			}
		}
		data := text(r, l.words, 256+r.IntN(12<<10))
		left -= len(data)
		if err := l.file(fmt.Sprintf("%s/dir%03d/file%02d.txt", l.top, i/100, i%100), data); err != nil {
			return err
		}
	}
	for i := 0; left > 0; i++ {
		data := l.partNoise(1 << 20)
		left -= len(data)
		if err := l.file(fmt.Sprintf("%s/large%03d.bin", l.top, i), data); err != nil {
			return err
		}
	}
	if err := l.tar.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

type layerWriter struct {
	tar   *tar.Writer
	r     *rand.Rand
	words []string
	top   string
}

func (l *layerWriter) dir(name string) error {
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: oldTime})
}

func (l *layerWriter) file(name string, data []byte) error {
	if err := l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: oldTime}); err != nil {
		return err
	}
	_, err := l.tar.Write(data)
	return err
}

// partNoise is n bytes of which the first quarter is noise and the rest text.
func (l *layerWriter) partNoise(n int) []byte {
	data := make([]byte, n)
	for i := 0; i < n/4; i += 8 {
		binary.LittleEndian.PutUint64(data[i:], l.r.Uint64())
	}
	copy(data[n/4:], text(l.r, l.words, n-n/4))
	return data
}
