package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
	"build/internal/tree"
)

// Layer is a layer that has just been written.
type Layer struct {
	DiffID  digest.Digest
	Content [32]byte // digest of everything but times
	Size    int64    // of the plain tar
	Entries int
}

// ChangedError says that a file was not what its entry promised while it was written: its content has another digest or
// another length than the one the step's key was computed from.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("/%s changed while it was read", e.Path)
}

// Writer writes a layer from entries: the plain tar, its digest and its index, in one pass over the files. It is used by
// one goroutine.
type Writer struct {
	ctx  context.Context
	l    *Layers
	sink *tarSink
	out  *asyncWriter // hashes and writes the tar beside us
	enc  encoder
	off  int64

	file *store.FileWriter // the index
	idx  *tree.Writer

	inspect Inspector // nil: nobody looks
	reuse   *reuse    // nil: nothing to compare with

	seed  maphash.Seed
	files map[uint64]writtenFile // by path, for hard links
	sum   hash.Hash
	err   error
	done  bool
}

type writtenFile struct {
	offset, size int64
	digest       [32]byte
}

// NewWriter starts a layer. Every Writer ends with Commit or Abort.
func (l *Layers) NewWriter(ctx context.Context) (*Writer, error) {
	blob, err := l.st.NewBlob(ctx)
	if err != nil {
		return nil, fmt.Errorf("start a layer: %w", err)
	}
	file, err := l.st.Create(ctx, store.KindIndex)
	if err != nil {
		blob.Abort()
		return nil, fmt.Errorf("start a layer: %w", err)
	}
	sink := &tarSink{plain: blob}
	return &Writer{
		ctx: ctx, l: l, sink: sink, out: newAsyncWriter(sink),
		file: file, idx: tree.NewWriter(file),
		seed: maphash.MakeSeed(), files: map[uint64]writtenFile{}, sum: sha256.New(),
	}, nil
}

// Add appends an entry. Entries come in the order of tree.Compare, parents first. The content of a regular file is read to
// its end and must have e.Size bytes, and e.Digest unless that is zero; otherwise the error is a *ChangedError. Add sets
// what only the writer knows: Digest, Offset, and the time as a layer stores it. The first error sticks.
func (w *Writer) Add(e *tree.Entry, content io.Reader) error {
	if w.err != nil {
		return w.err
	}
	if err := w.ctx.Err(); err != nil {
		w.err = context.Cause(w.ctx)
		return w.err
	}
	if err := w.add(e, content); err != nil {
		w.err = unwritable(e.Path, err)
	}
	return w.err
}

// unwritable says which entry could not be written.
func unwritable(path string, err error) error {
	if changed := (*ChangedError)(nil); errors.As(err, &changed) {
		return err
	}
	if errors.Is(err, tree.ErrPath) {
		err = &UnfitError{err}
	}
	return fmt.Errorf("write layer: /%s: %w", path, err)
}

func (w *Writer) add(e *tree.Entry, content io.Reader) error {
	if err := normalise(e); err != nil {
		return err
	}
	if w.inspect != nil {
		w.inspect.Entry(e)
	}
	h, err := tarHeader(e)
	if err != nil {
		return err
	}
	if err := w.header(h, e); err != nil {
		return err
	}
	switch {
	case e.Type == tree.File && e.Hardlink == "":
		err = w.content(e, content)
	case e.Type == tree.File:
		err = w.linked(e)
	case e.Opaque:
		err = w.header(&header{name: joinPath(e.Path, opaqueName), kind: '0'}, nil)
	}
	if err != nil {
		return err
	}
	return w.idx.Add(e)
}

// normalise brings an entry into the form that reading the tar gives.
func normalise(e *tree.Entry) error {
	if _, base := splitPath(e.Path); strings.HasPrefix(base, whiteoutPrefix) {
		return &UnfitError{fmt.Errorf("layers cannot hold names that begin with %s: they mark deletions", whiteoutPrefix)}
	}
	sec := int64(0)
	if !e.ModTime.IsZero() {
		sec = e.ModTime.Unix()
	}
	e.Offset, e.Implied = -1, false
	e.ModTime = time.Unix(sec, 0).UTC()
	switch e.Type {
	case tree.Whiteout:
		*e = tree.Entry{Path: e.Path, Type: tree.Whiteout, Offset: -1, ModTime: time.Unix(0, 0).UTC()}
	case tree.Symlink:
		e.Mode, e.Xattrs = 0o777, nil
	case tree.Char, tree.Block, tree.Fifo:
		e.Xattrs = nil
		if e.Type == tree.Char && e.Major == 0 && e.Minor == 0 {
			return errors.New("a character device 0:0 is a deletion")
		}
	}
	if e.Type != tree.File {
		e.Size, e.Digest = 0, [32]byte{}
	}
	if e.Type == tree.Dir || e.Type == tree.Symlink {
		e.Hardlink = ""
	}
	e.Mode &= 0o7777
	return nil
}

