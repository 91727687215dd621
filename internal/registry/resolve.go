package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source is what image resolution needs: manifests and small blobs by name or digest.
type source interface {
	// manifest returns a document by tag or digest, verified against the digest, and what is said about its type.
	manifest(ctx context.Context, d ocispec.Descriptor) (raw []byte, mediaType string, err error)
	// open streams a blob that is verified while read.
	open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
}

// Resolve finds the image ref names for platform p (nil: the one this program runs on). From an index the best match is
// chosen, or an error lists what there is; an image that stands alone is returned whatever its platform, because people
// do build on images of another architecture: compare Image.Platform.
func (c *Client) Resolve(ctx context.Context, ref string, p *ocispec.Platform) (*Image, error) {
	t, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	h, err := c.host(t.domain)
	if err != nil {
		return nil, about(t.String(), err)
	}
	im, err := resolve(ctx, &repository{h: h, target: t}, ocispec.Descriptor{Digest: t.digest}, p)
	if err != nil {
		return nil, about(t.String(), err)
	}
	im.Ref, im.Repo = t.String(), t.name
	return im, nil
}

// Head returns the descriptor ref points at now without fetching it.
func (c *Client) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	t, err := parseRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	h, err := c.host(t.domain)
	if err != nil {
		return ocispec.Descriptor{}, about(t.String(), err)
	}
	r := &request{method: http.MethodHead, path: t.path + "/manifests/" + t.manifest(), access: pullAccess(t.path),
		header: http.Header{"Accept": {acceptManifests}}}
	resp, err := h.do(ctx, r, http.StatusOK)
	if err != nil {
		return ocispec.Descriptor{}, about(t.String(), err)
	}
	discard(resp.Body)
	d := ocispec.Descriptor{MediaType: mediaType(resp.Header.Get("Content-Type")), Size: resp.ContentLength,
		Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest"))}
	if t.digest != "" {
		d.Digest = t.digest
	}
	return d, about(t.String(), checkDescriptor("manifest", d))
}

// resolve follows indexes from d down to one manifest and reads its config.
func resolve(ctx context.Context, s source, d ocispec.Descriptor, want *ocispec.Platform) (*Image, error) {
	p := platforms.DefaultSpec()
	if want != nil {
		p = *want
	}
	return descend(ctx, s, d, platforms.Normalize(p), 0)
}

func descend(ctx context.Context, s source, d ocispec.Descriptor, p ocispec.Platform, depth int) (*Image, error) {
	raw, said, err := s.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	doc, mt, err := parseDocument(raw, said)
	if err != nil {
		return nil, err
	}
	if isManifestType(mt) {
		return readImage(ctx, s, raw, mt)
	}
	if depth >= maxIndexDepth {
		return nil, errorf(Unsupported, "indexes are nested more than %d deep", maxIndexDepth)
	}
	im, err := choose(ctx, s, doc.Manifests, p, depth)
	if err != nil {
		return nil, err
	}
	im.IndexDigest = digest.FromBytes(raw)
	return im, nil
}

// choose picks the entry of an index that serves p.
func choose(ctx context.Context, s source, ms []ocispec.Descriptor, p ocispec.Platform, depth int) (*Image, error) {
	fit, unnamed := candidates(ms, p)
	if len(fit) > 0 {
		if err := checkDescriptor("index entry", fit[0]); err != nil {
			return nil, err
		}
		return descend(ctx, s, fit[0], p, depth+1)
	}
	// Entries without a platform, as other tools write them into layouts, have to be opened to know.
	const most = 8
	for i, d := range unnamed {
		if i == most {
			break
		}
		if err := checkDescriptor("index entry", d); err != nil {
			return nil, err
		}
		im, err := descend(ctx, s, d, p, depth+1)
		switch {
		case err == nil && (platforms.Only(p).Match(im.Platform) || len(ms) == 1):
			return im, nil
		case err != nil && !IsClass(err, Unsupported) && !IsClass(err, NotFound):
			return nil, err
		}
	}
	return nil, noPlatform(ms, p)
}

