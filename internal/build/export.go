package build

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/exporter"
	"build/internal/progress"
	"build/internal/registry"
	"build/internal/store"
	"build/internal/tree"
	"build/snapshot"
)

// defaultView is what the local store and every output without attributes of its own gets.
func (s *session) defaultView() view {
	return view{
		compression: snapshot.Compression{Kind: snapshot.Gzip, DropPlain: true}, epoch: s.epoch, annotations: s.opts.Annotations,
	}
}

// viewOf reads the attributes of one output.
func (s *session) viewOf(o *Output) view {
	v := s.defaultView()
	switch o.Compression {
	case "zstd":
		v.compression.Kind = snapshot.Zstd
	case "uncompressed":
		v.compression.Kind = snapshot.None
	}
	if o.CompressionLevel != nil {
		v.compression.Level = levelOf(v.compression.Kind, *o.CompressionLevel)
	}
	v.compression.Force = o.ForceCompression
	v.docker = !o.OCIMediaTypes
	if o.Epoch != nil {
		v.epoch = o.Epoch
	}
	v.annotations = slices.Concat(s.opts.Annotations, o.Annotations)
	return v
}

// levelOf is what a level that a user names means: 0 is gzip without compression and zstd's fastest.
func levelOf(kind snapshot.CompressionKind, level int) int {
	switch {
	case kind == snapshot.None:
		return snapshot.DefaultLevel
	case level == 0 && kind == snapshot.Gzip:
		return snapshot.StoreLevel
	}
	return max(level, 1)
}

// planOutputs decides whether layers are worth compressing beside the build, and how.
func (s *session) planOutputs() {
	v := s.defaultView()
	given := false
	s.wantBlobs = s.opts.MakesImage()
	for i := range s.opts.Outputs {
		if o := &s.opts.Outputs[i]; isImageOutput(o.Type) {
			if !given {
				v = s.viewOf(o)
			}
			given = true
		}
	}
	s.view = v
}

// MakesImage reports whether one of the outputs is an image, which then gets its names in the local store, too.
func (o *Options) MakesImage() bool {
	return len(o.Outputs) == 0 || o.Push || slices.ContainsFunc(o.Outputs, func(out Output) bool { return isImageOutput(out.Type) })
}

func isImageOutput(t OutputType) bool {
	switch t {
	case OutputLocal, OutputTar, OutputNone:
		return false
	}
	return true
}

// export hands the result to every output, the local store last but for its name, which comes when all else is done.
func (s *session) export(ctx context.Context, products []*product) (*Result, error) {
	res := &Result{Warnings: s.found.sorted(), Source: s.dockerfile}
	var img *exporter.Image
	if s.wantBlobs {
		err := s.task("exporting to image", func(id progress.ID) error {
			var err error
			if img, err = s.result(ctx, products, s.firstView()); err != nil {
				return err
			}
			return s.storeImage(ctx, id, img, res)
		})
		if err != nil {
			return nil, err
		}
	}
	flushed := make(chan error, 1)
	go func() { flushed <- s.flush() }()
	err := s.exportAll(ctx, products, img, res)
	// Also after a failure: what a flush writes must not appear in the store behind a build that has ended.
	select {
	case ferr := <-flushed:
		if err == nil {
			err = ferr
		}
	case <-canceledFor(ctx, drainTime):
	}
	if err != nil {
		return nil, err
	}
	return res, s.writeFiles(res)
}

// exportAll sends the result to every output but the local store.
func (s *session) exportAll(ctx context.Context, products []*product, img *exporter.Image, res *Result) error {
	for i := range s.opts.Outputs {
		if err := s.exportTo(ctx, products, &s.opts.Outputs[i], res); err != nil {
			return err
		}
	}
	if s.opts.Push {
		return s.pushAll(ctx, img, s.opts.Tags)
	}
	return nil
}

// canceledFor is ready when ctx has been over for so long.
func canceledFor(ctx context.Context, d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(d, func() { close(c) }) })
	return c
}

// flush makes what this build added to the store survive a loss of power, beside the exports. A build that added nothing
// has nothing to flush.
func (s *session) flush() error {
	s.vmu.Lock()
	added := s.tallies.ran > 0 || s.added
	s.vmu.Unlock()
	if !added {
		return nil
	}
	if err := s.store.Sync(); err != nil {
		return fmt.Errorf("flush the store: %w", err)
	}
	return nil
}

