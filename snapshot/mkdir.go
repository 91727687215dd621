package snapshot

import (
	"context"
	"time"

	"build/internal/tree"
)

// Mkdir writes the layer of a WORKDIR: path and every parent that is missing in base, with mode 0755 and owner o. What
// is there already stays as it is; if nothing is missing the layer is empty. Symlinks are followed inside the root.
func Mkdir(ctx context.Context, base *tree.Chain, path string, o Owner, now time.Time, w *Writer) error {
	p, err := newPlan(base, &CopySpec{Owner: &o, Now: now})
	if err != nil {
		return err
	}
	if _, err := p.mkdirAll(path); err != nil {
		return err
	}
	return p.write(ctx, w)
}
