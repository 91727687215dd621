package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// PushImage is one image as the registry will see it.
type PushImage struct {
	ManifestRaw []byte
	MediaType   string // of the manifest
	Config      []byte
	Layers      []PushLayer
	// Progress, if set, hears how much of each blob is there. A blob the registry had already jumps to its total.
	// It is called from several goroutines.
	Progress func(d digest.Digest, n, total int64)
}

// PushLayer is one layer blob, opened only if the registry lacks it. Open may be called again when an upload fails.
type PushLayer struct {
	Desc ocispec.Descriptor
	Open func(ctx context.Context) (io.ReadCloser, error)
	// MountFrom names repositories that have the blob; those on the same registry are offered to it as a source.
	MountFrom []string
}

const pushJobs = 4

// Push uploads what the registry lacks of p and then points ref at it. The manifest goes last, so that a push that
// fails leaves the name as it was.
func (c *Client) Push(ctx context.Context, ref string, p PushImage) error {
	t, err := parseRef(ref)
	if err != nil {
		return err
	}
	if err := checkPush(t, &p); err != nil {
		return about(t.String(), err)
	}
	h, err := c.host(t.domain)
	if err != nil {
		return about(t.String(), err)
	}
	if err := h.pushBlobs(ctx, t, &p); err != nil {
		return about(t.String(), err)
	}
	return about(t.String(), h.putManifest(ctx, t, p.MediaType, p.ManifestRaw))
}

// PushManifest stores a manifest or index whose parts the repository has already.
func (c *Client) PushManifest(ctx context.Context, ref, mediaType string, raw []byte) error {
	t, err := parseRef(ref)
	if err != nil {
		return err
	}
	h, err := c.host(t.domain)
	if err != nil {
		return about(t.String(), err)
	}
	return about(t.String(), h.putManifest(ctx, t, mediaType, raw))
}

func checkPush(t target, p *PushImage) error {
	doc, _, err := parseDocument(p.ManifestRaw, p.MediaType)
	if err != nil {
		return err
	}
	if doc.Config == nil || doc.Config.Digest != doc.Config.Digest.Algorithm().FromBytes(p.Config) {
		return errorf(Digest, "the config to push is not the one the manifest names")
	}
	if t.digest != "" && t.digest != t.digest.Algorithm().FromBytes(p.ManifestRaw) {
		return errorf(Invalid, "the reference names another digest than the image has")
	}
	for _, l := range p.Layers {
		if err := checkDescriptor("layer", l.Desc); err != nil {
			return err
		}
	}
	return nil
}