// firstView is the view whose digest is the build's: that of the first output that is an image.
func (s *session) firstView() view {
	for i := range s.opts.Outputs {
		if isImageOutput(s.opts.Outputs[i].Type) {
			return s.viewOf(&s.opts.Outputs[i])
		}
	}
	return s.defaultView()
}

// storeImage puts the image into the local store. The names come last, when everything they reach is complete.
func (s *session) storeImage(ctx context.Context, id progress.ID, img *exporter.Image, res *Result) error {
	if err := s.putDocuments(img); err != nil {
		return err
	}
	desc := img.Descriptor()
	res.Descriptor, res.Digest = desc, desc.Digest.String()
	if len(img.Children) == 0 {
		res.ConfigDigest = img.ConfigDigest().String()
	}
	res.Names = s.opts.allNames()
	s.emit(progress.Message{ID: id, Text: "writing image " + res.Digest})
	if len(s.opts.storedNames()) == 0 {
		return nil
	}
	complete := !s.onlyPushed()
	if complete {
		if err := s.completeImage(ctx, img); err != nil {
			return err
		}
	}
	return s.name(id, desc, complete, img)
}

// platformsOf names the platforms of a result, for people.
func platformsOf(img *exporter.Image) string {
	if len(img.Children) == 0 {
		return platformString(img.Platform)
	}
	var all []string
	for i := range img.Children {
		all = append(all, platformString(img.Children[i].Platform))
	}
	return strings.Join(all, ",")
}

// putDocuments stores manifests and configurations.
func (s *session) putDocuments(img *exporter.Image) error {
	for i := range img.Children {
		if err := s.putDocuments(&img.Children[i]); err != nil {
			return err
		}
	}
	if len(img.Children) == 0 {
		if err := putBlob(s.store, img.Config); err != nil {
			return err
		}
	}
	return putBlob(s.store, img.Manifest)
}

// completeImage fetches the layers of the base that the store does not have.
func (s *session) completeImage(ctx context.Context, img *exporter.Image) error {
	if err := each(ctx, indices(len(img.Children)), func(ctx context.Context, i int) error {
		return s.completeImage(ctx, &img.Children[i])
	}); err != nil {
		return err
	}
	return each(ctx, img.Layers, func(ctx context.Context, l exporter.Layer) error {
		if s.store.HasBlob(l.Digest, l.Size) {
			return nil
		}
		return s.fetches.original(ctx, l.DiffID, l.Descriptor)
	})
}

// onlyPushed reports whether the result only goes to a registry, so that blobs of the base need never come here.
func (s *session) onlyPushed() bool {
	if len(s.opts.Outputs) == 0 {
		return s.opts.Push
	}
	for _, o := range s.opts.Outputs {
		if o.Type != OutputRegistry && !(o.Type == OutputImage && o.Push) {
			return false
		}
	}
	return true
}

func (s *session) name(id progress.ID, desc ocispec.Descriptor, complete bool, img *exporter.Image) error {
	for _, tag := range s.opts.storedNames() {
		key := nameKey(tag, img.Platform)
		old, ok, err := s.store.Name(key)
		if err != nil {
			return err
		}
		same := ok && old.Descriptor.Digest == desc.Digest && maps.Equal(old.Descriptor.Annotations, desc.Annotations)
		if !same || old.Complete != complete || old.Origin != store.Built {
			err := s.store.SetName(key, store.Name{
				Descriptor: desc, Origin: store.Built, Time: time.Now(), Complete: complete, Platform: platformsOf(img),
			})
			if err != nil {
				return fmt.Errorf("name %s: %w", familiar(tag), err)
			}
		}
		s.emit(progress.Message{ID: id, Text: "naming to " + tag})
	}
	return nil
}

func (s *session) exportTo(ctx context.Context, products []*product, o *Output, res *Result) error {
	switch o.Type {
	case OutputNone:
		return nil
	case OutputImage:
		if !o.Push {
			return nil
		}
		fallthrough
	case OutputRegistry:
		img, err := s.result(ctx, products, s.viewOf(o))
		if err != nil {
			return err
		}
		return s.pushAll(ctx, img, append(append([]string{}, s.opts.Tags...), o.Names...))
	case OutputLocal, OutputTar:
		return s.task("exporting to client "+describe(o.Type), func(progress.ID) error { return s.exportRootfs(ctx, products, o, res) })
	}
	return s.task("exporting to "+string(o.Type)+" image format", func(progress.ID) error {
		img, err := s.result(ctx, products, s.viewOf(o))
		if err != nil {
			return err
		}
		for _, n := range o.Names {
			ref, err := normalizeName(n)
			if err != nil {
				return err
			}
			img.Names = append(img.Names, ref)
		}
		return s.exportArchive(ctx, img, o, res)
	})
}

