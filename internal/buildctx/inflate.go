package buildctx

import (
	"bufio"
	"context"
	"io"
	"os"
)

// Inflate writes the plain content of a file compressed with gzip, bzip2, xz or zstd, told by its first bytes, to dst, a file
// that does not exist. It returns false, and writes nothing, when the file is not compressed.
func Inflate(ctx context.Context, src, dst string) (compressed bool, err error) {
	f, err := os.Open(src)
	if err != nil {
		return false, err
	}
	defer f.Close()
	br := bufio.NewReaderSize(&ctxReader{ctx, f}, 64<<10)
	head, err := br.Peek(8)
	if err != nil && err != io.EOF {
		return false, err
	}
	if compression(head) == "" {
		return false, nil
	}
	plain, done, err := decompress(br)
	if err != nil {
		return true, &ArchiveError{Err: err}
	}
	defer done()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return true, err
	}
	_, err = io.Copy(localWriter{out}, plain)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil && !isLocal(err) {
		err = archiveError(ctx, err)
	}
	return true, err
}
