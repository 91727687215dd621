package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds what a stranger's blob may make us allocate; zstd itself refuses more without --ultra --long.
const maxZstdWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the plain stream inside r, whatever its media type claims. Close ends what was started; it does not
// close r.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(len(zstdMagic))
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return z, nil
	case bytes.HasPrefix(head, zstdMagic):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

// plainStream decompresses r in a goroutine of its own; each stage sees the plain bytes before the consumer does.
func plainStream(ctx context.Context, r io.Reader, stages ...func([]byte) error) (*stream, error) {
	z, err := decompress(r)
	if err != nil {
		return nil, err
	}
	return &stream{readAhead: newReadAhead(ctx, z, stages...), z: z}, nil
}

// stream is a readAhead that also owns its decompressor and the file below.
type stream struct {
	*readAhead
	z    io.Closer
	file io.Closer
}

func (s *stream) Close() error {
	_ = s.readAhead.Close()
	err := s.z.Close()
	if s.file != nil {
		if ferr := s.file.Close(); err == nil {
			err = ferr
		}
	}
	return err
}
