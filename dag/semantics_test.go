package dag

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/parser"
)

// What the golden files cannot show of the statements in testdata/dockerfiles/S*.
func TestSemantics(t *testing.T) {
	// `ENTRYPOINT []` stores null, `CMD []` stores an empty list. The image's JSON omits both.
	t.Run("S59", func(t *testing.T) {
		f, err := parser.Parse("Dockerfile", []byte("FROM scratch\nENTRYPOINT []\nCMD []\n"), parser.Options{})
		if err != nil {
			t.Fatal(err)
		}
		g, _, err := Lower(f, Options{BuildPlatform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}, nil)
		if err != nil || g == nil {
			t.Fatalf("%v %v", g, err)
		}
		if c := g.Config.Config; c.Entrypoint != nil {
			t.Errorf("ENTRYPOINT [] is %#v", c.Entrypoint)
		} else if c.Cmd == nil || len(c.Cmd) != 0 {
			t.Errorf("CMD [] is %#v", c.Cmd)
		}
	})
}
