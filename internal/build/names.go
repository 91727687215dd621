package build

import (
	"fmt"
	"runtime"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"build/internal/reference"
)

// normalizeName gives a name its full form: docker.io/library/debian:latest.
func normalizeName(name string) (string, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return "", &UsageError{Msg: fmt.Sprintf("%q is not an image name: %v", name, err), Hint: "a name looks like user/app:tag or registry.example:5000/app"}
	}
	return ref.Tagged().String(), nil
}

// familiar is the short form users type and read.
func familiar(name string) string {
	ref, err := reference.Parse(name)
	if err != nil {
		return name
	}
	return ref.Familiar()
}

func hostPlatform() ocispec.Platform {
	return platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH})
}

func platformString(p ocispec.Platform) string { return platforms.FormatAll(platforms.Normalize(p)) }

// runsHere reports whether programs of a platform can be executed by this kernel without an emulator.
func runsHere(p ocispec.Platform) bool {
	if p.OS == "" && p.Architecture == "" {
		return true
	}
	if host := hostPlatform(); host.Architecture == "amd64" {
		// The compatibility levels v2 to v4 differ in optional instructions; a program that checks for them runs anywhere.
		p.Variant = ""
	}
	return platforms.Only(hostPlatform()).Match(p)
}
