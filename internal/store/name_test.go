package store

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/testenv"
)

func listed(t *testing.T, s *Store) map[string]digest.Digest {
	t.Helper()
	b, err := os.ReadFile(s.path(indexFile))
	must(t, err)
	var ix ocispec.Index
	must(t, json.Unmarshal(b, &ix))
	out := make(map[string]digest.Digest)
	for _, d := range ix.Manifests {
		out[d.Annotations[ocispec.AnnotationRefName]] = d.Digest
	}
	return out
}

func TestNames(t *testing.T) {
	s := openTest(t, Options{})
	img, err := putImage(s, []byte("one"), []byte("two"))
	must(t, err)
	n := Name{Descriptor: img, Origin: Built, Time: time.Now().UTC().Truncate(time.Second), Platform: "linux/amd64", Complete: true}
	must(t, s.SetName("docker.io/library/app:1", n))
	must(t, s.SetName("docker.io/library/app:1 linux/arm64", n))
	part := n
	part.Complete, part.Origin = false, Pulled
	must(t, s.SetName("docker.io/library/base:1", part))
	got, ok, err := s.Name("docker.io/library/app:1")
	if err != nil || !ok || got.Descriptor.Digest != img.Digest || !got.Time.Equal(n.Time) || got.Origin != Built || got.Platform != n.Platform {
		t.Errorf("got %+v, %v, %v", got, ok, err)
	}
	if _, ok, err := s.Name("docker.io/library/none:1"); ok || err != nil {
		t.Errorf("a name that is not there: %v, %v", ok, err)
	}
	names, err := s.Names()
	must(t, err)
	if len(names) != 3 {
		t.Errorf("names: %v", names)
	}
	if l := listed(t, s); len(l) != 2 || l["docker.io/library/app:1"] != img.Digest || l["docker.io/library/app:1-linux/arm64"] != img.Digest {
		t.Errorf("index.json: %v", l)
	}

	second, err := putImage(s, []byte("three"))
	must(t, err)
	must(t, s.SetName("docker.io/library/app:1", Name{Descriptor: second, Origin: Built, Complete: true}))
	if l := listed(t, s); l["docker.io/library/app:1"] != second.Digest {
		t.Errorf("index.json: %v", l)
	}
	must(t, s.RemoveName("docker.io/library/app:1"))
	must(t, s.RemoveName("docker.io/library/app:1"))
	if l := listed(t, s); len(l) != 1 {
		t.Errorf("index.json: %v", l)
	}
	must(t, os.WriteFile(s.filePath(KindName, "docker.io/library/base:1"), []byte("rubbish"), 0o600))
	if _, ok, err := s.Name("docker.io/library/base:1"); ok || err != nil {
		t.Errorf("a damaged name: %v, %v", ok, err)
	}
	must(t, os.Remove(s.filePath(KindName, "docker.io/library/base:1")))
	if err := s.SetName("", n); err == nil {
		t.Error("an empty name was taken")
	}
}

func TestCompleteNamesLackNothing(t *testing.T) {
	s := openTest(t, Options{})
	for i, lack := range []string{"layer", "config", "manifest"} {
		img, err := putImage(s, []byte("base"), []byte(lack))
		must(t, err)
		var m ocispec.Manifest
		b, err := readBlob(s, img.Digest)
		must(t, err)
		must(t, json.Unmarshal(b, &m))
		missing := []digest.Digest{m.Layers[1].Digest, m.Config.Digest, img.Digest}[i]
		must(t, s.RemoveBlob(missing))
		err = s.SetName("x", Name{Descriptor: img, Origin: Built, Complete: true})
		var inc *IncompleteError
		if !errors.As(err, &inc) || inc.Missing != missing {
			t.Errorf("without the %s: %v", lack, err)
		}
	}
	if l := listed(t, s); len(l) != 0 {
		t.Errorf("index.json: %v", l)
	}
}

// Manifests come from registries and may say anything.
func TestHostileManifests(t *testing.T) {
	s := openTest(t, Options{})
	for _, raw := range []string{
		"", "[]", "null", "{", `{"layers":[{"digest":"sha256:../../../../etc/passwd","size":1}]}`,
		`{"config":{"digest":"","size":-1}}`, `{"manifests":[{"digest":"x"}]}`,
	} {
		d := mustBlob(t, s, []byte(raw))
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(raw))}
		err := s.SetName("x", Name{Descriptor: desc, Complete: true})
		if err == nil && raw != "null" {
			t.Errorf("%s was taken for a complete image", raw)
		}
	}
	must(t, s.RemoveName("x"))
}

func TestNamesAtOnce(t *testing.T) {
	s := openTest(t, Options{})
	img, err := putImage(s, []byte("x"))
	must(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 4 {
				if err := s.SetName("name-"+string(rune('a'+i)), Name{Descriptor: img, Origin: Built, Complete: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l := listed(t, s); len(l) != 8 {
		t.Errorf("index.json: %v", l)
	}
}

func TestSkopeoReadsTheStore(t *testing.T) {
	skopeo := testenv.Tool(t, "skopeo")
	s := openTest(t, Options{})
	img, err := putImage(s, []byte("not really a tar"))
	must(t, err)
	const ref = "registry.example.com:5000/team/app:1.0"
	must(t, s.SetName(ref, Name{Descriptor: img, Origin: Built, Complete: true}))
	must(t, s.Sync())
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, skopeo, "inspect", "--raw", "oci:"+s.Dir()+":"+ref).CombinedOutput()
	if err != nil || digest.FromBytes(out) != img.Digest && digest.FromString(strings.TrimSuffix(string(out), "\n")) != img.Digest {
		t.Errorf("skopeo: %v\n%s", err, out)
	}
}
