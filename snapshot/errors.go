package snapshot

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// ErrNotHere says that a layer has no blob in the store. Callers fetch it, or treat a cache hit as a miss.
var ErrNotHere = errors.New("the layer is not in the store")

// DigestError says that content is not what its digest promised.
type DigestError struct {
	What      string // which digest: "diffID", "blob"
	Want, Got digest.Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("the %s is %s, not %s as promised", e.What, e.Got, e.Want)
}

// KindDigest is the kind under which a DigestError crosses a process boundary.
const KindDigest = "snapshot.digest"

// Remote lets the error cross a process boundary.
func (e *DigestError) Remote() (string, any) { return KindDigest, e }
