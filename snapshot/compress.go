package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/store"
)

// CompressionKind is how a layer's blob is compressed.
type CompressionKind string

// The kinds of compression.
const (
	Gzip CompressionKind = "gzip"
	Zstd CompressionKind = "zstd"
	None CompressionKind = "none"
)

// Levels that mean something else than themselves.
const (
	DefaultLevel = 0  // the level that BenchmarkCompress showed to be the best trade
	StoreLevel   = -1 // gzip without compression, which others call level 0
)

// The default levels. Measured with BenchmarkCompress on a tar of Go's sources, 2 busy cores, MB of tar per second of CPU
// and size in % of the tar:
//
//	gzip 1: 175 MB/s 27.3 %   gzip 3: 140 MB/s 25.8 %   gzip 6: 94 MB/s 23.4 %   gzip 9: 12 MB/s 22.5 %
//	zstd 1: 178 MB/s 22.5 %   zstd 3: 147 MB/s 20.7 %   zstd 7: 63 MB/s 19.3 %
//
// On a root file system's tar, which is less compressible, gzip 3 was as fast as 1 and 4 % smaller. It is the middle: most
// blobs are made on the machine that waits for them, and stored or sent a few times.
const (
	defaultGzipLevel = 3
	defaultZstdLevel = 3
)

// compressorVersion is part of a compressor's identity. It changes when the same input gives other bytes: with our block
// scheme, or with the module that deflates. TestCompressorIsPinned notices.
const compressorVersion = "1"

// Compression says how a layer is to be compressed. The zero value is gzip at the default level.
type Compression struct {
	Kind  CompressionKind
	Level int // DefaultLevel, StoreLevel or 1-9 for gzip, 1-22 for zstd
	// Force compresses pulled layers too, which otherwise keep the blob they came in.
	Force bool
	// DropPlain removes the plain tar of a layer made here once a compressed blob stands for it.
	DropPlain bool
}

// fill replaces what was left out and refuses what does not exist.
func (c Compression) fill() (Compression, error) {
	highest := map[CompressionKind]int{Gzip: 9, Zstd: 22, None: 0}
	if c.Kind == "" {
		c.Kind = Gzip
	}
	top, ok := highest[c.Kind]
	if !ok {
		return c, fmt.Errorf("compression %q is not one of gzip, zstd, none", c.Kind)
	}
	if c.Level > top || c.Level < StoreLevel || c.Level == StoreLevel && c.Kind != Gzip {
		return c, fmt.Errorf("%s has no compression level %d", c.Kind, c.Level)
	}
	if c.Level == DefaultLevel {
		switch c.Kind {
		case Gzip:
			c.Level = defaultGzipLevel
		case Zstd:
			c.Level = defaultZstdLevel
		}
	}
	return c, nil
}

// id identifies the compressor by what decides its output.
func (c Compression) id() string {
	if c.Kind == None {
		return madePlain
	}
	return string(c.Kind) + "-" + strconv.Itoa(c.Level) + "-v" + compressorVersion
}