// header writes a header; e is the entry that it stands for, nil when it is a mark beside one.
func (w *Writer) header(h *header, e *tree.Entry) error {
	b, err := w.enc.encode(h)
	if err != nil {
		return err
	}
	if w.reuse != nil && e != nil {
		end := w.off + int64(len(b))
		w.reuse.entry(e, w.off, end, end+h.size+padding(h.size))
	}
	w.off += int64(len(b))
	_, err = w.out.Write(b)
	return err
}

// content writes a file's bytes, hashing them on the way.
func (w *Writer) content(e *tree.Entry, r io.Reader) error {
	var kept *bytes.Buffer
	if r == nil {
		r = strings.NewReader("")
	}
	if isKept(e.Path) && e.Size <= maxKept {
		kept = new(bytes.Buffer)
		r = io.TeeReader(r, kept)
	}
	e.Offset = w.off
	w.sum.Reset()
	n, err := w.copy(r, e.Size)
	if err != nil {
		return err
	}
	var sum [32]byte
	w.sum.Sum(sum[:0])
	if n != e.Size || e.Digest != [32]byte{} && e.Digest != sum {
		return &ChangedError{Path: e.Path}
	}
	e.Digest = sum
	w.files[maphash.String(w.seed, e.Path)] = writtenFile{e.Offset, e.Size, sum}
	if kept != nil {
		w.idx.Keep(e.Path, kept.Bytes())
	}
	pad := padding(n)
	w.off += n + pad
	_, err = w.out.Write(zeroBlocks[:pad])
	return err
}

// copy moves r into the tar, straight into the buffers of the goroutine that writes it. It stops after more than want bytes.
func (w *Writer) copy(r io.Reader, want int64) (int64, error) {
	var total int64
	for {
		if total == want {
			return w.end(r, total)
		}
		b, err := w.out.Buffer()
		if err != nil {
			return total, err
		}
		if int64(len(b)) > want-total {
			b = b[:want-total]
		}
		n, err := r.Read(b)
		_, _ = w.sum.Write(b[:n]) // a hash never fails
		if w.inspect != nil {
			w.inspect.Content(b[:n])
		}
		w.out.Filled(n)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		if err := w.ctx.Err(); err != nil {
			return total, context.Cause(w.ctx)
		}
	}
}

// end reports one byte more than total when r goes on.
func (w *Writer) end(r io.Reader, total int64) (int64, error) {
	var more [1]byte
	n, err := fill(r, more[:])
	if err == io.EOF {
		err = nil
	}
	return total + int64(n), err
}

// linked completes the entry of a hard link from the file it links to.
func (w *Writer) linked(e *tree.Entry) error {
	first, ok := w.files[maphash.String(w.seed, e.Hardlink)]
	if !ok {
		return fmt.Errorf("it is a hard link to /%s, which is not a file of this layer", e.Hardlink)
	}
	e.Offset, e.Size, e.Digest = first.offset, first.size, first.digest
	return nil
}

// Commit completes the layer and publishes it: blob, index, metadata.
func (w *Writer) Commit() (Layer, error) {
	if w.done {
		return Layer{}, errors.New("write layer: it was ended before")
	}
	l, err := w.commit()
	if err != nil {
		w.Abort()
		return Layer{}, err
	}
	w.done = true
	w.endReuse()
	return l, nil
}

func (w *Writer) endReuse() {
	if w.reuse != nil {
		w.reuse.stop()
		w.reuse = nil
	}
}

func (w *Writer) commit() (Layer, error) {
	if w.err != nil {
		return Layer{}, w.err
	}
	if w.inspect != nil {
		if err := w.inspect.Done(); err != nil {
			return Layer{}, err
		}
	}
	w.off += int64(len(zeroBlocks))
	if _, err := w.out.Write(zeroBlocks[:]); err != nil {
		return Layer{}, fmt.Errorf("write layer: %w", err)
	}
	if err := w.out.Close(); err != nil {
		return Layer{}, fmt.Errorf("write layer: %w", err)
	}
	diffID, size, blobs, err := w.sink.commit()
	if err != nil {
		return Layer{}, fmt.Errorf("write layer: %w", err)
	}
	sign(w.idx, diffID)
	sum, err := w.idx.Close()
	if err != nil {
		return Layer{}, fmt.Errorf("write layer: %w", err)
	}
	if err := w.file.Commit(indexKey(diffID)); err != nil {
		return Layer{}, fmt.Errorf("write layer: %w", err)
	}
	for _, b := range blobs {
		if err := w.l.addBlob(w.ctx, diffID, b); err != nil {
			return Layer{}, fmt.Errorf("write layer: %w", err)
		}
	}
	if w.sink.blocks != nil {
		keep := func(json.RawMessage) (json.RawMessage, error) { return w.sink.blocks.encode(), nil }
		if err := w.l.SetRemark(w.ctx, diffID, blocksRemark(w.sink.c), keep); err != nil {
			return Layer{}, fmt.Errorf("write layer: %w", err)
		}
	}
	return Layer{DiffID: diffID, Content: sum.Content, Size: size, Entries: sum.Entries}, nil
}

// Abort drops the layer. It does nothing after Commit.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	_ = w.out.Close() // the goroutine is done with the blobs
	w.sink.abort()
	w.endReuse()
	w.file.Abort()
}