// pushBlobs uploads layers and config, a few at a time, each digest once.
func (h *host) pushBlobs(ctx context.Context, t target, p *PushImage) error {
	config := ocispec.Descriptor{Digest: digest.FromBytes(p.Config), Size: int64(len(p.Config))}
	blobs := []PushLayer{{Desc: config, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(p.Config)), nil
	}}}
	seen := map[digest.Digest]bool{config.Digest: true}
	for _, l := range p.Layers {
		if !seen[l.Desc.Digest] && !IsForeign(l.Desc.MediaType) {
			seen[l.Desc.Digest] = true
			blobs = append(blobs, l)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pushJobs)
	for _, b := range blobs {
		g.Go(func() error {
			report := func(n int64) {
				if p.Progress != nil {
					p.Progress(b.Desc.Digest, n, b.Desc.Size)
				}
			}
			if err := h.pushBlob(ctx, t, b, report); err != nil {
				return fmt.Errorf("pushing blob %s: %w", b.Desc.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// pushBlob makes sure that the repository has b: it may have it, may take it from another repository, or gets it.
func (h *host) pushBlob(ctx context.Context, t target, b PushLayer, report func(int64)) error {
	key := t.path + "@" + b.Desc.Digest.String()
	if _, ok := h.known.Load(key); ok {
		report(b.Desc.Size)
		return nil
	}
	have, err := h.hasBlob(ctx, t, b.Desc)
	if err != nil {
		return err
	}
	if !have {
		have, err = h.mount(ctx, t, b)
		if err != nil {
			return err
		}
	}
	if !have {
		if err := h.upload(ctx, t, b, report); err != nil {
			return err
		}
	}
	h.known.Store(key, struct{}{})
	report(b.Desc.Size)
	return nil
}

func (h *host) hasBlob(ctx context.Context, t target, d ocispec.Descriptor) (bool, error) {
	r := &request{method: http.MethodHead, path: t.path + "/blobs/" + d.Digest.String(), access: pushAccess(t.path)}
	resp, err := h.do(ctx, r, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	discard(resp.Body)
	// A blob of another size under the same digest is a broken one: better to send it again.
	return resp.StatusCode == http.StatusOK && (resp.ContentLength < 0 || resp.ContentLength == d.Size), nil
}

// mount asks the registry to take the blob from a repository it already has. Any failure only means that the blob has
// to be uploaded: registries without the feature answer in many ways.
func (h *host) mount(ctx context.Context, t target, b PushLayer) (bool, error) {
	for _, from := range mountable(t, b.MountFrom) {
		r := &request{method: http.MethodPost, path: t.path + "/blobs/uploads/", access: pushAccess(t.path, from), once: true,
			query: url.Values{"mount": {b.Desc.Digest.String()}, "from": {from}}}
		resp, err := h.do(ctx, r, http.StatusCreated, http.StatusAccepted)
		if err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			continue
		}
		discard(resp.Body)
		if resp.StatusCode == http.StatusCreated {
			return true, nil
		}
		h.abandon(ctx, t, resp)
	}
	return false, nil
}

// mountable keeps the repositories on the same registry, as paths.
func mountable(t target, repos []string) []string {
	var out []string
	for _, repo := range repos {
		f, err := parseRef(repo)
		if err == nil && f.domain == t.domain && f.path != t.path && !slices.Contains(out, f.path) {
			out = append(out, f.path)
		}
	}
	return out
}

// abandon tells the registry that an upload it has opened will not be used.
func (h *host) abandon(ctx context.Context, t target, resp *http.Response) {
	loc, err := h.location(resp)
	if err != nil {
		return
	}
	r := &request{method: http.MethodDelete, url: loc, access: pushAccess(t.path), once: true}
	if resp, err := h.do(ctx, r, http.StatusNoContent, http.StatusOK); err == nil {
		discard(resp.Body)
	}
}

// location is where the registry wants an upload. It may be another host; then it gets the bytes but no credentials.
func (h *host) location(resp *http.Response) (*url.URL, error) {
	loc := resp.Header.Get("Location")
	if loc == "" {
		return nil, errorf(Network, "the registry accepts an upload but says not where")
	}
	u, err := resp.Request.URL.Parse(loc)
	if err != nil {
		return nil, errorf(Network, "the registry wants the upload at a malformed address: %w", err)
	}
	return u, h.checkStep(resp.Request.URL, u)
}

// upload sends a blob in one request, from the start again when that fails.
func (h *host) upload(ctx context.Context, t target, b PushLayer, report func(int64)) error {
	retry := retryState{c: h.c, host: h.name}
	for {
		err := h.uploadOnce(ctx, t, b, report)
		if err == nil {
			return nil
		}
		if err := retry.next(ctx, err); err != nil {
			return err
		}
		report(0)
	}
}

func (h *host) uploadOnce(ctx context.Context, t target, b PushLayer, report func(int64)) error {
	start := &request{method: http.MethodPost, path: t.path + "/blobs/uploads/", access: pushAccess(t.path)}
	resp, err := h.do(ctx, start, http.StatusAccepted)
	if err != nil {
		return &finalError{err}
	}
	discard(resp.Body)
	loc, err := h.location(resp)
	if err != nil {
		return err
	}
	q := loc.Query()
	q.Set("digest", b.Desc.Digest.String())
	loc.RawQuery = q.Encode()

	var source atomic.Pointer[error]
	put := &request{method: http.MethodPut, url: loc, access: pushAccess(t.path), size: b.Desc.Size, once: true,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body: func() (io.ReadCloser, error) {
			r, err := b.Open(ctx)
			if err != nil {
				source.Store(&err)
				return nil, err
			}
			return &counter{r: r, total: b.Desc.Size, report: report, failed: &source}, nil
		}}
	resp, err = h.do(ctx, put, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	if cause := source.Load(); cause != nil && ctx.Err() == nil {
		if resp != nil {
			discard(resp.Body)
		}
		return &finalError{fmt.Errorf("reading it: %w", *cause)} // ours, not the registry's
	}
	if err != nil {
		return err
	}
	discard(resp.Body)
	return nil
}

// counter reports how much of a body was read and remembers when the source, rather than the network, failed.
type counter struct {
	r        io.ReadCloser
	n, total int64
	report   func(int64)
	failed   *atomic.Pointer[error]
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); n > 0 {
		c.report(min(c.n, c.total))
	}
	if err == io.EOF && c.n < c.total {
		err = fmt.Errorf("%d of %d bytes: %w", c.n, c.total, io.ErrUnexpectedEOF)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.failed.Store(&err)
	}
	return n, err
}

func (c *counter) Close() error { return c.r.Close() }

func (h *host) putManifest(ctx context.Context, t target, mediaType string, raw []byte) error {
	want := digest.FromBytes(raw)
	r := &request{method: http.MethodPut, path: t.path + "/manifests/" + t.putName(), access: pushAccess(t.path), size: int64(len(raw)),
		header: http.Header{"Content-Type": {mediaType}},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }}
	resp, err := h.do(ctx, r, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return fmt.Errorf("pushing the manifest: %w", err)
	}
	discard(resp.Body)
	if got := digest.Digest(resp.Header.Get("Docker-Content-Digest")); got != "" && got.Algorithm() == digest.SHA256 && got != want {
		return errorf(Digest, "the registry stored the manifest as %s, not as %s", got, want)
	}
	return nil
}

// putName is the name a manifest is stored under: the tag if there is one.
func (t target) putName() string {
	if t.tag != "" {
		return t.tag
	}
	return t.digest.String()
}