func (c Compression) mediaType() string {
	switch c.Kind {
	case Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// writer returns a compressor to w. It must be closed, also after an error.
func (c Compression) writer(ctx context.Context, w io.Writer) (io.WriteCloser, error) {
	switch c.Kind {
	case Gzip:
		return newGzipWriter(ctx, w, max(c.Level, 0)), nil
	case Zstd:
		// Two goroutines, however many processors there are: what zstd writes may depend on it.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(c.Level)), zstd.WithEncoderConcurrency(2))
	}
	return nopCloser{w}, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Result is a blob that stands for a layer in an image. DiffID is another one than was asked for when an epoch changed times.
type Result struct {
	DiffID     digest.Digest
	Descriptor ocispec.Descriptor
}

// Compressed returns the blob that stands for a layer in an image, and makes it if it has not been made before. A pulled
// layer keeps its own blob, here or not, unless c.Force. With an epoch, a layer made here whose entries are younger is
// rewritten with their times clamped; it is then another layer.
func (l *Layers) Compressed(ctx context.Context, diffID digest.Digest, c Compression, epoch *time.Time) (Result, error) {
	c, err := c.fill()
	if err != nil {
		return Result{}, err
	}
	res, err := l.compressed(ctx, diffID, c, epoch)
	if err != nil {
		return Result{}, fmt.Errorf("compress layer %s: %w", diffID, err)
	}
	return res, nil
}

func (l *Layers) compressed(ctx context.Context, diffID digest.Digest, c Compression, epoch *time.Time) (Result, error) {
	blobs, err := l.Blobs(diffID)
	if err != nil {
		return Result{}, err
	}
	if i := slices.IndexFunc(blobs, func(b Blob) bool { return b.Made == MadePulled }); i >= 0 {
		if !c.Force {
			return Result{diffID, blobs[i].Descriptor}, nil
		}
		epoch = nil // the layer of somebody else, whatever it is wrapped in
	}
	if epoch != nil {
		young, err := l.youngerThan(ctx, diffID, *epoch)
		if err != nil {
			return Result{}, err
		}
		if young {
			return l.clampedBlob(ctx, diffID, c, *epoch)
		}
	}
	if b, ok := madeBy(blobs, c.id()); ok {
		return Result{diffID, b.Descriptor}, nil
	}
	unlock, err := l.st.Lock(ctx, "compress-"+diffID.Encoded()+"-"+c.id(), nil)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if blobs, err = l.Blobs(diffID); err != nil {
		return Result{}, err
	}
	if b, ok := madeBy(blobs, c.id()); ok { // another process was faster
		return Result{diffID, b.Descriptor}, nil
	}
	b, err := l.compress(ctx, diffID, c)
	if err != nil {
		return Result{}, err
	}
	if c.DropPlain && b.Digest != diffID {
		if err := l.st.RemoveBlob(diffID); err != nil {
			return Result{}, err
		}
	}
	return Result{diffID, b.Descriptor}, nil
}

// madeBy finds a local blob by who made it.
func madeBy(blobs []Blob, id string) (Blob, bool) {
	i := slices.IndexFunc(blobs, func(b Blob) bool { return b.Local && b.Made == id })
	if i < 0 {
		return Blob{}, false
	}
	return blobs[i], true
}

func (l *Layers) youngerThan(ctx context.Context, diffID digest.Digest, epoch time.Time) (bool, error) {
	x, err := l.Index(ctx, diffID)
	if err != nil {
		return false, err
	}
	return x.Summary().Newest.Unix() > epoch.Unix(), nil
}

// compress makes one blob out of a layer.
func (l *Layers) compress(ctx context.Context, diffID digest.Digest, c Compression) (Blob, error) {
	if c.Kind == None {
		r, err := l.ReaderAt(ctx, diffID)
		if err != nil {
			return Blob{}, err
		}
		return plainBlob(diffID, r.Size()), r.Close()
	}
	sum := digest.SHA256.Digester()
	r, err := l.openTar(ctx, diffID, func(b []byte) error { _, err := sum.Hash().Write(b); return err })
	if err != nil {
		return Blob{}, err
	}
	defer r.Close()
	desc, err := l.writeCompressed(ctx, c, func(w io.Writer) error {
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
		if got := sum.Digest(); got != diffID { // else what lies would be compressed into something that seems sound
			return &DigestError{What: "diffID", Want: diffID, Got: got}
		}
		return nil
	})
	if err != nil {
		return Blob{}, err
	}
	b := Blob{Descriptor: desc, Made: c.id()}
	return b, l.addBlob(ctx, diffID, b)
}

// writeCompressed publishes what fill writes, compressed.
func (l *Layers) writeCompressed(ctx context.Context, c Compression, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	blob, err := l.st.NewBlob(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer blob.Abort()
	z, err := c.writer(ctx, blob)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	err = fill(z)
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, size, err := blob.Commit("")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: c.mediaType(), Digest: d, Size: size}, nil
}

// epochView is the memory of a layer that was rewritten for an epoch.
type epochView struct {
	Version int                `json:"version"`
	DiffID  digest.Digest      `json:"diffID"`
	Blob    ocispec.Descriptor `json:"blob"`
}

func epochKey(diffID digest.Digest, c Compression, epoch time.Time) string {
	return fmt.Sprintf("epoch:%s:%d:%s", diffID, epoch.Unix(), c.id())
}

// clampedBlob returns the blob of a layer with its times clamped.
func (l *Layers) clampedBlob(ctx context.Context, diffID digest.Digest, c Compression, epoch time.Time) (Result, error) {
	key := epochKey(diffID, c, epoch)
	if res, ok := l.readView(key); ok {
		return res, nil
	}
	unlock, err := l.st.Lock(ctx, "compress-"+key, nil)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if res, ok := l.readView(key); ok {
		return res, nil
	}
	res, err := l.clampAndCompress(ctx, diffID, c, epoch)
	if err != nil {
		return Result{}, err
	}
	if err := l.addBlob(ctx, res.DiffID, Blob{Descriptor: res.Descriptor, Made: c.id()}); err != nil {
		return Result{}, err
	}
	data, err := json.Marshal(epochView{Version: metaVersion, DiffID: res.DiffID, Blob: res.Descriptor})
	if err != nil {
		return Result{}, err
	}
	return res, l.st.Write(store.KindLink, key, data)
}

// readView answers from memory, if the blob is still here.
func (l *Layers) readView(key string) (Result, bool) {
	data, err := l.st.Read(store.KindLink, key)
	if err != nil {
		return Result{}, false
	}
	var v epochView
	if json.Unmarshal(data, &v) != nil || v.Version != metaVersion {
		return Result{}, false
	}
	return Result{v.DiffID, v.Blob}, l.st.HasBlob(v.Blob.Digest, v.Blob.Size)
}

// clampAndCompress rewrites and compresses a layer in one pass.
func (l *Layers) clampAndCompress(ctx context.Context, diffID digest.Digest, c Compression, epoch time.Time) (Result, error) {
	in := digest.SHA256.Digester()
	r, err := l.openTar(ctx, diffID, func(b []byte) error { _, err := in.Hash().Write(b); return err })
	if err != nil {
		return Result{}, err
	}
	defer r.Close()
	sum := digest.SHA256.Digester()
	desc, err := l.writeCompressed(ctx, c, func(w io.Writer) error {
		out := newAsyncWriter(io.MultiWriter(sum.Hash(), w))
		err := clampTimes(ctx, out, r, epoch)
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what follows the end of the archive
		}
		if got := in.Digest(); err == nil && got != diffID {
			err = &DigestError{What: "diffID", Want: diffID, Got: got}
		}
		return errors.Join(err, out.Close())
	})
	if err != nil {
		return Result{}, err
	}
	return Result{sum.Digest(), desc}, nil
}
