package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"

	"github.com/opencontainers/go-digest"

	"build/internal/tree"
)

// Inspector sees all of a layer in one pass, with no read of its own: every entry as the layer has it, and the content of every
// file, in pieces that it must not keep, after its entry.
type Inspector interface {
	Entry(e *tree.Entry)
	Content(b []byte)
	// Done comes last. Its error keeps a layer that is being written from being published.
	Done() error
}

// Inspect lets i see what is added from now on; nil means nobody.
func (w *Writer) Inspect(i Inspector) { w.inspect = i }

// Inspect lets i see the layer while Commit writes it.
func (u *Upper) Inspect(i Inspector) { u.inspect = i }

// Inspect lets i see the layer while Commit writes it.
func (t *PrivateTree) Inspect(i Inspector) { t.inspect = i }

// Inspect lets i see a layer that is here. Without a local blob the error is ErrNotHere.
func (l *Layers) Inspect(ctx context.Context, diffID digest.Digest, i Inspector) error {
	x, err := l.Index(ctx, diffID)
	if err != nil {
		return err
	}
	r, err := l.OpenTar(ctx, diffID)
	if err != nil {
		return err
	}
	defer r.Close()
	at := int64(0)
	buf := make([]byte, pipeBuffer)
	for e, err := range x.Subtree("") {
		if err != nil {
			return fmt.Errorf("inspect layer %s: %w", diffID, err)
		}
		i.Entry(&e)
		if e.Type != tree.File || e.Hardlink != "" || e.Size == 0 {
			continue
		}
		if e.Offset < at {
			return fmt.Errorf("inspect layer %s: /%s: %w", diffID, e.Path, tree.ErrCorrupt)
		}
		if _, err := io.CopyN(io.Discard, r, e.Offset-at); err != nil {
			return fmt.Errorf("inspect layer %s: /%s: %w", diffID, e.Path, err)
		}
		at = e.Offset
		for end := at + e.Size; at < end; {
			n, err := r.Read(buf[:min(int64(len(buf)), end-at)])
			i.Content(buf[:n])
			at += int64(n)
			if err != nil && (err != io.EOF || at < end) {
				return fmt.Errorf("inspect layer %s: /%s: %w", diffID, e.Path, err)
			}
		}
	}
	return i.Done()
}

// Remark returns what was noted of a layer under a name, nil if nothing was or it cannot be read. It lives as long as the other
// notes of the layer.
func (l *Layers) Remark(diffID digest.Digest, name string) json.RawMessage {
	m, err := l.meta(diffID)
	if err != nil {
		return nil
	}
	return m.Remarks[name]
}

// SetRemark changes what is noted of a layer under a name. The change is made under the layer's lock, so that none of several
// processes' is lost.
func (l *Layers) SetRemark(ctx context.Context, diffID digest.Digest, name string, change func(json.RawMessage) (json.RawMessage, error)) error {
	var failed error
	err := l.update(ctx, diffID, func(m *layerMeta) bool {
		var data json.RawMessage
		if data, failed = change(m.Remarks[name]); failed != nil {
			return false
		}
		m.Remarks = maps.Clone(m.Remarks)
		if m.Remarks == nil {
			m.Remarks = map[string]json.RawMessage{}
		}
		m.Remarks[name] = data
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("note about layer %s: %w", diffID, err)
	}
	return nil
}
