package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/dag"
	"build/internal/buildctx"
	"build/internal/registry"
)

const (
	layoutScheme = "oci-layout://"
	imageScheme  = "docker-image://"
	targetScheme = "target:" // a stage of the Dockerfile: lowering knows it, nothing is to be looked up
)

// checkNamedContexts finds places on this machine that are not there, whether or not the Dockerfile uses them.
func (o *Options) checkNamedContexts() error {
	for _, kv := range o.NamedContexts {
		switch {
		case strings.HasPrefix(kv.Value, imageScheme), strings.HasPrefix(kv.Value, targetScheme):
			continue
		case strings.HasPrefix(kv.Value, layoutScheme):
			continue // what is wrong with a layout is told where it is opened
		}
		r, err := buildctx.ParseRemote(kv.Value)
		if err != nil {
			return &UsageError{Msg: fmt.Sprintf("--build-context %s: %v", kv.Key, err)}
		}
		if r.Kind != buildctx.Local {
			continue
		}
		if fi, err := os.Stat(kv.Value); err != nil || !fi.IsDir() && !fi.Mode().IsRegular() {
			return &UsageError{
				Msg:  fmt.Sprintf("--build-context %s=%s is neither a directory nor an image", kv.Key, kv.Value),
				Hint: "use a directory, docker-image://NAME, oci-layout://DIR[:TAG], an oci or docker archive, a URL, or target:STAGE",
			}
		}
	}
	return nil
}

// openLocalImage opens an OCI layout or an archive named by --build-context; nil when value is a directory of files.
func (s *session) openLocalImage(ctx context.Context, value string, n dag.Need) (*registry.Image, blobSource, error) {
	file, ref := value, ""
	if path, ok := strings.CutPrefix(value, layoutScheme); ok {
		file, ref = registry.SplitLayout(path)
	} else if fi, err := os.Stat(value); err != nil || fi.IsDir() {
		return nil, nil, nil
	}
	plain, err := s.inflated(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	l, err := registry.OpenLayout(plain, ref)
	if err != nil {
		return nil, nil, asGiven(err, plain, file)
	}
	s.contexts.onClose(func() { l.Close() })
	p := wantPlatform(n)
	img, err := l.Resolve(ctx, &p)
	if err != nil {
		return nil, nil, asGiven(err, plain, file)
	}
	img.Ref = strings.Replace(img.Ref, plain, file, 1)
	open := func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) { return l.Blob(ctx, "", d) }
	return img, open, nil
}

// asGiven calls a file by the name the user gave it.
func asGiven(err error, plain, file string) error {
	if e, ok := err.(*registry.Error); ok {
		e.Ref = strings.Replace(e.Ref, plain, file, 1)
	}
	return err
}

// inflated gives an archive whose blobs can be read in any order: the file itself or, if it is compressed, a plain copy that lasts
// as long as the build.
func (s *session) inflated(ctx context.Context, file string) (string, error) {
	if fi, err := os.Stat(file); err != nil || !fi.Mode().IsRegular() {
		return file, nil
	}
	return s.remotes.archives.do(ctx, file, func() (string, error) {
		tmp, release, err := s.store.TempDir()
		if err != nil {
			return "", err
		}
		s.contexts.onClose(release)
		plain := filepath.Join(tmp, filepath.Base(file))
		compressed, err := buildctx.Inflate(ctx, file, plain)
		if err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		if !compressed {
			return file, nil
		}
		return plain, nil
	})
}
