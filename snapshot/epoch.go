package snapshot

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"build/internal/tree"
)

// clampTimes copies a plain tar of our dialect from r to w with every time later than epoch set to epoch. All else stays
// byte for byte, because the headers go through the same encoder that wrote them.
func clampTimes(ctx context.Context, w io.Writer, r io.Reader, epoch time.Time) error {
	tr := tar.NewReader(r)
	var enc encoder
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("clamp times: %w", err)
		}
		b, err := enc.encode(clamped(h, epoch))
		if err != nil {
			return fmt.Errorf("clamp times: %q: %w", h.Name, err)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		n, err := io.Copy(w, tr)
		if err != nil {
			return fmt.Errorf("clamp times: %q: %w", h.Name, err)
		}
		if _, err := w.Write(zeroBlocks[:padding(n)]); err != nil {
			return err
		}
	}
	_, err := w.Write(zeroBlocks[:])
	return err
}

// clamped returns the header to write for one that was read.
func clamped(h *tar.Header, epoch time.Time) *header {
	out := &header{
		name: h.Name, kind: h.Typeflag, mode: uint32(h.Mode), uid: uint32(h.Uid), gid: uint32(h.Gid),
		size: h.Size, sec: min(h.ModTime.Unix(), epoch.Unix()), link: h.Linkname,
		major: uint32(h.Devmajor), minor: uint32(h.Devminor),
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrRecord); ok {
			out.xattrs = append(out.xattrs, tree.Xattr{Name: name, Value: v})
		}
	}
	return out
}