func readImage(ctx context.Context, s source, raw []byte, mt string) (*Image, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errorf(Unsupported, "the manifest is not valid: %w", err)
	}
	if err := checkManifest(&m); err != nil {
		return nil, err
	}
	body, err := s.open(ctx, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer body.Close()
	config, err := readAll(body, maxConfig, "config")
	if err != nil {
		return nil, err
	}
	return newImage(raw, config, mt, m)
}

// repository is a source over the network.
type repository struct {
	h      *host
	target target
}

func (r *repository) open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := r.h.blob(ctx, r.target.path, d, 0)
	if err != nil {
		return nil, err
	}
	return newVerifier(b, d, nil), nil
}

// manifest fetches by digest if d has one, else by the tag of the reference. The digest is always computed from the
// bytes; what the registry claims in a header is compared with that.
func (r *repository) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	name := r.target.tag
	if d.Digest != "" {
		name = d.Digest.String()
	}
	req := &request{method: http.MethodGet, path: r.target.path + "/manifests/" + name, access: pullAccess(r.target.path),
		header: http.Header{"Accept": {acceptManifests}}}
	retry := retryState{c: r.h.c, host: r.h.name}
	for {
		raw, said, err := r.fetch(ctx, req, d)
		if err == nil {
			return raw, said, nil
		}
		if err := retry.next(ctx, err); err != nil {
			return nil, "", err
		}
	}
}

func (r *repository) fetch(ctx context.Context, req *request, d ocispec.Descriptor) ([]byte, string, error) {
	resp, err := r.h.do(ctx, req, http.StatusOK)
	if err != nil {
		return nil, "", &finalError{err}
	}
	defer resp.Body.Close()
	raw, err := readAll(resp.Body, maxManifest, "manifest")
	if err != nil {
		return nil, "", err
	}
	if isWebPage(resp.Header.Get("Content-Type"), raw) && (d.Digest == "" || d.Digest.Algorithm().FromBytes(raw) != d.Digest) {
		// No damage and no strange image: whatever answered is no registry, and will not be one a moment later.
		e := errorf(Network, "the registry answered with a web page")
		e.Hint = fmt.Sprintf("check that %s is a registry, and that no proxy or login page stands before it", r.h.name)
		return nil, "", &finalError{e}
	}
	claimed := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	said, err := checkBody(raw, d, claimed, resp.Header.Get("Content-Type"))
	return raw, said, err
}

// isWebPage reports whether an answer is HTML, by what it calls itself or how it begins.
func isWebPage(contentType string, body []byte) bool {
	body = bytes.TrimSpace(body[:min(len(body), 512)])
	begin := strings.ToLower(string(body[:min(len(body), 14)]))
	return mediaType(contentType) == "text/html" && !strings.HasPrefix(begin, "{") ||
		strings.HasPrefix(begin, "<!doctype html") || strings.HasPrefix(begin, "<html")
}

// checkBody compares a manifest with everything that was said about it.
func checkBody(raw []byte, d ocispec.Descriptor, claimed digest.Digest, contentType string) (string, error) {
	if d.Digest != "" {
		if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
			return "", errorf(Digest, "the manifest's digest is %s, not %s as promised", got, d.Digest)
		}
	} else if claimed != "" {
		if err := checkDigest(claimed); err != nil {
			return "", err
		}
		if got := claimed.Algorithm().FromBytes(raw); got != claimed {
			return "", errorf(Digest, "the registry says the manifest's digest is %s, but it is %s", claimed, got)
		}
	}
	if d.Size > 0 && d.Size != int64(len(raw)) {
		return "", errorf(Digest, "the manifest has %d bytes, not %d as its index says", len(raw), d.Size)
	}
	said := mediaType(contentType)
	if d.MediaType != "" {
		if served := isIndexType(said) || isManifestType(said); served && said != mediaType(d.MediaType) {
			return "", errorf(Unsupported, "the index calls the manifest %s, the registry serves it as %s", d.MediaType, said)
		}
		said = d.MediaType
	}
	return said, nil
}
