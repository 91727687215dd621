package exporter

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"build/internal/tree"
)

// Open gives the content of a regular file of a chain; for a hard link, that of the file it is a name of.
type Open func(tree.Located) (io.ReadCloser, error)

// RootfsOptions are the choices for a root file system without its image.
type RootfsOptions struct {
	Epoch *time.Time   // every file gets this time
	Warn  func(string) // hears of what could not be kept; may be nil
}

func (o *RootfsOptions) time(t time.Time) time.Time {
	if o.Epoch != nil {
		return time.Unix(o.Epoch.Unix(), 0)
	}
	return t
}

// Rootfs is the merged file system of a chain.
type Rootfs struct {
	Dir   string // in which directory of the archive it is; "" is the archive itself
	Chain *tree.Chain
	Open  Open
}

// Tar writes file systems into one archive: every path under its own name, without leading "./" or "/", parents first,
// whole seconds, and nothing that is not in the chain but the directories that hold one of several.
func Tar(ctx context.Context, w io.Writer, list []Rootfs, o RootfsOptions) error {
	tw := tar.NewWriter(w)
	for _, r := range list {
		if r.Dir != "" {
			h := &tar.Header{Typeflag: tar.TypeDir, Name: r.Dir + "/", Mode: 0o755, ModTime: o.time(time.Unix(0, 0))}
			if err := tw.WriteHeader(h); err != nil {
				return fmt.Errorf("writing %q: %w", r.Dir, err)
			}
		}
		if err := r.tar(ctx, tw, &o); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (r *Rootfs) tar(ctx context.Context, tw *tar.Writer, o *RootfsOptions) error {
	links := newLinks(r.Chain)
	buf := make([]byte, 256<<10)
	for e, err := range r.Chain.Walk("") {
		if err != nil {
			return fmt.Errorf("reading the file system: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.Path == "" {
			continue
		}
		if err := r.tarEntry(ctx, tw, &e, links, o, buf); err != nil {
			return fmt.Errorf("writing %q: %w", e.Path, err)
		}
	}
	return nil
}

func (r *Rootfs) tarEntry(ctx context.Context, tw *tar.Writer, e *tree.Located, links *links, o *RootfsOptions, buf []byte) error {
	if err := tree.CheckPath(e.Path); err != nil {
		return err
	}
	h := &tar.Header{
		Name: path.Join(r.Dir, e.Path), Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(o.time(e.ModTime).Unix(), 0), // the format's fractions would need an extra header per file
	}
	target, err := links.target(e)
	if err != nil {
		return err
	}
	switch {
	case target != "":
		h.Typeflag, h.Linkname = tar.TypeLink, path.Join(r.Dir, target)
	case e.Type == tree.File:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case e.Type == tree.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case e.Type == tree.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case e.Type == tree.Char:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
	case e.Type == tree.Block:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
	case e.Type == tree.Fifo:
		h.Typeflag = tar.TypeFifo
	default:
		return fmt.Errorf("unexpected type %d", e.Type)
	}
	if target == "" && len(e.Xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for _, x := range e.Xattrs {
			h.PAXRecords["SCHILY.xattr."+x.Name] = x.Value
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	return copyFile(ctx, tw, e, r.Open, buf)
}

// copyFile streams a file's content and makes sure of its size.
func copyFile(ctx context.Context, w io.Writer, e *tree.Located, open Open, buf []byte) error {
	r, err := open(*e)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.CopyBuffer(onlyWriter{w}, contextReader{ctx, io.LimitReader(r, e.Size)}, buf)
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("content ends after %d of %d bytes", n, e.Size)
	}
	return nil
}

// links finds, for names of files with several names, the name that was written first. Usually that is the first name
// in the layer; if an upper layer has removed or replaced that one, the next name that is left takes its place.
type links struct {
	chain *tree.Chain
	heir  map[linkKey]string
}

type linkKey struct {
	layer int
	first string
}

func newLinks(chain *tree.Chain) *links {
	return &links{chain: chain, heir: map[linkKey]string{}}
}

// target returns the path e is to be a hard link to, or "" if e has to be written itself.
func (l *links) target(e *tree.Located) (string, error) {
	if e.Hardlink == "" {
		return "", nil
	}
	key := linkKey{e.Layer, e.Hardlink}
	if to, ok := l.heir[key]; ok {
		return to, nil
	}
	first, ok, err := l.chain.Lstat(e.Hardlink)
	if err != nil {
		return "", err
	}
	if ok && first.Layer == e.Layer && first.Type == e.Type && first.Hardlink == "" {
		return e.Hardlink, nil
	}
	// Cloned, because paths may share the memory of a whole block of the index.
	l.heir[key] = strings.Clone(e.Path)
	return "", nil
}