func describe(t OutputType) string {
	if t == OutputLocal {
		return "directory"
	}
	return "tarball"
}

func (s *session) exportArchive(ctx context.Context, img *exporter.Image, o *Output, res *Result) error {
	if o.Type == OutputOCI && !o.Tar {
		res.Written = append(res.Written, o.Dest)
		return exporter.OCIDir(ctx, o.Dest, []exporter.Image{*img})
	}
	return s.writeTo(o, res, func(w io.Writer) error {
		if o.Type == OutputDocker {
			return exporter.DockerTar(ctx, w, []exporter.Image{*img})
		}
		return exporter.OCITar(ctx, w, []exporter.Image{*img})
	})
}

// exportRootfs writes the tree of the result itself; of several platforms, each into a directory of its own.
func (s *session) exportRootfs(ctx context.Context, products []*product, o *Output, res *Result) error {
	opts := exporter.RootfsOptions{Epoch: s.viewOf(o).epoch, Warn: func(msg string) { s.warn("%s", msg) }}
	var list []exporter.Rootfs
	for _, p := range products {
		r, done, err := s.rootfs(ctx, p)
		if err != nil {
			return err
		}
		defer done()
		list = append(list, r)
	}
	if o.Type == OutputTar {
		return s.writeTo(o, res, func(w io.Writer) error { return exporter.Tar(ctx, w, list, opts) })
	}
	for _, r := range list {
		dest := filepath.Join(o.Dest, r.Dir)
		res.Written = append(res.Written, dest)
		if err := exporter.Local(ctx, dest, r.Chain, r.Open, opts); err != nil {
			return err
		}
	}
	return nil
}

// rootfs opens the tree of a product.
func (s *session) rootfs(ctx context.Context, p *product) (r exporter.Rootfs, done func(), err error) {
	if err := each(ctx, p.out.chain, s.fetches.layer); err != nil {
		return r, nil, err
	}
	chain, err := s.chain(ctx, p.out.chain)
	if err != nil {
		return r, nil, err
	}
	src := s.layers.Source(chain, p.out.chain)
	open := func(l tree.Located) (io.ReadCloser, error) {
		r, err := src.Open(ctx, &l.Entry)
		if err != nil || l.Entry.Digest == [32]byte{} {
			return r, err
		}
		return verified(r, digest.NewDigestFromBytes(digest.SHA256, l.Entry.Digest[:]), l.Entry.Size, "content of /"+l.Entry.Path), nil
	}
	return exporter.Rootfs{Dir: strings.ReplaceAll(p.platform, "/", "_"), Chain: chain, Open: open}, func() { src.Close() }, nil
}

// pushAll sends the image to every name, one after the other: the second finds the blobs there.
func (s *session) pushAll(ctx context.Context, img *exporter.Image, names []string) error {
	if len(names) == 0 {
		return &UsageError{Msg: "nothing to push to: the image has no name", Hint: "add -t REGISTRY/NAME:TAG or name= to the output"}
	}
	for _, n := range names {
		ref, err := normalizeName(n)
		if err != nil {
			return err
		}
		err = s.task("pushing "+familiar(ref), func(id progress.ID) error { return s.push(ctx, id, ref, img) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) push(ctx context.Context, id progress.ID, ref string, img *exporter.Image) error {
	if len(img.Children) > 0 {
		for i := range img.Children {
			child := repoOf(ref) + "@" + img.Children[i].Digest().String()
			if err := s.push(ctx, id, child, &img.Children[i]); err != nil {
				return err
			}
		}
		return s.client.PushManifest(ctx, ref, img.MediaType, img.Manifest)
	}
	p := registry.PushImage{
		ManifestRaw: img.Manifest, MediaType: img.MediaType, Config: img.Config,
		Progress: func(d digest.Digest, n, total int64) {
			s.emit(progress.Transfer{ID: id, Key: d.String(), Label: "pushing " + d.String(), Current: n, Total: total, Done: n == total, Time: time.Now()})
		},
	}
	for _, l := range img.Layers {
		from, err := reposOf(s.layers, l.DiffID, l.Digest)
		if err != nil {
			return err
		}
		p.Layers = append(p.Layers, registry.PushLayer{Desc: l.Descriptor, Open: l.Open, MountFrom: from})
	}
	return s.client.Push(ctx, ref, p)
}
